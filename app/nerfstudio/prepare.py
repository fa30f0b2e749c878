"""Photos or a result of ours, laid out as nerfstudio's data: undistorted pictures, transforms.json, the first Gaussians."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from app.report import read_report
from recon.photos import PhotoConfig, list_files, read_photos
from recon.poses.from_file import write_transforms
from recon.reconstruct import ReconstructConfig, reconstruct
from splat.errors import InputError
from splat.gaussians import Splats
from splat.io import load, save
from splat.io.images import save_image
from splat.views import Views

TRAIN, HELDOUT, INITIAL = "transforms.json", "transforms_holdout.json", "initial.ply"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareConfig:
    """How photos become nerfstudio's data."""

    poses: str = "auto"  # auto solves them; or a transforms.json, or a COLMAP model folder
    fit_side: int = 480  # pixels, long side of the pictures to fit
    holdout: int = 8  # every n-th photo is for evaluation; 0 keeps none out
    seed: int = 0


def prepared(data: Path, cache: Path, config: PrepareConfig) -> Path:
    """The folder inside `cache` with the data of `data`: made on the first call, found again on the next.

    `data` is a folder of photos (or a video), or a result folder, whose world and splats are then kept as they are. The folder
    holds the pictures, `TRAIN` and `HELDOUT` (both in nerfstudio's form, in the result's frame: +Y up) and `INITIAL`, the
    Gaussians to start from. Raises `InputError` and `StoppedLate` as `recon.reconstruct` does.
    """
    data = Path(data).expanduser().absolute()
    made = Path(cache).expanduser() / _key(data, config)
    if made.is_dir():
        return made
    train, heldout, initial = _from_result(data) if _is_result(data) else _from_photos(data, config)
    made.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=made.parent))
    try:
        _write(temporary, TRAIN, train)
        _write(temporary, HELDOUT, heldout)
        save(initial, temporary / INITIAL)
        temporary.rename(made)  # whole, or not at all
    except OSError:
        if not made.is_dir():  # else somebody else made the same at the same time
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return made


def _is_result(data: Path) -> bool:
    return (data / "report.json").is_file()


def _from_photos(data: Path, config: PrepareConfig) -> tuple[list[Views], list[Views], Splats]:
    photos = read_photos([data], PhotoConfig()).photos
    poses_from = None if config.poses == "auto" else Path(config.poses)
    settings = ReconstructConfig(poses_from=poses_from, holdout=config.holdout, fit_side=config.fit_side)
    torch.manual_seed(config.seed)
    steps = reconstruct(photos, settings)
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            scene = end.value
            break
        if progress.step == progress.total:
            log.info("%s: %s", progress.stage, progress.note)
    for sentence in (*scene.warnings, *(f"{name}: {reason}" for name, reason in scene.reasons.items())):
        log.warning(sentence)
    return scene.train, scene.heldout, scene.initial


def _from_result(folder: Path) -> tuple[list[Views], list[Views], Splats]:
    """The result's splats with its own photos as they were fitted; renders stand in for photos that it no longer has."""
    from app.scenes import read_cameras
    from app.turntable import render_frames

    read_report(folder)
    splats = load(folder / "scene.ply")
    found = _fitted_views(folder)
    if found is not None:
        return *found, splats
    log.warning("%s holds no photos (--compact leaves them out, and some results have none); its renders stand in.", folder)
    views = []
    names = [frame["file_path"] for frame in json.loads((folder / "cameras.json").read_text())["frames"]]
    for cameras in read_cameras(folder / "cameras.json", 512):
        images = torch.stack(list(render_frames(splats, cameras, torch.ones(3))))
        views.append(Views(images, tuple(names[: len(cameras)]), cameras))
        names = names[len(cameras) :]
    return views, [], splats


def _fitted_views(folder: Path) -> tuple[list[Views], list[Views]] | None:
    from app.saved_stages import load_stage
    from recon.reconstruct import RECONSTRUCTION_TYPES

    stage = folder / "state" / "reconstruction.safetensors"
    if not stage.is_file():
        return None
    scene, _ = load_stage(stage, RECONSTRUCTION_TYPES)
    return scene.train, scene.heldout


def _write(folder: Path, name: str, views: list[Views]) -> None:
    (folder / "images").mkdir(exist_ok=True)
    files = []
    for batch in views:
        for image, photo in zip(batch.images, batch.names):
            files.append(f"images/{Path(name).stem}_{len(files):04d}_{Path(photo).stem}.png")
            save_image(folder / files[-1], image)
    write_transforms(folder / name, [v.cameras for v in views], files)


def _key(data: Path, config: PrepareConfig) -> str:
    """A name that changes when the data or the config do."""
    if _is_result(data):
        files = [data / "report.json", data / "scene.ply"]
        options: dict = {}
    else:
        files, options = list_files([data], []), asdict(config)
        if config.poses != "auto":
            files.append(Path(config.poses))
    if not files:
        raise InputError(f"{data} holds no photos and is no result; give a folder of photos, or a result folder.")
    stamps = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    digest = hashlib.sha256(json.dumps([str(data), options, stamps]).encode()).hexdigest()
    return f"{data.name}-{digest[:16]}"
