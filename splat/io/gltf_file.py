"""Reading glTF 2.0 (`.glb`, and `.gltf` with its buffers inside or beside it): the JSON tree, and accessors as arrays.

Nothing is trusted: sizes are checked against the file before memory is taken, and no path leaves the file's folder.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from splat.errors import InputError

MAX_ENTRIES = 4_000_000  # of the tree, 0.5 GB in memory; ours has 400, and one of ten thousand nodes 200,000
COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


class GltfFile:
    """A glTF file in memory. Every method raises `InputError` where the file contradicts itself."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = Path(path), Path(path).name
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"Could not read {path}: {error.strerror}; check the path.") from error
        text, self._binary = self._chunks(data) if data[:4] == b"glTF" else (data, None)
        entries = sum(text.count(mark) for mark in (b",", b"[", b"{"))
        if entries > MAX_ENTRIES:
            raise InputError(f"{self.name} has a JSON part of {entries:,} entries; at most {MAX_ENTRIES:,} are read.")
        try:
            self.tree: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.name} is no glTF file, or its JSON is damaged; export it again.") from error
        version = self.tree.get("asset") if isinstance(self.tree, dict) else None
        if not isinstance(version, dict) or not str(version.get("version", "")).startswith("2."):
            raise InputError(f"{self.name} is no glTF 2.0 file: it does not state that version; export it as glTF 2.0.")
        self._buffers: dict[int, bytes] = {}

    def item(self, kind: str, index: object) -> dict:
        """Entry `index` of the list `kind` of the tree, such as a node."""
        entries = self.tree.get(kind, [])
        if not isinstance(entries, list) or type(index) is not int or not 0 <= index < len(entries):
            raise InputError(f"{self.name} refers to number {index!s:.20} of its {kind}, which is missing; export it again.")
        if not isinstance(entries[index], dict):
            raise InputError(f"{self.name} has a damaged entry {index} among its {kind}; export it again.")
        return entries[index]

    def array(self, index: object, kind: str, components: tuple[int, ...]) -> np.ndarray:
        """Accessor `index` as float32 [N, width of `kind`]; normalised integers become fractions, others stay whole.

        `components` are the component types allowed.
        """
        accessor = self.item("accessors", index)
        component, count = accessor.get("componentType"), self._whole(accessor, "count")
        if accessor.get("type") != kind or component not in components or "sparse" in accessor or "bufferView" not in accessor:
            raise InputError(
                f"{self.name} stores accessor {index} in a way that is not read here ({accessor.get('type')!s:.20}, type "
                f"{component!s:.20}); export it without compression or sparse storage."
            )
        view = self.item("bufferViews", accessor["bufferView"])
        data = self._buffer(view.get("buffer"))
        dtype, width = np.dtype(COMPONENTS[component]), WIDTHS[kind]
        stride = self._whole(view, "byteStride", width * dtype.itemsize)
        start, length = self._whole(view, "byteOffset", 0), self._whole(view, "byteLength")
        offset = self._whole(accessor, "byteOffset", 0)
        needed = offset + (count - 1) * stride + width * dtype.itemsize if count else 0
        if start + length > len(data) or needed > length or stride < width * dtype.itemsize:
            raise InputError(f"{self.name} is cut off: accessor {index} needs {needed:,} bytes of {length:,}; export it again.")
        values = np.ndarray((count, width), dtype, data, start + offset, (stride, dtype.itemsize))
        if dtype.kind == "f" or not accessor.get("normalized"):
            return values.astype(np.float32)
        return np.maximum(values.astype(np.float32) / np.iinfo(dtype).max, -1)

    def _whole(self, entry: dict, key: str, default: int | None = None) -> int:
        value = entry.get(key, default)
        if type(value) is not int or not 0 <= value < 2**53:
            raise InputError(f"{self.name} has a damaged '{key}' ({value!s:.20}); export it again.")
        return value

    def _chunks(self, data: bytes) -> tuple[bytes, bytes | None]:
        """The JSON and the first binary chunk of a .glb."""
        if len(data) < 20:
            raise InputError(f"{self.name} is cut off: {len(data)} bytes are no binary glTF; copy it again.")
        version, length, json_length, kind = struct.unpack_from("<III4s", data, 4)
        if version != 2 or kind != b"JSON":
            raise InputError(f"{self.name} is binary glTF of version {version}; export it as glTF 2.0.")
        if length > len(data) or 20 + json_length > length:
            raise InputError(f"{self.name} is cut off: {len(data):,} of {max(length, 20 + json_length):,} bytes; copy it.")
        start = 20 + json_length
        if start + 8 > length:
            return data[20:start], None
        size, kind = struct.unpack_from("<I4s", data, start)
        if kind != b"BIN\0" or start + 8 + size > length:
            raise InputError(f"{self.name} is damaged or cut off in its binary part; copy it again.")
        return data[20:start], data[start + 8 : start + 8 + size]

    def _buffer(self, index: object) -> bytes:
        entry = self.item("buffers", index)
        if index not in self._buffers:
            self._buffers[index] = self._load_buffer(entry.get("uri"))
        return self._buffers[index]

    def _load_buffer(self, uri: object) -> bytes:
        if uri is None and self._binary is not None:
            return self._binary
        if not isinstance(uri, str):
            raise InputError(f"{self.name} has a buffer without data; export it again.")
        if uri.startswith("data:"):
            head, _, text = uri.partition(",")
            try:
                return base64.b64decode(text, validate=True) if head.endswith(";base64") else b""
            except binascii.Error as error:
                raise InputError(f"{self.name} has a damaged data URI ({error}); export it again.") from error
        place = PurePosixPath(unquote(uri))
        if "://" in uri or "\\" in uri or "\0" in unquote(uri) or place.is_absolute() or ".." in place.parts:
            raise InputError(f"{self.name} refers to '{uri[:80]}', outside its own folder; put the buffer beside it.")
        path = self.path.parent / place
        if not path.resolve().is_relative_to(self.path.parent.resolve()):
            raise InputError(f"{self.name} refers to '{uri[:80]}', outside its own folder; put the buffer beside it.")
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{self.name} needs {place} beside it, which cannot be read ({error.strerror}).") from error
