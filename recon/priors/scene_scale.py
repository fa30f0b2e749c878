"""A network's depth of one photo, fitted to what is known of the scene: scale and offset, robustly, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon.priors.depth_guess import DepthGuess, Kind

CLOSE = 0.1  # relative error of depth up to which a known pixel agrees with a guess
LEAST_KNOWN = 100  # known pixels that a fit needs
LEAST_AGREEING = 0.6  # share of the known pixels, by weight; fewer, and the guess is of another scene than the photos
LARGEST_ERROR = 0.07  # median relative error of those that agree
LEAST_SPREAD = 0.03  # interdecile range of known depth over its median, below which an offset cannot be told
DRAWS = 300  # pairs of pixels that propose a fit
ROUNDS = 10  # of reweighting
REACH = (0.5, 3.0)  # x the nearest and the farthest known depth: a fit is not believed beyond


@dataclass(frozen=True)
class SceneScale:
    """depth = scale * value + offset, of inverse depth for the kind "inverse"."""

    kind: Kind
    scale: float
    offset: float
    agreeing: float  # share of what is known, by weight
    error: float  # median relative error of depth, of those that agree
    nearest: float  # depth from which on the fit is believed
    farthest: float

    def depth(self, values: Tensor) -> Tensor:
        """World units; 0 where the fit gives none or one that is out of its reach. NaN is unknown."""
        depth = _depth(values, self.kind, self.scale, self.offset)
        inside = depth.isfinite() & (depth >= self.nearest) & (depth <= self.farthest)
        return torch.where(inside, depth, 0.0).to(values.dtype)


def fit_to_scene(guess: DepthGuess, known: Tensor, weight: Tensor, seed: int = 0) -> SceneScale | str:
    """The fit of `guess` to known depth [H, W] of weight [H, W] (0 where unknown), or a clause that says why there is none.

    RANSAC over pairs of pixels, then iteratively reweighted least squares with Cauchy weights on relative errors, float64.
    Of inverse depth for the kind "inverse" (MiDaS's alignment, Ranftl et al. 2020, eq. 4, made robust). Deterministic.
    """
    here = (known > 0) & (weight > 0) & guess.values.isfinite()
    z, w, x = known[here].double(), weight[here].double(), guess.values[here].double()
    if len(z) < LEAST_KNOWN:
        return f"only {len(z)} of its pixels have a depth to compare it with"
    low, middle, high = torch.quantile(_thinned(z), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    y = 1 / z if guess.kind == "inverse" else z
    with_offset = guess.kind in ("inverse", "affine")
    if with_offset and high - low < LEAST_SPREAD * middle:
        return "what is known of it lies at one depth"
    fit = _proposed(x, y, z, w, guess.kind, with_offset, seed)
    if fit is None:
        return "it does not grow with the known depth"
    for _ in range(ROUNDS):
        error = (_depth(x, guess.kind, *fit) - z).abs() / z
        error = torch.where(error.isfinite(), error, torch.inf)
        fit = _least_squares(x, y, w / (1 + (error / (0.5 * CLOSE)).square()), with_offset)
        if fit is None or not fit[0] > 0:
            return "it does not grow with the known depth"
    error = (_depth(x, guess.kind, *fit) - z).abs() / z
    close = error < CLOSE  # false for NaN
    agreeing = float((w * close).sum() / w.sum())
    if agreeing < LEAST_AGREEING:
        return f"it agrees with {agreeing:.0%} of the known depth, less than {LEAST_AGREEING:.0%}"
    typical = float(error[close].median())
    if typical > LARGEST_ERROR:
        return f"it is {typical:.0%} off where depth is known, more than {LARGEST_ERROR:.0%}"
    near, far = torch.quantile(_thinned(z), torch.tensor([0.02, 0.98], dtype=torch.float64)).tolist()
    return SceneScale(guess.kind, *fit, agreeing, typical, REACH[0] * near, REACH[1] * far)


def _depth(values: Tensor, kind: Kind, scale: float, offset: float) -> Tensor:
    straight = scale * values.double() + offset
    if kind == "inverse":
        return torch.where(straight > 0, 1 / straight, torch.nan)
    return torch.where(straight > 0, straight, torch.nan)


def _proposed(
    x: Tensor, y: Tensor, z: Tensor, w: Tensor, kind: Kind, with_offset: bool, seed: int
) -> tuple[float, float] | None:
    """The line through two of the pixels (or through one and the origin) that most of the weight agrees with."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.multinomial(_thinned(w), 2 * DRAWS, replacement=True, generator=generator).view(2, DRAWS)
    i, j = picks * _stride(w)
    if with_offset:
        run = x[j] - x[i]
        scale = (y[j] - y[i]) / torch.where(run == 0, torch.nan, run)
        offset = y[i] - scale * x[i]
    else:
        scale, offset = y[i] / x[i], torch.zeros_like(y[i])
    fine = scale.isfinite() & (scale > 0)
    if not fine.any():
        return None
    scale, offset = scale[fine], offset[fine]
    every = max(1, len(x) // 2000)  # judged on a share of the pixels
    straight = scale[:, None] * x[::every] + offset[:, None]  # [D, P]
    depth = torch.where(straight > 0, 1 / straight if kind == "inverse" else straight, torch.inf)
    votes = ((depth - z[::every]).abs() < CLOSE * z[::every]).double() @ w[::every]
    best = int(votes.argmax())
    return float(scale[best]), float(offset[best])


def _least_squares(x: Tensor, y: Tensor, w: Tensor, with_offset: bool) -> tuple[float, float] | None:
    """Weighted, of relative errors: (scale, offset)."""
    w = w / y.square()
    if not with_offset:
        below = (w * x * x).sum()
        return (float((w * x * y).sum() / below), 0.0) if below > 0 else None
    total = w.sum()
    mean_x, mean_y = (w * x).sum() / total, (w * y).sum() / total
    spread = (w * (x - mean_x).square()).sum()
    if not spread > 1e-12 * total * mean_x.square():
        return None
    scale = float((w * (x - mean_x) * (y - mean_y)).sum() / spread)
    return scale, float(mean_y - scale * mean_x)


def _stride(x: Tensor, limit: int = 100_000) -> int:
    return max(1, len(x) // limit)


def _thinned(x: Tensor) -> Tensor:
    """Evenly, to what torch.quantile and torch.multinomial take."""
    return x[:: _stride(x)]
