"""Which photos to match with which, and between which depths to look."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from recon.priors.matching import Photo, in_frame, neighbour, normalised, sample
from splat.cameras import nearest_to_axes
from splat.points import PointCloud

log = logging.getLogger(__name__)

BEST_ANGLE_DEG = 12.0  # narrower triangulates badly, wider looks too different
NARROW_DEG, WIDE_DEG = 6.0, 25.0  # how fast the preference falls on either side
MAX_ANGLE_DEG = 75.0  # beyond, windows do not match any more
WORTH_KEEPING = 0.25  # a neighbour this much worse than the best one only adds noise
MARGIN = 1.25  # beyond the nearest and farthest known point
FEW_POINTS = 20  # fewer sparse points in view than this say nothing about the range


def depth_range(photo: Photo, others: list[Photo], points: PointCloud | None) -> tuple[float, float]:
    """(near, far) in world units: from the sparse points in view, else from where the cameras look."""
    if points is not None and len(points):
        pixels, depth = photo.camera.project(points.xyz.to(photo.gray))
        inside = _inside(pixels[0], depth[0], photo)
        if inside.sum() >= FEW_POINTS:
            seen = depth[0][inside]
            # One point in fifty may be wrong at either end.
            near, far = torch.quantile(seen, torch.tensor([0.02, 0.98], device=seen.device)).tolist()
            return near / MARGIN**2, far * MARGIN**2
    centres = torch.cat([p.camera.centers for p in [photo, *others]]).double()
    axes = torch.cat([p.camera.forward for p in [photo, *others]]).double()
    spread = float((centres - centres[0]).norm(dim=1).max())
    if spread < 1e-9:  # one viewpoint: no depth can be seen, any range does
        return 0.5, 50.0
    focus = _focus(centres, axes)
    if focus is None:  # cameras side by side, or looking outwards
        return 0.5 * spread, 50 * spread
    distance = float(((focus - centres[0]) * axes[0]).sum())
    distance = distance if distance > 0 else float((focus - centres[0]).norm())
    return 0.3 * distance, 3 * distance


def _focus(centres: Tensor, axes: Tensor) -> Tensor | None:
    """The point nearest to all optical axes in the least-squares sense; None where they do not meet in front.

    That is, when the axes are within about two degrees of parallel, or the point is behind one camera in five.
    """
    parallel = torch.linalg.eigvalsh((axes.T @ axes / len(axes)).cpu())[-1]  # 1 where all axes are
    if 1 - float(parallel) < 0.03**2:
        return None
    focus = nearest_to_axes(centres.cpu(), axes.cpu(), torch.zeros(3, dtype=centres.dtype), pull=0.0).to(centres)
    ahead = ((focus - centres) * axes).sum(1) > 0
    return focus if float(ahead.float().mean()) > 0.8 else None


def _inside(pixels: Tensor, depth: Tensor, photo: Photo) -> Tensor:
    height, width = photo.gray.shape
    x, y = pixels.unbind(-1)
    return (depth > 1e-6) & (x >= 0) & (x < width) & (y >= 0) & (y < height)


def choose_neighbours(
    index: int, photos: list[Photo], points: PointCloud | None, span: tuple[float, float], count: int
) -> list[int]:
    """The `count` photos that see most of what photo `index` sees, under useful angles; fewer when fewer do."""
    reference = photos[index]
    probes = _probes(reference, points, span)  # [P, 3]
    centre = reference.camera.centers[0]
    to_reference = torch.nn.functional.normalize(centre - probes, dim=-1)
    scores = []
    for j, photo in enumerate(photos):
        if j == index:
            continue
        pixels, depth = photo.camera.project(probes)
        inside = _inside(pixels[0], depth[0], photo)
        if photo.mask is not None:
            inside &= sample(photo.mask, normalised(pixels[0], *photo.gray.shape[::-1])) > 0.5
        to_other = torch.nn.functional.normalize(photo.camera.centers[0] - probes, dim=-1)
        angle = torch.rad2deg((to_reference * to_other).sum(-1).clamp(-1, 1).acos())
        softness = torch.where(angle < BEST_ANGLE_DEG, NARROW_DEG, WIDE_DEG)
        weight = torch.exp(-0.5 * ((angle - BEST_ANGLE_DEG) / softness) ** 2) * (angle < MAX_ANGLE_DEG)
        scores.append((float((weight * inside).mean()), j))
    scores.sort(key=lambda row: (-row[0], row[1]))
    least = max(1e-3, WORTH_KEEPING * scores[0][0]) if scores else 0.0
    return [j for score, j in scores[:count] if score > least]


def _probes(photo: Photo, points: PointCloud | None, span: tuple[float, float]) -> Tensor:
    """[P, 3] world points that the photo may see: sparse points, else a grid of pixels at three depths."""
    if points is not None and len(points):
        xyz = points.xyz.to(photo.gray)
        pixels, depth = photo.camera.project(xyz)
        inside = _inside(pixels[0], depth[0], photo)
        if inside.sum() >= FEW_POINTS:
            return xyz[inside]
    height, width = photo.gray.shape
    v, u = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    pixels = torch.stack([u.flatten() * width / 8, v.flatten() * height / 8], dim=-1).to(photo.gray)
    if photo.mask is not None:
        ys, xs = torch.nonzero(photo.mask > 0.5, as_tuple=True)
        if len(ys) >= 64:
            picked = torch.linspace(0, len(ys) - 1, 64, device=ys.device).long()
            pixels = torch.stack([xs[picked] + 0.5, ys[picked] + 0.5], dim=-1)
    near, far = span
    depths = near * (far / near) ** torch.tensor([0.25, 0.5, 0.75], device=pixels.device)
    return photo.camera.unproject(pixels, depths[:, None]).reshape(-1, 3)


def hull_bounds(photo: Photo, others: list[Photo], span: tuple[float, float], samples: int = 64) -> tuple[Tensor, Tensor]:
    """Inverse depth (low, high) [H, W] of the photo's pixels that the silhouettes of the others allow.

    A point outside another photo's silhouette, though inside its frame, is not on the subject; nor is one that fewer
    than a third of the photos have in their frame: it hides beyond the cameras. Where nothing is allowed, low > high.
    Without masks there is no bound. Gaps between allowed stretches are not kept. Found on every second pixel and
    widened by one, since silhouettes are known to a pixel at best.
    """
    height, width = photo.gray.shape
    far, near = 1 / span[1], 1 / span[0]
    masked = [other for other in others if other.mask is not None]
    if not masked:
        return torch.full_like(photo.gray, far), torch.full_like(photo.gray, near)
    v, u = torch.meshgrid(
        torch.arange(0, height, 2, device=photo.gray.device) + 0.5,
        torch.arange(0, width, 2, device=photo.gray.device) + 0.5,
        indexing="ij",
    )
    subject = torch.ones_like(u, dtype=torch.bool) if photo.mask is None else photo.mask[::2, ::2] > 0.05
    pixels = torch.stack([u, v], dim=-1)[subject]  # [P, 2]
    inverse = torch.linspace(far, near, samples, device=pixels.device)
    allowed = torch.ones((samples, len(pixels)), dtype=torch.bool, device=pixels.device)
    seen = torch.zeros(allowed.shape, dtype=torch.int16, device=pixels.device)
    for other in masked:
        link = neighbour(photo, other)
        places = link.warp(link.base(pixels), inverse[:, None])
        grown = torch.nn.functional.max_pool2d(other.mask[None, None], 3, stride=1, padding=1)[0, 0]
        inside = in_frame(places)
        allowed &= ~inside | (sample(grown, places) > 0.5)
        seen += inside
    allowed &= seen >= -(-len(masked) // 3)
    step = float(inverse[1] - inverse[0])
    lowest = torch.where(allowed, inverse[:, None], torch.inf).amin(0) - step
    highest = torch.where(allowed, inverse[:, None], -torch.inf).amax(0) + step

    def full_size(values: Tensor) -> Tensor:  # the largest of the pixels around
        sparse = torch.full(subject.shape, -torch.inf, device=values.device)
        sparse[subject] = values
        wide = torch.nn.functional.max_pool2d(sparse[None, None], 3, stride=1, padding=1)
        return torch.nn.functional.interpolate(wide, (height, width), mode="nearest")[0, 0]

    return (-full_size(-lowest)).clamp_min(far), full_size(highest).clamp_max(near)
