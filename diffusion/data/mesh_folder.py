"""A folder of .glb, .obj and .ply files as a set of objects.

An object is named after its file, or after its folder where the file's name is a hash, as in Objaverse's layout
`category/uid.glb`; a folder with the categories of Objaverse-LVIS is read as `objaverse` says. Top folders named train, val or
test are the splits; elsewhere one file in twenty is for validation, drawn by its path. `objects.jsonl` beside the files may say
better: lines with `file` and any of `name`, `noun`, `split`, `style`, `license`, `author`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from diffusion.data.objaverse import is_objaverse, lvis_objects
from diffusion.data.object_set import SPLITS, ObjectFacts
from splat.errors import InputError
from splat.io.meshes import load_mesh
from splat.mesh import Mesh

SUFFIXES = (".glb", ".obj", ".ply")
TOLD = {"name": "name", "noun": "noun", "split": "split", "style": "style", "license": "licence", "author": "author"}


@dataclass(frozen=True)
class FolderConfig:
    """How files of a folder are read."""

    up: Literal["y", "z"] = "y"  # the files' upward axis; z: front is -Y, as Blender has it
    max_mb: int = 256  # a larger file is refused
    max_faces: int = 2_000_000  # a mesh of more triangles is refused


@dataclass(frozen=True)
class MeshFolder:
    """The mesh files below a folder, sorted by path; each is read anew when asked for."""

    folder: Path
    facts: tuple[ObjectFacts, ...]  # key: the path below the folder
    config: FolderConfig = FolderConfig()

    @staticmethod
    def open(folder: Path, config: FolderConfig | None = None) -> MeshFolder:
        """Lists the files; links and hidden files are left out. Raises `InputError` when there is none."""
        told = _told(folder / "objects.jsonl")
        if is_objaverse(folder):
            known = lvis_objects(folder)
            facts = (replace(_facts(Path(path), folder.name), **words) for path, words in known.items())
            return MeshFolder(folder, tuple(replace(f, **told.get(f.key, {})) for f in facts), config or FolderConfig())
        paths = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file() and not path.is_symlink() and not path.name.startswith(".")
        )
        if not paths:
            raise InputError(f"{folder} holds no {', '.join(SUFFIXES)} file; give a folder of meshes or a packed object set.")
        facts = (_facts(path.relative_to(folder), folder.name) for path in paths)
        return MeshFolder(folder, tuple(replace(f, **told.get(f.key, {})) for f in facts), config or FolderConfig())

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, row: int) -> Mesh:
        """Raises `InputError` when the file is missing, damaged, too large, empty or flat in every direction."""
        path = self.folder / self.facts[row].key
        size = path.stat().st_size if path.is_file() else 0
        if size > self.config.max_mb * 2**20:
            raise InputError(f"{path.name} has {size / 2**20:.0f} MB, more than max_mb={self.config.max_mb}; simplify it.")
        mesh = load_mesh(path)
        if len(mesh.faces) > self.config.max_faces:
            raise InputError(
                f"{path.name} has {len(mesh.faces)} triangles, more than max_faces={self.config.max_faces}; simplify it."
            )
        return normalised(y_up(mesh) if self.config.up == "z" else mesh, path.name)

    def chosen(self, rows: Sequence[int]) -> MeshFolder:
        return replace(self, facts=tuple(self.facts[r] for r in rows))


def normalised(mesh: Mesh, name: str = "The mesh") -> Mesh:
    """`mesh` moved and scaled, never turned: the box of its triangles centred at the origin, longest side 1.

    Vertices that no triangle uses are dropped. Raises `InputError` when all triangles lie in one point.
    """
    used, faces = torch.unique(mesh.faces, return_inverse=True)
    if not len(used):
        raise InputError(f"{name} has no triangles; splat scenes and point clouds are not meshes.")
    vertices = mesh.vertices[used].double()
    low, high = vertices.min(dim=0).values, vertices.max(dim=0).values
    side = float((high - low).max())
    if not 1e-30 < side < 1e30:
        raise InputError(f"{name} is {side:.3g} units long, which has no shape; export it again at its true size.")
    colors = None if mesh.colors is None else mesh.colors[used]
    return replace(mesh, vertices=((vertices - (low + high) / 2) / side).float(), faces=faces, colors=colors)


def y_up(mesh: Mesh) -> Mesh:
    """From +Z up, front -Y to +Y up, front +Z: (x, y, z) -> (x, z, -y), a rotation."""
    x, y, z = mesh.vertices.unbind(-1)
    return replace(mesh, vertices=torch.stack([x, z, -y], dim=-1))


def words_in(stem: str) -> str:
    """The words of a file name: "RedChair_02" -> "red chair"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", stem)
    return " ".join(re.sub(r"\d+", " ", spaced).lower().split())


def _facts(path: Path, source: str) -> ObjectFacts:
    is_hash = re.fullmatch(r"[0-9a-fA-F-]{16,}", path.stem) is not None
    own = path.parent.name if is_hash and len(path.parts) > 1 and path.parent.name not in SPLITS else path.stem
    name = words_in(own) or "object"
    split = path.parts[0]
    if split not in SPLITS:
        split = "val" if hashlib.sha256(path.as_posix().encode()).digest()[0] * 20 < 256 else "train"
    return ObjectFacts(key=path.as_posix(), name=name, noun=name.split()[-1], split=split, source=source)


def _told(path: Path) -> dict[str, dict[str, str]]:
    """What `objects.jsonl` says, by file; empty without it."""
    if not path.is_file():
        return {}
    told = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                row = json.loads(line)
                words = {ours: str(row[theirs]) for theirs, ours in TOLD.items() if theirs in row}
                if words.get("name"):
                    words.setdefault("noun", words["name"].split()[-1])
                if words.get("split", "train") not in SPLITS:
                    raise ValueError(f"the split {row['split']!r} of {row['file']}")
                told[row["file"]] = words
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no list of objects ({type(error).__name__} {error}); one JSON object a line.") from error
    return told
