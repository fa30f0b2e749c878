"""PLY in the layout of 3DGS (Kerbl et al. 2023), which every splat viewer reads.

A row is x y z, nx ny nz (unused, zero), f_dc_0..2, f_rest_* (all R, then all G, then all B), opacity, scale_0..2,
rot_0..3 (wxyz): the raw space of `Splats`, float32, little endian. Axes are left as they are. The reader also takes the
compressed PLY of `splat.io.compressed_ply`, which bears the same suffix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from splat.errors import InputError, StoppedLate
from splat.gaussians import Splats
from splat.io import compressed_ply
from splat.io.atomic import atomically
from splat.io.drawable import MAX_LOG_SCALE, MAX_VALUE, check_count, nonzero

MAX_LINE, MAX_LINES = 1024, 2048  # of the header; a degree-3 scene has 66 lines

GEOMETRY = ("x", "y", "z", "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")
COLOUR = ("f_dc_0", "f_dc_1", "f_dc_2")

TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8",
}  # fmt: skip
BYTE_ORDER = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}


@dataclass(frozen=True)
class Element:
    """One `element` of a PLY header: `count` rows of scalar properties; a type of None marks a list."""

    name: str
    count: int
    properties: dict[str, str | None]  # name -> numpy type code

    @property
    def has_list(self) -> bool:
        return None in self.properties.values()

    def dtype(self, order: str) -> np.dtype:
        """Of one row. Fields are numbered, since a file may call its properties anything."""
        return np.dtype([(str(i), order + code) for i, code in enumerate(self.properties.values())])


def save_ply(splats: Splats, path: Path) -> None:
    """Write `splats` (any device and floating dtype) as binary little-endian float32. Same splats, same bytes.

    The file appears whole or not at all. Raises `StoppedLate` for NaN or infinite values and for a full disk.
    """
    n, k = splats.sh.shape[:2]
    sh = splats.sh.detach().permute(0, 2, 1)  # [N, 3, K]
    columns = [
        splats.means,
        torch.zeros_like(splats.means),
        sh[:, :, 0],
        sh[:, :, 1:].reshape(n, 3 * (k - 1)),
        splats.opacity_logits[:, None],
        splats.log_scales,
        splats.quats,
    ]
    rows = torch.cat([c.detach().to("cpu", torch.float32) for c in columns], dim=1)
    bad = int((~rows.isfinite()).any(1).sum())
    if bad:
        raise StoppedLate(f"{bad} of {n} Gaussians hold NaN or infinite values, so {Path(path).name} was not written.")
    with atomically(path) as temporary, open(temporary, "wb") as file:
        file.write(_header(n, k))
        file.write(rows.numpy().astype("<f4", copy=False).data)  # no copy


def _header(count: int, terms: int) -> bytes:
    names = ["x", "y", "z", "nx", "ny", "nz", *COLOUR, *_rest_names(terms), "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    lines += [f"property float {name}" for name in names]
    return ("\n".join([*lines, "end_header"]) + "\n").encode()


def _rest_names(terms: int) -> list[str]:
    return [f"f_rest_{i}" for i in range(3 * (terms - 1))]


def load_ply(path: Path) -> Splats:
    """The splats in `path`, float32 on the CPU, SH degree as stored.

    Properties may come in any order, with others beside them, as any scalar type, in binary of either byte order or as
    text. Raises `InputError` when the file is not such a PLY, when its size contradicts its header (checked before any
    memory is taken), and when a value is NaN, infinite or too large to be drawn.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            order, elements = _read_header(file, path.name)
            if any("packed_position" in e.properties for e in elements):
                return compressed_ply.unpacked(_columns(file, order, elements, size, path.name), path.name)
            vertex = _vertex(elements, path.name)
            if order == "=":
                rows = _read_text(file, elements, size, path.name)
            else:
                rows = _read_binary(file, order, elements, size, path.name)
    except OSError as error:
        raise InputError(f"Could not read {path}: {error.strerror}; check the path.") from error

    index = {name: str(i) for i, name in enumerate(vertex.properties)}

    def columns(*names: str) -> torch.Tensor:
        out = np.empty((vertex.count, len(names)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # doubles beyond float32 become infinite and are refused below
            for i, name in enumerate(names):
                out[:, i] = rows[index[name]]
        _refuse_bad_values(out, names, path.name)
        return torch.from_numpy(out)

    terms = _sh_terms(vertex, path.name)
    rest = columns(*_rest_names(terms)).unflatten(1, (3, terms - 1)) if terms > 1 else torch.zeros(vertex.count, 3, 0)
    sh = torch.cat([columns(*COLOUR)[:, :, None], rest], dim=2).permute(0, 2, 1).contiguous()  # [N, K, 3]
    return Splats(
        means=columns("x", "y", "z"),
        quats=nonzero(columns("rot_0", "rot_1", "rot_2", "rot_3"), path.name),
        log_scales=columns("scale_0", "scale_1", "scale_2"),
        opacity_logits=columns("opacity")[:, 0],
        sh=sh,
    )


def _read_header(file: BinaryIO, name: str) -> tuple[str, list[Element]]:
    """Byte order ("=" for text) and elements; leaves `file` at the first byte of the data."""
    if file.readline(MAX_LINE).rstrip(b"\r\n") != b"ply":
        raise InputError(f"{name} is not a PLY file: it does not begin with the line 'ply'.")
    order, elements = None, []
    for number in range(2, MAX_LINES):
        raw = file.readline(MAX_LINE)
        words = raw.decode("ascii", "replace").split()
        match words:
            case _ if not raw.endswith(b"\n"):
                raise InputError(f"{name} has a broken PLY header: line {number} is cut off or longer than {MAX_LINE} bytes.")
            case ["end_header"]:
                break
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", kind, "1.0"] if kind in BYTE_ORDER and order is None:
                order = BYTE_ORDER[kind]
            case ["element", element, count] if count.isdecimal() and len(count) <= 18:
                elements.append(Element(element, int(count), {}))
            case ["property", kind, prop] if kind in TYPES and elements and prop not in elements[-1].properties:
                elements[-1].properties[prop] = TYPES[kind]
            case ["property", "list", length, kind, prop] if {length, kind} <= TYPES.keys() and elements:
                elements[-1].properties[prop] = None
            case _:
                raise InputError(f"{name} has a broken PLY header: line {number} reads '{' '.join(words)[:80]}'.")
    else:
        raise InputError(f"{name} has no 'end_header' within its first {MAX_LINES} lines; it is not a usable PLY file.")
    if order is None:
        raise InputError(f"{name} has a PLY header without a 'format' line.")
    return order, elements


def _vertex(elements: list[Element], name: str) -> Element:
    """The element that holds the Gaussians, with what 3DGS needs."""
    vertex = next((e for e in elements if e.name == "vertex"), None)
    if vertex is None:
        raise InputError(f"{name} has no 'vertex' element, so it holds no Gaussians.")
    missing = [p for p in (*GEOMETRY, *COLOUR) if p not in vertex.properties]
    if missing:
        raise InputError(
            f"{name} lacks {len(missing)} of the {len(GEOMETRY) + len(COLOUR)} properties of a 3DGS scene "
            f"({', '.join(missing)}); it may be a mesh or a point cloud."
        )
    if vertex.has_list:
        raise InputError(f"{name} has list properties in its 'vertex' element; a 3DGS scene has plain numbers only.")
    check_count(vertex.count, name)
    return vertex


def _sh_terms(vertex: Element, name: str) -> int:
    """K from the f_rest properties, which must be exactly those of degree 0, 1, 2 or 3."""
    found = {p for p in vertex.properties if p.startswith("f_rest_")}
    terms = len(found) // 3 + 1
    if terms not in (1, 4, 9, 16) or found != set(_rest_names(terms)):
        raise InputError(f"{name} has {len(found)} f_rest properties; degrees 0 to 3 have 0, 9, 24 or 45, numbered from 0.")
    return terms


def _read_binary(file: BinaryIO, order: str, elements: list[Element], size: int, name: str) -> np.ndarray:
    """The rows of the vertex element; every size is checked before memory is taken."""
    offset = file.tell()
    rows = None
    for element in elements:
        if element.has_list:  # unknown size, so nothing behind it can be found or checked
            break
        dtype = element.dtype(order)
        needed = element.count * dtype.itemsize
        if needed > size - offset:
            raise InputError(
                f"{name} announces {element.count:,} rows of '{element.name}' ({needed:,} bytes) but has only "
                f"{size - offset:,} bytes left; it is truncated or its header is wrong. Save it again."
            )
        if element.name == "vertex" and rows is None:
            rows = np.memmap(file, dtype, "r", offset, (element.count,))
        offset += needed
    else:
        if offset != size:
            raise InputError(f"{name} has {size - offset:,} bytes more than its header announces; save it again.")
    return _found(rows, name)


def _columns(file: BinaryIO, order: str, elements: list[Element], size: int, name: str) -> dict[str, dict[str, np.ndarray]]:
    """Element -> property -> column, of a PLY whose elements are all needed; sizes are checked before memory is taken."""
    if order == "=" or any(e.has_list for e in elements):
        raise InputError(f"{name} is a compressed PLY written as text or with lists, which no program does; export it again.")
    columns: dict[str, dict[str, np.ndarray]] = {}
    for element in (e for e in elements if e.properties):
        dtype = element.dtype(order)
        raw = file.read(min(element.count * dtype.itemsize, size))
        if len(raw) < element.count * dtype.itemsize:
            raise InputError(
                f"{name} announces {element.count:,} rows of '{element.name}' but has only {len(raw):,} bytes left for them; "
                "it is truncated or its header is wrong. Save it again."
            )
        rows = np.frombuffer(raw, dtype)
        columns[element.name] = {p: rows[str(i)] for i, p in enumerate(element.properties)}
    if file.read(1):
        raise InputError(f"{name} has more bytes than its header announces; save it again.")
    return columns


def _read_text(file: BinaryIO, elements: list[Element], size: int, name: str) -> np.ndarray:
    """The rows of the vertex element of a text PLY, one line each."""
    rows = None
    for element in elements:
        least = element.count * max(1, 2 * len(element.properties))  # a digit and a separator each; the last may be missing
        if least > size - file.tell() + 1:
            raise InputError(
                f"{name} announces {element.count:,} rows of '{element.name}' but has only {size - file.tell():,} bytes left; "
                "it is truncated or its header is wrong. Save it again."
            )
        lines = [file.readline().decode("ascii", "replace") for _ in range(element.count)]
        if element.name != "vertex" or rows is not None:
            continue
        found = sum(1 for line in lines if line.strip())
        if found != element.count:
            raise InputError(f"{name} announces {element.count:,} rows of 'vertex' but has {found:,}; save it again.")
        try:
            values = np.loadtxt(lines, np.float64, comments=None, ndmin=2)
        except ValueError as error:
            raise InputError(f"{name} is damaged: {error}; save it again.") from error
        if values.shape[1] != len(element.properties):
            raise InputError(
                f"{name} has {values.shape[1]} numbers a row but announces {len(element.properties)}; save it again."
            )
        rows = values.view(np.dtype([(str(i), "f8") for i in range(len(element.properties))]))[:, 0]
    if file.read().strip():
        raise InputError(f"{name} has more lines than its header announces; save it again.")
    return _found(rows, name)


def _found(rows: np.ndarray | None, name: str) -> np.ndarray:
    if rows is None:
        raise InputError(f"{name} has list properties before its 'vertex' element; a 3DGS scene has no such element.")
    return rows


def _refuse_bad_values(values: np.ndarray, names: tuple[str, ...], file: str) -> None:
    bad = ~(np.abs(values) <= MAX_VALUE)  # also true for NaN
    if names[0] == "scale_0":
        bad |= values > MAX_LOG_SCALE
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(
            f"{file}: {int(bad.any(1).sum())} of {len(values)} Gaussians have values that are NaN, infinite or too large "
            f"to draw (first: {names[column]} = {values[row, column]} in row {row}); remove them or save the scene again."
        )
