"""What can be taken home: the files of a result, and other formats made when somebody asks for them."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
import zipfile
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import commands
from app.job_record import JobRecord
from splat.errors import InputError
from splat.progress import Progress

FILES = {
    "scene.ply": "splats, PLY of 3DGS, +Y up",
    "mesh.glb": "mesh",
    "turntable.mp4": "video",
    "preview.png": "contact sheet",
    "next_photo.png": "where one more photo would help most",
    "cameras.json": "cameras",
    "report.json": "report",
}


@dataclass(frozen=True)
class Format:
    """One that is made on demand."""

    label: str
    file: str  # its suffix decides what is written
    options: dict[str, Any] = field(default_factory=dict)  # of the command export
    needs_mesh: bool = False


FORMATS = {
    "view": Format("Viewer page: one HTML file that opens anywhere", "view.html"),
    "spz": Format("Splats: SPZ, small", "scene.spz"),
    "compressed": Format("Splats: compressed PLY", "scene.compressed.ply"),
    "splat": Format("Splats: .splat", "scene.splat"),
    "gltf": Format("Splats: glTF, KHR_gaussian_splatting", "scene.gs.glb"),
    "3dgs": Format("Splats: PLY, y-down as 3DGS viewers assume", "scene_3dgs.ply", {"convention": "3dgs"}),
    "game": Format("Mesh for games: GLB, 10,000 triangles, texture", "game.glb", {"purpose": "game"}, needs_mesh=True),
    "print": Format("Mesh for printing: closed STL in mm", "print.stl", {"purpose": "print"}, needs_mesh=True),
    "textured": Format("Mesh: GLB with texture of 2048 px", "mesh_textured.glb", {"texture": 2048}, needs_mesh=True),
    "obj": Format("Mesh: OBJ, zipped", "mesh_obj.zip", needs_mesh=True),
    "stl": Format("Mesh: STL", "mesh.stl", needs_mesh=True),
    "usdz": Format("Mesh: USDZ", "mesh.usdz", needs_mesh=True),
}


if importlib.util.find_spec("pxr") is None:  # the extra usd
    del FORMATS["usdz"]


def export_folder(record: JobRecord, result: Path) -> Path:
    """Beside the job's result, so that it goes with the job and counts as the visitor's."""
    return record.out.parent / "exports" / (result.name if result != record.out else "scene")


def export_command(result: Path, format: Format, folder: Path, real_size: float | None) -> commands.Export:
    """What makes `format` of `result`; real_size in metres counts for prints alone."""
    options = dict(format.options)
    if options.get("purpose") == "print" and real_size is not None:
        options["real_size"] = real_size
    return commands.Export(scene=result, to=folder / format.file, quiet=True, **options)


def convert(command: commands.Export) -> Generator[Progress, None, None]:
    """The command export, in an errand's worker. `to` may end in _obj.zip: an OBJ and what belongs to it."""
    from app.cli import export

    yield Progress("export", 0, 1)
    try:
        for folder in (command.to.parent.parent, command.to.parent):  # exports/ and the result's in it: never the job's own
            folder.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise InputError("The job has been deleted, so there is nothing to convert.") from error
    if command.to.suffix != ".zip":
        export(command, "quiet")
    else:
        with tempfile.TemporaryDirectory(dir=command.to.parent) as folder:
            export(dataclasses.replace(command, to=Path(folder) / "mesh.obj"), "quiet")
            partial = command.to.with_name(command.to.name + ".partial")
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(Path(folder).iterdir()):
                    archive.write(file, file.name)
            partial.replace(command.to)
    yield Progress("export", 1, 1)
