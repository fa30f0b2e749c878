"""Fitting a photos result longer: state/ -> splat.optimise.fit from its splats -> compare -> the files of a result folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from app.commands import Refine
from app.estimate import BYTES_BASE, Estimate, estimate_refine
from app.jobs import Outcome, meshed, saved_stage
from app.machine import Place
from app.notices import Notices
from app.presets import PRESETS, PresetName
from app.refine import Comparison, RefinePlan, copy_state, read_state
from app.refined_files import Written, finished
from app.report import Licence, Quality
from app.result_folder import WorkFolder, write_atomic
from app.scene_files import measured, write_pictures, write_scene
from app.stopwatch import Stopwatch
from splat.errors import InputError
from splat.progress import Progress

if TYPE_CHECKING:
    from recon.reconstruct import Reconstruction
    from splat.optimise import FitConfig, FitResult
    from splat.views import Views

# A fit that is done needs no large steps: the means begin at a tenth of the first fit's rate.
LR_MEANS = 1.6e-5
SLOWER = 10  # times are cameras of the longer fit


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
    scene, _ = read_state(source, "reconstruction", types_of_state())
    fitted, _ = read_state(source, "fit", types_of_state())
    return Ready(scene, fitted, fit_config(options, config, place, steps, budget, scene, fitted)), estimate


def types_of_state() -> tuple[type, ...]:
    """All that the state of a photos result is made of."""
    from recon.reconstruct import RECONSTRUCTION_TYPES
    from splat.mesh import Mesh
    from splat.optimise import FitResult

    return *RECONSTRUCTION_TYPES, FitResult, Mesh


def refine(plan: RefinePlan, work: WorkFolder, watch: Stopwatch, notices: Notices) -> Generator[Progress, None, Outcome]:
    scene, fitted, config = plan.ready.scene, plan.ready.fitted, plan.ready.config
    torch.set_num_threads(plan.place.threads)
    saved = functools.partial(saved_stage, work=work, types=types_of_state(), watch=watch, notices=notices)
    copy_state(plan.source, work, "reconstruction")
    refined = yield from saved(
        "refined", fitted_further(plan, scene, fitted, config, work.state / "fit_checkpoint.safetensors")
    )
    return (yield from photos_finished(plan, work, watch, notices, refined))


def photos_finished(
    plan: RefinePlan,
    work: WorkFolder,
    watch: Stopwatch,
    notices: Notices,
    refined: FitResult,
    left_out: tuple[Quality, Quality] | None = None,
    scratch: tuple[str, ...] = (),
    licences: Sequence[Licence] = (),
    by: Literal["psnr", "ssim"] = "psnr",
    invented: float | None = None,
    also: Callable[[Path], None] | None = None,
    control: Quality | None = None,
    **configs: Any,
) -> Generator[Progress, None, Outcome]:
    """What every way of refining a photos result ends with; `refined` is the saved stage of that name.

    `by`, `invented` and `control` as in `Comparison`; `also` writes what else a refined result holds into its folder.
    """
    from splat.extract_mesh import MeshConfig, extract_mesh

    scene, fitted, place, preset = plan.ready.scene, plan.ready.fitted, plan.place, PRESETS[plan.options.preset]
    background = torch.tensor(plan.ready.config.background)
    before = yield from measured_splats(plan, scene, fitted, background)
    after = yield from measured_splats(plan, scene, refined, background)
    compared = Comparison(
        (before.train, after.train), before.holdout and (before.holdout, after.holdout), left_out, by, invented, control
    )
    mesh_config = MeshConfig(max_faces=preset.mesh_faces)

    def write() -> Written:
        splats = refined.splats.to(place.device)
        masks = [v.masks for v in scene.train]
        saved = functools.partial(saved_stage, work=work, types=types_of_state(), watch=watch, notices=notices)
        mesh, no_mesh = yield from saved("mesh", meshed(lambda: extract_mesh(splats, refined.cameras, mesh_config, masks)))
        yield from write_pictures(work.result, splats, refined.cameras, after.pairs, preset, background, place.threads)
        yield Progress("files", 0, 1)
        posed = [dataclasses.replace(v, cameras=c) for v, c in zip(scene.train, refined.cameras)]
        write_scene(work.result, refined.splats, mesh, posed, after.heldout)
        if also is not None:
            also(work.result)
        return len(refined.splats), 0 if mesh is None else len(mesh.faces), no_mesh

    kept = work.state / "refined.safetensors" if compared.kept == "refined" else plan.source / "state" / "fit.safetensors"
    write_atomic(work.state / "fit.safetensors", kept.read_bytes())  # so that the result can be refined in turn
    configs = {"refine_fit": plan.ready.config, "mesh": mesh_config} | configs
    scratch = ("refined", "fit_checkpoint", *scratch)
    return (yield from finished(plan, work, watch, notices, compared, configs, write, scratch, licences))


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
        refine_poses, lr_poses = bool(old["fit"]["refine_poses"]), float(old["fit"]["lr_poses"]) / SLOWER
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
        lr_poses=lr_poses,
        lr_poses_final=lr_poses / 100,
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


def fitted_further(
    plan: RefinePlan, scene: Reconstruction, fitted: FitResult, config: FitConfig, state: Path
) -> Generator[Progress, None, FitResult]:
    """`fitted` after the fit of `config` to the photos of `scene`, on the plan's device; the result is on the CPU."""
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
class MeasuredSplats:
    train: Quality
    holdout: Quality | None
    pairs: list  # photos beside renders, held-out ones where there are any
    heldout: list[Views]  # with the cameras that they were judged by


def measured_splats(
    plan: RefinePlan, scene: Reconstruction, fitted: FitResult, background: Tensor
) -> Generator[Progress, None, MeasuredSplats]:
    """As the photos job measures: held-out photos whose cameras were solved are placed against the splats first."""
    from app.quality import refined

    place, splats = plan.place, fitted.splats.to(plan.place.device)
    posed = [dataclasses.replace(v, cameras=c) for v, c in zip(scene.train, fitted.cameras)]
    train, train_pairs = yield from measured(splats, posed, background, fitted.exposures, place.threads)
    heldout = scene.heldout
    if heldout and not scene.heldout_posed:
        heldout = yield from refined(splats, heldout, background)
    holdout, holdout_pairs = yield from measured(splats, heldout, background, None, place.threads)
    return MeasuredSplats(train, holdout, holdout_pairs or train_pairs, heldout)
