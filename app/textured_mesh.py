"""A result's mesh for other programs: with fewer triangles, a baked texture, closed for printing, in a real size.

`export_mesh` is the job behind `splatsmith export` for meshes; `textured_mesh` and `solid_mesh` are its two ways.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from app import commands
from app.estimate import Estimate, memory_budget
from app.jobs import check_disk
from app.machine import Place, pick_place
from app.report import read_report
from app.result_folder import is_complete
from app.scenes import MESH_SUFFIXES, SPLATS_AS_GLB, VIEW_PAGE, _orbit, load_scene, read_cameras
from splat.errors import BackendUnavailable, InputError
from splat.progress import Progress
from splat.similarity import Similarity

if TYPE_CHECKING:
    from splat.cameras import Cameras
    from splat.gaussians import Splats
    from splat.mesh import Mesh
    from splat.views import Views

log = logging.getLogger(__name__)

MESH_AS_PLY = ".mesh.ply"  # since .ply is the splats
TEXTURED = (".glb", ".obj", ".usdz")
PRINTED = (".stl", ".obj", ".ply")  # their units are what one agrees on; glTF's and USD's are metres
GAME_FACES, GAME_TEXTURE = 10_000, 1024
TEXTURED_FACES = 50_000  # with a texture, when nobody says how many
PRINT_VOXELS = 256  # along the longest side: 0.4 mm of 10 cm
MILLIMETRES = 1000.0
SPECKS = 1e-3  # of the area: smaller separate parts are dropped
OBJECT_FOV_DEG = 40.0
RINGS = ((0, 12, 0.0), (35, 10, 15.0), (-30, 8, 10.0), (70, 4, 0.0), (-65, 4, 45.0))  # elevation, cameras, first azimuth
MOST_VIEWS = 40  # cameras of a capture that are looked through
MOST_PICTURES_BYTES = 1.5e9  # of stored photos; with more, the splats alone are looked at
PHOTO_SHARE = 0.75  # what a photo counts beside the splats' picture from the same place, which counts the rest

# CPU-seconds on one x86 server core
SECONDS_START = 4.0
SECONDS_PER_MILLION_SAMPLES = 0.3  # texels times pictures, both passes
SECONDS_PER_MEGAPIXEL = 0.3  # of the pictures
SECONDS_PER_10K_FACES = 2.5  # unwrapping
SECONDS_SOLID = 12.0
BYTES_START, BYTES_PER_TEXEL, BYTES_SOLID = 900e6, 120, 700e6


@dataclass(frozen=True)
class MeshPlan:
    """A mesh export, judged before its work starts."""

    scene: Path
    to: Path
    faces: int | None
    texture: int | None  # px
    jpeg: bool
    solid: bool
    real_size: float | None  # metres
    turned: bool  # the y-down world of --convention 3dgs
    place: Place


def exports_mesh(options: commands.Export) -> bool:
    """Whether an export is of the mesh: by its suffix, and .ply by its options. Raises `InputError` where these contradict."""
    from splat.io import FORMATS

    name = options.to.name.lower()
    mesh = name.endswith((*MESH_SUFFIXES, MESH_AS_PLY)) and not name.endswith(SPLATS_AS_GLB)
    asked = options.jpeg or any(x is not None for x in (options.faces, options.texture, options.purpose, options.real_size))
    if not mesh and asked and options.to.suffix.lower() in (*FORMATS, VIEW_PAGE):
        if options.to.suffix.lower() != ".ply" or ".compressed" in name:
            raise InputError(
                f"{options.to.name} is for splats, and --faces, --texture, --jpeg, --for and --real-size are about meshes; "
                f"give a --to that ends in {', '.join((*MESH_SUFFIXES, MESH_AS_PLY))}."
            )
        mesh = True
    return mesh


def export_mesh(options: commands.Export) -> Generator[Progress, None, Path]:
    """The mesh of `options.scene` to `options.to`, which is returned.

    Yields the estimate of longer work first, then stages mesh, decimate, unwrap, texture or solid, files. Raises `InputError`
    and `BackendUnavailable` before work, `StoppedLate` where the splats show no surface or the disk refuses. The file (an .obj
    with its texture: all of them) appears whole or not at all.
    """
    from splat.io import HALF_TURN_ABOUT_X
    from splat.io.meshes import save_mesh

    plan = plan_mesh(options)
    if plan.texture or plan.solid:
        estimate = estimated(plan)
        if estimate.memory > memory_budget(options.memory_budget):
            raise InputError(
                f"{plan.to.name} needs about {estimate.memory / 1e9:.1f} GB of memory, more than --memory-budget "
                f"{options.memory_budget}; give more{', or a smaller --texture' if plan.texture else ''}."
            )
        check_disk(plan.to, estimate.disk)
        values = {"seconds": estimate.seconds, "memory": estimate.memory}
        yield Progress("estimate", 1, 1, estimate.sentence(f"{plan.to.name} on {plan.place.device}"), values=values)
    if plan.texture:
        mesh = yield from textured_mesh(plan.scene, plan.faces or TEXTURED_FACES, plan.texture, plan.place)
    elif plan.solid:
        mesh = yield from solid_mesh(plan.scene, plan.faces)
    else:
        mesh = yield from source_mesh(plan.scene)
        if plan.faces:
            mesh = yield from _decimated(mesh, plan.faces)
    mesh = mesh.transformed(_placement(mesh, plan))
    yield Progress("files", 0, 1)
    save_mesh(mesh.transformed(HALF_TURN_ABOUT_X) if plan.turned else mesh, plan.to, "jpeg" if plan.jpeg else "png")
    yield Progress("files", 1, 1, f"{plan.to.name}: {len(mesh.faces):,} triangles")
    return plan.to


def plan_mesh(options: commands.Export) -> MeshPlan:
    """Judge what the user gave. Raises `InputError` and `BackendUnavailable`; writes nothing."""
    from splat.unwrap import LEAST_SIZE, MOST_SIZE

    to, suffix, purpose = options.to, options.to.suffix.lower(), options.purpose
    if not to.parent.is_dir():
        raise InputError(f"The folder {to.parent} does not exist; create it or choose another --to.")
    if to.is_dir():
        raise InputError(f"{to} is a folder; give the name of a file as --to.")
    if to.name in ("scene.ply", "mesh.glb") and is_complete(to.parent):
        raise InputError(f"{to} belongs to the result {to.parent} and stays as it is; choose another --to.")
    if options.faces is not None and options.faces < 4:
        raise InputError(f"--faces {options.faces} encloses nothing; give 4 or more.")
    if options.texture is not None and not LEAST_SIZE <= options.texture <= MOST_SIZE:
        raise InputError(f"--texture {options.texture} is no size of a texture; give {LEAST_SIZE} to {MOST_SIZE} px.")
    if options.real_size is not None and not 0 < options.real_size < math.inf:
        raise InputError(f"--real-size {options.real_size} is no size; give the mesh's longest side in metres.")
    if purpose == "game" and (options.faces or 0) > GAME_FACES:
        raise InputError(f"--for game has at most {GAME_FACES} triangles; give fewer than --faces {options.faces}.")
    faces = GAME_FACES if purpose == "game" and options.faces is None else options.faces
    texture = GAME_TEXTURE if purpose == "game" and options.texture is None else options.texture
    if purpose == "print" and (suffix not in PRINTED or texture):
        raise InputError(f"--for print is a shape without texture; give a --to that ends in {', '.join(PRINTED)}.")
    if texture and suffix not in TEXTURED:
        raise InputError(f"{suffix} holds no texture; give a --to that ends in {', '.join(TEXTURED)}.")
    if options.jpeg and not texture:
        raise InputError("--jpeg is about a texture; give --texture or --for game too.")
    if not options.scene.exists():
        raise InputError(f"{options.scene} does not exist; give a result folder or a scene file.")
    report = read_report(options.scene) if options.scene.is_dir() else {}
    if purpose == "print" and options.real_size is None and report.get("scale") != "metric":
        raise InputError("--for print needs to know how large: give the longest side in metres, such as --real-size 0.1.")
    if purpose == "print" and options.convention == "3dgs":
        raise InputError("--for print stands upright, +Z up; leave out --convention 3dgs.")
    if suffix == ".usdz" and importlib.util.find_spec("pxr") is None:
        raise BackendUnavailable(".usdz needs the package usd-core; run: pip install 'splatsmith[usd]'")
    place = pick_place(options.device, options.threads)
    return MeshPlan(
        scene=options.scene,
        to=to,
        faces=faces,
        texture=texture,
        jpeg=options.jpeg,
        solid=purpose == "print",
        real_size=options.real_size,
        turned=options.convention == "3dgs",
        place=place,
    )


def estimated(plan: MeshPlan) -> Estimate:
    """Rough, as all estimates: CPU work, most of it on one core."""
    if plan.solid:
        return Estimate(SECONDS_START + SECONDS_SOLID, BYTES_START + BYTES_SOLID, 50e6)
    assert plan.texture is not None
    pictures = _pictures_expected(plan.scene)
    samples = pictures * 0.6 * plan.texture**2 / 1e6
    pixels = pictures * _picture_side(plan.texture) ** 2 / 1e6
    seconds = (
        SECONDS_START
        + SECONDS_PER_MILLION_SAMPLES * samples
        + SECONDS_PER_MEGAPIXEL * pixels
        + SECONDS_PER_10K_FACES * (plan.faces or TEXTURED_FACES) / 1e4
    )
    return Estimate(seconds, BYTES_START + BYTES_PER_TEXEL * plan.texture**2, 8 * plan.texture**2 + 20e6)


def textured_mesh(scene: Path, faces: int, size: int, place: Place | None = None) -> Generator[Progress, None, Mesh]:
    """At most `faces` triangles of a result folder or scene file with a texture of `size` px, in the result's frame.

    The texture is baked from pictures of the splats and, where the result still has them, its photos. Yields stages mesh,
    decimate, unwrap, texture. Raises `InputError` and `StoppedLate` as `export_mesh` does.
    """
    from splat.bake_texture import BakeConfig, bake
    from splat.unwrap import UnwrapConfig, unwrapped

    place = place or pick_place("auto", None)
    torch.set_num_threads(place.threads)
    mesh = yield from _decimated((yield from source_mesh(scene)), faces)
    yield Progress("unwrap", 0, 1)
    mesh = unwrapped(mesh, UnwrapConfig(size))
    yield Progress("unwrap", 1, 1)
    pictures = pictures_of(scene, mesh, size, place)
    return (yield from bake(mesh, pictures, BakeConfig(size)))


def solid_mesh(scene: Path, faces: int | None = None) -> Generator[Progress, None, Mesh]:
    """A result's or scene's mesh closed to a solid, with at most `faces` triangles; yields stages mesh, solid."""
    from splat.watertight import SolidConfig, watertight

    mesh = yield from source_mesh(scene)
    yield Progress("solid", 0, 1)
    solid = watertight(mesh, SolidConfig(PRINT_VOXELS, faces))
    yield Progress("solid", 1, 1, f"{len(solid.faces):,} triangles")
    return solid


def source_mesh(scene: Path) -> Generator[Progress, None, Mesh]:
    """The mesh of a result; of a result without one and of a bare scene file, one is extracted from the splats."""
    from splat.io.meshes import load_mesh

    report = read_report(scene) if scene.is_dir() else {}
    if (scene / "mesh.glb").is_file():
        mesh = load_mesh(scene / "mesh.glb")
    else:
        yield Progress("mesh", 0, 1, "from the splats")
        mesh = _extracted(scene, report)
    yield Progress("mesh", 1, 1, f"{len(mesh.faces):,} triangles")
    return mesh


def _extracted(scene: Path, report: dict) -> Mesh:
    from splat import extract_mesh as surfaces
    from splat.density_mesh import density_mesh

    splats = load_scene(scene)
    if report.get("command") in ("image", "text"):
        return density_mesh(splats)
    captured = scene / "cameras.json"
    cameras = read_cameras(captured, 480) if scene.is_dir() and captured.is_file() else [_orbit(splats, 24, 320)]
    return surfaces.extract_mesh(splats, cameras, surfaces.MeshConfig())


def _decimated(mesh: Mesh, faces: int) -> Generator[Progress, None, Mesh]:
    from splat.decimate import decimated

    yield Progress("decimate", 0, 1)
    mesh = decimated(mesh, faces, SPECKS)
    yield Progress("decimate", 1, 1, f"{len(mesh.faces):,} triangles")
    return mesh


def _placement(mesh: Mesh, plan: MeshPlan) -> Similarity:
    """The scale to the real size; a print stands with +Z up at z = 0, over the origin, in millimetres."""
    from splat.errors import check_finite

    check_finite(mesh.vertices, "The mesh's vertices")
    low, high = mesh.vertices.amin(0).double(), mesh.vertices.amax(0).double()
    longest = float((high - low).max())
    if not longest > 0:
        raise InputError("The mesh has no extent; make it again from splats that show a surface.")
    scale = 1.0 if plan.real_size is None else plan.real_size / longest
    if not plan.solid:
        return Similarity(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), scale)
    upright = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)  # +Y to +Z, the front to -Y
    foot = torch.stack([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    return Similarity(upright, -MILLIMETRES * scale * (upright @ foot), MILLIMETRES * scale)


@dataclass(frozen=True)
class Pictures:
    """What a texture is baked from: made anew each time it is gone through, so that few are in memory at once."""

    splats: Splats
    cameras: tuple[Cameras, ...]  # of the size to draw at
    photos: tuple[Views, ...]  # one each, at any size, or none at all
    threads: int

    @property
    def pictures(self) -> int:
        return sum(len(c) for c in self.cameras) + sum(len(v) for v in self.photos)

    def __iter__(self) -> Iterator[Views]:
        from splat.level_photos import levelled

        for number, cameras in enumerate(self.cameras):
            for i in range(len(cameras)):
                drawn = self._drawn(cameras[i])
                if not self.photos:
                    yield drawn
                    continue
                photo = dataclasses.replace(self.photos[number][[i]].resized(*drawn.size), cameras=drawn.cameras)
                photo = levelled(photo, drawn)
                yield dataclasses.replace(photo, masks=PHOTO_SHARE * photo.masks)
                yield dataclasses.replace(drawn, masks=(1 - PHOTO_SHARE) * drawn.masks)

    def _drawn(self, camera: Cameras) -> Views:
        """The splats' own colours, freed of the background; the mask is their opacity."""
        from splat.render import RenderOptions, render
        from splat.views import Views

        with torch.no_grad():
            seen = render(self.splats, camera.to(self.splats.means.device), RenderOptions(threads=self.threads))
        rgb, alpha = seen.rgb.cpu(), seen.alpha.cpu()
        return Views((rgb / alpha[..., None].clamp_min(1e-3)).clamp(0, 1), ("splats",), camera, alpha)


def pictures_of(scene: Path, mesh: Mesh, size: int, place: Place) -> Pictures:
    """The pictures for a texture of `size` px: through the cameras of a capture, with its photos, else from all round."""
    splats = load_scene(scene).to(place.device)
    side = _picture_side(size)
    if not _is_capture(scene):
        return Pictures(splats, tuple(all_round(mesh, side)), (), place.threads)
    captured = read_cameras(scene / "cameras.json", side)
    photos = _stored_photos(scene, captured)
    cameras, chosen = [], []
    rows = _spread_out(captured)
    for number, batch in enumerate(captured):
        if not rows[number]:
            continue
        scale = side / max(batch.width, batch.height)
        cameras.append(batch[rows[number]].resized(round(batch.width * scale), round(batch.height * scale)))
        if photos:
            chosen.append(photos[number][rows[number]])
    return Pictures(splats, tuple(cameras), tuple(chosen), place.threads)


def all_round(mesh: Mesh, side: int) -> list[Cameras]:
    """Cameras on a sphere round the mesh, which fills their square pictures of `side` px."""
    from splat.cameras import Cameras

    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    centre = (low + high) / 2
    radius = float((mesh.vertices - centre).norm(dim=-1).max())
    distance = 1.05 * radius / math.sin(math.radians(OBJECT_FOV_DEG) / 2)
    return [
        Cameras.orbit(count, distance, elevation, OBJECT_FOV_DEG, side, side, target=centre, azimuth_deg=first)
        for elevation, count, first in RINGS
    ]


def _picture_side(size: int) -> int:
    """Long side in px of the pictures for a texture of `size` px, so that a pixel is about a texel."""
    return min(max(size * 3 // 4, 128), 2048)


def _is_capture(scene: Path) -> bool:
    return scene.is_dir() and (scene / "cameras.json").is_file() and read_report(scene).get("command") not in ("image", "text")


def _pictures_expected(scene: Path) -> int:
    """How many pictures a texture will be baked from."""
    if not _is_capture(scene):
        return sum(count for _, count, _ in RINGS)
    cameras = min(sum(len(c) for c in read_cameras(scene / "cameras.json", 64)), MOST_VIEWS)
    return cameras * (2 if (scene / "state" / "reconstruction.safetensors").is_file() else 1)


def _stored_photos(scene: Path, captured: list[Cameras]) -> list[Views]:
    """The undistorted photos that the fit used, one `Views` for each batch of `captured`; none where they are not there."""
    from recon.reconstruct import RECONSTRUCTION_TYPES

    stored = scene / "state" / "reconstruction.safetensors"
    if not stored.is_file() or stored.stat().st_size > MOST_PICTURES_BYTES:
        return []
    from app.saved_stages import load_stage

    try:
        found, _ = load_stage(stored, RECONSTRUCTION_TYPES)
    except InputError as error:
        log.warning("The texture is made without the photos: %s", error)
        return []
    sizes = [(len(v), *v.size) for v in found.train]
    names = [f["file_path"] for f in json.loads((scene / "cameras.json").read_text())["frames"]]
    if sizes != [(len(c), c.width, c.height) for c in captured] or names != [n for v in found.train for n in v.names]:
        return []  # the cameras are not those of the photos
    return list(found.train)


def _spread_out(captured: list[Cameras]) -> list[list[int]]:
    """For each batch the rows of at most `MOST_VIEWS` cameras in all, as far from each other as can be."""
    centers = torch.cat([c.centers for c in captured])
    chosen = [0]
    away = (centers - centers[0]).norm(dim=-1)
    while len(chosen) < min(MOST_VIEWS, len(centers)):
        chosen.append(int(away.argmax()))
        away = torch.minimum(away, (centers - centers[chosen[-1]]).norm(dim=-1))
        away[chosen] = -1
    kept, start, rows = set(chosen), 0, []
    for batch in captured:
        rows.append([i for i in range(len(batch)) if start + i in kept])
        start += len(batch)
    return rows
