"""Objects packed in a few .npz shards with one `index.jsonl`.

A line of the index is a JSON object with at least `shard`, `i` (its place in the shard), `name` and `split`. A shard holds
`vert_delta` [3, V] and `face_delta` [3 F], uint16 differences along their last axis modulo 2^16 (positions are whole steps
0..8190 over [-0.5, 0.5]; faces count from the object's first vertex), `color` [V, 3] uint8 sRGB, and `vert_offset`,
`face_offset` [n + 1] int64, where each object begins.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from diffusion.data.object_set import SPLITS, ObjectFacts
from splat.errors import InputError
from splat.mesh import Mesh

STEPS = 8190  # over the unit cube
MAX_SHARD_BYTES = 2**30  # unpacked; the largest shard known unpacks to 35 MB
MAX_INDEX_BYTES = 2**28
DTYPES = {"vert_delta": "u2", "face_delta": "u2", "color": "u1", "vert_offset": "i8", "face_offset": "i8"}


@dataclass(frozen=True)
class Shard:
    """The unpacked arrays of one file."""

    steps: np.ndarray  # [3, V] uint16
    faces: np.ndarray  # [F, 3] uint16
    colors: np.ndarray  # [V, 3] uint8
    vertex_starts: np.ndarray  # [n + 1]
    face_starts: np.ndarray  # [n + 1]

    def mesh(self, i: int) -> Mesh:
        """Object `i`. Its faces were checked by `read_shard`."""
        v, f = slice(*self.vertex_starts[i : i + 2]), slice(*self.face_starts[i : i + 2])
        return Mesh(
            torch.from_numpy(self.steps[:, v].T.astype(np.float32) / STEPS - 0.5),
            torch.from_numpy(self.faces[f].astype(np.int64)),
            torch.from_numpy(self.colors[v].astype(np.float32) / 255),
        )


@dataclass(frozen=True)
class PackedObjects:
    """The objects of a packed set; shards are read when first needed and kept (the known set: 110 MB)."""

    folder: Path
    facts: tuple[ObjectFacts, ...]
    places: tuple[tuple[str, int], ...]  # (shard, i) of each row
    shards: dict[str, Shard] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def open(folder: Path) -> PackedObjects:
        """Reads the index. Raises `InputError` with the line that is wrong."""
        facts, places = _read_index(folder / "index.jsonl")
        return PackedObjects(folder, facts, places)

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, row: int) -> Mesh:
        name, i = self.places[row]
        if name not in self.shards:
            self.shards[name] = read_shard(self.folder / name)
        shard = self.shards[name]
        if i >= len(shard.vertex_starts) - 1:
            raise InputError(
                f"{self.facts[row].key} is object {i} of {name}, which holds {len(shard.vertex_starts) - 1}; "
                "the index and the shard are not of one set."
            )
        return shard.mesh(i)

    def chosen(self, rows: Sequence[int]) -> PackedObjects:
        return replace(self, facts=tuple(self.facts[r] for r in rows), places=tuple(self.places[r] for r in rows))


def read_shard(path: Path) -> Shard:
    """Unpack and check one shard; `InputError` when it is missing, damaged, pickled, too big or contradicts itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _array(archive, name) for name in DTYPES}
    except (
        OSError,
        KeyError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        zlib.error,
    ) as error:
        raise InputError(f"{path.name} is no object shard ({error}); copy the packed set again.") from error
    steps = np.cumsum(arrays["vert_delta"], axis=1, dtype=np.uint16)
    faces = np.cumsum(arrays["face_delta"], dtype=np.uint16)
    shard_fits = steps.shape == (3, len(arrays["color"])) and arrays["color"].shape[1:] == (3,) and len(faces) % 3 == 0
    if not shard_fits:
        raise InputError(
            f"{path.name} has vertices {steps.shape}, colours {arrays['color'].shape}, {len(faces)} corners; copy it again."
        )
    faces = faces.reshape(-1, 3)
    shard = Shard(steps, faces, arrays["color"], arrays["vert_offset"], arrays["face_offset"])
    _check_starts(path.name, shard)
    return shard


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One member, its header compared with its size before anything is allocated for it."""
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > MAX_SHARD_BYTES:
        raise ValueError(f"{name} claims {member.file_size} bytes")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        count = int(np.prod(shape, dtype=object))
        if dtype != np.dtype("<" + DTYPES[name]) or count * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"{name} claims {shape} {dtype} in {member.file_size} bytes")
        values = np.frombuffer(file.read(), dtype=dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def _check_starts(name: str, shard: Shard) -> None:
    for starts, end, what in (
        (shard.vertex_starts, shard.steps.shape[1], "vertices"),
        (shard.face_starts, len(shard.faces), "faces"),
    ):
        if starts.ndim != 1 or len(starts) < 1 or starts[0] != 0 or starts[-1] != end or (np.diff(starts) < 0).any():
            raise InputError(f"{name} divides its {end} {what} wrongly among its objects; copy the packed set again.")
    if len(shard.vertex_starts) != len(shard.face_starts):
        raise InputError(
            f"{name} has {len(shard.vertex_starts) - 1} objects by vertices, {len(shard.face_starts) - 1} by faces."
        )
    counts = np.repeat(np.diff(shard.vertex_starts), np.diff(shard.face_starts))  # [F] vertices of the face's object
    beyond = int((shard.faces.max(axis=1, initial=0) >= counts).sum())
    if beyond:
        raise InputError(f"{beyond} of {len(shard.faces)} faces in {name} name vertices that are not there; copy it again.")
    if shard.steps.size and shard.steps.max() > STEPS:
        raise InputError(f"{name} has positions outside the unit cube; copy the packed set again.")


def _read_index(path: Path) -> tuple[tuple[ObjectFacts, ...], tuple[tuple[str, int], ...]]:
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes; an index of at most {MAX_INDEX_BYTES} is read.")
    facts, places = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); copy it again.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            facts.append(_facts(row))
            places.append(_place(row))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path.name}, line {number}: {type(error).__name__} {error}; one JSON object a line.") from error
    if not facts:
        raise InputError(f"{path} names no object; an index has one JSON object a line.")
    return tuple(facts), tuple(places)


def _facts(row: dict) -> ObjectFacts:
    split = row["split"]
    if split not in SPLITS:
        raise ValueError(f"the split is {split!r}, not one of {', '.join(SPLITS)}")
    name = str(row["name"]).strip().lower()
    return ObjectFacts(
        key=str(row.get("id", f"{row['shard']}/{row['i']}")),
        name=name,
        noun=str(row.get("group", name)).strip().lower(),
        split=split,
        style=str(row.get("style", "")).lower(),
        colors=tuple(str(c).lower() for c in row.get("colors", ())),
        licence=str(row.get("license", "")),
        author=str(row.get("author", "")),
        source=str(row.get("pack", "")),
    )


def _place(row: dict) -> tuple[str, int]:
    """Only a file beside the index is ever opened."""
    shard, i = row["shard"], row["i"]
    if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".npz") or "\\" in shard:
        raise ValueError(f"the shard is {shard!r}, not the name of a .npz file beside the index")
    if type(i) is not int or i < 0:
        raise ValueError(f"the place in the shard is {i!r}")
    return shard, i
