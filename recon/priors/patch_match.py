"""PatchMatch over slanted planes: each pixel tries the planes of others and keeps what matches best.

Bleyer, Rhemann, Rother, "PatchMatch Stereo - stereo matching with slanted support windows", 2011.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon.priors.matching import (
    NOISE_VARIANCE,
    UNSEEN,
    Neighbour,
    Photo,
    best_mean,
    in_frame,
    normalised,
    pixels_apart,
    sample,
)
from recon.priors.surface import Surface, pixel_grid

REJECTED = 2.0  # the cost of what the bounds forbid; ZNCC costs lie in [0, 1]
Planes = tuple[Tensor, Tensor, Tensor]  # inverse depth [h, w], slope [h, w, 2], where there is one [h, w]


@dataclass(frozen=True)
class PatchMatchConfig:
    """Settings of the slanted-plane refinement."""

    samples: int = 5  # per side of a patch, odd; every second of the square is taken, as on a chess board
    spacing: float = 1.5  # px of the photo between samples
    best: int = 2  # neighbours that must match; the others may be hidden
    prior_weight: float = 0.1  # what straying from a guessed plane costs, in ZNCC
    seed: int = 0


def refine(
    photo: Photo,
    neighbours: list[Neighbour],
    surface: Surface,
    rounds: int,
    config: PatchMatchConfig,
    offers: list[Planes] | None = None,
    guess: Planes | None = None,
) -> Surface:
    """`surface` (on a grid of any size over the photo) after `rounds`; `offers` are planes of other origin to try first.

    Where `guess` has a plane, straying from it costs: it decides where the photos say nothing.
    """
    valid = surface.valid
    height, width = valid.shape
    pitch = torch.tensor([photo.gray.shape[1] / width, photo.gray.shape[0] / height], device=valid.device)
    patches = _Patches.of(photo, neighbours, (pixel_grid(height, width, valid.device) * pitch)[valid], config)
    low, high = surface.low[valid], surface.high[valid]
    inverse, slope = surface.inverse.clone(), surface.slope.clone()
    best = min(config.best, len(neighbours))
    change = _one_pixel(patches, neighbours, inverse[valid])  # [P]
    likely = None if guess is None else (guess[0][valid], guess[2][valid] * config.prior_weight)

    def score(inverse: Tensor, slope: Tensor) -> Tensor:
        costs = [_patch_costs(patches, n, base, inverse, slope / pitch) for n, base in zip(neighbours, patches.bases)]
        total = best_mean(torch.stack(costs), best) + ((inverse < low) | (inverse > high)) * REJECTED
        if likely is not None:
            total += likely[1] * (1 - torch.exp(-0.5 * ((inverse - likely[0]) / (2 * change)) ** 2))
        return total

    cost = score(inverse[valid], slope[valid])

    def offer(new_inverse: Tensor, new_slope: Tensor) -> None:
        nonlocal cost
        new_cost = score(new_inverse, new_slope)
        better = new_cost < cost
        cost = torch.where(better, new_cost, cost)
        inverse[valid] = torch.where(better, new_inverse, inverse[valid])
        slope[valid] = torch.where(better[:, None], new_slope, slope[valid])

    def offer_planes(planes: Planes) -> None:
        there = planes[2][valid]
        offer(torch.where(there, planes[0][valid], inverse[valid]), torch.where(there[:, None], planes[1][valid], slope[valid]))

    for planes in [*(offers or []), *([] if guess is None else [guess])]:
        offer_planes(planes)
    random = torch.Generator().manual_seed(config.seed)
    for turn in range(rounds):
        reach = (1, 3, 2)[turn % 3]
        for dy, dx in ((0, reach), (0, -reach), (reach, 0), (-reach, 0)):
            rows = (torch.arange(height, device=valid.device) - dy).clamp(0, height - 1)[:, None]
            cols = (torch.arange(width, device=valid.device) - dx).clamp(0, width - 1)[None]
            moved = slope[rows, cols]
            offer_planes((inverse[rows, cols] + moved[..., 0] * dx + moved[..., 1] * dy, moved, valid[rows, cols]))
        for size in (0.6**turn, 0.4 * 0.6**turn):
            noise = (torch.rand(3, len(change), generator=random) * 2 - 1).to(change) * size * change
            offer(inverse[valid] + noise[0], slope[valid] + (0.3 * noise[1:]).T * pitch)
    final = torch.ones_like(surface.cost)
    likely = None
    final[valid] = score(inverse[valid], slope[valid]).clamp_max(1)
    return replace(surface, inverse=inverse, slope=slope, cost=final)


def _one_pixel(patches: _Patches, neighbours: list[Neighbour], inverse: Tensor) -> Tensor:
    """[P] the change of inverse depth that moves the match by one pixel in the neighbour where it moves most."""
    delta = 1e-3 * float(inverse.median())
    fastest = torch.zeros_like(inverse)
    for source, base in zip(neighbours, patches.bases):
        centre = base[:, len(patches.offsets) // 2]
        here = source.warp(centre, inverse)
        speed = pixels_apart(here, source.warp(centre, inverse + delta), source.photo) / delta
        fastest = torch.maximum(fastest, torch.where(in_frame(here), speed, 0.0))
    return 1 / fastest.clamp_min(1e-3 / float(inverse.median()))


@dataclass(frozen=True)
class _Patches:
    """Weighted reference patches of P pixels, samples first: [S, P]."""

    bases: list[Tensor]  # per neighbour [3, S, P], see `Neighbour.base`
    offsets: Tensor  # [S, 2] pixels of the photo
    weighted: Tensor  # [S, P] weight * (value - mean); weights sum to one over the patch
    weight: Tensor  # [S, P]
    variance: Tensor  # [P]

    @staticmethod
    def of(photo: Photo, neighbours: list[Neighbour], pixels: Tensor, config: PatchMatchConfig) -> _Patches:
        line = (torch.arange(config.samples, device=pixels.device) - config.samples // 2) * config.spacing
        dy, dx = torch.meshgrid(line, line, indexing="ij")
        offsets = torch.stack([dx.flatten(), dy.flatten()], dim=-1)[::2]  # [S, 2]
        pixels = pixels + offsets[:, None]  # [S, P, 2]
        height, width = photo.gray.shape
        places = normalised(pixels, width, height)
        values = sample(photo.gray, places)
        # Samples of another brightness than the centre are likely of another surface (section 2.1 of the paper).
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
    """1 - ZNCC, capped at 1, of slanted patches in one neighbour: [P]; `slope` per pixel of the photo. UNSEEN out of view."""
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
        costs.append(torch.where(in_frame(places[len(places) // 2]), (1 - zncc).clamp(0, 1), UNSEEN))
    return torch.cat(costs)
