"""The files a batch is made from, and the name of the result folder of each."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recon.photos import natural_key
from splat.errors import InputError

MAX_NAME_BYTES = 120  # of a result folder: file systems allow 255, and .partial and a digest are added
# What the batch itself writes beside the result folders, and names that Windows keeps for devices.
TAKEN = {
    "batch.json",
    "index.html",
    "lock",
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{d}{i}" for d in ("com", "lpt") for i in range(10)),
}


@dataclass(frozen=True)
class FoundFiles:
    """What the inputs of a batch stand for."""

    files: tuple[Path, ...]  # each once, in natural order of name, then of path
    ignored: tuple[str, ...]  # names of files in folders, or that a pattern matched, that have none of the suffixes


def find_files(inputs: Sequence[Path], suffixes: Sequence[str]) -> FoundFiles:
    """Files, folders and patterns (`*`, `?`, `[]`, `**`) -> files.

    A folder stands for the files directly in it whose suffix is among `suffixes` (lower case, with the dot); its folders
    are not entered and hidden files not seen. A file that is named itself is taken whatever its suffix. A file that came
    twice, by a link too, counts once. Raises `InputError` for what does not exist or holds nothing to work on.
    """
    if not inputs:
        raise InputError("No input was given; name files or folders.")
    files: list[Path] = []
    ignored: list[str] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = _of_suffix(_files_in(path), suffixes, ignored)
            if not found:
                raise InputError(f"{path} holds no {_listed(suffixes)} file; name a folder with some directly in it.")
        elif os.path.lexists(path):
            if not path.is_file():  # a pipe would block for ever
                raise InputError(f"{path} is no regular file, or a link to nothing; name files or folders.")
            found = [path]
        else:
            if not glob.has_magic(str(path)):
                raise InputError(f"{path} does not exist; check the path.")
            matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
            found = _of_suffix([match for match in matches if match.is_file()], suffixes, ignored)
            if not found:
                raise InputError(f"{path} matches no {_listed(suffixes)} file; check the pattern.")
        files += found
    distinct = {file.resolve(): file for file in reversed(files)}
    ordered = sorted(distinct.values(), key=lambda file: (natural_key(file.name), str(file)))
    return FoundFiles(tuple(ordered), tuple(dict.fromkeys(ignored)))


def folder_names(files: Sequence[Path]) -> dict[Path, str]:
    """A folder name for each file, that of the file without its suffix; the same on every run with the same files.

    Files whose names would collide (capitals apart) all get longer ones: a-png and a-jpg, else with the folder's name
    before, else with digits of the path's SHA-256 behind; never a number, which would depend on what else there is. What
    cannot be a folder's name on every system is replaced, and digits of the SHA-256 of the name tell such names apart.
    """
    level = dict.fromkeys(files, 0)
    while True:
        names = {file: _NAMINGS[level[file]](file) for file in files}
        holders: dict[str, list[Path]] = {}
        for file, name in names.items():
            holders.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(file)
        colliding = [file for group in holders.values() if len(group) > 1 for file in group if level[file] + 1 < len(_NAMINGS)]
        if not colliding:
            return names
        for file in colliding:
            level[file] += 1


def safe_name(text: str) -> str:
    """`text` as the name of a folder on any system, unchanged where that is possible."""
    name = "".join("_" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in '<>:"/\\|?*' else c for c in text)
    name = re.sub(r"^\.", "_", name).rstrip(". ")
    name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    taken = name.casefold() in TAKEN or name.casefold().endswith((".partial", ".tmp"))
    if name and name == text and not taken:
        return name
    return f"{name}-{_digits(os.fsencode(text))}".lstrip("-")


def _with_suffix(file: Path) -> str:
    return f"{file.stem}-{file.suffix[1:].lower()}" if file.suffix else file.stem


_NAMINGS: tuple[Callable[[Path], str], ...] = (
    lambda file: safe_name(file.stem),
    lambda file: safe_name(_with_suffix(file)),
    lambda file: safe_name(f"{file.parent.resolve().name}-{_with_suffix(file)}"),
    lambda file: f"{safe_name(_with_suffix(file))}-{_digits(os.fsencode(file.parent.resolve() / file.name))}",
)


def _files_in(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file()]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}); check its permissions.") from error


def _of_suffix(files: Sequence[Path], suffixes: Sequence[str], ignored: list[str]) -> list[Path]:
    ignored += [file.name for file in files if file.suffix.lower() not in suffixes]
    return [file for file in files if file.suffix.lower() in suffixes]


def _listed(suffixes: Sequence[str]) -> str:
    names = [suffix.removeprefix(".") for suffix in suffixes]
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def _digits(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]
