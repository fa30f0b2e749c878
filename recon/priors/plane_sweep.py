"""The built-in stereo prior: plane sweep, then slanted-plane refinement. Needs placed photos and no weights.

For each photo: neighbours by angle and overlap; fronto-parallel planes at even steps of inverse depth, compared by ZNCC
and smoothed by semi-global matching at half size; then PatchMatch over slanted planes (Bleyer et al., "PatchMatch
Stereo", 2011) at full working size, because neighbours far apart see a window of a slanted surface differently; at
last, agreement between the depth maps. Silhouettes, where given, bound the depth and keep the background out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from recon.consistency import Posed, agreement
from recon.priors import DepthMap
from recon.priors.matching import (
    NOISE_VARIANCE,
    UNSEEN,
    Neighbour,
    Photo,
    best_mean,
    in_frame,
    neighbour,
    pixels_apart,
    sample,
    window_sum,
)
from recon.priors.neighbours import choose_neighbours, depth_range, hull_bounds
from recon.priors.patch_match import REJECTED, PatchMatchConfig, refine
from recon.priors.semi_global import aggregate
from recon.priors.surface import Surface, carried, fitted_slopes, spanned
from splat.errors import InputError
from splat.points import PointCloud
from splat.progress import Progress
from splat.views import Views

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class PlaneSweepConfig:
    """Settings of the built-in stereo prior."""

    max_side: int = 400  # px, long side at which photos are matched; depth maps come at half of it
    neighbours: int = 4  # photos that each photo is matched with
    best: int = 2  # of these, how many must match: the others may be hidden
    planes: int = 128  # most planes of the first sweep
    window: int = 7  # px of the half-size photo, odd
    small_step: float = 0.03  # semi-global price of a step by one plane, in units of ZNCC
    large_step: float = 0.25  # semi-global price of a jump
    rounds: int = 3  # PatchMatch rounds after the sweep
    exchanges: int = 2  # how often photos then take over each other's planes
    exchange_rounds: int = 2  # PatchMatch rounds after each
    sure: float = 0.3  # confidence from which planes are passed on
    patches: PatchMatchConfig = field(default_factory=PatchMatchConfig)
    tolerance: float = 0.01  # two depths agree when they differ by less than this share


def estimate_depths(
    views: list[Views], points: PointCloud | None, config: PlaneSweepConfig | None = None, device: torch.device | str = "cpu"
) -> Generator[Progress, None, list[DepthMap]]:
    """Depth maps of placed views, in the order of `views`, at half the working size; yields `Progress`, returns the list.

    `points` (sparse, same world) bound the depths; without them the cameras do. Confidence combines the match, its
    uniqueness, and how many other maps agree; a photo without a useful neighbour gets an empty map. Raises `InputError`
    when fewer than two views have cameras. Deterministic not differentiable.
    """
    config = config or PlaneSweepConfig()
    photos, names = _photos(views, config.max_side, torch.device(device))
    if len(photos) < 2:
        raise InputError(f"stereo needs at least 2 placed photos, got {len(photos)}; add photos of the same subject.")
    halves = [_half(p) for p in photos]
    total = (1 + config.exchanges) * len(photos)

    def first(i: int) -> tuple[list[int], Surface]:
        others = [p for j, p in enumerate(photos) if j != i]
        span = depth_range(photos[i], others, points)
        partners = choose_neighbours(i, photos, points, span, config.neighbours)
        others = [h for j, h in enumerate(halves) if j != i]
        surface = _first_surface(halves[i], others, [halves[j] for j in partners], span, config)
        return partners, _refined(i, photos, partners, surface, config.rounds, config)

    chosen: list[list[int]] = []
    surfaces: list[Surface] = []
    for i, (partners, surface) in enumerate(_side_by_side(first, photos)):
        if not partners:
            log.warning("no photo overlaps %s enough for stereo", names[i])
        chosen.append(partners)
        surfaces.append(surface)
        yield Progress("prior", i + 1, total, f"{names[i]} against {len(partners)} neighbours")
    for turn in range(1, config.exchanges + 1):
        before = list(surfaces)  # every photo sees the same state of the others

        def exchanged(i: int, before: list[Surface] = before) -> Surface:
            return _exchanged(i, photos, halves, chosen[i], before, config)

        for i, surface in enumerate(_side_by_side(exchanged, photos)):
            surfaces[i] = surface
            yield Progress("prior", turn * len(photos) + i + 1, total, f"{names[i]}: planes of its neighbours")
    posed = [Posed(DepthMap(n, s.depth(), s.confidence()), h.camera) for n, s, h in zip(names, surfaces, halves)]
    maps = []
    for i, own in enumerate(posed):
        support = agreement(i, posed, config.tolerance).support
        maps.append(replace(own.map, confidence=own.map.confidence * _trust(support)))
    yield Progress("prior", total, total, f"depth for {len(photos)} photos")
    return maps


def _side_by_side(work: Callable[[int], T], photos: list[Photo]) -> Iterator[T]:
    """`work(i)` for every photo, in order. On a CPU each thread takes a photo: one photo's tensors are too small to share.

    Every photo is computed by one thread whatever their number, so that the result does not depend on it.
    """
    threads = torch.get_num_threads()
    on_cpu = photos[0].gray.device.type == "cpu"
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads if on_cpu else 1)
    try:
        yield from pool.map(work, range(len(photos)))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _refined(
    index: int, photos: list[Photo], chosen: list[int], surface: Surface, rounds: int, config: PlaneSweepConfig, **more
) -> Surface:
    if not surface.valid.any():
        return surface
    return refine(photos[index], [neighbour(photos[index], photos[j]) for j in chosen], surface, rounds, config.patches, **more)


def _exchanged(
    index: int, photos: list[Photo], halves: list[Photo], chosen: list[int], surfaces: list[Surface], config: PlaneSweepConfig
) -> Surface:
    """Refined with the planes that its neighbours found, and with planes spanned between its own sure pixels."""
    surface, half = surfaces[index], halves[index]
    offers = []
    for j in chosen:
        sure = surfaces[j].valid & (surfaces[j].confidence() > config.sure)
        offers.append(carried(surfaces[j], halves[j].camera, sure, half.camera))
    guess = spanned(surface, surface.valid & (surface.confidence() > config.sure), half.camera.K[0])
    return _refined(index, photos, chosen, surface, config.exchange_rounds, config, offers=offers, guess=guess)


def _trust(support: Tensor) -> Tensor:
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


def _first_surface(
    half: Photo, others: list[Photo], chosen: list[Photo], span: tuple[float, float], config: PlaneSweepConfig
) -> Surface:
    """The sweep's surface of one half-size photo; nowhere valid when nothing can be matched."""
    low, high = hull_bounds(half, others, span)
    valid = (low < high) & bool(chosen)
    if half.mask is not None:
        valid &= half.mask > 0.5
    if valid.any():
        return _sweep(half, [neighbour(half, other) for other in chosen], low, high, valid, config)
    zero = torch.zeros_like(low)
    return Surface(zero, torch.stack([zero, zero], dim=-1), zero + 1, zero, valid, low, high)


def _sweep(
    photo: Photo, neighbours: list[Neighbour], low: Tensor, high: Tensor, valid: Tensor, config: PlaneSweepConfig
) -> Surface:
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
    return Surface(inverse, fitted_slopes(inverse, valid), cost, distinct, valid, low, high)


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
    """1 - ZNCC, capped at 1, of fronto-parallel windows: [neighbours, D, h, w]. UNSEEN out of its view."""
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
        costs.append(torch.where(inside, (1 - zncc).clamp(0, 1), UNSEEN))
    return torch.stack(costs)


def _plane_count(neighbours: list[Neighbour], bases: list[Tensor], first: float, last: float, most: int) -> int:
    """Enough planes that the median pixel moves by one pixel per plane in the neighbour where it moves most."""
    longest = 0.0
    for source, base in zip(neighbours, bases):
        thin = base[:, ::8, ::8]
        ends = [source.warp(thin, torch.tensor(w, device=thin.device)) for w in (first, last)]
        longest = max(longest, float(pixels_apart(*ends, source.photo).median()))
    return int(min(max(longest, 24), most))


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
