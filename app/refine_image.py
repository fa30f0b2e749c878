"""Fitting an object longer to its pictures: scene.ply -> diffusion.refine_object -> compare -> the files of a result folder.

Only the sides that the pictures show can get better by this; small renders of the object from all round hold the others.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from app.commands import Refine
from app.estimate import Estimate, estimate_image
from app.jobs import Outcome, saved_stage
from app.machine import Place
from app.notices import Notices
from app.object_files import Drawing, closed_mesh, closed_mesh_plan, write_pictures, write_scene
from app.presets import IMAGE_PRESETS, PresetName
from app.refine import Comparison, RefinePlan, copy_state, read_state
from app.refined_files import Written, finished
from app.report import Quality
from app.result_folder import WorkFolder
from app.stopwatch import Stopwatch
from splat.errors import InputError
from splat.progress import Progress

if TYPE_CHECKING:
    from diffusion.refine_object import RefineConfig
    from diffusion.subject import Subject
    from splat.gaussians import Splats

MOST_SHOWN = 3  # pictures in preview.png


def further_steps(preset: PresetName) -> int:
    """As many as the fit of a new object with that preset."""
    return IMAGE_PRESETS[preset].refine_steps


@dataclasses.dataclass(frozen=True)
class Ready:
    """What an image result keeps."""

    splats: Splats
    subjects: list[Subject]


def ready(
    options: Refine, report: dict[str, Any], config: dict[str, Any], place: Place, steps: int, budget: int
) -> tuple[Ready, Estimate]:
    """Raises `InputError` for a state that cannot be read, and where the memory budget is too small."""
    from diffusion.subject import Subject
    from splat.io import load

    source = Path(options.result)
    preset = dataclasses.replace(IMAGE_PRESETS[options.preset], steps=0, refine_steps=steps)
    estimate = estimate_image(1, preset, renderer=place.renderer, threads=place.threads, on_gpu=False)
    if estimate.memory > budget:
        raise InputError(
            f"Refining {source} needs about {estimate.memory / 1e9:.1f} GB of memory, more than --memory-budget "
            f"{options.memory_budget}; give more."
        )
    return Ready(load(source / "scene.ply"), read_state(source, "subjects", (Subject,))), estimate


def refine(plan: RefinePlan, work: WorkFolder, watch: Stopwatch, notices: Notices) -> Generator[Progress, None, Outcome]:
    from diffusion.refine_object import RefineConfig, Refined
    from splat.gaussians import Splats

    splats, subjects = plan.ready.splats, plan.ready.subjects
    preset, place = IMAGE_PRESETS[plan.options.preset], plan.place
    torch.set_num_threads(place.threads)
    config = RefineConfig(
        steps=plan.steps,
        max_gaussians=preset.max_gaussians,
        threads=place.threads,
        backend=place.renderer,
        seed=plan.options.seed,
    )
    copy_state(plan.source, work, "subjects")
    saved = functools.partial(saved_stage, work=work, types=(Refined, Splats), watch=watch, notices=notices)
    refined = yield from saved("refined", _refined(splats, subjects, config, work.state / "fit_checkpoint.safetensors"))
    return (yield from image_finished(plan, work, watch, notices, refined.splats, refine_fit=config))


def image_finished(
    plan: RefinePlan,
    work: WorkFolder,
    watch: Stopwatch,
    notices: Notices,
    refined: Splats,
    **configs: Any,
) -> Generator[Progress, None, Outcome]:
    """What every way of refining an image result ends with; scene.ply and the subjects are what a further one needs."""
    splats, subjects = plan.ready.splats, plan.ready.subjects
    preset, threads = IMAGE_PRESETS[plan.options.preset], plan.place.threads
    yield Progress("measure", 0, 1)
    (before, _), (after, fronts) = (_measured(s, subjects, threads) for s in (splats, refined))
    compared = Comparison((before, after), None)

    def write() -> Written:
        mesh, no_mesh = yield from closed_mesh(refined, preset)
        row = [cell for pair in zip([s.on() for s in subjects], fronts) for cell in pair][: 2 * MOST_SHOWN]
        rows = [("pictures, each beside its view of the splats" if len(subjects) > 1 else "picture, splats", row)]
        yield from write_pictures(work.result, refined, mesh, preset, Drawing(_background(plan), threads), rows)
        yield Progress("files", 0, 1)
        write_scene(work.result, refined, mesh, preset.turntable_side)
        for name in ("cameras.json", "input.png"):  # the same pictures, seen by the same cameras
            if (plan.source / name).is_file():
                shutil.copyfile(plan.source / name, work.result / name)
        return len(refined), 0 if mesh is None else len(mesh.faces), no_mesh

    configs = {"mesh": closed_mesh_plan(preset)} | configs
    scratch = ("refined", "fit_checkpoint")
    return (yield from finished(plan, work, watch, notices, compared, configs, write, scratch))


def _refined(splats: Splats, subjects: Sequence[Subject], config: RefineConfig, state: Path) -> Generator[Progress, None, Any]:
    from diffusion.refine_object import refine_object

    return (yield from refine_object(splats, subjects, config, state))


def _measured(splats: Splats, subjects: Sequence[Subject], threads: int) -> tuple[Quality, list[Tensor]]:
    """The pictures on white against the splats in their place, and those renders."""
    from splat.metrics import psnr, ssim

    white = Drawing((1.0, 1.0, 1.0), threads)
    drawn = [next(white.of(splats, subject.cameras())) for subject in subjects]
    pairs = list(zip(drawn, (subject.on() for subject in subjects)))
    n = len(pairs)
    return Quality(sum(float(psnr(*p)) for p in pairs) / n, sum(float(ssim(*p)) for p in pairs) / n, None, n), drawn


def _background(plan: RefinePlan) -> tuple[float, float, float]:
    from app.machine import colour

    return colour(str(plan.config.get("image", {}).get("background", "white")))
