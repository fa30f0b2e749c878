"""The built-in stereo prior: plane sweep, then slanted-plane refinement. Needs placed photos and no weights.

For each photo: neighbours by angle and overlap; fronto-parallel planes at even steps of inverse depth, compared by ZNCC
and smoothed by semi-global matching at half size; then PatchMatch over slanted planes (Bleyer et al., "PatchMatch
Stereo", 2011) at full working size, because neighbours far apart see a window of a slanted surface differently; at
last, agreement between the depth maps. Silhouettes, where given, bound the depth and keep the background out.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon.consistency import Posed, agreement
from recon.priors import DepthMap
from recon.priors.matching import (
    NOISE_VARIANCE,
    Neighbour,
    Photo,
    best_mean,
    in_frame,
    neighbour,
    normalised,
    sample,
    window_sum,
)
from recon.priors.neighbours import choose_neighbours, depth_range, hull_bounds
from recon.priors.semi_global import aggregate
from splat.errors import InputError
from splat.points import PointCloud
from splat.progress import Progress
from splat.views import Views

log = logging.getLogger(__name__)

REJECTED = 2.0  # the cost of an inverse depth that the silhouettes forbid; ZNCC costs lie in [0, 1]


@dataclass(frozen=True)
class PlaneSweepConfig:
    """Settings of the built-in stereo prior."""

    max_side: int = 400  # px, long side at which photos are matched; depth maps come at half of it
    neighbours: int = 4  # photos that each photo is matched with
    best: int = 2  # of these, how many must match: the others may be hidden
    planes: int = 128  # most planes of the first sweep
    window: int = 5  # px of the half-size photo, odd
    small_step: float = 0.03  # semi-global price of a step by one plane, in units of ZNCC
    large_step: float = 0.25  # semi-global price of a jump
    rounds: int = 3  # PatchMatch rounds
    patch: int = 5  # PatchMatch samples per side, odd
    patch_stride: float = 1.5  # px between samples
    tolerance: float = 0.01  # two depths agree when they differ by less than this share
    seed: int = 0


def estimate_depths(
    views: list[Views], points: PointCloud | None, config: PlaneSweepConfig | None = None, device: torch.device | str = "cpu"
) -> Generator[Progress, None, list[DepthMap]]:
    """Depth maps of placed views, in the order of `views`, at half the working size; yields `Progress`, returns the list.

    `points` (sparse, same world) bound the depths; without them the cameras do. Confidence combines the match, its
    uniqueness, and how many other maps agree; a photo without a useful neighbour gets an empty map. Raises `InputError`
    when fewer than two views have cameras. Deterministic under `config.seed`; not differentiable.
    """
    config = config or PlaneSweepConfig()
    photos, names = _photos(views, config.max_side, torch.device(device))
    if len(photos) < 2:
        raise InputError(f"stereo needs at least 2 placed photos, got {len(photos)}; add photos of the same subject.")
    halves = [_half(p) for p in photos]
    surfaces: list[_Surface] = []
    for i, photo in enumerate(photos):
        others = [p for j, p in enumerate(photos) if j != i]
        span = depth_range(photo, others, points)
        chosen = choose_neighbours(i, photos, points, span, config.neighbours)
        yield Progress("prior", i, len(photos), f"{names[i]} against {len(chosen)} neighbours")
        if not chosen:
            log.warning("no photo overlaps %s enough for stereo", names[i])
        surfaces.append(_match(i, photos, halves, chosen, span, config))
    posed = [Posed(DepthMap(n, s.depth(), s.confidence()), h.camera) for n, s, h in zip(names, surfaces, halves)]
    maps = []
    for i, own in enumerate(posed):
        support = agreement(i, posed, config.tolerance).support
        maps.append(replace(own.map, confidence=own.map.confidence * _trust(support, len(posed))))
    yield Progress("prior", len(photos), len(photos), f"depth for {len(photos)} photos")
    return maps


def _trust(support: Tensor, views: int) -> Tensor:
    """Share of the confidence that a point keeps, by how many other views agree with it."""
    table = torch.tensor([0.4, 0.85, 1.0], device=support.device)
    return table[support.long().clamp_max(2)]


def _photos(views: list[Views], max_side: int, device: torch.device) -> tuple[list[Photo], list[str]]:
    photos, names = [], []
    for batch in views:
        if batch.cameras is None:
            continue
        width, height = batch.size
        scale = min(1.0, max_side / max(width, height))
        w, h = max(8, round(width * scale)), max(8, round(height * scale))
        cameras = batch.cameras.to(device).resized(w, h)
        for i, name in enumerate(batch.names):
            gray = batch.images[i].to(device) @ torch.tensor([0.299, 0.587, 0.114], device=device)
            mask = None if batch.masks is None else _resized(batch.masks[i].to(device), w, h)
            photos.append(Photo(_resized(gray, w, h), mask, cameras[i]))
            names.append(name)
    return photos, names


def _resized(image: Tensor, width: int, height: int) -> Tensor:
    """Area average of [H, W]."""
    return torch.nn.functional.interpolate(image[None, None], (height, width), mode="area")[0, 0]


def _half(photo: Photo) -> Photo:
    height, width = (max(4, round(n / 2)) for n in photo.gray.shape)
    mask = None if photo.mask is None else _resized(photo.mask, width, height)
    return Photo(_resized(photo.gray, width, height), mask, photo.camera.resized(width, height))


@dataclass(frozen=True)
class _Surface:
    """The state of one photo's surface on the half-size grid: a plane per pixel, in inverse depth."""

    inverse: Tensor  # [h, w] inverse depth at the pixel centre
    slope: Tensor  # [h, w, 2] change of inverse depth per full-size pixel along u and v
    cost: Tensor  # [h, w] 1 - ZNCC in [0, 1]
    distinct: Tensor  # [h, w] in [0, 1]: how far the second-best stretch of the sweep stays behind
    valid: Tensor  # [h, w]

    def depth(self) -> Tensor:
        return torch.where(self.valid, 1 / self.inverse.clamp_min(1e-12), 0.0)

    def confidence(self) -> Tensor:
        """[h, w]: a ZNCC of 0.4 is chance, 0.9 is sure; an ambiguous sweep halves it."""
        match = ((0.6 - self.cost) / 0.5).clamp(0, 1)
        return torch.where(self.valid, match * (0.5 + 0.5 * self.distinct), 0.0)


def _match(
    index: int, photos: list[Photo], halves: list[Photo], chosen: list[int], span: tuple[float, float], config: PlaneSweepConfig
) -> _Surface:
    photo, half = photos[index], halves[index]
    height, width = half.gray.shape
    grid = _pixel_grid(height, width, half.gray.device)
    others = [halves[j] for j in range(len(halves)) if j != index]
    low, high = hull_bounds(half, others, span)
    valid = (low < high) & bool(chosen)
    if half.mask is not None:
        valid &= half.mask > 0.5
    if not valid.any():
        nothing = torch.zeros(height, width, device=grid.device)
        return _Surface(nothing, nothing[..., None].repeat(1, 1, 2), nothing + 1, nothing, valid)
    surface = _sweep(half, [neighbour(half, halves[j]) for j in chosen], low, high, valid, config)
    if config.rounds:
        scale = torch.tensor([photo.gray.shape[1] / width, photo.gray.shape[0] / height], device=grid.device)
        surface = _refine(photo, [neighbour(photo, photos[j]) for j in chosen], grid * scale, surface, low, high, config)
    return surface


def _pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """[H, W, 2] pixel centres (u, v)."""
    v, u = torch.meshgrid(torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij")
    return torch.stack([u, v], dim=-1)


def _sweep(
    photo: Photo, neighbours: list[Neighbour], low: Tensor, high: Tensor, valid: Tensor, config: PlaneSweepConfig
) -> _Surface:
    """The first surface: every plane, every pixel of the box round the valid ones, smoothed."""
    ys, xs = torch.nonzero(valid, as_tuple=True)
    box = (slice(int(ys.min()), int(ys.max()) + 1), slice(int(xs.min()), int(xs.max()) + 1))
    radius = config.window // 2
    padded = _Padded.of(photo, neighbours, box, radius)
    first, last = float(low[valid].min()), float(high[valid].max())
    count = _plane_count(neighbours, padded.bases, first, last, config.planes)
    planes = torch.linspace(first, last, count, device=low.device)
    step = float(planes[1] - planes[0])

    best = min(config.best, len(neighbours))
    volume = torch.cat([best_mean(_window_costs(padded, neighbours, part, config.window), best) for part in planes.split(8)])
    forbidden = (planes[:, None, None] < low[box] - 0.5 * step) | (planes[:, None, None] > high[box] + 0.5 * step)
    volume = torch.where(forbidden, REJECTED, volume)  # [D, h, w]
    gray = photo.gray[box]
    smooth = aggregate(volume, gray, config.small_step, config.large_step)
    at = smooth.argmin(0)  # [h, w]
    offset = _parabola(smooth, at)
    inverse = torch.full_like(low, (first + last) / 2)
    inverse[box] = planes[at] + offset * step
    cost = torch.ones_like(low)
    cost[box] = volume.gather(0, at[None])[0].clamp_max(1)
    distinct = torch.zeros_like(low)
    distinct[box] = _distinct(volume, at)
    slope = _slopes(inverse, valid) / 2  # the full-size pixel is half as wide
    return _Surface(inverse, slope, cost, distinct, valid)


@dataclass(frozen=True)
class _Padded:
    """The reference windows of a box of pixels, with what ZNCC needs of them."""

    bases: list[Tensor]  # per neighbour [3, h + 2r, w + 2r], see `Neighbour.base`
    gray: Tensor  # [h + 2r, w + 2r]
    weight: Tensor  # [h + 2r, w + 2r] 1 on the subject, 0 on the background and outside the photo
    total: Tensor  # [h, w] sum of weights in the window
    mean: Tensor  # [h, w]
    variance: Tensor  # [h, w]

    @staticmethod
    def of(photo: Photo, neighbours: list[Neighbour], box: tuple[slice, slice], radius: int) -> _Padded:
        height, width = photo.gray.shape
        rows = torch.arange(box[0].start - radius, box[0].stop + radius, device=photo.gray.device)
        cols = torch.arange(box[1].start - radius, box[1].stop + radius, device=photo.gray.device)
        inside = ((rows >= 0) & (rows < height))[:, None] & ((cols >= 0) & (cols < width))[None]
        take = (rows.clamp(0, height - 1)[:, None], cols.clamp(0, width - 1)[None])
        gray = photo.gray[take] - 0.5
        weight = inside.float() if photo.mask is None else inside * photo.mask[take]
        size = 2 * radius + 1
        total = window_sum(weight, size).clamp_min(1e-6)
        mean = window_sum(weight * gray, size) / total
        variance = (window_sum(weight * gray * gray, size) / total - mean * mean).clamp_min(0)
        v, u = torch.meshgrid(rows + 0.5, cols + 0.5, indexing="ij")
        pixels = torch.stack([u, v], dim=-1)
        return _Padded([n.base(pixels) for n in neighbours], gray, weight, total, mean, variance)


def _window_costs(padded: _Padded, neighbours: list[Neighbour], planes: Tensor, size: int) -> Tensor:
    """1 - ZNCC, capped at 1, of fronto-parallel windows: [neighbours, D, h, w]. Out of a neighbour's view costs 1."""
    costs = []
    weighted = padded.weight * padded.gray
    r = size // 2
    for source, base in zip(neighbours, padded.bases):
        places = source.warp(base, planes[:, None, None])
        values = sample(source.photo.gray, places) - 0.5  # [D, h + 2r, w + 2r]
        w_values = padded.weight * values
        mean = window_sum(w_values, size) / padded.total
        variance = (window_sum(w_values * values, size) / padded.total - mean * mean).clamp_min(0)
        covariance = window_sum(weighted * values, size) / padded.total - padded.mean * mean
        zncc = covariance * ((padded.variance + NOISE_VARIANCE) * (variance + NOISE_VARIANCE)).rsqrt()
        height, width = zncc.shape[1:]
        inside = in_frame(places[:, r : r + height, r : r + width])
        costs.append(torch.where(inside, (1 - zncc).clamp(0, 1), 1.0))
    return torch.stack(costs)


def _plane_count(neighbours: list[Neighbour], bases: list[Tensor], first: float, last: float, most: int) -> int:
    """Enough planes that the median pixel moves by one pixel per plane in the neighbour where it moves most."""
    longest = 0.0
    for source, base in zip(neighbours, bases):
        thin = base[:, ::8, ::8]
        ends = [source.warp(thin, torch.tensor(w, device=thin.device)) for w in (first, last)]
        longest = max(longest, float(_pixels_apart(*ends, source.photo).median()))
    return int(min(max(longest, 24), most))


def _pixels_apart(a: Tensor, b: Tensor, photo: Photo) -> Tensor:
    """Distance in pixels of normalised places [..., 2] of `photo`."""
    height, width = photo.gray.shape
    return torch.hypot((a - b)[..., 0] * (width / 2), (a - b)[..., 1] * (height / 2))


def _parabola(costs: Tensor, at: Tensor) -> Tensor:
    """Offset of the minimum in (-0.5, 0.5) plane steps, from the costs beside it."""
    depth = costs.shape[0]
    left = costs.gather(0, (at - 1).clamp_min(0)[None])[0]
    centre = costs.gather(0, at[None])[0]
    right = costs.gather(0, (at + 1).clamp_max(depth - 1)[None])[0]
    bend = left - 2 * centre + right
    offset = 0.5 * (left - right) / bend.clamp_min(1e-6)
    return torch.where((at > 0) & (at < depth - 1), offset, 0.0).clamp(-0.5, 0.5)


def _distinct(volume: Tensor, at: Tensor) -> Tensor:
    """[h, w] in [0, 1]: how much worse the best cost elsewhere (more than 3 planes away) is than the chosen one."""
    index = torch.arange(volume.shape[0], device=volume.device)[:, None, None]
    here = (index - at).abs() <= 3
    elsewhere = torch.where(here, 1.0, volume.clamp_max(1)).amin(0)
    chosen = torch.where(here, volume, 1.0).amin(0)
    return ((elsewhere - chosen) / 0.3).clamp(0, 1)


def _slopes(inverse: Tensor, valid: Tensor) -> Tensor:
    """[h, w, 2] slope of inverse depth per half-size pixel: least-squares planes through 5 x 5 windows of valid pixels."""
    size, pad = 5, 2
    weight = torch.nn.functional.pad(valid.float(), (pad,) * 4)
    values = torch.nn.functional.pad(torch.where(valid, inverse, 0.0), (pad,) * 4)
    grid = _pixel_grid(*weight.shape, weight.device)
    total = window_sum(weight, size).clamp_min(1e-6)
    mean = window_sum(values, size) / total
    slopes = []
    for coordinate in grid.unbind(-1):
        centre = window_sum(weight * coordinate, size) / total
        spread = window_sum(weight * coordinate * coordinate, size) / total - centre * centre
        joint = window_sum(values * coordinate, size) / total - centre * mean
        slopes.append(torch.where(spread > 0.1, joint / spread.clamp_min(0.1), 0.0))
    return torch.stack(slopes, dim=-1)


def _refine(
    photo: Photo,
    neighbours: list[Neighbour],
    grid: Tensor,
    surface: _Surface,
    low: Tensor,
    high: Tensor,
    config: PlaneSweepConfig,
) -> _Surface:
    """PatchMatch: try the planes of nearby pixels and small random changes, keep what matches better."""
    valid = surface.valid
    height, width = valid.shape
    patches = _Patches.of(photo, neighbours, grid[valid], config)
    low, high = low[valid], high[valid]
    inverse, slope = surface.inverse.clone(), surface.slope.clone()
    best = min(config.best, len(neighbours))

    def score(inverse: Tensor, slope: Tensor) -> Tensor:
        costs = torch.stack(
            [_patch_costs(patches, source, base, inverse, slope) for source, base in zip(neighbours, patches.bases)]
        )
        return best_mean(costs, best) + ((inverse < low) | (inverse > high)) * REJECTED

    cost = score(inverse[valid], slope[valid])

    def offer(new_inverse: Tensor, new_slope: Tensor) -> None:
        nonlocal cost
        new_cost = score(new_inverse, new_slope)
        better = new_cost < cost
        cost = torch.where(better, new_cost, cost)
        inverse[valid] = torch.where(better, new_inverse, inverse[valid])
        slope[valid] = torch.where(better[:, None], new_slope, slope[valid])

    pitch = grid[1, 1] - grid[0, 0]  # full-size pixels per half-size pixel
    random = torch.Generator().manual_seed(config.seed)
    change = _one_pixel(patches, neighbours, inverse[valid])  # [P]
    for turn in range(config.rounds):
        reach = (1, 3, 2)[turn % 3]
        for dy, dx in ((0, reach), (0, -reach), (reach, 0), (-reach, 0)):
            rows = (torch.arange(height, device=grid.device) - dy).clamp(0, height - 1)[:, None]
            cols = (torch.arange(width, device=grid.device) - dx).clamp(0, width - 1)[None]
            from_slope = slope[rows, cols][valid]
            moved = torch.stack([dx * pitch[0], dy * pitch[1]])
            from_inverse = inverse[rows, cols][valid] + (from_slope * moved).sum(-1)
            known = valid[rows, cols].expand(height, width)[valid]
            offer(torch.where(known, from_inverse, inverse[valid]), torch.where(known[:, None], from_slope, slope[valid]))
        for size in (1.0, 0.4):
            size = size * 0.6**turn
            noise = (torch.rand(3, len(change), generator=random) * 2 - 1).to(change)
            offer(
                inverse[valid] + size * change * noise[0],
                slope[valid] + (0.3 * size * change * noise[1:]).T,
            )
    full_cost = torch.ones_like(surface.cost)
    full_cost[valid] = cost.clamp_max(1)
    return replace(surface, inverse=inverse, slope=slope, cost=full_cost)


def _one_pixel(patches: _Patches, neighbours: list[Neighbour], inverse: Tensor) -> Tensor:
    """[P] the change of inverse depth that moves the match by one pixel in the neighbour where it moves most."""
    delta = 1e-3 * float(inverse.median())
    fastest = torch.zeros_like(inverse)
    for source, base in zip(neighbours, patches.bases):
        centre = base[:, len(patches.offsets) // 2]
        here = source.warp(centre, inverse)
        speed = _pixels_apart(here, source.warp(centre, inverse + delta), source.photo) / delta
        fastest = torch.maximum(fastest, torch.where(in_frame(here), speed, 0.0))
    return 1 / fastest.clamp_min(1e-3 / float(inverse.median()))


@dataclass(frozen=True)
class _Patches:
    """Weighted reference patches of P pixels, samples first: [S, P]."""

    bases: list[Tensor]  # per neighbour [3, S, P], see `Neighbour.base`
    offsets: Tensor  # [S, 2] full-size pixels
    weighted: Tensor  # [S, P] weight * (value - mean); weights sum to one over the patch
    weight: Tensor  # [S, P]
    variance: Tensor  # [P]

    @staticmethod
    def of(photo: Photo, neighbours: list[Neighbour], pixels: Tensor, config: PlaneSweepConfig) -> _Patches:
        radius = config.patch // 2
        line = (torch.arange(config.patch, device=pixels.device) - radius) * config.patch_stride
        dy, dx = torch.meshgrid(line, line, indexing="ij")
        offsets = torch.stack([dx.flatten(), dy.flatten()], dim=-1)  # [S, 2]
        pixels = pixels + offsets[:, None]  # [S, P, 2]
        height, width = photo.gray.shape
        places = normalised(pixels, width, height)
        values = sample(photo.gray, places)
        # Samples of another brightness than the centre are likely of another surface (bilateral weights of PatchMatch Stereo).
        weight = torch.exp(-(values - values[len(offsets) // 2]).abs() / 0.15)
        if photo.mask is not None:
            weight = weight * sample(photo.mask, places)
        weight = weight * in_frame(places) + 1e-6
        weight = weight / weight.sum(0)
        centred = values - (weight * values).sum(0)
        bases = [n.base(pixels) for n in neighbours]
        return _Patches(bases, offsets, weight * centred, weight, (weight * centred * centred).sum(0))


def _patch_costs(
    patches: _Patches, source: Neighbour, base: Tensor, inverse: Tensor, slope: Tensor, chunk: int = 4096
) -> Tensor:
    """1 - ZNCC, capped at 1, of slanted patches in one neighbour: [P]. Out of its view costs 1."""
    costs = []
    du, dv = patches.offsets[:, None].unbind(-1)
    for start in range(0, len(inverse), chunk):
        part = slice(start, start + chunk)
        surface = inverse[part] + du * slope[part, 0] + dv * slope[part, 1]  # [S, P]
        places = source.warp(base[:, :, part], surface)
        values = sample(source.photo.gray, places)
        weight = patches.weight[:, part]
        values = values - (weight * values).sum(0)
        variance = (weight * values * values).sum(0)
        covariance = (patches.weighted[:, part] * values).sum(0)
        zncc = covariance * ((patches.variance[part] + NOISE_VARIANCE) * (variance + NOISE_VARIANCE)).rsqrt()
        costs.append(torch.where(in_frame(places[len(places) // 2]), (1 - zncc).clamp(0, 1), 1.0))
    return torch.cat(costs)
