"""Points for what no stereo pair could place: the parts of a photo that would otherwise start as holes.

A hole costs more than a guess: nothing is there for the fit to move, and the background shows through. Each photo's empty
cells get points on the surface that continues its own depth map, at low confidence and as large as the cells are wide. A
guess that would stand between another photo and what that photo sees is moved away along its ray until it does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon.priors import DepthMap
from splat.cameras import Cameras
from splat.points import PointCloud
from splat.views import Views


@dataclass(frozen=True)
class CompleteConfig:
    """How holes are filled."""

    cell: int = 8  # px of the fitted photo; a cell without a point is a hole
    max_cells: int = 3000  # in one photo; cells of large photos are larger, as the work grows with the square of their number
    per_cell: int = 2  # new points along each side of an empty cell
    in_front: float = 0.9  # a guess nearer than this share of another photo's known depth stands in its way
    farther: float = 1.25  # such a guess is moved to so many times its depth ...
    moves: int = 6  # ... at most so often; then it is dropped
    least_pixels: int = 3  # of a depth map, that say how deep a cell is
    confidence: float = 0.05  # of a guess
    min_known: float = 0.02  # share of cells with a depth that a photo needs before it is extrapolated


def complete(
    views: list[Views], cloud: PointCloud, depth_maps: list[DepthMap], config: CompleteConfig | None = None
) -> PointCloud:
    """The points (possibly none) that fill the holes of `cloud` as `views` see it; same world. Masked views need no filling.

    `depth_maps`, cleaned, one per placed view in order, say what surfaces to continue. Photos are filled one after another,
    each seeing what those before it added, so that guesses do not pile up. Deterministic; not differentiable.
    """
    config = config or CompleteConfig()
    placed = [(v, i) for v in views if v.cameras is not None for i in range(len(v))]
    assert [v.names[i] for v, i in placed] == [m.name for m in depth_maps], "one depth map per placed view"
    open_views = [(v, i, m) for (v, i), m in zip(placed, depth_maps) if v.masks is None]
    added = _nothing(cloud)
    if not open_views:
        return added
    area = max(v.size[0] * v.size[1] for v, _, _ in open_views)
    config = replace(config, cell=max(config.cell, math.ceil(math.sqrt(area / config.max_cells))))
    known = [_median_of_cells(_cells(v.cameras[i], config.cell), m.depth, config.least_pixels) for v, i, m in open_views]
    seers = [(v.cameras[i], depth) for (v, i, _), depth in zip(open_views, known)]
    for (view, i, _), own in zip(open_views, known):
        seen = _nearest_of_cells(view.cameras[i], torch.cat([cloud.xyz, added.xyz]), config.cell)
        if float(own.isfinite().float().mean()) < config.min_known or bool(seen.isfinite().all()):
            continue
        guess = _lifted(view, i, _continued(own), ~seen.isfinite(), config)
        added = PointCloud.cat([added, _out_of_the_way(guess, view.cameras[i].centers[0], seers, config)])
    return added


def _out_of_the_way(guess: PointCloud, eye: Tensor, seers: list[tuple[Cameras, Tensor]], config: CompleteConfig) -> PointCloud:
    """Guesses of the photo taken at `eye` [3], moved outwards until no other photo looks through them."""
    xyz, radius = guess.xyz.clone(), guess.radius.clone()
    wrong = _stand_in_front(xyz, seers, config)
    for _ in range(config.moves):
        xyz[wrong] = eye + (xyz[wrong] - eye) * config.farther
        radius[wrong] *= config.farther
        still = wrong.clone()
        still[wrong] = _stand_in_front(xyz[wrong], seers, config)
        wrong = still
    return replace(guess, xyz=xyz, radius=radius)[~wrong]


def _nothing(cloud: PointCloud) -> PointCloud:
    return PointCloud(cloud.xyz[:0], cloud.rgb[:0], cloud.confidence[:0], cloud.xyz.new_zeros(0))


def _cells(camera: Cameras, cell: int) -> Cameras:
    """The camera with one pixel per cell."""
    return camera.resized(max(camera.width // cell, 1), max(camera.height // cell, 1))


def _median_of_cells(small: Cameras, depth: Tensor, least: int) -> Tensor:
    """[h, w] median of a depth map's known pixels in each cell of `small`, infinite where there are fewer than `least`."""
    height, width = depth.shape
    row = torch.arange(height) * small.height // height
    column = torch.arange(width) * small.width // width
    cell = (row[:, None] * small.width + column).flatten()
    known = depth.flatten() > 0
    cell, value = cell[known], depth.flatten()[known]
    by_value = value.argsort()
    order = by_value[cell[by_value].argsort(stable=True)]  # by cell, then by depth
    count = torch.bincount(cell, minlength=small.height * small.width)
    first = count.cumsum(0) - count
    flat = torch.full((len(count),), torch.inf)
    enough = count >= least
    flat[enough] = value[order[first[enough] + count[enough] // 2]]
    return flat.view(small.height, small.width)


def _nearest_of_cells(camera: Cameras, xyz: Tensor, cell: int) -> Tensor:
    """[h, w] depth of the nearest point in each cell, infinite where there is none."""
    small = _cells(camera, cell)
    pixels, depth = (x[0] for x in small.project(xyz))
    at = pixels.floor().long()
    inside = (depth > 0) & (at >= 0).all(-1) & (at[:, 0] < small.width) & (at[:, 1] < small.height)
    flat = torch.full((small.height * small.width,), torch.inf)
    flat.scatter_reduce_(0, (at[:, 1] * small.width + at[:, 0])[inside], depth[inside], "amin")
    return flat.view(small.height, small.width)


def _continued(depth: Tensor) -> Tensor:
    """[h, w] with infinities -> finite everywhere: at each empty cell, a plane through the known cells nearby.

    Inverse depth is linear in the image on a plane in space, so a moving least-squares plane of it continues floors and
    walls exactly. Slopes are damped a little and
    the result stays within a quarter to three times the photo's own range.
    """
    h, w = depth.shape
    y, x = torch.meshgrid(torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij")
    at = torch.stack([x.flatten(), y.flatten()], -1)  # [h w, 2]
    there = depth.flatten().isfinite()
    inverse = 1 / depth.flatten()[there].double()
    known, wanted = at[there], at[~there]
    distance = torch.cdist(wanted, known)
    reach = 1.5 * distance.amin(1, keepdim=True) + 3  # cells; farther holes listen to a wider neighbourhood
    weight = torch.exp(-0.5 * (distance / reach).square())
    offset = known[None] - wanted[:, None]  # [U, K, 2]
    design = torch.cat([torch.ones_like(offset[..., :1]), offset / reach[..., None]], -1)  # [U, K, 3]
    left = torch.einsum("uk,uki,ukj->uij", weight, design, design)
    left[:, 1, 1] += 0.001 * weight.sum(1)
    left[:, 2, 2] += 0.001 * weight.sum(1)
    right = torch.einsum("uk,uki,k->ui", weight, design, inverse)
    value = torch.linalg.solve(left + 1e-9 * torch.eye(3, dtype=torch.float64), right[..., None])[:, 0, 0]
    low, high = torch.quantile(inverse, torch.tensor([0.02, 0.98], dtype=torch.float64))
    out = depth.flatten().double().clone()
    out[~there] = 1 / value.clamp(0.25 * low, 3 * high)
    return out.view(h, w).to(depth.dtype)


def _lifted(view: Views, i: int, depth: Tensor, empty: Tensor, config: CompleteConfig) -> PointCloud:
    """Points on a finer grid of the empty cells of one photo."""
    k = config.per_cell
    fine = _cells(view.cameras[i], config.cell)
    fine = fine.resized(fine.width * k, fine.height * k)
    depth = torch.nn.functional.interpolate(depth[None, None], (fine.height, fine.width), mode="bilinear", align_corners=False)[
        0, 0
    ]
    colour = view[[i]].resized(fine.width, fine.height).images[0]
    y, x = empty.repeat_interleave(k, 0).repeat_interleave(k, 1).nonzero().unbind(-1)
    z = depth[y, x]
    xyz = fine.unproject(fine.pixel_centers[y, x], z)[0]
    confidence = torch.full_like(z, config.confidence)
    return PointCloud(xyz, colour[y, x], confidence, z / fine.K[0, 0, 0])  # one fine pixel is the footprint


def _stand_in_front(xyz: Tensor, seers: list[tuple[Cameras, Tensor]], config: CompleteConfig) -> Tensor:
    """[N] whether a point hides what some photo is known to see."""
    hides = torch.zeros(len(xyz), dtype=torch.bool)
    for camera, known in seers:
        small = _cells(camera, config.cell)
        pixels, depth = (x[0] for x in small.project(xyz))
        at = pixels.floor().long()
        inside = (depth > 0) & (at >= 0).all(-1) & (at[:, 0] < small.width) & (at[:, 1] < small.height)
        at = torch.where(inside[:, None], at, torch.zeros_like(at))
        limit = config.in_front * known[at[:, 1], at[:, 0]]
        hides |= inside & limit.isfinite() & (depth < limit)
    return hides
