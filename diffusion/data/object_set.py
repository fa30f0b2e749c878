"""Objects to learn from: what is known of each in words, and its mesh in the common frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from splat.errors import InputError
from splat.mesh import Mesh

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ObjectFacts:
    """What a source says of one object. Words are lower case; an empty string is unknown."""

    key: str  # unique in its set
    name: str  # "bar table"
    noun: str  # the head noun that groups objects: "table"
    split: str  # train, val or test
    style: str = ""  # "low poly", "voxel", "realistic"
    colors: tuple[str, ...] = ()  # as the source names them; captions measure their own
    licence: str = ""
    author: str = ""
    source: str = ""  # the pack or folder it came in

    @property
    def licence_is_confirmed(self) -> bool:
        """False where the licence is missing or only presumed; shipped weights are trained without those."""
        return bool(self.licence) and "presumed" not in self.licence.lower()


class ObjectSet(Protocol):
    """Facts of all objects at hand; meshes on demand: box centre at the origin, longest side 1, +Y up, front +Z."""

    facts: tuple[ObjectFacts, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Mesh: ...

    def chosen(self, rows: Sequence[int]) -> ObjectSet: ...


def open_objects(folder: str | Path) -> ObjectSet:
    """A packed set where `folder` holds an `index.jsonl` and .npz shards, else the .glb, .obj and .ply files in it.

    Nothing but the index or the names is read yet. Raises `InputError` when there is no such folder or nothing in it.
    """
    from diffusion.data.mesh_folder import MeshFolder
    from diffusion.data.packed import PackedObjects

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give a packed object set or a folder of .glb, .obj or .ply files.")
    packed = (folder / "index.jsonl").is_file() and any(folder.glob("*.npz"))
    return PackedObjects.open(folder) if packed else MeshFolder.open(folder)


def rows_of(objects: ObjectSet, keep: Callable[[ObjectFacts], bool]) -> list[int]:
    """Rows whose facts pass `keep`, in order: `objects.chosen(rows_of(objects, lambda f: f.split == "train"))`."""
    return [row for row, facts in enumerate(objects.facts) if keep(facts)]


def licensed(folder: Path, presumed: bool) -> ObjectSet:
    """The objects of `folder` whose licence is confirmed, all of them where `presumed` ones will do.

    Raises InputError where none is left.
    """
    every = open_objects(folder)
    rows = rows_of(every, lambda facts: presumed or facts.licence_is_confirmed)
    if not rows:
        raise InputError(f"None of the {len(every)} objects in {folder} has a confirmed licence; allow presumed ones.")
    return every.chosen(rows)
