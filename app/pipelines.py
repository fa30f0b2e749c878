"""The jobs, as plain generators of `Progress`: the command line, the page and an API all call these.

`photos_to_scene`: photos -> recon.reconstruct -> splat.optimise.fit -> splat.extract_mesh -> the files of a result folder.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.commands import Photos
from app.estimate import (
    BYTES_BASE,
    BYTES_PER_PIXEL,
    SHARE_OF_STEPS,
    Estimate,
    decodable_pixels,
    estimate_photos,
    memory_budget,
    seconds_of_repair,
)
from app.jobs import Outcome, check_disk, costs_so_far, late_errors, meshed, noted, saved_stage
from app.machine import Place, colour, pick_place
from app.next_photo import entry, sheet
from app.notices import Notices
from app.presets import PRESETS, Preset
from app.repair_splats import repair_where_it_helps, types_of_rounds, write_invented
from app.repairers import SMALL, ChosenRepairer, chosen_repairer
from app.report import InputFile, Licence, Report, read_report, write_report
from app.result_folder import WorkFolder, begin, check_out, disk_errors_as_sentences, write_atomic
from app.saved_stages import save_stage
from app.scene_files import measured, write_pictures, write_scene
from app.stopwatch import Stopwatch
from splat.errors import InputError, StoppedLate
from splat.few_photos import FEW_PHOTOS, UNSURE, pose_rates
from splat.progress import Progress

NO_JUDGE = "Nothing can judge repair of fewer than 3 photos of which none is held out, so it is left out."
REMEDY = "use --preset draft, a smaller --max-side or fewer photos"
# Options that say where and how loudly a job runs, not what it computes; a resumed run may change them.
FREE_OPTIONS = {"out", "threads", "resume", "overwrite", "compact", "quiet", "json", "inputs", "masks", "poses"}


@dataclass(frozen=True)
class Plan:
    """Everything known about a photos job before its work starts."""

    options: Photos
    photos: tuple  # of recon.photos.Photo
    notices: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    place: Place
    preset: Preset
    fit_side: int
    background: tuple[float, float, float]
    regularised: bool  # as few photos need it
    repairer: ChosenRepairer | None  # with --repair
    learned: tuple  # of recon.priors.learned.PriorWeights
    fit_memory: int  # bytes left to the fit
    estimate: Estimate
    job: dict[str, Any]  # what makes two runs the same run


def photos_to_scene(options: Photos) -> Generator[Progress, None, Outcome]:
    """Photos to a result folder at `options.out`; closing the generator leaves a resumable state.

    Yields first the estimate, then stages poses, prior, initialise, fit, mesh, measure, next photo (of few photos), turntable,
    files. Raises `InputError` before anything is written, `StoppedLate` after that, with the state kept in OUT.partial.
    """
    out = Path(options.out)
    if check_out(out, resume=options.resume, overwrite=options.overwrite):
        unfinished = out.with_name(f"{out.name}.partial")
        more = f" {unfinished} goes on with --overwrite --resume." if (unfinished / "job.json").is_file() else ""
        yield Progress("notice", 1, 1, f"{out} is complete already; it is left as it is.{more}")
        return Outcome(out, read_report(out), skipped=True)
    notices, watch = Notices(), Stopwatch()  # from here on: reading takes time, and may warn
    try:
        with notices:
            return (yield from _planned(options, watch, notices))
    finally:
        watch.stop()


def _planned(options: Photos, watch: Stopwatch, notices: Notices) -> Generator[Progress, None, Outcome]:
    out = Path(options.out)
    plan = plan_photos(options)
    notices.add(*plan.notices, *plan.place.fallbacks)
    what = f"{len(plan.photos)} photos, preset {options.preset}, on {plan.place.device} with the {plan.place.renderer} renderer"
    for weights in plan.learned:  # before they are opened
        yield Progress("notice", 1, 1, weights.notice)
    values = {"seconds": plan.estimate.seconds, "memory": plan.estimate.memory}
    yield Progress("estimate", 1, 1, plan.estimate.sentence(what), values=values)
    work = begin(out, plan.job, resume=options.resume)
    watch.go_on_from(costs_so_far(work))
    # The photos go to the work alone, which drops them when the poses are known: many large ones fill gigabytes.
    job = _photos_work(dataclasses.replace(plan, photos=()), plan.photos, work, watch, notices)
    del plan
    try:
        with disk_errors_as_sentences(out), late_errors(REMEDY):
            return (yield from noted(job, watch, notices))
    finally:
        work.close()


def plan_photos(options: Photos) -> Plan:
    """Read and judge everything the user gave. Raises `InputError`; writes nothing."""
    from recon.photos import PhotoConfig, read_photos
    from recon.reconstruct import held_out
    from splat.io.images import MAX_PIXELS

    budget = memory_budget(options.memory_budget)
    if options.holdout < 0 or options.holdout == 1:
        raise InputError(f"--holdout {options.holdout} keeps every photo out of the fit; give 2 or more, or 0 to fit all.")
    if options.max_side is not None and options.max_side < 64:
        raise InputError(f"--max-side {options.max_side} leaves too little to see; give at least 64.")
    if not 0 <= options.seed < 2**31:
        raise InputError(f"--seed {options.seed} is out of range; give 0 to {2**31 - 1}.")
    if options.real_size is not None and not 0 < options.real_size < math.inf:
        raise InputError(f"--real-size {options.real_size} is no size; give the subject's longest side in metres.")
    if options.without and options.regularise == "none":
        raise InputError("--without leaves parts out of the full fit, which --regularise none does not do; give one of them.")
    if options.steps is not None and options.steps < 1:
        raise InputError(f"--steps {options.steps} fits nothing; give 1 or more.")
    background, place, preset = colour(options.background), pick_place(options.device, options.threads), PRESETS[options.preset]
    preset = dataclasses.replace(preset, steps=options.steps or preset.steps)
    learned = _learned(options)
    given, poses = _poses_given(options), Path(options.poses)
    if given and not poses.exists():
        raise InputError(
            f"--poses {options.poses} does not exist; give auto, prior, a transforms.json or a COLMAP model folder."
        )
    fit_side = options.max_side or preset.fit_side
    config = PhotoConfig(
        max_side=max(fit_side, 0 if given else preset.feature_side),
        max_photos=0 if given else PhotoConfig.max_photos,  # posed photos cost no matching, and each helps
        masks=options.masks or "",
        max_pixels=min(MAX_PIXELS, decodable_pixels(budget)),
    )
    found = read_photos(options.inputs, config)
    if given:
        from recon.poses.from_file import load_poses

        load_poses(poses, found.photos)  # judged now, so that a bad file costs no work
    elif options.poses == "auto":
        from recon.doctor import check_hope

        check_hope(found)
    fitted = len(found.photos) - len(held_out(len(found.photos), options.holdout))
    regularised = options.regularise == "full" or (options.regularise == "auto" and fitted <= FEW_PHOTOS)
    if not regularised and any(w.family.gives == "normals" for w in learned):
        raise InputError(f"{fitted} photos get a plain fit, which takes no --prior of normals; give --regularise full as well.")
    pixels = sum(p.image.numel() // 3 for p in found.photos)
    largest = max(max(p.size) for p in found.photos)
    fit_pixels = pixels * min(1.0, fit_side / largest) ** 2 / len(found.photos)
    estimate = estimate_photos(
        len(found.photos),
        pixels // len(found.photos),
        int(fit_pixels),
        preset,
        solve_poses=not given,
        regularised=regularised,
        renderer=place.renderer,
        threads=place.threads,
    )
    fit_memory = int(budget - BYTES_BASE - pixels * BYTES_PER_PIXEL)
    if fit_memory < 50e6:
        least = (BYTES_BASE + pixels * BYTES_PER_PIXEL + 200e6) / 1e9
        raise InputError(
            f"--memory-budget {options.memory_budget} is too small for {len(found.photos)} photos of this size; "
            f"give at least {least:.1f}GB or fewer photos."
        )
    repairer = chosen_repairer(SMALL, device=place.device) if options.repair else None
    if repairer is not None:
        more = seconds_of_repair(
            fitted, int(fit_pixels), preset, held_out=bool(options.holdout), renderer=place.renderer, threads=place.threads
        )
        estimate = dataclasses.replace(estimate, seconds=estimate.seconds + more)
    check_disk(Path(options.out), estimate.disk)
    return Plan(
        options=options,
        photos=found.photos,
        notices=(*found.notices, *_without_effect(options, found.photos, learned)),
        skipped=found.skipped,
        place=place,
        preset=preset,
        fit_side=fit_side,
        background=background,
        regularised=regularised,
        repairer=repairer,
        learned=learned,
        fit_memory=fit_memory,
        estimate=estimate,
        job=_job(options, found.photos, place, learned),
    )


def _poses_given(options: Photos) -> bool:
    return options.poses not in ("auto", "prior")


def _learned(options: Photos) -> tuple:
    """The weights behind --prior; raises `InputError` or `BackendUnavailable` for what is not there."""
    if len(options.prior_weights) not in (0, len(options.prior)):
        raise InputError(
            f"{len(options.prior)} --prior and {len(options.prior_weights)} --prior-weights; give one for each, in that order."
        )
    if not options.prior and options.poses != "prior":
        return ()
    from recon.priors.learned import LEARNED_PRIORS, check_there, find_weights

    given = options.prior_weights or (None,) * len(options.prior)
    learned = tuple(find_weights(name, weights) for name, weights in zip(options.prior, given))
    unused = options.regularise == "none" or "normals" in options.without
    if unused and any(w.family.gives == "normals" for w in learned):
        raise InputError("A --prior of normals serves a part of the regularised fit that is left out; give one or the other.")
    if options.poses == "prior" and not any(w.family.gives_cameras for w in learned):
        *names, last = (name for name, family in LEARNED_PRIORS.items() if family.gives_cameras)
        raise InputError(f"--poses prior needs a --prior that gives cameras: {', '.join(names)} or {last}.")
    for weights in learned:
        check_there(weights)
    return learned


def _without_effect(options: Photos, photos: tuple, learned: tuple) -> tuple[str, ...]:
    """Sentences about options that change nothing."""
    has = {"poses"} if _poses_given(options) else set()
    if not all(p.mask is not None for p in photos):
        has |= {"depth"} if any(w.family.gives == "normals" for w in learned) else {"depth", "normals"}
    idle = [part for part in options.without if part in has]
    if not idle:
        return ()
    return (f"--without {' '.join(idle)} changes nothing: depth and normals serve masked photos alone, poses solved cameras.",)


def _photos_work(
    plan: Plan, photos: tuple, work: WorkFolder, watch: Stopwatch, notices: Notices
) -> Generator[Progress, None, Outcome]:
    from recon.next_photo import NextPhoto, NextPhotoConfig, next_photo
    from recon.reconstruct import RECONSTRUCTION_TYPES
    from splat.extract_mesh import MeshConfig, extract_mesh
    from splat.mesh import Mesh
    from splat.optimise import FitResult, fit

    types = (*RECONSTRUCTION_TYPES, FitResult, Mesh, NextPhoto, *types_of_rounds())
    options, place, preset = plan.options, plan.place, plan.preset
    torch.set_num_threads(place.threads)
    background = torch.tensor(plan.background)
    recon_config = _reconstruct_config(plan)
    fit_config = _fit_config(plan, photos)
    mesh_config = MeshConfig(max_faces=preset.mesh_faces)

    saved = functools.partial(saved_stage, work=work, types=types, watch=watch, notices=notices)
    reconstruction = _reconstructed(photos, recon_config)
    del photos
    scene = yield from saved("reconstruction", reconstruction)
    unplaced = [f"{name} is left out: {reason}" for name, reason in scene.reasons.items()]
    notices.add(*scene.warnings, *unplaced, *scene.fallbacks)
    if fit_config.refine_poses:
        fit_config = dataclasses.replace(fit_config, **pose_rates(scene.facts.get("reprojection_rad", UNSURE)))
    train = [v.to(place.device) for v in scene.train]
    priors = None if scene.priors is None else scene.priors.to(place.device)
    # With --repair, state/fit.safetensors is written at the end: a run that is cut there must not repair what is repaired.
    fitted = yield from saved(
        "fit" if plan.repairer is None else "first_fit",
        fit(train, scene.initial.to(place.device), fit_config, work.state / "fit_checkpoint.safetensors", priors),
    )
    tried, repair_said = None, ()
    if plan.repairer is not None:
        steps = round(SHARE_OF_STEPS * preset.steps)
        tried = yield from repair_where_it_helps(
            scene, fitted, fit_config, plan.repairer.repair, steps, saved, work.state, place.device
        )
        repair_said = (NO_JUDGE if tried is None else tried.sentence,)
        notices.add(*repair_said)
        if tried is not None and tried.kept:
            fitted = tried.fitted
    splats = fitted.splats.to(place.device)
    masks = [v.masks for v in scene.train]
    mesh, no_mesh = yield from saved("mesh", meshed(lambda: extract_mesh(splats, fitted.cameras, mesh_config, masks)))
    notices.add(*no_mesh)
    posed = [dataclasses.replace(v, cameras=c) for v, c in zip(scene.train, fitted.cameras)]
    train_quality, train_pairs = yield from measured(splats, posed, background, fitted.exposures, place.threads)
    facts = {k: float(v) for k, v in scene.facts.items()}
    heldout = scene.heldout
    if heldout and not scene.heldout_posed:
        from app.quality import refined

        before, _ = yield from measured(splats, heldout, background, None, place.threads)
        facts["holdout_psnr_before_refinement"] = before.psnr
        heldout = yield from refined(splats, heldout, background)
    holdout_quality, holdout_pairs = yield from measured(splats, heldout, background, None, place.threads)
    suggested = None
    if sum(len(v) for v in posed) <= FEW_PHOTOS:
        ask = NextPhotoConfig(
            steps=min(NextPhotoConfig.steps, max(preset.steps // 2, 1)),
            background=plan.background,
            seed=options.seed,
            backend=place.renderer,
            threads=place.threads,
        )
        seen = [dataclasses.replace(v, cameras=c.to(place.device)) for v, c in zip(train, fitted.cameras)]
        try:
            suggested = yield from saved("next_photo", next_photo(seen, scene.initial.to(place.device), ask, splats))
        except (StoppedLate, InputError) as error:  # an extra: the scene is complete without it
            notices.add(f"From where one more photo would help is not known: {error}")

    yield from write_pictures(
        work.result, splats, fitted.cameras, holdout_pairs or train_pairs, preset, background, place.threads
    )
    yield Progress("files", 0, 1)
    write_scene(work.result, fitted.splats, mesh, posed, heldout)
    if suggested is not None:
        from splat.io.images import save_image

        save_image(work.result / "next_photo.png", sheet(suggested, posed, fitted.splats))
    if tried is not None and tried.kept:
        write_invented(work.result, tried.views)
    if options.colmap_out:
        from recon.poses.to_colmap import write_colmap_folder

        write_colmap_folder(work.result / "colmap", posed, scene.sparse)
    configs = {"photos": plan.job, "reconstruct": recon_config, "fit": fit_config, "mesh": mesh_config, "preset": preset}
    plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in configs.items()}
    write_atomic(work.result / "config.json", json.dumps(plain, indent=1, default=str).encode())
    watch.split()
    warnings = list(dict.fromkeys((*plan.notices, *scene.warnings, *unplaced, *no_mesh, *repair_said)))
    heldout_names = {name for v in scene.heldout for name in v.names}
    placed = {name for v in (*scene.train, *scene.heldout) for name in v.names}
    report = write_report(
        Report(
            command="photos",
            inputs=[
                *(
                    InputFile(name, sha256, name in placed, scene.reasons.get(name), name in heldout_names)
                    for name, sha256 in plan.job["inputs"]
                ),
                *(InputFile(name, None, False, reason) for name, reason in plan.skipped),
            ],
            scale=scene.scale,
            result_from_input=scene.result_from_input,
            seed=options.seed,
            device=place.device,
            backend=place.renderer,
            gaussians=len(fitted.splats),
            mesh_faces=0 if mesh is None else len(mesh.faces),
            stages=list(watch.costs.values()),
            train=train_quality,
            holdout=holdout_quality,
            warnings=warnings,
            fallbacks=[sentence for sentence in notices.sentences if sentence not in warnings],
            licences=[
                *_licences(scene.facts),
                *(plan.repairer.licences if tried is not None and tried.kept else ()),
                *(Licence(f"{w.family.title} ({w.source})", w.licence) for w in plan.learned),
            ],
            facts=facts,
            repair=None if tried is None else tried.told,
            next_photo=None if suggested is None else entry(suggested),
        ),
        work.result / "report.json",
    )
    if plan.repairer is not None:
        save_stage(work.state / "fit.safetensors", (fitted, ()))  # what a later refinement begins with
        for name in ("left_out", "repair_*", "control_*", "first_fit"):  # made again, to the same bits, by a run cut here
            for path in work.state.glob(f"{name}.safetensors"):
                path.unlink()
    work.publish(keep_state=not options.compact)
    yield Progress("files", 1, 1, f"{options.out} is complete")
    return Outcome(Path(options.out), report)


def _reconstructed(photos: tuple, config: Any) -> Generator[Progress, None, Any]:
    from recon.reconstruct import reconstruct

    return (yield from reconstruct(photos, config))


def _reconstruct_config(plan: Plan) -> Any:
    from recon.initialise import InitialConfig
    from recon.poses import PoseConfig
    from recon.priors.patch_match import PatchMatchConfig
    from recon.priors.plane_sweep import PlaneSweepConfig
    from recon.reconstruct import ReconstructConfig

    options = plan.options
    placing = next((w for w in plan.learned if w.family.gives_cameras), None) if options.poses == "prior" else None
    return ReconstructConfig(
        poses_from=Path(options.poses) if _poses_given(options) else None,
        poses=PoseConfig(
            method="prior" if placing else "colmap",
            prior=placing,
            seed=options.seed,
            device=plan.place.device,
            intrinsics=options.intrinsics,
        ),
        learned=plan.learned,
        prior=PlaneSweepConfig(patches=PatchMatchConfig(seed=options.seed)),
        initialise=InitialConfig(seed=options.seed),
        holdout=options.holdout,
        priors=plan.regularised,
        fit_side=plan.fit_side,
        background=plan.background,
        real_size=options.real_size,
    )


def _fit_config(plan: Plan, photos: tuple) -> Any:
    from splat.few_photos import PARTS, for_few_photos

    preset = plan.preset
    return for_few_photos(
        len(photos),
        poses_given=_poses_given(plan.options),
        masked=all(p.mask is not None for p in photos),
        normals_given=any(w.family.gives == "normals" for w in plan.learned),
        without=plan.options.without if plan.regularised else PARTS,
        steps=preset.steps,
        checkpoint_every=max(10, min(250, preset.steps // 4)),
        sh_degree=preset.sh_degree,
        max_gaussians=preset.max_gaussians,
        memory_budget=plan.fit_memory,
        background=plan.background,
        seed=plan.options.seed,
        backend=plan.place.renderer,
        threads=plan.place.threads,
        # Pictures that came with alpha are renders or studio cut-outs: nothing was exposed differently, and gains would drift.
        exposure=not all(p.on_white for p in photos),
    )


def _licences(facts: dict[str, float]) -> list[Licence]:
    """Of the weights that had a part in the result; the pose solver says whether it needed its networks."""
    from app.info import weights

    return [Licence(w.name, w.licence) for w in weights() if w.command == "photos"] if facts.get("xfeat") else []


def _job(options: Photos, photos: tuple, place: Place, learned: tuple) -> dict[str, Any]:
    """What two runs must share to be one run that continues."""
    fixed = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name not in FREE_OPTIONS}
    fixed |= {"device": place.device, "renderer": place.renderer}
    from recon.poses.from_file import files_of_poses

    files = files_of_poses(Path(options.poses)) if _poses_given(options) else []
    return {
        "command": "photos",
        "version": importlib.metadata.version("splatsmith"),
        "inputs": [[p.name, p.sha256] for p in photos],
        "masks": [None if p.mask is None else _digest(p.mask.numpy().tobytes()) for p in photos],
        "poses": [_digest(p.read_bytes()) for p in files],
        "learned": [[w.prior, w.source, w.size] for w in learned],
        **fixed,
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
