"""Does repair help this scene? Asked of photos that the splats have not seen.

Held-out photos answer at once. Without any, photos are left out in turn of small, short fits, which are then repaired as the
whole scene would be: what that does to the photo that was left out is what it does between the photos. Rounds of repair are
further steps too, and these alone make most fits better: repair is judged beside the same steps without repaired views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon.repair.rounds import RepairRoundsConfig, repair_rounds
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.metrics import psnr, ssim
from splat.optimise import FitConfig, fit
from splat.progress import Progress
from splat.regularise import Priors
from splat.render import RenderOptions, render
from splat.repair_request import Repairer
from splat.views import Views

LEAST_PHOTOS = 3  # fewer, and without one of them nothing is left to judge by
LEAST_GAIN = 0.0005  # of SSIM, below which a difference is chance
MOST_LOSS = 0.1  # dB of PSNR that a gain of SSIM may cost


@dataclass(frozen=True)
class JudgeConfig:
    """How small the fits are that are judged."""

    photos: int = 3  # left out in turn, at most
    side: int = 256  # px
    steps: int = 300  # of the fit that is repaired
    round_steps: int = 80  # of the fit in each round


@dataclass(frozen=True)
class Scores:
    """Means over photos that were not fitted to."""

    psnr: float
    ssim: float
    photos: int


def helps(before: Scores, after: Scores) -> bool:
    """SSIM must rise, and PSNR may fall by no more than `MOST_LOSS`. Takes anything with `psnr` and `ssim`."""
    return after.ssim - before.ssim >= LEAST_GAIN and after.psnr - before.psnr >= -MOST_LOSS


def repair_helps(before: Scores, control: Scores, after: Scores) -> bool:
    """Repaired splats must be better than what the same steps made without repaired views, and than the splats before."""
    return helps(control, after) and helps(before, after)


def left_out_scores(
    views: list[Views],
    initial: Splats,
    fit_config: FitConfig,
    repairer: Repairer,
    rounds: RepairRoundsConfig,
    priors: Priors | None = None,
    config: JudgeConfig | None = None,
    further: FitConfig | None = None,
) -> Generator[Progress, None, tuple[Scores, Scores, Scores] | None]:
    """(before, control, after), of photos left out in turn; None of fewer than `LEAST_PHOTOS` photos.

    before: fits from `initial` as `fit_config` says, which has the rates of a first fit. after: these repaired in `rounds`,
    which fit as `further` says (as `fit_config` without it). control: the same rounds without repaired views. `initial` is what
    the fit of all photos began with: it may know of the photo that is left out, in all three alike. Yields stage "judge".
    """
    config = config or JudgeConfig()
    small = [v.limited(config.side) for v in views]
    known = None if priors is None else resized(priors, small)
    count = sum(len(v) for v in small)
    if count < LEAST_PHOTOS:
        return None
    chosen = sorted({round(k * (count - 1) / max(config.photos - 1, 1)) for k in range(config.photos)})
    base = dataclasses.replace(fit_config, steps=config.steps, exposure=False, coarse=())
    later = base if further is None else dataclasses.replace(further, exposure=False, coarse=())
    rounds = dataclasses.replace(rounds, steps=config.round_steps)
    total = len(chosen) * (config.steps + 2 * rounds.rounds * config.round_steps)
    scores: tuple[list[tuple[float, float]], ...] = ([], [], [])
    done = 0
    for photo in chosen:
        rest, told = without(small, known, photo)
        camera, truth = _photo(small, photo)
        fitted = yield from _counted(fit(rest, initial, base, None, told), done, total)
        done += config.steps
        scores[0].append(_scored(fitted.splats, camera, truth, fit_config))
        rest = [dataclasses.replace(v, cameras=c) for v, c in zip(rest, fitted.cameras)]
        for found, mending in zip(scores[1:], (None, repairer)):
            job = repair_rounds(rest, fitted.splats, later, mending, rounds, told)
            mended = yield from _counted(job, done, total, config.round_steps)
            done += rounds.rounds * config.round_steps
            found.append(_scored(mended.fitted.splats, camera, truth, fit_config))
    before, control, after = (Scores(*(sum(column) / len(column) for column in zip(*found)), len(found)) for found in scores)
    return before, control, after


def without(views: list[Views], priors: Priors | None, photo: int) -> tuple[list[Views], Priors | None]:
    """All photos and their priors but photo number `photo`, counted over all views."""
    kept, depths, normals, first = [], [], [], 0
    for v, view in enumerate(views):
        rows = [i for i in range(len(view)) if first + i != photo]
        first += len(view)
        if not rows:
            continue
        kept.append(view[rows])
        if priors is not None:
            depths.append(priors.depths[v][rows])
            normals += [] if priors.normals is None else [priors.normals[v][rows]]
    if priors is None:
        return kept, None
    return kept, dataclasses.replace(priors, depths=depths, normals=normals or None)


def resized(priors: Priors, views: Sequence[Views]) -> Priors:
    """`priors` on the pixels of `views`, of another size."""

    def scaled(x: Tensor, view: Views) -> Tensor:  # [C, K, h, w]
        return torch.nn.functional.interpolate(x, (view.size[1], view.size[0]), mode="nearest-exact")

    depths = [scaled(d[:, None], v)[:, 0] for d, v in zip(priors.depths, views)]
    normals = priors.normals
    if normals is not None:
        normals = [scaled(n.permute(0, 3, 1, 2), v).permute(0, 2, 3, 1) for n, v in zip(normals, views)]
    return dataclasses.replace(priors, depths=depths, normals=normals)


def _photo(views: Sequence[Views], photo: int) -> tuple[Cameras, Tensor]:
    for view in views:
        if photo < len(view):
            return view.cameras[photo], view.images[photo]
        photo -= len(view)
    raise IndexError(photo)


@torch.no_grad()
def _scored(splats: Splats, camera: Cameras, truth: Tensor, config: FitConfig) -> tuple[float, float]:
    background = torch.tensor(config.background, device=truth.device)
    image = (
        render(splats, camera, RenderOptions(background=background, threads=config.threads), config.backend).rgb[0].clamp(0, 1)
    )
    return float(psnr(image, truth)), float(ssim(image, truth))


def _counted(job, done: int, total: int, round_steps: int = 0):
    """The fits of `job` as steps of one stage, the first `done` of `total` behind them."""
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return end.value
        if event.stage == "fit":
            yield Progress("judge", done + event.step, total, values=event.values)
            if round_steps and event.step == event.total:
                done += round_steps
