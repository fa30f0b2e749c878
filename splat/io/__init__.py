"""Files in and out; the only place that knows foreign axes and layouts.

Main functions: `load` and `save` for splat scenes, by suffix. A format is one module with `load_x(path) -> Splats` and
`save_x(splats, path)`, and one line in `FORMATS`. Depends on torch and numpy; readers of images and meshes load their
packages when first used.
"""

from __future__ import annotations

import importlib
from os import PathLike
from pathlib import Path
from typing import Literal

import torch

from splat.errors import InputError
from splat.gaussians import Splats
from splat.similarity import Similarity

# "splatsmith": +Y up, front towards +Z, as glTF. "3dgs": the y-down, front towards -Z world that many splat viewers assume.
Convention = Literal["splatsmith", "3dgs"]

# suffix -> (module, reader, writer); imported when first used. Of two that fit a name, the longer counts.
FORMATS = {
    ".ply": ("splat.io.ply", "load_ply", "save_ply"),
    ".compressed.ply": ("splat.io.compressed_ply", "load_compressed_ply", "save_compressed_ply"),
    ".spz": ("splat.io.spz", "load_spz", "save_spz"),
    ".splat": ("splat.io.splat_binary", "load_splat", "save_splat"),
    ".glb": ("splat.io.gltf_splats", "load_gltf_splats", "save_gltf_splats"),
    ".gltf": ("splat.io.gltf_splats", "load_gltf_splats", "save_gltf_splats"),
}

HALF_TURN_ABOUT_X = Similarity(torch.diag(torch.tensor([1.0, -1.0, -1.0])), torch.zeros(3))  # its own inverse


def load(path: str | PathLike[str], convention: Convention = "splatsmith") -> Splats:
    """The scene in `path`, float32 on the CPU, in the +Y-up world. `convention` names the axes of the file.

    SPZ and glTF fix their axes, which are ours: "splatsmith" is right for them.

    Raises `InputError` for an unknown suffix and for a file that is missing, damaged or not a splat scene.
    """
    reader, _ = _format(path)
    splats = reader(Path(path))
    return splats.transformed(HALF_TURN_ABOUT_X) if convention == "3dgs" else splats


def save(splats: Splats, path: str | PathLike[str], convention: Convention = "splatsmith") -> None:
    """Write `splats` in the format of the suffix; turned by 180 degrees about x, SH bands too, for "3dgs".

    The file appears whole or not at all. Raises `InputError` for an unknown suffix or a missing folder, `StoppedLate`
    when the disk refuses or when a value is NaN or infinite.
    """
    _, writer = _format(path)
    writer(splats.transformed(HALF_TURN_ABOUT_X) if convention == "3dgs" else splats, Path(path))


def _format(path: str | PathLike[str]):
    name = Path(path).name.lower()
    suffix = max((known for known in FORMATS if name.endswith(known)), key=len, default=None)
    if suffix is None:
        raise InputError(f"{Path(path).name} has the suffix '{Path(name).suffix}'; splat scenes end in {', '.join(FORMATS)}.")
    module, reader, writer = FORMATS[suffix]
    module = importlib.import_module(module)
    return getattr(module, reader), getattr(module, writer)
