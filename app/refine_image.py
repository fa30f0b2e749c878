"""Fitting an object longer to its pictures: scene.ply -> diffusion.refine_object -> compare -> the files of a result folder.

Only the sides that the pictures show can get better by this; small renders of the object from all round hold the others.
"""

from __future__ import annotations

import dataclasses
import functools
import json
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
from app.refine import Comparison, RefinePlan, copy_files, copy_state, read_state, report_of, verdict
from app.report import Quality, write_report
from app.result_folder import WorkFolder, write_atomic
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


def image_work(plan: RefinePlan, work: WorkFolder, watch: Stopwatch, notices: Notices) -> Generator[Progress, None, Outcome]:
    from diffusion.refine_object import RefineConfig, Refined
    from splat.gaussians import Splats

    splats, subjects = plan.ready.splats, plan.ready.subjects
    preset, place = IMAGE_PRESETS[plan.options.preset], plan.place
    torch.set_num_threads(place.threads)
    drawing = Drawing(_background(plan), place.threads)
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

    yield Progress("measure", 0, 1)
    (before, _), (after, fronts) = (_measured(s, subjects, place.threads) for s in (splats, refined.splats))
    compared = Comparison((before, after), None)
    warnings = list(dict.fromkeys((*plan.report["warnings"], *verdict(compared))))
    if compared.kept == "unrefined":
        yield Progress("files", 0, 1)
        copy_files(plan.source, work.result)
        gaussians, faces = plan.report["gaussians"], plan.report["mesh_faces"]
    else:
        mesh, no_mesh = yield from closed_mesh(refined.splats, preset)
        warnings = list(dict.fromkeys((*[w for w in warnings if not w.startswith("There is no mesh:")], *no_mesh)))
        row = [cell for pair in zip([s.on() for s in subjects], fronts) for cell in pair][: 2 * MOST_SHOWN]
        rows = [("pictures, each beside its view of the splats" if len(subjects) > 1 else "picture, splats", row)]
        yield from write_pictures(work.result, refined.splats, mesh, preset, drawing, rows)
        yield Progress("files", 0, 1)
        write_scene(work.result, refined.splats, mesh, preset.turntable_side)
        for name in ("cameras.json", "input.png"):  # the same pictures, seen by the same cameras
            if (plan.source / name).is_file():
                shutil.copyfile(plan.source / name, work.result / name)
        gaussians, faces = len(refined.splats), 0 if mesh is None else len(mesh.faces)
    configs = plan.config | {"refine": plan.job, "refine_fit": config, "mesh": closed_mesh_plan(preset)}
    plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in configs.items()}
    write_atomic(work.result / "config.json", json.dumps(plain, indent=1, default=str).encode())
    watch.split()
    report = report_of(
        plan,
        compared,
        gaussians=gaussians,
        mesh_faces=faces,
        stages=list(watch.costs.values()),
        warnings=warnings,
        fallbacks=[sentence for sentence in notices.sentences if sentence not in warnings],
    )
    written = write_report(report, work.result / "report.json")
    for name in ("refined", "fit_checkpoint"):  # scene.ply and the subjects are what a further refinement needs
        (work.state / f"{name}.safetensors").unlink(missing_ok=True)
    work.publish(keep_state=not plan.options.compact)
    yield Progress("files", 1, 1, f"{plan.options.out} is complete")
    return Outcome(Path(plan.options.out), written)


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
