"""Surface normals from depth, and how far they are from others."""

from __future__ import annotations

import torch
from torch import Tensor

from splat.cameras import Cameras

STEP = 0.05  # relative difference of depth between neighbours above which they lie on different surfaces


def normals_from_depth(depth: Tensor, camera: Cameras) -> tuple[Tensor, Tensor]:
    """Depth [H, W] of one camera -> unit normals [H, W, 3] in its frame, towards it, and whether they are known [H, W].

    Inverse depth is linear in the pixels of a plane, so its central differences give the normal of a plane exactly. Unknown are
    pixels at the border, next to an unknown depth (<= 0) or next to an edge; their normals mean nothing. Differentiable in
    `depth`.
    """
    assert len(camera) == 1 and depth.shape == (camera.height, camera.width), (len(camera), depth.shape)
    K = camera.K[0].tolist()
    (fx, skew, cx), (_, fy, cy) = K[0], K[1]
    v = (torch.arange(1, camera.height - 1, device=depth.device).to(depth) + (0.5 - cy)) / fy
    u = (torch.arange(1, camera.width - 1, device=depth.device).to(depth) + (0.5 - cx)) / fx
    y, x = v[:, None], u - (skew / fx) * v[:, None]
    known = depth > 0
    inverse = 1 / torch.where(known, depth, 1.0)
    a = (0.5 * fx) * (inverse[1:-1, 2:] - inverse[1:-1, :-2])  # n . (x, y, 1) is proportional to inverse depth
    b = (0.5 * fy) * (inverse[2:, 1:-1] - inverse[:-2, 1:-1]) + (skew / fx) * a
    c = inverse[1:-1, 1:-1] - x * a - y * b
    norm = (a * a + b * b + c * c + 1e-30).rsqrt()
    inner = torch.stack([-a * norm, -b * norm, -c * norm], dim=-1)
    return torch.nn.functional.pad(inner, (0, 0, 1, 1, 1, 1)), _smooth(depth.detach())


def _smooth(depth: Tensor) -> Tensor:
    """[H, W] whether a pixel and its four neighbours are known and on one surface."""
    centre = depth[1:-1, 1:-1]
    around = torch.stack([depth[1:-1, 2:], depth[1:-1, :-2], depth[2:, 1:-1], depth[:-2, 1:-1]])
    near = (around > 0) & ((around - centre).abs() <= STEP * centre)
    return torch.nn.functional.pad(near.all(0) & (centre > 0), (1, 1, 1, 1))


def normal_loss(normals: Tensor, prior: Tensor, known: Tensor) -> Tensor:
    """Unit normals [H, W, 3] and known [H, W] -> mean over all pixels of |n - m|_1 + (1 - n . m) where known, 0 elsewhere.

    LM-Gaussian's two normal terms at equal weights; both are least where the normals agree.
    """
    apart = (normals - prior).abs().sum(-1) + 1 - (normals * prior).sum(-1)
    return (apart * known).mean()
