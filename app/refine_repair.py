"""`refine --with repair`: rounds of rendering views that nobody took, mending them with a network, and fitting to them too."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.commands import Refine
from app.estimate import REPAIRED, SHARE_OF_STEPS, Estimate
from app.jobs import Outcome, saved_stage
from app.machine import Place
from app.notices import Notices
from app.presets import PRESETS, PresetName
from app.refine import RefinePlan, copy_state
from app.refine_photos import photos_finished, types_of_state
from app.refine_photos import ready as photos_ready
from app.repair_splats import (
    as_exposed_alike,
    held_out,
    invented,
    left_out,
    repaired,
    rounds_of,
    types_of_rounds,
    write_invented,
)
from app.repairers import ChosenRepairer, check_lora, chosen_repairer, cost_of, with_scene_lora
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
    first: FitConfig  # of a fit anew, with the rates of the first one
    repairer: ChosenRepairer


def further_steps(preset: PresetName) -> int:
    return round(SHARE_OF_STEPS * PRESETS[preset].steps)


def ready(
    options: Refine, report: dict[str, Any], config: dict[str, Any], place: Place, steps: int, budget: int
) -> tuple[Ready, Estimate]:
    """Raises `InputError` as `refine_photos.ready` does, for a repairer that does not load, and for too few photos to judge."""
    from recon.repair.judge import LEAST_PHOTOS, JudgeConfig

    repairer = chosen_repairer(options.repairer, device=place.device, prompt=options.prompt)
    found, estimate = photos_ready(options, report, config, place, steps, budget)
    check_lora(repairer, options.lora_steps, bool(found.scene.heldout))
    photos = sum(len(v) for v in found.scene.train)
    # For held-out photos the steps are also made without repaired views.
    seconds = (REPAIRED + bool(found.scene.heldout)) * estimate.seconds
    if not found.scene.heldout:
        if photos < LEAST_PHOTOS:
            raise InputError(
                f"{options.result} has {photos} photos, too few to judge whether repair helps; give {LEAST_PHOTOS} or more, or "
                "hold some out."
            )
        judged, judge = min(photos, JudgeConfig.photos), JudgeConfig()
        per_step = estimate.seconds / max(steps, 1) * (judge.side / max(found.scene.train[0].size)) ** 2
        seconds += judged * (judge.steps + (1 + REPAIRED) * rounds_of(steps).rounds * judge.round_steps) * per_step
    estimate = dataclasses.replace(estimate, seconds=seconds)
    if repairer.kind == "views":
        views = rounds_of(steps).rounds * rounds_of(steps).per_pair * photos
        more = cost_of(repairer, views, found.scene.train[0].size, options.lora_steps)
        estimate = dataclasses.replace(estimate, seconds=estimate.seconds + more.seconds, memory=estimate.memory + more.memory)
        if place.device == "cpu" and estimate.memory > budget:
            raise InputError(
                f"--memory-budget {options.memory_budget} is too small for {repairer.name} and the photos, which take about "
                f"{estimate.memory / 1e9:.1f}GB; give more."
            )
    return Ready(found.scene, found.fitted, found.config, first_fit(found.config, config["fit"], photos), repairer), estimate


def first_fit(longer: FitConfig, old: dict[str, Any], photos: int) -> FitConfig:
    """`longer` with the rates of the first fit, of which config.json tells in `old`: a fit anew has far to go."""
    from splat.few_photos import for_few_photos

    plain = for_few_photos(photos, poses_given=True)
    rates = {name: float(old.get(name, getattr(plain, name))) for name in ("lr_means", "lr_means_final", "sh_every")}
    return dataclasses.replace(longer, densify=plain.densify, **rates)


def refine(plan: RefinePlan, work: WorkFolder, watch: Stopwatch, notices: Notices) -> Generator[Progress, None, Outcome]:
    found: Ready = plan.ready
    torch.set_num_threads(plan.place.threads)
    types = (*types_of_state(), *types_of_rounds())
    saved = functools.partial(saved_stage, work=work, types=types, watch=watch, notices=notices)
    copy_state(plan.source, work, "reconstruction")
    rounds, repairer = rounds_of(plan.steps), found.repairer
    if plan.options.lora_steps:
        repairer = yield from _tuned(plan, work.state / "lora.safetensors")
    told = (found.scene, found.fitted, found.config, repairer.repair, rounds)
    device, judged, control = plan.place.device, None, None
    if not found.scene.heldout:
        before, control, after = yield from saved("left_out", left_out(*told, device, found.first))
        judged = before, after
    result, views = yield from repaired(*told, saved, work.state, device)
    refined = yield from saved("refined", _made(result))
    if control is None:
        alone, _ = yield from repaired(*told[:3], None, rounds, saved, work.state, device)
        control = yield from held_out(found.scene, alone, found.config, device)
    scratch = ("left_out", *(f"{stage}_{k + 1}" for stage in ("repair", "control") for k in range(rounds.rounds)))
    return (
        yield from photos_finished(
            plan, work, watch, notices, refined, judged, scratch, found.repairer.licences,
            by="ssim", invented=invented(views), control=control, repair=rounds,
            also=lambda folder: write_invented(folder, views),
        )
    )  # fmt: skip


def _tuned(plan: RefinePlan, kept: Path) -> Generator[Progress, None, ChosenRepairer]:
    """The repairer with a LoRA of the scene, from short fits without some of the photos; `kept` is taken where it is there."""
    from recon.repair.left_out import LeftOutPairs, left_out_pairs

    found: Ready = plan.ready
    scene, device, options = found.scene, plan.place.device, plan.options
    pairs = LeftOutPairs((), ())
    if not kept.is_file():
        views = as_exposed_alike(scene, found.fitted, found.config, device)
        priors = None if scene.priors is None else scene.priors.to(device)
        pairs = yield from left_out_pairs(views, scene.initial.to(device), found.first, priors)
    return (yield from with_scene_lora(found.repairer, pairs.renders, pairs.photos, options.lora_steps, options.seed, kept))


def _made(result: FitResult) -> Generator[Progress, None, FitResult]:
    yield Progress("repair", 1, 1)
    return result
