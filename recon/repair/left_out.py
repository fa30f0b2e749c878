"""What a scene's own repair network learns from: photos, and what a fit that never saw them shows in their place.

GaussianObject's leave-one-out pairs, and LM-Gaussian's early renders, in one: short fits without some of the photos are blurred
like early fits and have the holes and floaters of views that nobody took.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from recon.repair.judge import without
from splat.gaussians import Splats
from splat.optimise import FitConfig, fit
from splat.progress import Progress, told_as
from splat.regularise import Priors
from splat.render import RenderOptions, render
from splat.views import Views


@dataclass(frozen=True)
class LeftOutConfig:
    """How many fits, and how short."""

    folds: int = 4  # fits, each without its share of the photos; fewer photos make fewer
    steps: int = 200  # of each fit
    own: bool = True  # also what each fit shows in place of a photo that it did see, one photo a fit


@dataclass(frozen=True)
class LeftOutPairs:
    """Damaged renders from photos' own cameras, and these photos: pairs [H, W, 3] sRGB, photo by photo."""

    renders: tuple[Tensor, ...]
    photos: tuple[Tensor, ...]


def left_out_pairs(
    views: list[Views],
    initial: Splats,
    fit_config: FitConfig,
    priors: Priors | None = None,
    config: LeftOutConfig | None = None,
) -> Generator[Progress, None, LeftOutPairs]:
    """Pairs of every photo of posed `views`, taken as exposed alike, on one device; `fit_config` says how photos are fitted.

    `initial` is what the fit of all photos began with. Of two photos or fewer none is left out, as nothing would be left to fit
    to. Yields stage "pairs".
    """
    config = config or LeftOutConfig()
    settings = dataclasses.replace(fit_config, steps=config.steps, exposure=False, coarse=())
    photos = [(view, i) for view in views for i in range(len(view))]
    folds = min(config.folds, len(photos)) if len(photos) > 2 else 1
    renders: list[Tensor] = []
    shown: list[Tensor] = []
    total = folds * config.steps
    for fold in range(folds):
        absent = range(fold, len(photos), folds) if folds > 1 else range(0)
        rest, told = views, priors
        for photo in reversed(absent):  # from the end, so that the others keep their numbers
            rest, told = without(rest, told, photo)
        job = fit(rest, initial, settings, None, told)
        done = fold * config.steps
        fitted = yield from told_as(job, lambda e, done=done: Progress("pairs", done + e.step, total, values=e.values))
        splats = fitted.splats
        seen = [k for k in range(len(photos)) if k not in absent]
        for photo in [*absent, *(seen if folds == 1 else seen[fold % len(seen) :][:1] if config.own else [])]:
            view, i = photos[photo]
            renders.append(_drawn(splats, view, i, settings))
            shown.append(view.images[i])
    return LeftOutPairs(tuple(renders), tuple(shown))


@torch.no_grad()
def _drawn(splats: Splats, view: Views, i: int, config: FitConfig) -> Tensor:
    background = torch.tensor(config.background, device=view.images.device)
    options = RenderOptions(background=background, threads=config.threads)
    return render(splats, view.cameras[i], options, config.backend).rgb[0].clamp(0, 1)
