"""Refining an object by a generator: what it makes of it -> its other sides grafted on -> a short fit -> judged -> files.

The ways differ in the generator alone (`app.refine_multiview`, `app.refine_volume`). What the photos show stays the photos'.
Where photos were held out they judge; else every photo is left out in turn, and both ways are made without it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.commands import Refine
from app.estimate import Estimate
from app.jobs import Outcome, saved_stage
from app.machine import Place
from app.notices import Notices
from app.presets import IMAGE_PRESETS, PRESETS, PresetName
from app.refine import RefinePlan, copy_state
from app.refine_photos import Ready, fitted_further, measured_splats, photos_finished, types_of_state, unexposed
from app.refine_photos import ready as photos_ready
from app.report import Licence, Quality
from app.result_folder import WorkFolder
from app.stopwatch import Stopwatch
from splat.errors import InputError
from splat.progress import Progress

if TYPE_CHECKING:
    from diffusion.graft import GraftConfig
    from splat.gaussians import Splats
    from splat.optimise import FitConfig, FitResult
    from splat.similarity import Similarity
    from splat.views import Views

LEAST_PHOTOS = 3  # with none held out: two of them must make an object without the third
MOST_JUDGES = 3  # photos left out in turn
JUDGING_STEPS, JUDGING_SIDE = 400, 160  # of the fits without a photo, and px of their photos
WHITE = (1.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a generator makes of `splats` seen in `views`, in their world, and the similarity to the generator's frame."""

    splats: Splats
    frame: Similarity


# (splats, posed and masked views on white) -> what the generator makes of them; one generator for all of a job's calls.
Generate = Callable[["Splats", list["Views"]], Generator[Progress, None, Generated]]


@dataclasses.dataclass(frozen=True)
class Generator3D:
    """A way's generator, loaded."""

    generate: Generate
    licences: list[Licence]
    taught: float = 0.5  # `GraftConfig.taught`


def generated_ready(
    options: Refine, report: dict[str, Any], config: dict[str, Any], place: Place, steps: int, budget: int,
    seconds: float, memory: float,
) -> tuple[Ready, Estimate]:  # fmt: skip
    """`refine_photos.ready` for an object; `seconds` and `memory` (bytes) are the generator's own, for one call.

    Raises `InputError` as that does, for a scene that is no object, and for too few photos to judge by.
    """
    if options.strength is not None and not 0 <= options.strength <= 1:
        raise InputError(f"--strength {options.strength:g} is out of range; give 0 to 1.")
    photos, source = sum(row["placed"] for row in report["inputs"]), Path(options.result)
    found, estimate = photos_ready(options, report, config, place, round(steps * (1 + 0.6 * (photos - 1))), budget)
    scene = found.scene
    if any(v.masks is None for v in scene.train):
        raise InputError(
            f"{source} is a whole scene, and generators know single objects alone; make it again with --masks auto or "
            "--masks DIR."
        )
    photos = sum(len(v) for v in scene.train)
    if photos < LEAST_PHOTOS and not scene.heldout:
        raise InputError(
            f"{source} has {photos} photos, too few to judge whether --with {options.way} helps; give {LEAST_PHOTOS} or more, "
            "or hold some out."
        )
    return found, _with_generator(options, estimate, 1 if scene.heldout else 1 + MOST_JUDGES, seconds, memory, budget)


def _with_generator(options: Refine, estimate: Estimate, rounds: int, seconds: float, memory: float, budget: int) -> Estimate:
    # The same steps are made twice: with what the generator made, and without.
    needed = dataclasses.replace(estimate, seconds=rounds * (2 * estimate.seconds + seconds), memory=estimate.memory + memory)
    if needed.memory > budget:
        raise InputError(
            f"Refining {options.result} --with {options.way} needs about {needed.memory / 1e9:.1f} GB of memory, more than "
            f"--memory-budget {options.memory_budget}; give more."
        )
    return needed


def further_steps(preset: PresetName) -> int:
    """As many as the fit of a generated object to its picture, for each photo."""
    return IMAGE_PRESETS[preset].refine_steps


def generated_work(
    plan: RefinePlan, work: WorkFolder, watch: Stopwatch, notices: Notices, load: Callable[[RefinePlan], Generator3D]
) -> Generator[Progress, None, Outcome]:
    """`load` opens the way's generator. With a strength of 0 nothing is generated and the result stays as it is."""
    scene, fitted = plan.ready.scene, plan.ready.fitted
    torch.set_num_threads(plan.place.threads)
    types = (*types_of_state(), Generated, Quality)
    saved = functools.partial(saved_stage, work=work, types=types, watch=watch, notices=notices)
    copy_state(plan.source, work, "reconstruction")
    if plan.strength == 0:
        refined = yield from saved("refined", _unchanged(fitted))
        return (yield from photos_finished(plan, work, watch, notices, refined))

    generator = load(plan)
    views = _on_white(plan, fitted)
    config = graft_config(plan, len(fitted.splats), generator.taught)
    left_out = None
    if scene.heldout:
        state = work.state / "control_checkpoint.safetensors"
        control = yield from saved("control", _control(plan, longer_config(plan, config, views), state))
    else:
        before, control, after = yield from saved("judged", _left_out(plan, views, generator.generate, config))
        left_out = before, after
    made = yield from saved("generated", generator.generate(fitted.splats, views))
    refined = yield from saved("refined", _grafted(fitted, made, views, config, work.state / "fit_checkpoint.safetensors"))
    scratch = ("control", "control_checkpoint", "judged", "generated")
    return (
        yield from photos_finished(
            plan, work, watch, notices, refined, left_out, scratch, generator.licences, control=control, refine_graft=config
        )
    )


def graft_config(plan: RefinePlan, gaussians: int, taught: float) -> GraftConfig:
    from diffusion.graft import GraftConfig
    from diffusion.refine_object import RefineConfig

    most = max(PRESETS[plan.options.preset].max_gaussians, gaussians)
    threads, seed = plan.place.threads, plan.options.seed
    # State and generators' splats lie in main memory, where they are joined and fitted; "auto" draws where the tensors are.
    fit = RefineConfig(steps=plan.steps, max_gaussians=most, threads=threads, backend="auto", seed=seed)
    return GraftConfig(taught=taught, fit=fit)


def longer_config(plan: RefinePlan, config: GraftConfig, views: Sequence[Views]) -> FitConfig:
    """Of `--with steps`, with as many steps as the grafted splats are fitted for."""
    return dataclasses.replace(plan.ready.config, steps=config.fit.fit(sum(len(v) for v in views)).steps)


def _control(plan: RefinePlan, config: FitConfig, state: Path) -> Generator[Progress, None, Quality]:
    """The held-out photos after as many further steps on the photos alone, which what a generator made must beat."""
    scene, background = plan.ready.scene, torch.tensor(config.background)
    longer = yield from fitted_further(plan, scene, plan.ready.fitted, config, state)
    return (yield from measured_splats(plan, scene, longer, background)).holdout


def _unchanged(fitted: FitResult) -> Generator[Progress, None, FitResult]:
    yield Progress("fit", 1, 1, "a strength of 0 changes nothing")
    return fitted


def _grafted(
    fitted: FitResult, made: Generated, views: list[Views], config: GraftConfig, state: Path | None
) -> Generator[Progress, None, FitResult]:
    """The generator's other sides on what was fitted, and both fitted to the photos for a short while."""
    from diffusion.graft import grafted, settled

    joined = grafted(fitted.splats, made.splats, views, made.frame, config)
    result = yield from settled(joined, made.splats, views, made.frame, config, state)
    return dataclasses.replace(fitted, splats=result.splats, steps=fitted.steps + result.steps)


def _on_white(plan: RefinePlan, fitted: FitResult) -> list[Views]:
    """The photos with the cameras of the fit, as the average one was exposed, the subject alone on white."""
    background = plan.ready.config.background
    posed = [dataclasses.replace(v, cameras=c) for v, c in zip(plan.ready.scene.train, fitted.cameras)]
    lift = 1 - torch.tensor(background)
    return [
        dataclasses.replace(v, images=v.images + (1 - v.masks[..., None]) * lift)
        for v in unexposed(posed, fitted.exposures, background)
    ]


def _left_out(
    plan: RefinePlan, views: list[Views], generate: Generate, config: GraftConfig
) -> Generator[Progress, None, tuple[Quality, Quality, Quality]]:
    """Photos in turn by splats that never saw them: fitted to the others; that fitted as many steps more; that refined.

    Small and short fits.
    """
    from splat.hidden import hidden
    from splat.optimise import FitConfig, fit

    small = [v.limited(JUDGING_SIDE) for v in views]
    places = [(i, k) for i, v in enumerate(small) for k in range(len(v))]
    judges = [places[round(j * (len(places) - 1) / (MOST_JUDGES - 1))] for j in range(MOST_JUDGES)]
    scores: tuple[list, list, list] = ([], [], [])
    for number, (i, k) in enumerate(dict.fromkeys(judges)):
        rest = [v[[n for n in range(len(v)) if (j, n) != (i, k)]] for j, v in enumerate(small)]
        rest = [v for v in rest if len(v)]
        initial = plan.ready.scene.initial
        # What only the missing photo shows has no place in the start: nobody would have known of it.
        unknown = hidden(initial.means, plan.ready.fitted.splats.to("cpu"), rest, 0.0, plan.place.threads)
        settings = {"steps": JUDGING_STEPS, "lr_means": 4.8e-4, "sh_degree": 1, "random_background": "masked"}
        settings |= {"max_gaussians": config.fit.max_gaussians, "threads": plan.place.threads, "seed": plan.options.seed}
        fitted = yield from fit(rest, initial[~unknown], FitConfig.for_photos(len(places) - 1, **settings))
        longer = yield from fit(rest, fitted.splats, _longer_and_small(longer_config(plan, config, rest), fitted))
        made = yield from generate(fitted.splats, rest)
        refined = yield from _grafted(fitted, made, rest, config, None)
        for found, each in zip(scores, (fitted, longer, refined), strict=True):
            found.append(_score(each.splats, small[i][[k]], plan.place.threads))
        yield Progress("judge", number + 1, len(set(judges)), f"without {small[i].names[k]}")
    before, control, after = (_mean(column) for column in scores)
    return before, control, after


def _longer_and_small(config: FitConfig, fitted: FitResult) -> FitConfig:
    """`config` for photos on white, as exposed alike, whose cameras are taken as they are and whose depth is not known."""
    from splat.regularise import RegulariserConfig

    return dataclasses.replace(
        config, background=WHITE, exposure=False, refine_poses=False, regularise=RegulariserConfig(),
        sh_degree=fitted.splats.sh_degree, random_background="masked", memory_budget=None, backend="auto",
    )  # fmt: skip


def _score(splats: Splats, view: Views, threads: int) -> tuple[float, float]:
    """PSNR and SSIM of one view on white."""
    from splat.metrics import psnr, ssim
    from splat.render import RenderOptions, render

    image = render(splats, view.cameras, RenderOptions(background=torch.ones(3), threads=threads)).rgb[0].clamp(0, 1)
    return float(psnr(image, view.images[0])), float(ssim(image, view.images[0]))


def _mean(scores: list[tuple[float, float]]) -> Quality:
    return Quality(*(math.fsum(column) / len(scores) for column in zip(*scores)), None, len(scores))
