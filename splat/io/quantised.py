"""Numbers in few bits, as the compact splat formats keep them: [N, ...] numpy arrays in, codes out, and back."""

from __future__ import annotations

import numpy as np

HALF_ROOT = 2**-0.5  # the three smaller components of a unit quaternion are no larger


def to_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """[0, 1] -> the nearest of 2^bits equal steps, uint32; values outside are clipped."""
    top = 2**bits - 1
    return np.clip(np.rint(values * top), 0, top).astype(np.uint32)


def from_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `to_bits`, float32; higher bits of `codes` are ignored."""
    top = 2**bits - 1
    return (codes & top).astype(np.float32) / np.float32(top)


def to_byte(values: np.ndarray) -> np.ndarray:
    """The nearest whole number in 0..255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def opacity_bytes(logits: np.ndarray) -> np.ndarray:
    """Opacity logits -> opacity in 1/255."""
    with np.errstate(over="ignore"):
        return to_byte(255 / (1 + np.exp(-logits)))


def opacity_logits(codes: np.ndarray) -> np.ndarray:
    """The inverse of `opacity_bytes`, float32; the end codes stand for the middles of their half steps, to stay finite."""
    return logits(np.clip(codes.astype(np.float32), 0.25, 254.75) / np.float32(255))


def logits(opacity: np.ndarray) -> np.ndarray:
    """Opacities in (0, 1) -> logits."""
    return np.log(opacity / (1 - opacity))


def smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit quaternions [N, 4] -> the index [N] of the largest component, and the other three [N, 3] in their order, of that
    sign of the quaternion that makes the largest positive."""
    largest = np.abs(quats).argmax(1)
    sign = np.where(np.take_along_axis(quats, largest[:, None], 1) < 0, -1, 1)
    return largest, (quats * sign)[np.arange(4) != largest[:, None]].reshape(-1, 3)


def from_smallest_three(largest: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The inverse of `smallest_three`: unit quaternions [N, 4] float32."""
    out = np.empty((len(rest), 4), np.float32)
    kept = np.arange(4) != largest[:, None]
    out[kept] = rest.reshape(-1)
    out[~kept] = np.sqrt(np.clip(1 - np.square(rest).sum(1), 0, 1))
    return out
