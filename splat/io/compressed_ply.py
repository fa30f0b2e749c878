"""Compressed PLY of SuperSplat and PlayCanvas: 16 bytes a Gaussian, and one for each SH coefficient of the higher bands.

Gaussians come in chunks of 256. Element `chunk` holds the ranges of positions, log scales and colours of each; element
`vertex` holds, within those ranges, position and scale in 11 + 10 + 11 bits, colour and opacity in 8 bits each, and the
rotation wxyz by its smallest three in 10 bits each; element `sh` holds f_rest_* (all R, then G, then B) in steps of 1/32
within +-4. Axes are left as they are, as in the plain PLY.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from splat.errors import InputError
from splat.gaussians import Splats
from splat.io.atomic import atomically
from splat.io.drawable import check_count, drawable, writable
from splat.io.quantised import (
    HALF_ROOT,
    from_bits,
    from_smallest_three,
    opacity_bytes,
    opacity_logits,
    smallest_three,
    to_bits,
)  # fmt: skip
from splat.sh import C0

CHUNK = 256
POSITION_RANGE = ("min_x", "min_y", "min_z", "max_x", "max_y", "max_z")
SCALE_RANGE = ("min_scale_x", "min_scale_y", "min_scale_z", "max_scale_x", "max_scale_y", "max_scale_z")
COLOUR_RANGE = ("min_r", "min_g", "min_b", "max_r", "max_g", "max_b")
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
LOG_SCALE_LIMIT = 20.0  # what other programs clip to
SH_RANGE = 8.0  # -4 to 4
REST_COUNTS = (0, 9, 24, 45)
MORTON_BITS = 21  # an axis
# Shift and mask that put two zero bits after each bit: blocks of 16, 8, 4, 2 bits and single bits move apart in turn.
MORTON_SPREAD = (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def save_compressed_ply(splats: Splats, path: Path) -> None:
    """Write `splats` in Morton order, so that a chunk is a small region and its steps are fine. Same splats, same bytes.

    The file appears whole or not at all. Raises `InputError` for an empty scene, `StoppedLate` for NaN or infinite values
    and for a full disk.
    """
    path = Path(path)
    splats = writable(splats, path)
    splats = splats[morton_order(splats.means.numpy())]
    n, rest = len(splats), 3 * (splats.sh.shape[1] - 1)
    positions, position_codes = _within_chunks(splats.means.numpy())
    scales, scale_codes = _within_chunks(splats.log_scales.numpy().clip(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT))
    colours, colour_codes = _within_chunks(splats.rgb.numpy())
    packed = np.stack(
        [
            _pack_11_10_11(position_codes),
            _pack_rotation(splats.quats.numpy()),
            _pack_11_10_11(scale_codes),
            _pack_bytes(colour_codes, opacity_bytes(splats.opacity_logits.numpy())),
        ],
        axis=1,
    )
    higher = splats.sh[:, 1:].permute(0, 2, 1).reshape(n, rest).numpy()
    lines = [
        "ply", "format binary_little_endian 1.0", "comment splatsmith",
        f"element chunk {len(positions)}", *(f"property float {p}" for p in (*POSITION_RANGE, *SCALE_RANGE, *COLOUR_RANGE)),
        f"element vertex {n}", *(f"property uint {p}" for p in PACKED),
    ]  # fmt: skip
    if rest:
        lines += [f"element sh {n}", *(f"property uchar f_rest_{i}" for i in range(rest))]
    with atomically(path) as temporary, open(temporary, "wb") as file:
        file.write(("\n".join([*lines, "end_header"]) + "\n").encode())
        file.write(np.concatenate([positions, scales, colours], axis=1).astype("<f4").tobytes())
        file.write(packed.astype("<u4").tobytes())
        file.write(np.clip(np.floor((higher / SH_RANGE + 0.5) * 256), 0, 255).astype(np.uint8).tobytes())


def load_compressed_ply(path: Path) -> Splats:
    """The splats in `path`, float32 on the CPU, SH degree as stored, in the order of the file. Plain PLYs are read too.

    Raises `InputError` when the file is neither, when its size contradicts its header, and when a value cannot be drawn.
    """
    from splat.io.ply import load_ply  # which calls `unpacked` for a header that asks for it

    return load_ply(path)


def unpacked(rows: dict[str, dict[str, np.ndarray]], name: str) -> Splats:
    """The splats of the elements of a compressed PLY: element -> property -> column."""
    missing = [f"{element}.{p}" for element, p, kinds in _needed() if not _is(rows.get(element, {}).get(p), kinds)]
    if missing:
        raise InputError(f"{name} lacks {len(missing)} properties of a compressed PLY ({', '.join(missing)}); export it again.")
    chunks, vertices, higher = rows["chunk"], rows["vertex"], rows.get("sh", {})
    count = len(vertices["packed_position"])
    check_count(count, name)
    if len(chunks["min_x"]) != -(-count // CHUNK):
        raise InputError(f"{name} has {len(chunks['min_x'])} chunks where {-(-count // CHUNK)} belong; export it again.")
    position, rotation, scale, colour = (vertices[p].astype(np.uint32) for p in PACKED)  # int columns hold the same bits
    rgb = np.stack([from_bits(colour >> shift, 8) for shift in (24, 16, 8)], axis=1)
    if all(_is(chunks.get(p), ("f4",)) for p in COLOUR_RANGE):  # files of older programs have none: colours from 0 to 1
        rgb = _out_of_chunks(rgb, chunks, COLOUR_RANGE)
    sh = np.concatenate([((rgb - 0.5) / C0)[:, None], _unpack_sh(higher, count, name)], axis=1)
    return drawable(
        name,
        means=_out_of_chunks(_unpack_11_10_11(position), chunks, POSITION_RANGE),
        quats=_unpack_rotation(rotation),
        log_scales=_out_of_chunks(_unpack_11_10_11(scale), chunks, SCALE_RANGE),
        opacity_logits=opacity_logits((colour & 0xFF).astype(np.uint8)),
        sh=sh,
    )


def morton_order(points: np.ndarray) -> np.ndarray:
    """The rows of [N, 3] along a Z-order curve through their bounding box; equal cells keep their order."""
    low, extent = points.min(0).astype(np.float64), np.ptp(points.astype(np.float64), axis=0).max()
    cells = ((points - low) / max(extent, 1e-30) * (2**MORTON_BITS - 1)).astype(np.uint64)
    key = np.zeros(len(points), np.uint64)
    for axis in range(3):
        spread = cells[:, axis]
        for shift, mask in MORTON_SPREAD:
            spread = (spread | spread << np.uint64(shift)) & np.uint64(mask)
        key |= spread << np.uint64(axis)
    return np.argsort(key, kind="stable")


def _needed() -> list[tuple[str, str, tuple[str, ...]]]:
    """Element, property and the numpy types it may have."""
    return [("chunk", p, ("f4",)) for p in (*POSITION_RANGE, *SCALE_RANGE)] + [("vertex", p, ("u4", "i4")) for p in PACKED]


def _is(column: np.ndarray | None, kinds: tuple[str, ...]) -> bool:
    return column is not None and column.dtype.str[1:] in kinds


def _within_chunks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, 3] -> low and high of each chunk [N / 256, 6], and the place of each value between them [N, 3] in [0, 1]."""
    starts = np.arange(0, len(values), CHUNK)
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    chunk = np.arange(len(values)) // CHUNK
    span = np.where(high - low > 0, high - low, 1)
    return np.concatenate([low, high], axis=1), (values - low[chunk]) / span[chunk]


def _out_of_chunks(codes: np.ndarray, chunks: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    """The inverse of `_within_chunks`; `names` are the three lows, then the three highs."""
    chunk = np.arange(len(codes)) // CHUNK
    low, high = (np.stack([chunks[p].astype(np.float32) for p in part], axis=1)[chunk] for part in (names[:3], names[3:]))
    with np.errstate(over="ignore", invalid="ignore"):  # ranges beyond float32 are refused with the values
        return low * (1 - codes) + high * codes


def _pack_11_10_11(codes: np.ndarray) -> np.ndarray:
    x, y, z = codes.T
    return to_bits(x, 11) << 21 | to_bits(y, 10) << 11 | to_bits(z, 11)


def _unpack_11_10_11(packed: np.ndarray) -> np.ndarray:
    return np.stack([from_bits(packed >> 21, 11), from_bits(packed >> 11, 10), from_bits(packed, 11)], axis=1)


def _pack_bytes(codes: np.ndarray, last: np.ndarray) -> np.ndarray:
    r, g, b = to_bits(codes, 8).T
    return r << 24 | g << 16 | b << 8 | last.astype(np.uint32)


def _pack_rotation(quats: np.ndarray) -> np.ndarray:
    largest, rest = smallest_three(quats)
    a, b, c = to_bits(rest * HALF_ROOT + 0.5, 10).T
    return largest.astype(np.uint32) << 30 | a << 20 | b << 10 | c


def _unpack_rotation(packed: np.ndarray) -> np.ndarray:
    rest = np.stack([from_bits(packed >> shift, 10) for shift in (20, 10, 0)], axis=1)
    return from_smallest_three(packed >> 30, (rest - 0.5) / np.float32(HALF_ROOT))


def _unpack_sh(higher: dict[str, np.ndarray], count: int, name: str) -> np.ndarray:
    """[N, K - 1, 3]; codes 0 and 255 are the ends of the range, the others the middles of their steps."""
    rest = len(higher)
    if rest not in REST_COUNTS or not all(_is(higher.get(f"f_rest_{i}"), ("u1",)) for i in range(rest)):
        raise InputError(f"{name} has {rest} properties of SH; degrees 0 to 3 have 0, 9, 24 or 45 bytes, f_rest_0 onwards.")
    if not rest:
        return np.empty((count, 0, 3), np.float32)
    if len(higher["f_rest_0"]) != count:
        raise InputError(f"{name} has SH for {len(higher['f_rest_0']):,} of {count:,} Gaussians; export it again.")
    codes = np.stack([higher[f"f_rest_{i}"] for i in range(rest)], axis=1)
    middles = (np.arange(256, dtype=np.float32) + 0.5) / 256
    middles[0], middles[255] = 0, 1
    return np.moveaxis(((middles - 0.5) * SH_RANGE)[codes].reshape(count, 3, rest // 3), 1, 2)
