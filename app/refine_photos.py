"""Fitting a photos result longer: state/ -> splat.optimise.fit from its splats -> compare -> the files of a result folder."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from app.commands import Refine
from app.estimate import BYTES_BASE, Estimate, estimate_refine
from app.jobs import Outcome, meshed, saved_stage
from app.machine import Place
from app.notices import Notices
from app.presets import PRESETS, PresetName
from app.refine import Comparison, RefinePlan, copy_files, copy_state, read_state, report_of, verdict
from app.report import Quality, write_report
from app.result_folder import WorkFolder, write_atomic
from app.scene_files import measured, write_pictures, write_scene
from app.stopwatch import Stopwatch
from splat.errors import InputError
from splat.progress import Progress

if TYPE_CHECKING:
    from recon.reconstruct import Reconstruction
    from splat.optimise import FitConfig, FitResult
    from splat.views import Views

# A fit that is done needs no large steps: means and cameras begin at a tenth of the first fit's rates.
LR_MEANS = 1.6e-5
LR_POSES = 2e-5


def further_steps(preset: PresetName) -> int:
    """As many as a first fit with that preset."""
    return PRESETS[preset].steps


@dataclasses.dataclass(frozen=True)
class Ready:
    """The state of a photos result."""

    scene: Reconstruction
    fitted: FitResult
    config: FitConfig  # of the longer fit


def ready(
    options: Refine, report: dict[str, Any], config: dict[str, Any], place: Place, steps: int, budget: int
) -> tuple[Ready, Estimate]:
    """Raises `InputError` for a state that cannot be read or is too large for the memory budget."""
    photos, source = sum(row["placed"] for row in report["inputs"]), Path(options.result)
    state = source / "state" / "reconstruction.safetensors"
    stored = state.stat().st_size if state.is_file() else 0
    preset = dataclasses.replace(PRESETS[options.preset], max_gaussians=_cap(options.preset, report["gaussians"]))
    estimate = estimate_refine(photos, stored, steps, preset, renderer=place.renderer, threads=place.threads)
    if budget < BYTES_BASE + 2 * stored + 50e6:
        raise InputError(
            f"--memory-budget {options.memory_budget} is too small for the {photos} photos of {source}; "
            f"give at least {(BYTES_BASE + 2 * stored + 200e6) / 1e9:.1f}GB."
        )
    scene, _ = read_state(source, "reconstruction", _types())
    fitted, _ = read_state(source, "fit", _types())
    return Ready(scene, fitted, fit_config(options, config, place, steps, budget, scene, fitted)), estimate


def _types() -> tuple[type, ...]:
    """All that the state of a photos result is made of."""
    from recon.reconstruct import RECONSTRUCTION_TYPES
    from splat.mesh import Mesh
    from splat.optimise import FitResult

    return *RECONSTRUCTION_TYPES, FitResult, Mesh


def photos_work(plan: RefinePlan, work: WorkFolder, watch: Stopwatch, notices: Notices) -> Generator[Progress, None, Outcome]:
    from splat.extract_mesh import MeshConfig, extract_mesh

    scene, fitted, config = plan.ready.scene, plan.ready.fitted, plan.ready.config
    place, preset = plan.place, PRESETS[plan.options.preset]
    torch.set_num_threads(place.threads)
    saved = functools.partial(saved_stage, work=work, types=_types(), watch=watch, notices=notices)
    background = torch.tensor(config.background)
    copy_state(plan.source, work, "reconstruction")
    refined = yield from saved(
        "refined", _fitted_further(plan, scene, fitted, config, work.state / "fit_checkpoint.safetensors")
    )

    before = yield from _measured(plan, scene, fitted, background)
    after = yield from _measured(plan, scene, refined, background)
    compared = Comparison((before.train, after.train), before.holdout and (before.holdout, after.holdout))
    mesh_config = MeshConfig(max_faces=preset.mesh_faces)
    warnings = list(dict.fromkeys((*plan.report["warnings"], *verdict(compared))))
    if compared.kept == "unrefined":
        yield Progress("files", 0, 1)
        copy_files(plan.source, work.result)
        gaussians, faces = plan.report["gaussians"], plan.report["mesh_faces"]
    else:
        splats = refined.splats.to(place.device)
        masks = [v.masks for v in scene.train]
        mesh, no_mesh = yield from saved("mesh", meshed(lambda: extract_mesh(splats, refined.cameras, mesh_config, masks)))
        warnings = list(dict.fromkeys((*[w for w in warnings if not w.startswith("There is no mesh:")], *no_mesh)))
        pairs = after.pairs
        yield from write_pictures(work.result, splats, refined.cameras, pairs, preset, background, place.threads)
        yield Progress("files", 0, 1)
        posed = [dataclasses.replace(v, cameras=c) for v, c in zip(scene.train, refined.cameras)]
        write_scene(work.result, refined.splats, mesh, posed, after.heldout)
        gaussians, faces = len(refined.splats), 0 if mesh is None else len(mesh.faces)
    configs = plan.config | {"refine": plan.job, "refine_fit": config, "mesh": mesh_config}
    plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in configs.items()}
    write_atomic(work.result / "config.json", json.dumps(plain, indent=1, default=str).encode())
    watch.split()
    fallbacks = [sentence for sentence in notices.sentences if sentence not in warnings]
    report = report_of(
        plan,
        compared,
        gaussians=gaussians,
        mesh_faces=faces,
        stages=list(watch.costs.values()),
        warnings=warnings,
        fallbacks=fallbacks,
    )
    written = write_report(report, work.result / "report.json")
    kept = work.state / "refined.safetensors" if compared.kept == "refined" else plan.source / "state" / "fit.safetensors"
    write_atomic(work.state / "fit.safetensors", kept.read_bytes())  # so that the result can be refined in turn
    for name in ("refined", "fit_checkpoint"):
        (work.state / f"{name}.safetensors").unlink(missing_ok=True)
    work.publish(keep_state=not plan.options.compact)
    yield Progress("files", 1, 1, f"{plan.options.out} is complete")
    return Outcome(Path(plan.options.out), written)


def fit_config(
    options: Refine, old: dict[str, Any], place: Place, steps: int, budget: int, scene: Reconstruction, fitted: FitResult
) -> FitConfig:
    """Of the longer fit: from the splats as they are, at the photos' full size, with all degrees of SH from the start."""
    from splat.densify import ErrorDensify, MCMCDensify
    from splat.optimise import MANY_PHOTOS, FitConfig, gaussian_cap
    from splat.regularise import RegulariserConfig

    try:
        background, exposure = tuple(float(v) for v in old["fit"]["background"]), bool(old["fit"]["exposure"])
        terms = RegulariserConfig(**old["fit"]["regularise"]) if scene.priors is not None else RegulariserConfig()
        refine_poses = bool(old["fit"]["refine_poses"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{Path(options.result) / 'config.json'} tells nothing of the fit; make the result again.") from error
    photos = sum(len(v) for v in scene.train)
    densify = ErrorDensify(first=1.0, stop=0.5) if photos >= MANY_PHOTOS else MCMCDensify(stop=0.5)
    stored = sum(v.images.numel() * 4 for v in (*scene.train, *scene.heldout))
    config = FitConfig.for_photos(
        photos,
        steps=steps,
        lr_means=LR_MEANS,
        densify=densify,
        coarse=(),
        sh_every=0.0,
        sh_degree=fitted.splats.sh_degree,
        checkpoint_every=max(10, min(250, steps // 4)),
        max_gaussians=_cap(options.preset, len(fitted.splats)),
        memory_budget=int(budget - BYTES_BASE - stored),
        background=background,
        exposure=exposure,
        regularise=terms,
        refine_poses=refine_poses,
        lr_poses=LR_POSES,
        seed=options.seed,
        backend=place.renderer,
        threads=place.threads,
    )
    if gaussian_cap(config, scene.train) < len(fitted.splats):
        raise InputError(
            f"--memory-budget {options.memory_budget} is too small for {len(fitted.splats):,} Gaussians and {photos} "
            "photos; give more."
        )
    return config


def _cap(preset: PresetName, gaussians: int) -> int:
    """No result loses Gaussians for having more than the preset."""
    return max(PRESETS[preset].max_gaussians, gaussians)


def _fitted_further(
    plan: RefinePlan, scene: Reconstruction, fitted: FitResult, config: FitConfig, state: Path
) -> Generator[Progress, None, FitResult]:
    from splat.optimise import fit

    device = plan.place.device
    posed = [dataclasses.replace(v, cameras=c) for v, c in zip(scene.train, fitted.cameras)]
    views = [v.to(device) for v in unexposed(posed, fitted.exposures, config.background)]
    priors = None if scene.priors is None else scene.priors.to(device)
    result = yield from fit(views, fitted.splats.to(device), config, state, priors)
    return dataclasses.replace(
        result,
        splats=result.splats.to("cpu"),
        exposures=chained(fitted.exposures, result.exposures.to("cpu")),
        steps=fitted.steps + result.steps,
    )


def unexposed(views: Sequence[Views], exposures: Tensor, background: Sequence[float]) -> list[Views]:
    """The photos as they would be had every one been exposed like the average, which is what `fit` begins with.

    `exposures` [C, 2, 3] are gain and offset per photo, all views in order. What masks leave out stays `background`.
    """
    backdrop, out, first = torch.tensor(background), [], 0
    for view in views:
        gain, offset = exposures[first : first + len(view), :, None, None].unbind(1)  # [n, 1, 1, 3] each
        cover = torch.ones(()) if view.masks is None else view.masks[..., None]
        behind = (1 - cover) * backdrop
        out.append(dataclasses.replace(view, images=(view.images - behind - cover * offset) / gain + behind))
        first += len(view)
    return out


def chained(first: Tensor, second: Tensor) -> Tensor:
    """[C, 2, 3]: the exposure of a photo that `second` explains after `first` has been taken off it."""
    gain, offset = first.unbind(1)
    return torch.stack([gain * second[:, 0], gain * second[:, 1] + offset], dim=1)


@dataclasses.dataclass(frozen=True)
class _Measured:
    train: Quality
    holdout: Quality | None
    pairs: list  # photos beside renders, held-out ones where there are any
    heldout: list[Views]  # with the cameras that they were judged by


def _measured(
    plan: RefinePlan, scene: Reconstruction, fitted: FitResult, background: Tensor
) -> Generator[Progress, None, _Measured]:
    """As the photos job measures: held-out photos whose cameras were solved are placed against the splats first."""
    from app.quality import refined

    place, splats = plan.place, fitted.splats.to(plan.place.device)
    posed = [dataclasses.replace(v, cameras=c) for v, c in zip(scene.train, fitted.cameras)]
    train, train_pairs = yield from measured(splats, posed, background, fitted.exposures, place.threads)
    heldout = scene.heldout
    if heldout and not scene.heldout_posed:
        heldout = yield from refined(splats, heldout, background)
    holdout, holdout_pairs = yield from measured(splats, heldout, background, None, place.threads)
    return _Measured(train, holdout, holdout_pairs or train_pairs, heldout)
