"""SPZ, the compressed splats of Niantic (Scaniverse), versions 1 to 4.

A header, then one block an attribute: positions (fixed point, 24 bits a coordinate), opacities (1/255), colours, scales
(steps of 1/16 of the natural logarithm), rotations xyzw (versions 1 and 2: three bytes, w >= 0; later: smallest three in 32
bits), SH bands above the first (signed, 1/128, coefficient by coefficient, RGB inside). Versions 1 to 3 are gzipped as a
whole; version 4 (`splat.io.spz_streams`) compresses each block by itself with Zstandard. The axes are right, up, back
("RUB"), which are ours: +Y up, right-handed, the camera looks along -Z. Version 4 may name others.
"""

from __future__ import annotations

import gzip
import logging
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from splat.errors import InputError
from splat.gaussians import Splats
from splat.io import spz_streams
from splat.io.atomic import atomically
from splat.io.drawable import check_count, drawable, writable
from splat.io.quantised import (
    HALF_ROOT,
    from_smallest_three,
    opacity_bytes,
    opacity_logits,
    smallest_three,
    to_byte,
)  # fmt: skip

log = logging.getLogger(__name__)

MAGIC = b"NGSP"
HEADER = struct.Struct("<4sIIBBBB")  # magic, version, Gaussians, SH degree, fractional bits of positions, flags, reserved
HAS_EXTENSIONS = 2  # in the flags
MAX_FRACTIONAL_BITS = 16  # steps of 1.5e-5, below what a picture of a scene of unit size shows
COLOUR_SCALE = 0.15  # of the first SH band; wider than C0, for colours that the other bands bring back into range
LOG_SCALE_ZERO, LOG_SCALE_STEPS = -10, 16  # byte = (log_scale + 10) * 16
# Bits kept of the first SH band, and of the others; readers need not know. Fewer compress better: with Niantic's (5, 4) the
# bundled example takes 18.7 bytes a Gaussian and pictures of it agree to 40 dB, with these 21.5 bytes and 45 dB.
SH_BITS = (6, 5)
REST_TERMS = (0, 3, 8, 15, 24)  # by SH degree
MAX_RATIO, RATIO_GRACE = 100, 1 << 24  # real scenes shrink 2 to 10 times; more from one file is a bomb, unless it is small
MAX_EXTENSIONS = 1 << 16  # bytes


@dataclass(frozen=True)
class Header:
    version: int
    count: int
    degree: int  # 0 to 4
    fractional_bits: int
    flags: int

    @property
    def widths(self) -> dict[str, int]:
        """Bytes a Gaussian of each block, in the order of the file."""
        return {
            "positions": 6 if self.version == 1 else 9,
            "opacities": 1,
            "colours": 3,
            "scales": 3,
            "rotations": 4 if self.version >= 3 else 3,
            "sh": 3 * REST_TERMS[self.degree],
        }


def save_spz(splats: Splats, path: Path, version: Literal[2, 3, 4] = 3) -> None:
    """Write `splats`. Version 3 is what most programs read; 4 needs the package zstandard. Same splats, same bytes.

    The file appears whole or not at all. Raises `InputError` for an empty scene and for positions beyond 2^23, `StoppedLate`
    for NaN or infinite values and for a full disk, `BackendUnavailable` without zstandard.
    """
    path = Path(path)
    splats = writable(splats, path)
    bits = _fractional_bits(splats, path.name)
    head = HEADER.pack(MAGIC, version, len(splats), splats.sh_degree, bits, 0, 0)
    blocks = _pack(splats, version, bits)
    packed = spz_streams.compressed(head, blocks) if version >= 4 else _gzipped([head, *blocks])
    with atomically(path) as temporary:
        temporary.write_bytes(packed)


def load_spz(path: Path) -> Splats:
    """The splats in `path`, float32 on the CPU, SH degree as stored, at most 3.

    Raises `InputError` when the file is not SPZ, of an unknown version, damaged, or expands to more than its size can hold
    (checked before memory is taken); `BackendUnavailable` for version 4 without zstandard.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            magic, size = file.read(len(MAGIC)), path.stat().st_size
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                header, blocks, extensions = _read_blocks(file, size, path.name)
        elif magic == MAGIC:
            data = path.read_bytes()
            header = _header(data[: HEADER.size], size, path.name)
            if header.version < 4:
                raise InputError(f"{path.name} is SPZ of version {header.version} without its gzip wrapping; save it again.")
            blocks, extensions = spz_streams.expanded(data, header.widths, header.count, path.name)
        else:
            raise InputError(f"{path.name} is no SPZ file: it begins with neither gzip's marks nor 'NGSP'; export it again.")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path.name} is damaged or cut off ({error}); copy or export it again.") from error
    except OSError as error:
        raise InputError(f"Could not read {path}: {error.strerror}; check the path.") from error
    splats = _unpack(header, blocks, path.name)
    return spz_streams.to_right_up_back(splats, extensions if header.flags & HAS_EXTENSIONS else b"", path.name)


def _gzipped(parts: list[bytes]) -> bytes:
    squeeze = zlib.compressobj(wbits=31)  # gzip framing with no name and no time in it
    return b"".join([*(squeeze.compress(part) for part in parts), squeeze.flush()])


def _header(raw: bytes, size: int, name: str) -> Header:
    """Checked against `size`, the bytes of the file."""
    if len(raw) < HEADER.size or raw[:4] != MAGIC:
        raise InputError(f"{name} is no SPZ file: its header does not begin with 'NGSP'; export it again.")
    _, version, count, degree, bits, flags, _ = HEADER.unpack(raw)
    if not 1 <= version <= 4:
        raise InputError(f"{name} is SPZ of version {version}; versions 1 to 4 are read, so export it as one of them.")
    if degree >= len(REST_TERMS) or (version > 1 and bits > 24):
        raise InputError(f"{name} is damaged: SH degree {degree}, {bits} fractional bits; export it again.")
    check_count(count, name)
    header = Header(version, count, degree, bits, flags)
    expands_to = count * sum(header.widths.values())
    if expands_to > MAX_RATIO * size + RATIO_GRACE:
        raise InputError(
            f"{name} announces {count:,} Gaussians ({expands_to:,} bytes) in a file of {size:,} bytes; "
            "it is damaged or made to exhaust memory, so export it again."
        )
    return header


def _read_blocks(file: gzip.GzipFile, size: int, name: str) -> tuple[Header, dict[str, np.ndarray], bytes]:
    """Header, blocks [N, bytes a Gaussian] and what follows them, of versions 1 to 3."""
    header = _header(file.read(HEADER.size), size, name)
    blocks = {}
    for block, width in header.widths.items():
        raw = file.read(header.count * width)
        if len(raw) < header.count * width:
            raise InputError(
                f"{name} announces {header.count:,} Gaussians but ends within their {block}; copy or export it again."
            )
        blocks[block] = np.frombuffer(raw, np.uint8).reshape(header.count, width)
    rest = file.read(MAX_EXTENSIONS + 1)
    if len(rest) > MAX_EXTENSIONS or (rest and not header.flags & HAS_EXTENSIONS):
        raise InputError(f"{name} has more bytes than its header announces; export it again.")
    return header, blocks, rest


def _fractional_bits(splats: Splats, name: str) -> int:
    """As many as the farthest position leaves of 23, up to `MAX_FRACTIONAL_BITS`."""
    farthest = float(splats.means.abs().max())
    if farthest > 2**23 - 1:
        raise InputError(
            f"{name} was not written: SPZ ends {2**23 - 1:,} units from the origin, and a Gaussian lies {farthest:.3g} away; "
            "remove it."
        )
    bits = next(bits for bits in range(MAX_FRACTIONAL_BITS, -1, -1) if np.rint(farthest * 2**bits) <= 2**23 - 1)
    if 2.0**-bits > float(splats.scales.median()):
        log.warning(
            "%s: a Gaussian lies %.3g units away, so positions are rounded to %.3g units; remove far ones for a finer grid",
            name, farthest, 2.0**-bits,
        )  # fmt: skip
    return bits


def _pack(splats: Splats, version: int, bits: int) -> list[bytes]:
    """The blocks in the order of the file."""
    n = len(splats)
    fixed = np.rint(splats.means.double().numpy() * 2**bits).astype("<i4")
    log_scales = splats.log_scales.numpy()
    largest = LOG_SCALE_ZERO + 255 / LOG_SCALE_STEPS
    clipped = int((log_scales > largest + 0.5 / LOG_SCALE_STEPS).any(1).sum())
    if clipped:
        log.warning("SPZ holds scales up to %.0f units; %d of %d Gaussians are cut to that", np.exp(largest), clipped, n)
    xyzw = splats.quats.numpy()[:, [1, 2, 3, 0]]
    sh = splats.sh.numpy()
    return [
        fixed.view(np.uint8).reshape(n, 3, 4)[:, :, :3].tobytes(),  # the low three bytes
        opacity_bytes(splats.opacity_logits.numpy()).tobytes(),
        to_byte(255 * (0.5 + COLOUR_SCALE * sh[:, 0])).tobytes(),
        to_byte((log_scales - LOG_SCALE_ZERO) * LOG_SCALE_STEPS).tobytes(),
        _smallest_three_codes(xyzw) if version >= 3 else _three_bytes(xyzw),
        _sh_bytes(sh[:, 1:4], SH_BITS[0], sh[:, 4:], SH_BITS[1]),
    ]


def _smallest_three_codes(xyzw: np.ndarray) -> bytes:
    """Index of the largest in the top two bits, then sign and 9 bits of magnitude of the others, in their order."""
    largest, rest = smallest_three(xyzw)
    codes = largest.astype(np.uint32)
    for value in rest.T:
        codes = codes << 10 | (value < 0).astype(np.uint32) << 9 | np.rint(511 * np.abs(value) / HALF_ROOT).astype(np.uint32)
    return codes.astype("<u4").tobytes()


def _three_bytes(xyzw: np.ndarray) -> bytes:
    positive = xyzw * np.where(xyzw[:, 3:] < 0, -1, 1)
    return to_byte(127.5 + 127.5 * positive[:, :3]).tobytes()


def _sh_bytes(first: np.ndarray, first_bits: int, others: np.ndarray, other_bits: int) -> bytes:
    """[N, 3, 3] of the first band, [N, 0, 5 or 12, 3] of the others; rounded to 2^(8 - bits) steps, zero among them."""

    def rounded(values: np.ndarray, bits: int) -> np.ndarray:
        step = 1 << (8 - bits)
        return np.clip(np.rint(values * (128 / step)) * step + 128, 0, 255).astype(np.uint8)

    return np.concatenate([rounded(first, first_bits), rounded(others, other_bits)], axis=1).tobytes()


def _unpack(header: Header, blocks: dict[str, np.ndarray], name: str) -> Splats:
    n = header.count
    sh = np.empty((n, 1 + min(REST_TERMS[header.degree], 15), 3), np.float32)
    sh[:, 0] = (blocks["colours"].astype(np.float32) / 255 - 0.5) / COLOUR_SCALE
    sh[:, 1:] = (blocks["sh"].reshape(n, -1, 3)[:, : sh.shape[1] - 1].astype(np.float32) - 128) / 128
    if header.degree > 3:
        log.warning("%s has SH degree %d; the bands above 3 are left out", name, header.degree)
    return drawable(
        name,
        means=_positions(header, blocks["positions"]),
        quats=_rotations(header, blocks["rotations"]),
        log_scales=blocks["scales"].astype(np.float32) / LOG_SCALE_STEPS + LOG_SCALE_ZERO,
        opacity_logits=opacity_logits(blocks["opacities"][:, 0]),
        sh=sh,
    )


def _positions(header: Header, raw: np.ndarray) -> np.ndarray:
    if header.version == 1:  # half precision
        return raw.copy().view("<f2").astype(np.float32)
    low, middle, high = np.moveaxis(raw.reshape(-1, 3, 3).astype(np.int32), 2, 0)
    fixed = ((low | middle << 8 | high << 16) ^ 0x800000) - 0x800000  # carries the sign of bit 23 up
    return np.ldexp(fixed.astype(np.float32), -header.fractional_bits)


def _rotations(header: Header, raw: np.ndarray) -> np.ndarray:
    """[N, 4] wxyz."""
    if header.version < 3:
        xyz = raw.astype(np.float32) / 127.5 - 1
        w = np.sqrt(np.clip(1 - np.square(xyz).sum(1, keepdims=True), 0, 1))
        return np.concatenate([w, xyz], axis=1)
    codes = raw.copy().view("<u4")[:, 0]
    fields = np.stack([codes >> 20, codes >> 10, codes], axis=1) & 0x3FF
    rest = (fields & 0x1FF).astype(np.float32) * np.float32(HALF_ROOT / 511) * np.where(fields & 0x200, -1, 1)
    return from_smallest_three(codes >> 30, rest)[:, [3, 0, 1, 2]]
