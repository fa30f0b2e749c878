"""What visitors send: files copied into a job's own folder under harmless names, within limits. Imports no torch.

Nothing is decoded here: sizes come from the file system and pixel counts from headers.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.result_folder import FULL_DISK
from splat.errors import InputError

MAX_NAME_BYTES = 100  # file systems allow 255; results are named after uploads and get more added
# Formats whose headers PIL reads without running anything else; HEIF is added by its plug-in.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "HEIF", "AVIF")
RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(10))}


@dataclass(frozen=True)
class UploadLimits:
    """Of one job. Its files are counted, measured and their headers read before any is copied."""

    files: int = 300
    """Most files."""
    bytes: int = 2_000_000_000
    """Most bytes of all files together."""
    pixels: int = 120_000_000
    """Most pixels of a picture, by its header."""


def safe_name(name: str) -> str:
    """A file name that is harmless on every system: the last part of `name`, without control characters, not too long.

    Letters of all scripts stay. "../../x" is "x"; a name of which nothing is left is "file".
    """
    name = unicodedata.normalize("NFC", name.encode(errors="replace").decode())
    name = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    name = "".join(c for c in name if not unicodedata.category(c).startswith("C"))  # control, format, surrogate, private
    name = re.sub(r'[<>:"|?*\s]+', " ", name).rstrip(" .").lstrip()
    if name.startswith("."):  # hidden, or a suffix alone
        name = f"file.{name.lstrip('.')}"
    stem, suffix = os.path.splitext(name)
    if len(suffix.encode()) > 16:
        stem, suffix = name, ""
    stem = stem.encode()[: MAX_NAME_BYTES - len(suffix.encode())].decode(errors="ignore").strip(" .")
    if stem.lower() in RESERVED:
        stem = f"{stem}_"
    return f"{stem.lstrip('-') or 'file'}{suffix}"


def admit_files(paths: Sequence[Path], folder: Path, limits: UploadLimits, room: float = float("inf")) -> tuple[Path, ...]:
    """Copies of `paths` in the new `folder`, in their order, each under a safe name of its own.

    A folder among `paths` stands for the files directly in it. Links, and what is no regular file, are refused. `room` is
    what the visitor may still store, in bytes. Raises `InputError`, and then leaves no folder.
    """
    files = [file for path in paths for file in _files_at(Path(path))]
    if len(files) > limits.files:
        raise InputError(f"{len(files)} files were sent, more than the {limits.files} that one job may have; send fewer.")
    sizes = [_size(file) for file in files]
    if sum(sizes) > limits.bytes:
        raise InputError(
            f"The files have {sum(sizes) / 1e6:.1f} MB, more than the {limits.bytes / 1e6:.0f} MB that one job may have; "
            "send fewer or smaller ones."
        )
    if sum(sizes) > room:
        raise InputError(
            f"The files have {sum(sizes) / 1e6:.1f} MB and there is room for {max(room, 0) / 1e6:.1f} MB; delete jobs first."
        )
    for file in files:
        _check_pixels(file, limits.pixels)
    admitted: list[Path] = []
    try:
        with full_disk_as_sentence(folder):
            folder.mkdir(parents=True)
            taken: set[str] = set()
            for file in files:
                admitted.append(folder / _unused(safe_name(file.name), taken))
                _copy(file, admitted[-1], limits.bytes)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return tuple(admitted)


@contextmanager
def full_disk_as_sentence(folder: Path) -> Iterator[None]:
    """`InputError` for files that cannot be written in `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise InputError("The disk is full, so nothing more can be taken in; make room and try again.") from error
        raise InputError(f"{folder.name} cannot be written ({error.strerror or error}); mend that and try again.") from error


def folder_bytes(folder: Path) -> int:
    """Of all files below `folder`; links are not followed, and what vanishes meanwhile is not counted."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                pass
    return total


def _files_at(path: Path) -> list[Path]:
    if path.is_dir() and not path.is_symlink():
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith(".") and not entry.is_dir())
    return [path]


def _size(file: Path) -> int:
    try:
        found = file.lstat()
    except (OSError, ValueError) as error:
        raise InputError(f"{safe_name(file.name)} did not arrive; send it again.") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{safe_name(file.name)} is a link or no regular file; send the file itself.")
    return found.st_size


def _check_pixels(file: Path, most: int) -> None:
    """Raises `InputError` for a picture whose header promises more than `most` pixels; what is no picture passes."""
    from PIL import Image, UnidentifiedImageError

    if file.suffix.lower() in (".heic", ".heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=formats) as picture:
                width, height = picture.size
    except Image.DecompressionBombError as error:
        raise InputError(f"{safe_name(file.name)} has more than {most / 1e6:.0f} megapixels; send a smaller copy.") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):  # a video, or damaged: the job says what is wrong
        return
    if width * height > most:
        raise InputError(
            f"{safe_name(file.name)} has {width} x {height} px, more than {most / 1e6:.0f} megapixels; send a smaller copy."
        )


def _unused(name: str, taken: set[str]) -> str:
    """`name`, numbered where it is taken; case does not tell names apart on every system."""
    stem, suffix = os.path.splitext(name)
    number = 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}_{number}{suffix}"
    taken.add(name.lower())
    return name


def _copy(source: Path, target: Path, most: int) -> None:
    """Opened without following links: what was judged may have been replaced since."""
    fd = os.open(source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with open(fd, "rb") as reader, open(target, "xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        if writer.tell() > most:
            raise InputError(f"{safe_name(source.name)} grew while it was copied; send it again.")
