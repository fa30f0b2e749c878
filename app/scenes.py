"""What is done with a finished result or a scene file: export, render, eval."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from app import commands
from app.machine import colour, pick_place
from app.report import Quality, read_report
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.progress import Progress
from splat.similarity import Similarity, fit_similarity

MESH_SUFFIXES = (".glb", ".obj", ".stl", ".usdz")  # written by app.textured_mesh
SPLATS_AS_GLB = ".gs.glb"  # since .glb is the mesh
VIEW_PAGE = ".html"
DEFAULT_EVAL_SIDE = 1024  # px, where the result does not say what size it was fitted at
MAX_SIDE = 16384  # px of a picture
PAGE_SIDE = 640  # px that a page of splats is framed for; its window may have any size
ENOUGH = 100_000  # splats that tell how far a scene extends


def load_scene(path: Path) -> Splats:
    """The splats of a result folder or scene file, on the CPU."""
    from splat.io import load

    path = Path(path)
    if path.is_dir():
        read_report(path)
        path = path / "scene.ply"
    if not path.exists():
        raise InputError(f"{path} does not exist; give a result folder or a scene file.")
    return load(path)


def export_scene(scene: Path, to: Path, convention: Literal["splatsmith", "3dgs"], sh_degree: int | None = None) -> None:
    """Write the splats (`splat.io.FORMATS`; .gs.glb for glTF) or a page that shows them; meshes: `app.textured_mesh`.

    `convention` is that of `splat.io.save`. `sh_degree` cuts off the splats' higher bands. Raises `InputError` for other
    suffixes, missing folders, and a result's own files, which share one frame.
    """
    from splat.io import FORMATS, save

    suffix = to.suffix.lower()
    if suffix not in (*FORMATS, VIEW_PAGE):
        known = dict.fromkeys((*FORMATS, SPLATS_AS_GLB, *MESH_SUFFIXES, VIEW_PAGE))  # each once
        raise InputError(f"'{suffix}' is no format of export; use one of {', '.join(known)}.")
    if not to.parent.is_dir():
        raise InputError(f"The folder {to.parent} does not exist; create it or choose another --to.")
    if to.name in ("scene.ply", "mesh.glb") and (to.parent / "report.json").is_file():
        raise InputError(f"{to} belongs to the result {to.parent} and stays as it is; choose another --to.")
    if sh_degree is not None and not 0 <= sh_degree <= 3:
        raise InputError(f"--sh-degree {sh_degree} is none; give 0 (no view-dependent colour) to 3.")
    splats = load_scene(scene)
    if sh_degree is not None and sh_degree < splats.sh_degree:
        splats = splats.with_sh_degree(sh_degree)
    if suffix == VIEW_PAGE:
        _save_view_page(splats, scene, to, convention)
    else:
        save(splats, to, convention)


def render_scene(options: commands.Render) -> Generator[Progress, None, list[Path]]:
    """A video or stills of `options.scene`; returns the files written."""
    from app.turntable import render_frames, video
    from splat.io.images import save_image

    to, suffix = options.to, options.to.suffix.lower()
    if suffix not in (".mp4", ".png"):
        raise InputError(f"'{suffix}' is no format of render; use .mp4 or .png.")
    if not to.parent.is_dir():
        raise InputError(f"The folder {to.parent} does not exist; create it or choose another --to.")
    if options.frames < 1 or not 16 <= options.side <= MAX_SIDE:
        raise InputError(
            f"--frames {options.frames} --side {options.side} gives no picture; use at least 1 frame of 16 to {MAX_SIDE} px."
        )
    if options.enhance and suffix != ".mp4":
        raise InputError(f"--enhance makes the frames of a video steady, and {to.name} is none; render to an .mp4.")
    if (options.repairer or options.prompt) and not options.enhance:
        raise InputError("--repairer and --prompt say how frames are enhanced; give --enhance, too.")
    place, background = pick_place(options.device, options.threads), torch.tensor(colour(options.background))
    splats = load_scene(options.scene).to(place.device)
    if options.cameras is None:
        batches = [_path_for(options.scene, splats, options.frames if suffix == ".mp4" else 1, options.side)]
    else:
        batches = read_cameras(options.cameras, options.side)
    if suffix == ".mp4" and (len({(c.width, c.height) for c in batches}) > 1):
        raise InputError(f"{options.cameras} has cameras of several sizes, which make no video; render to .png.")
    if suffix == ".mp4":
        batches = [c.resized(c.width // 2 * 2, c.height // 2 * 2) for c in batches]
    chosen = None
    if options.enhance:
        from app.repairers import SMALL, chosen_repairer

        chosen = chosen_repairer(options.repairer or SMALL, device=place.device, prompt=options.prompt, video_too=True)
    total = sum(len(c) for c in batches)
    frames = (frame for cameras in batches for frame in render_frames(splats, cameras, background, place.threads))
    if suffix == ".mp4":
        temporary = to.with_name(f".{to.stem}-part.mp4")
        try:
            with video(temporary) as add:
                if chosen is not None:
                    from app.enhance import enhanced_frames

                    yield from enhanced_frames(options.scene, splats, Cameras.cat(batches), background, chosen, place, add)
                for i, frame in enumerate(frames if chosen is None else ()):
                    add(frame)
                    yield Progress("render", i + 1, total, preview=frame)
            temporary.replace(to)
        finally:
            temporary.unlink(missing_ok=True)
        return [to]
    files = [to] if total == 1 else [to.with_name(f"{to.stem}_{i:03d}.png") for i in range(total)]
    for i, frame in enumerate(frames):
        save_image(files[i], frame)
        yield Progress("render", i + 1, total, preview=frame)
    return files


def evaluate_result(options: commands.Eval) -> Generator[Progress, None, Quality]:
    """Quality of a result against posed photos in the world of its input poses."""
    from app.quality import measure
    from recon.photos import PhotoConfig, composited, read_photos
    from recon.poses import undistort
    from recon.poses.from_file import load_poses, photos_of_transforms

    report = read_report(options.result)
    place, background = pick_place(options.device, options.threads), colour(options.background)
    splats = load_scene(options.result).to(place.device)
    similarity = _result_from_world_of(options.against, options.result, report)
    files = photos_of_transforms(options.against)
    config = PhotoConfig(max_side=_fitted_side(options.result), max_photos=0, min_photos=1)
    photos = [composited(photo, background) for photo in read_photos(files, config).photos]
    views = undistort(photos, load_poses(options.against, photos))
    views = [dataclasses.replace(v, cameras=v.cameras.transformed(similarity)) for v in views]
    quality, _ = yield from measure(splats, views, torch.tensor(background), threads=place.threads)
    assert quality is not None  # load_poses refuses a file that places nothing
    return quality


def read_cameras(path: Path, side: int) -> list[Cameras]:
    """Cameras of a transforms.json, in its order, runs of one size together; `side` px square where it names no size."""
    from recon.poses.from_file import read_transforms
    from splat.cameras import intrinsics

    batches: list[Cameras] = []
    for frame in read_transforms(path):
        lens = frame.lens
        width, height = round(lens.width or side), round(lens.height or side)
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise InputError(
                f"{path.name} asks for pictures of {width} x {height} px; give 1 to {MAX_SIDE} px a side as w and h."
            )
        focal = lens.focal_x or 0.5 * width / math.tan(lens.angle_x / 2)
        K = intrinsics(focal, width, height)
        other = 0.5 * height / math.tan(lens.angle_y / 2) if lens.focal_x is None and lens.angle_y else focal
        K[1, 1] = lens.focal_y or other
        K[0, 2], K[1, 2] = lens.cx or width / 2, lens.cy or height / 2
        camera = Cameras(frame.cam_from_world[None].float(), K[None], width, height)
        if batches and (batches[-1].width, batches[-1].height) == (width, height):
            batches[-1] = Cameras.cat([batches[-1], camera])
        else:
            batches.append(camera)
    return batches


def _save_view_page(splats: Splats, scene: Path, to: Path, convention: str) -> None:
    from app.viewer_page import save_view_page

    if convention != "splatsmith":
        raise InputError(f"{to.name} shows the scene upright by itself; leave --convention {convention} out.")
    scene = scene.absolute()
    save_view_page(splats, to, _path_for(scene, splats, 1, PAGE_SIDE), scene.name if scene.is_dir() else scene.stem)


def _path_for(scene: Path, splats: Splats, frames: int, side: int) -> Cameras:
    """The path that suits the captured cameras of a result; for a bare scene file a full orbit of its extent."""
    from app.turntable import suited_path

    captured = scene / "cameras.json"
    if scene.is_dir() and captured.is_file():
        return suited_path(read_cameras(captured, side), splats, frames, side)
    return _orbit(splats, frames, side)


def _orbit(splats: Splats, frames: int, side: int) -> Cameras:
    """Round the solid part of the splats, the whole of it in the picture."""
    side = max(side // 2 * 2, 16)
    solid = splats.means[splats.opacities > 0.3].cpu()
    solid = solid if len(solid) else splats.means.cpu()
    solid = solid[:: len(solid) // ENOUGH + 1]  # quantile() takes no more than 16 million numbers
    target = solid.median(0).values
    radius = float((solid - target).norm(dim=-1).quantile(0.9))
    return Cameras.orbit(frames, 3.0 * max(radius, 1e-3), 15.0, 45.0, side, side, target=target)


def _result_from_world_of(against: Path, result: Path, report: dict[str, Any]) -> Similarity:
    """What takes the world of the poses `against` to the result's.

    The report knows it where the result was made from given poses, which share their world; else the cameras of the photos
    that both name tell it.
    """
    if not poses_were_solved(result):
        try:
            return Similarity.from_matrix(torch.tensor(report["result_from_input"], dtype=torch.float64))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(f"{result / 'report.json'} is damaged: result_from_input is no similarity.") from error
    ours = {}
    for name in ("cameras.json", "cameras_holdout.json"):
        if (result / name).is_file():
            ours |= _centers_by_name(result / name)
    theirs = _centers_by_name(against)
    common = sorted(ours.keys() & theirs.keys())
    remedy = "the result's poses were solved from its photos, so at least 3 photos, not in a line, must be in both"
    if len(common) < 3:
        raise InputError(f"{result} and {against} share {len(common)} photos; {remedy}.")
    source, target = (torch.stack([centers[name] for name in common]) for centers in (theirs, ours))
    for centers in (source, target):
        _, spread, _ = torch.linalg.svd(centers - centers.mean(0))
        if spread[1] <= 1e-3 * spread[0]:
            raise InputError(f"The {len(common)} photos that {result} and {against} share lie in a line; {remedy}.")
    return fit_similarity(source, target)


def poses_were_solved(result: Path) -> bool:
    """Whether the poses of a result were found from its photos, in a world of their own."""
    try:
        return json.loads((result / "config.json").read_text())["reconstruct"]["poses_from"] is None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _centers_by_name(path: Path) -> dict[str, Tensor]:
    """Camera centres [3] float64 of a transforms.json, by the name of the picture without folder and suffix."""
    from recon.poses.from_file import read_transforms

    frames = read_transforms(path)
    count = Counter(frame.file.stem for frame in frames)
    single = [frame for frame in frames if count[frame.file.stem] == 1]  # a name in two folders tells nothing
    return {f.file.stem: -f.cam_from_world[:3, :3].T @ f.cam_from_world[:3, 3] for f in single}


def _fitted_side(result: Path) -> int:
    """The long side in px that the result was fitted at."""
    try:
        return int(json.loads((result / "config.json").read_text())["reconstruct"]["fit_side"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_EVAL_SIDE
