"""`refine --with repair`: rounds of rendering views that nobody took, mending them with a network, and fitting to them too."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from app.commands import Refine
from app.estimate import Estimate
from app.jobs import Outcome, saved_stage
from app.machine import Place
from app.notices import Notices
from app.presets import PRESETS, PresetName
from app.refine import RefinePlan, copy_state
from app.refine_photos import photos_finished, types_of_state
from app.refine_photos import ready as photos_ready
from app.repair_splats import (
    SHARE_OF_STEPS,
    invented,
    left_out,
    repaired,
    rounds_of,
    types_of_rounds,
    write_invented,
)
from app.repairers import ChosenRepairer, chosen_repairer
from app.result_folder import WorkFolder
from app.stopwatch import Stopwatch
from splat.errors import InputError
from splat.progress import Progress

if TYPE_CHECKING:
    from recon.reconstruct import Reconstruction
    from splat.optimise import FitConfig, FitResult


@dataclass(frozen=True)
class Ready:
    """As `refine_photos.Ready`, and the repairer."""

    scene: Reconstruction
    fitted: FitResult
    config: FitConfig
    repairer: ChosenRepairer


def further_steps(preset: PresetName) -> int:
    return round(SHARE_OF_STEPS * PRESETS[preset].steps)


def ready(
    options: Refine, report: dict[str, Any], config: dict[str, Any], place: Place, steps: int, budget: int
) -> tuple[Ready, Estimate]:
    """Raises `InputError` as `refine_photos.ready` does, for a repairer that does not load, and for too few photos to judge."""
    from recon.repair.judge import LEAST_PHOTOS, JudgeConfig

    repairer = chosen_repairer(options.repairer, device=place.device)
    found, estimate = photos_ready(options, report, config, place, steps, budget)
    photos = sum(len(v) for v in found.scene.train)
    if not found.scene.heldout:
        if photos < LEAST_PHOTOS:
            raise InputError(
                f"{options.result} has {photos} photos, too few to judge whether repair helps; give {LEAST_PHOTOS} or more, or "
                "hold some out."
            )
        judged, judge = min(photos, JudgeConfig.photos), JudgeConfig()
        per_step = estimate.seconds / max(steps, 1) * (judge.side / max(found.scene.train[0].size)) ** 2
        seconds = judged * (judge.steps + 2 * rounds_of(steps).rounds * judge.round_steps) * per_step
        estimate = dataclasses.replace(estimate, seconds=estimate.seconds + seconds)
    estimate = dataclasses.replace(estimate, seconds=2 * estimate.seconds)  # a step also draws a repaired view
    return Ready(found.scene, found.fitted, found.config, repairer), estimate


def refine(plan: RefinePlan, work: WorkFolder, watch: Stopwatch, notices: Notices) -> Generator[Progress, None, Outcome]:
    found: Ready = plan.ready
    torch.set_num_threads(plan.place.threads)
    types = (*types_of_state(), *types_of_rounds())
    saved = functools.partial(saved_stage, work=work, types=types, watch=watch, notices=notices)
    copy_state(plan.source, work, "reconstruction")
    rounds, repair = rounds_of(plan.steps), found.repairer.repair
    told = (found.scene, found.fitted, found.config, repair, rounds)
    judged = None
    if not found.scene.heldout:
        judged = yield from saved("left_out", left_out(*told, plan.place.device))
    result, views = yield from repaired(*told, saved, work.state, plan.place.device)
    refined = yield from saved("refined", _made(result))
    scratch = ("left_out", *(f"repair_{k + 1}" for k in range(rounds.rounds)))
    return (
        yield from photos_finished(
            plan, work, watch, notices, refined, judged, scratch, found.repairer.licences,
            by="ssim", invented=invented(views), also=lambda folder: write_invented(folder, views), repair=rounds,
        )
    )  # fmt: skip


def _made(result: FitResult) -> Generator[Progress, None, FitResult]:
    yield Progress("repair", 1, 1)
    return result
