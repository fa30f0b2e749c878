"""The surface of one photo as planes: inverse depth and its slope at each pixel; carrying planes to other photos.

The inverse depth of a plane in space is an affine function of pixel coordinates, so a slope holds a plane exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from splat.cameras import Cameras

GRAZING = 0.12  # cosine of surface normal and ray below which a plane between known pixels is taken for a depth edge


@dataclass(frozen=True)
class Surface:
    """A plane per pixel of an [h, w] grid."""

    inverse: Tensor  # [h, w] inverse depth at the pixel centre, 1 / world units
    slope: Tensor  # [h, w, 2] its change per grid pixel along u and v
    cost: Tensor  # [h, w] 1 - ZNCC in [0, 1]
    distinct: Tensor  # [h, w] in [0, 1]: how far the second-best depth of the sweep stays behind
    valid: Tensor  # [h, w] has a plane
    low: Tensor  # [h, w] bounds of inverse depth
    high: Tensor

    def depth(self) -> Tensor:
        """[h, w] world units; 0 where invalid."""
        return torch.where(self.valid, 1 / self.inverse.clamp_min(1e-12), 0.0)

    def confidence(self) -> Tensor:
        """[h, w]: a ZNCC of 0.4 is chance, 0.9 is sure; an ambiguous sweep halves it."""
        match = ((0.6 - self.cost) / 0.5).clamp(0, 1)
        return torch.where(self.valid, match * (0.5 + 0.5 * self.distinct), 0.0)


def pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """[H, W, 2] pixel centres (u, v)."""
    v, u = torch.meshgrid(torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij")
    return torch.stack([u, v], dim=-1)


def fitted_slopes(inverse: Tensor, valid: Tensor) -> Tensor:
    """[h, w, 2] slopes of inverse depth [h, w]: least-squares planes through 5 x 5 windows of valid pixels."""
    line = torch.arange(-2.0, 3.0, device=inverse.device)
    kernels = torch.stack([torch.ones(5, 5, device=inverse.device), line.expand(5, 5), line[:, None].expand(5, 5)])
    kernels = torch.cat([kernels, kernels[1:] ** 2, kernels[1:2] * kernels[2:]])[:, None]  # 1, x, y, x^2, y^2, x y
    middle = inverse[valid].mean() if valid.any() else 0.0  # small numbers keep their digits
    weight = valid.float()[None, None]
    values = torch.where(valid, inverse - middle, 0.0)[None, None]
    total, x, y, xx, yy, xy = torch.nn.functional.conv2d(weight, kernels, padding=2)[0]
    mean, xv, yv = torch.nn.functional.conv2d(values, kernels[:3], padding=2)[0]
    total = total.clamp_min(1)
    xx, yy, xy = xx - x * x / total, yy - y * y / total, xy - x * y / total
    xv, yv = xv - x * mean / total, yv - y * mean / total
    determinant = xx * yy - xy * xy
    slope = torch.stack([yy * xv - xy * yv, xx * yv - xy * xv], dim=-1) / determinant.clamp_min(1e-3)[..., None]
    return torch.where((determinant > 0.5)[..., None], slope, 0.0)  # fewer pixels than a plane needs: fronto-parallel


def _coefficients(inverse: Tensor, slope: Tensor, pixels: Tensor) -> Tensor:
    """[P, 3] (a, b, c) with inverse depth = a u + b v + c, from values at `pixels` [P, 2]."""
    return torch.cat([slope, (inverse - (slope * pixels).sum(-1))[:, None]], dim=-1)


def carried(source: Surface, source_camera: Cameras, keep: Tensor, camera: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """The planes of `source` at the pixels `keep` [h, w] as another photo sees them, nearest first.

    Returns inverse depth [H, W], slope [H, W, 2] and where there is one [H, W], on the grid of `camera` (both batches
    of one). Plane n . X = 1: in pixels inverse depth is n^T K^-1 (u, v, 1), so (a, b, c) = K^-T n.
    """
    height, width = camera.height, camera.width
    device = source.inverse.device
    inverse, slope = torch.zeros(height, width, device=device), torch.zeros(height, width, 2, device=device)
    pixels = pixel_grid(*keep.shape, device)[keep]
    planes = _coefficients(source.inverse[keep], source.slope[keep], pixels).double()
    K, K_to = source_camera.K[0].double(), camera.K[0].double()
    relative = source_camera.cam_from_world[0].double() @ torch.linalg.inv(camera.cam_from_world[0].double())
    normals = planes @ K  # rows n^T = (a, b, c) K
    rest = 1 - normals @ relative[:3, 3]
    planes = (normals @ relative[:3, :3] / rest[:, None] @ torch.linalg.inv(K_to)).float()
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1).double()
    in_source = homogeneous @ torch.linalg.inv(K).T / source.inverse[keep].double()[:, None]
    in_target = (in_source - relative[:3, 3]) @ relative[:3, :3]
    depth = in_target[:, 2]
    places = (in_target @ K_to.T)[:, :2] / depth.clamp_min(1e-9)[:, None]
    x, y = places.floor().long().unbind(-1)
    seen = (depth > 1e-6) & (rest > 1e-6) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y, planes, depth = x[seen], y[seen], planes[seen], depth[seen]
    order = torch.argsort(depth, descending=True, stable=True)  # the nearest is written last
    cell = (y * width + x)[order]
    last = torch.full((height * width,), -1, device=device).scatter_reduce(
        0, cell, torch.arange(len(cell), device=device), "amax"
    )
    there = (last >= 0).reshape(height, width)
    chosen = planes[order[last[last >= 0]]]
    centre = pixel_grid(height, width, device)[there]
    inverse[there] = (chosen[:, :2] * centre).sum(-1) + chosen[:, 2]
    slope[there] = chosen[:, :2]
    return inverse, slope, there


def spanned(surface: Surface, sure: Tensor, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Planes through triangles of the pixels `sure` [h, w]: a guess for the textureless pixels between them.

    Returns inverse depth, slope and where there is one, as `carried`. Triangles that the viewing ray only grazes are
    left out: they join a near surface to a far one. The planar prior of ACMP (Xu and Tao, 2020).
    """
    import cv2
    from scipy.spatial import Delaunay, QhullError

    inverse, slope = torch.zeros_like(surface.inverse), torch.zeros_like(surface.slope)
    there = torch.zeros_like(surface.valid)
    height, width = sure.shape
    pixels = pixel_grid(height, width, sure.device)
    corner = sure & _best_of_cell(torch.where(sure, surface.confidence(), -1.0), 4)
    corners = pixels[corner].cpu().double().numpy()
    if len(corners) < 3:
        return inverse, slope, there
    try:
        triangles = Delaunay(corners).simplices
    except QhullError:  # all on one line
        return inverse, slope, there
    # The triangle of each pixel is painted: scipy's find_simplex takes a second where this takes milliseconds.
    label = np.full((height, width), -1, dtype=np.int32)
    for index, triangle in enumerate(np.round(corners - 0.5).astype(np.int32)[triangles]):
        cv2.fillConvexPoly(label, triangle, index)
    wanted = surface.valid & ~sure & torch.from_numpy(label >= 0).to(sure.device)
    here = pixels[wanted].cpu().double().numpy()
    at = triangles[label[wanted.cpu().numpy()]]  # [T, 3]
    values = surface.inverse[corner].cpu().double().numpy()
    p, w = corners[at], values[at]  # [T, 3, 2], [T, 3]
    e1, e2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
    d1, d2 = w[:, 1] - w[:, 0], w[:, 2] - w[:, 0]
    area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    a = (d1 * e2[:, 1] - d2 * e1[:, 1]) / area
    b = (d2 * e1[:, 0] - d1 * e2[:, 0]) / area
    value = w[:, 0] + a * (here[:, 0] - p[:, 0, 0]) + b * (here[:, 1] - p[:, 0, 1])
    normal = np.stack([a, b, value - a * here[:, 0] - b * here[:, 1]], axis=1) @ K.cpu().double().numpy()
    ray = np.concatenate([here, np.ones((len(here), 1))], axis=1) @ np.linalg.inv(K.cpu().double().numpy()).T
    cosine = np.abs((normal * ray).sum(1)) / (np.linalg.norm(normal, axis=1) * np.linalg.norm(ray, axis=1))
    facing = (cosine > GRAZING) & (value > 0)
    index = torch.nonzero(wanted.flatten())[:, 0][torch.from_numpy(facing).to(sure.device)]
    inverse.view(-1)[index] = torch.from_numpy(value[facing]).to(inverse)
    slope.view(-1, 2)[index] = torch.from_numpy(np.stack([a, b], axis=1)[facing]).to(slope)
    there.view(-1)[index] = True
    return inverse, slope, there


def _best_of_cell(score: Tensor, size: int) -> Tensor:
    """[H, W] the highest score of each size x size cell: one corner there is enough."""
    height, width = score.shape
    padded = torch.nn.functional.pad(score, (0, -width % size, 0, -height % size), value=-2.0)
    _, index = torch.nn.functional.max_pool2d(padded[None, None], size, return_indices=True)
    best = torch.zeros(padded.numel(), dtype=torch.bool, device=score.device)
    best[index.flatten()] = True
    return best.reshape(padded.shape)[:height, :width]
