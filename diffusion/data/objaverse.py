"""Objaverse-LVIS as its own tool lays it out on disk (Deitke et al., CVPR 2023): objects by identifier, categories beside them.

    glbs/000-023/UID.glb               the objects; of those without a category none is read
    lvis-annotations.json[.gz]         category -> identifiers, or identifier -> category
    object-paths.json[.gz]             identifier -> path below the folder; without it the files are looked for
    metadata/000-023.json.gz           identifier -> name, licence, user; what it does not name has no licence here

An object is called what LVIS calls its category ("teddy_bear", "bat_(animal)"): the names that users gave are in every language
or none.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from splat.errors import InputError

ANNOTATIONS = ("lvis-annotations.json", "lvis-annotations.json.gz")
PATHS = ("object-paths.json", "object-paths.json.gz")
LICENCES = {
    "by": "CC-BY-4.0", "by-sa": "CC-BY-SA-4.0", "by-nd": "CC-BY-ND-4.0", "by-nc": "CC-BY-NC-4.0", "by-nc-sa": "CC-BY-NC-SA-4.0",
    "by-nc-nd": "CC-BY-NC-ND-4.0", "cc0": "CC0-1.0",
}  # fmt: skip


def is_objaverse(folder: Path) -> bool:
    """Whether `folder` holds the categories."""
    return any((folder / name).is_file() for name in ANNOTATIONS)


def lvis_objects(folder: Path) -> dict[str, dict[str, str]]:
    """Path below `folder` -> name, noun, licence, author and source of every annotated object that is there, in order of path.

    Raises InputError when the categories do not read, or none of their objects is there.
    """
    category = _categories(_read(folder, ANNOTATIONS))
    found = {uid: path for uid, path in _paths(folder) if uid in category}
    if not found:
        raise InputError(
            f"{folder} has categories of {len(category)} objects and none of their files; put them below glbs/, as "
            "glbs/000-023/UID.glb."
        )
    facts = _metadata(folder, found)
    told = {}
    for uid, path in sorted(found.items(), key=lambda item: item[1]):
        name = plain_category(category[uid])
        told[path] = {"name": name, "noun": name, "source": "Objaverse", **facts.get(uid, {})}
    return told


def plain_category(category: str) -> str:
    """Words of a category of LVIS: "bat_(animal)" -> "bat"."""
    return " ".join(category.split("(")[0].replace("_", " ").lower().split()) or "object"


def _categories(table: Any) -> dict[str, str]:
    """Identifier -> category, of either form."""
    if not isinstance(table, dict) or not table:
        raise InputError("The categories of Objaverse-LVIS are no table; they map categories to lists of identifiers.")
    if all(isinstance(v, list) for v in table.values()):
        table = {uid: category for category, uids in table.items() for uid in uids}
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in table.items()):
        raise InputError("The categories of Objaverse-LVIS hold something other than names; they map names to identifiers.")
    return table


def _paths(folder: Path) -> Iterator[tuple[str, str]]:
    """(identifier, path below `folder`) of every object on disk."""
    if any((folder / name).is_file() for name in PATHS):
        table = _read(folder, PATHS)
        if not isinstance(table, dict):
            raise InputError(f"{folder / PATHS[0]} is no table of paths; it maps identifiers to paths.")
        for uid, path in table.items():
            inside = isinstance(path, str) and not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
            if inside and (folder / path).is_file() and not (folder / path).is_symlink():
                yield uid, path
        return
    for path in (folder / "glbs").glob("*/*.glb"):
        if path.is_file() and not path.is_symlink():
            yield path.stem, path.relative_to(folder).as_posix()


def _metadata(folder: Path, found: dict[str, str]) -> dict[str, dict[str, str]]:
    """Licence and author of the objects in `found`, as far as they are known."""
    facts = {}
    for path in sorted({*(folder / "metadata").glob("*.json"), *(folder / "metadata").glob("*.json.gz")}):
        table = _read(path.parent, (path.name,))
        if not isinstance(table, dict):
            raise InputError(f"{path} is no table of objects; it maps identifiers to what is known of them.")
        for uid, row in table.items():
            if uid in found and isinstance(row, dict):
                licence, user = str(row.get("license") or ""), row.get("user")
                author = str(user.get("displayName") or user.get("username") or "") if isinstance(user, dict) else ""
                facts[uid] = {"licence": LICENCES.get(licence.lower(), licence), "author": author}
    return facts


def _read(folder: Path, names: tuple[str, ...]) -> Any:
    """The JSON in the first of `names` that is there."""
    path = next(folder / name for name in names if (folder / name).is_file())
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, ValueError, EOFError, RecursionError, zlib.error) as error:
        raise InputError(f"{path} does not read ({type(error).__name__} {error}); download it again.") from error
