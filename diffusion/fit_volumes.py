"""Volumes of many objects: one file per object, in parallel, continued where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

import torch

from diffusion.fit_volume import VolumeFitConfig, fit_volume, fitting_cameras
from diffusion.surface_volume import surface_volume
from diffusion.volume import SplatVolume, load_volume, save_volume
from splat.errors import InputError, SplatsmithError
from splat.mesh import Mesh
from splat.progress import Progress

log = logging.getLogger(__name__)

NOT_DECISIVE = ("threads", "report_every")  # these change when and where, not what


@dataclass(frozen=True)
class FittedVolumes:
    """What became of each object."""

    fitted: tuple[str, ...]
    kept: tuple[str, ...]  # found on disk, made of the same mesh and config
    failed: dict[str, str] = field(default_factory=dict)  # name -> the sentence


def fit_mesh(mesh: Mesh, config: VolumeFitConfig) -> Generator[Progress, None, SplatVolume]:
    """Mesh in, volume out: surface, pictures, fit. `mesh` is centred, longest side 1, +Y up."""
    from splat.raycast import raycast

    initial = surface_volume(mesh, config.resolution, max_offset=config.max_offset, seed=config.seed)
    cameras = fitting_cameras(config.views, config.view_side, config.seed)
    views, _ = raycast(mesh, cameras, threads=config.threads or 0)
    return (yield from fit_volume(initial, views, config))


def fit_volumes(
    objects: Iterable[tuple[str, Mesh]], folder: Path, config: VolumeFitConfig, workers: int = 1, total: int = 0
) -> Generator[Progress, None, FittedVolumes]:
    """Fit every (name, mesh) and write `folder/name.safetensors` in float16, one thread to an object, `workers` at a time.

    Names are relative paths such as "pack/chair-01". A file that holds the volume of the same mesh and config is kept, so a
    run that was cut goes on, and ends with the same bytes. Meshes are drawn from `objects` as they are needed; `total` is
    only shown. An object that cannot be fitted is named in the result with its reason and does not stop the others.
    """
    folder = Path(folder)
    config = replace(config, threads=1)
    fitted, kept, failed = [], [], {}
    for done, (name, outcome) in enumerate(_outcomes(objects, folder, config, workers), start=1):
        if outcome == "fitted":
            fitted.append(name)
        elif outcome == "kept":
            kept.append(name)
        else:
            failed[name] = outcome
            log.warning("%s was not fitted: %s", name, outcome)
        yield Progress("volumes", done, max(total, done), note=name, values={"failed": len(failed)})
    return FittedVolumes(tuple(fitted), tuple(kept), failed)


def volume_path(folder: Path, name: str) -> Path:
    """Where the volume of `name` lies. Raises InputError for names that lead out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise InputError(f"An object is named {name!r}, which is no path inside a folder; rename it.")
    return Path(folder, *parts[:-1], parts[-1] + ".safetensors")


def _outcomes(
    objects: Iterable[tuple[str, Mesh]], folder: Path, config: VolumeFitConfig, workers: int
) -> Iterator[tuple[str, str]]:
    """(name, "fitted" | "kept" | reason) in order of completion."""
    if workers <= 1:
        for name, mesh in objects:
            yield name, _fit_to_file(name, mesh, folder, config)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
    waiting: dict[Future, str] = {}

    def finished() -> Iterator[tuple[str, str]]:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield waiting.pop(future), future.result()

    try:
        for name, mesh in objects:
            waiting[pool.submit(_fit_to_file, name, mesh, folder, config)] = name
            if len(waiting) >= 2 * workers:  # the next meshes are read while these are fitted, not all at once
                yield from finished()
        while waiting:
            yield from finished()
    finally:
        pool.shutdown(cancel_futures=True)


def _fit_to_file(name: str, mesh: Mesh, folder: Path, config: VolumeFitConfig) -> str:
    try:
        path = volume_path(folder, name)
        mark = _fingerprint(mesh, config)
        if _is_kept(path, mark):
            return "kept"
        job = fit_mesh(mesh, config)
        while True:
            try:
                next(job)
            except StopIteration as end:
                volume = end.value
                break
        path.parent.mkdir(parents=True, exist_ok=True)
        save_volume(path, volume, torch.float16, {"name": name, "fingerprint": mark})
    except SplatsmithError as error:
        return str(error)
    return "fitted"


def _is_kept(path: Path, mark: str) -> bool:
    if not path.exists():
        return False
    try:
        return load_volume(path)[1].get("fingerprint") == mark
    except InputError as error:
        log.warning("%s Fitting it anew.", error)
        return False


def _fingerprint(mesh: Mesh, config: VolumeFitConfig) -> str:
    """SHA-256 of all that decides the volume."""
    decisive = {k: v for k, v in asdict(config).items() if k not in NOT_DECISIVE}
    sha = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    for x in (mesh.vertices, mesh.faces, mesh.colors, mesh.uvs, mesh.texture):
        sha.update(b"none" if x is None else f"{tuple(x.shape)}{x.dtype}".encode() + x.contiguous().numpy().tobytes())
    return sha.hexdigest()
