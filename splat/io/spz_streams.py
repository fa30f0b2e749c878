"""What version 4 of SPZ has of its own: blocks compressed one by one with Zstandard, and named coordinate systems.

The header of 32 bytes ends in the number of streams, the offset of their table and 12 bytes to spare. Extensions (type,
length, payload) lie between it and the table. The table holds the compressed and the expanded size of each stream.
"""

from __future__ import annotations

import struct

import numpy as np
import torch

from splat import sh as harmonics
from splat.errors import BackendUnavailable, InputError
from splat.gaussians import Splats
from splat.similarity import Similarity

TABLE_OFFSET = 32  # what follows the shared header's 15 bytes: u8 streams, u32 offset of the table, 12 bytes
LEVEL = 12
COORDINATE_SYSTEM = 0xADBE0003  # the extension that names the axes of the stored data
# Their names by number, from 1: where x, y and z point (left or right, up or down, front or back).
AXES = ("LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF", "LFD", "RFD", "LFU", "RFU", "LBD", "RBD", "LBU", "RBU")
DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "U": (0, 1, 0), "D": (0, -1, 0), "B": (0, 0, 1), "F": (0, 0, -1)}


def compressed(head: bytes, blocks: list[bytes]) -> bytes:
    """The file: `head` is the 16 bytes that versions 1 to 3 begin with. Empty blocks are left out."""
    zstandard = _zstandard()
    blocks = [block for block in blocks if block]
    streams = [zstandard.ZstdCompressor(level=LEVEL).compress(block) for block in blocks]
    table = b"".join(struct.pack("<QQ", len(stream), len(block)) for stream, block in zip(streams, blocks, strict=True))
    start = head[:15] + struct.pack("<BI12x", len(streams), TABLE_OFFSET)
    return b"".join([start, table, *streams])


def expanded(data: bytes, widths: dict[str, int], count: int, name: str) -> tuple[dict[str, np.ndarray], bytes]:
    """Blocks [count, width] and the bytes of the extensions of the file `data`; `widths` are bytes a Gaussian.

    Raises `InputError` where the table contradicts the header or the file, before memory is taken.
    """
    zstandard = _zstandard()
    sizes = {block: count * width for block, width in widths.items() if width}
    streams, offset = struct.unpack_from("<BI", data, 15) if len(data) >= TABLE_OFFSET else (0, 0)
    start = offset + 16 * streams
    if streams != len(sizes) or offset < TABLE_OFFSET or start > len(data):
        raise InputError(f"{name} is damaged: {streams} streams where {len(sizes)} belong, or cut off; export it again.")
    table = [struct.unpack_from("<QQ", data, offset + 16 * i) for i in range(streams)]
    if sum(packed for packed, _ in table) != len(data) - start:
        raise InputError(f"{name} is cut off or has bytes to spare ({len(data):,}); copy or export it again.")
    blocks = {block: np.empty((count, width), np.uint8) for block, width in widths.items() if not width}
    for (block, size), (packed, announced) in zip(sizes.items(), table, strict=True):
        try:
            with zstandard.ZstdDecompressor().stream_reader(data[start : start + packed]) as reader:
                raw = reader.read(size + 1) if announced == size else b""
        except zstandard.ZstdError as error:
            raise InputError(f"{name} is damaged in its {block} ({error}); copy or export it again.") from error
        if len(raw) != size:
            raise InputError(f"{name} does not hold {size:,} bytes of {block}, as its header asks; copy or export it again.")
        blocks[block] = np.frombuffer(raw, np.uint8).reshape(count, widths[block])
        start += packed
    return blocks, data[TABLE_OFFSET:offset]


def to_right_up_back(splats: Splats, extensions: bytes, name: str) -> Splats:
    """`splats` turned from the axes that `extensions` name, if any, to right, up, back. SH bands turn too."""
    axes = _axes(extensions, name)
    if axes == "RUB":
        return splats
    matrix = torch.tensor([DIRECTIONS[letter] for letter in axes], dtype=torch.float64).T  # stored coordinates -> R, U, B
    if torch.linalg.det(matrix) < 0:
        splats = _mirrored_in_x(splats)
        matrix[:, 0] *= -1
    return splats.transformed(Similarity(matrix, torch.zeros(3)))


def _axes(extensions: bytes, name: str) -> str:
    """The name of the axes of the stored data, "RUB" where no extension says otherwise."""
    while len(extensions) >= 8:
        kind, length = struct.unpack_from("<II", extensions)
        payload, extensions = extensions[8 : 8 + length], extensions[8 + length :]
        if kind == COORDINATE_SYSTEM and len(payload) == length == 4:
            number = struct.unpack("<I", payload)[0]
            if number > len(AXES):
                raise InputError(
                    f"{name} names the coordinate system {number}, of which there are {len(AXES)}; export it again."
                )
            return AXES[number - 1] if number else "RUB"  # zero: not specified
    return "RUB"


def _mirrored_in_x(splats: Splats) -> Splats:
    """The scene in a mirror across the plane x = 0."""
    generic = torch.tensor([[0.36, 0.48, 0.8]], dtype=torch.float64)
    flip = torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    # Every basis function is even or odd in x, so that one direction tells which.
    signs = (harmonics.basis(generic * flip, splats.sh_degree) / harmonics.basis(generic, splats.sh_degree))[0].round()
    return Splats(
        means=splats.means * flip.to(splats.means),
        quats=splats.quats * torch.tensor([1.0, 1, -1, -1]),
        log_scales=splats.log_scales,
        opacity_logits=splats.opacity_logits,
        sh=splats.sh * signs[:, None].to(splats.sh),
    )


def _zstandard():
    try:
        import zstandard
    except ImportError as error:
        raise BackendUnavailable("SPZ of version 4 needs the package zstandard: pip install zstandard") from error
    return zstandard
