"""Surface normals from depth, and how far they are from others."""

from __future__ import annotations

import torch
from torch import Tensor

from splat.cameras import Cameras

STEP = 0.05  # relative difference of depth between neighbours above which they lie on different surfaces


def normals_from_depth(depth: Tensor, camera: Cameras) -> tuple[Tensor, Tensor]:
    """Depth [H, W] of one camera -> unit normals [H, W, 3] in its frame, towards it, and whether they are known [H, W].

    Cross product of central differences of the unprojected points. Unknown are pixels at the border, next to an unknown depth
    (<= 0) or next to an edge; their normals mean nothing. Differentiable in `depth`.
    """
    assert len(camera) == 1 and depth.shape == (camera.height, camera.width), (len(camera), depth.shape)
    K, at = camera.K[0], camera.pixel_centers
    y = (at[..., 1] - K[1, 2]) / K[1, 1]
    x = (at[..., 0] - K[0, 2] - K[0, 1] * y) / K[0, 0]
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1) * depth[..., None]  # [H, W, 3]
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    inner = torch.nn.functional.normalize(torch.linalg.cross(down, across), dim=-1, eps=1e-20)
    normals = torch.nn.functional.pad(inner, (0, 0, 1, 1, 1, 1))
    return normals, _smooth(depth.detach())


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
