"""What every reader and writer of splats checks: how many, that the values can be drawn, that rotations mean something."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from splat.errors import InputError, StoppedLate
from splat.gaussians import Splats

log = logging.getLogger(__name__)

MAX_GAUSSIANS = 30_000_000  # 7 GB at SH degree 3; more than any supported machine fits or draws
MAX_VALUE = 1e15  # larger magnitudes overflow float32 once squared
MAX_LOG_SCALE = 40.0  # e^40 = 2e17, likewise
MIN_LOG_SCALE = -30.0  # what a scale of zero becomes where a file stores no logarithm

COMPONENTS = {"means": "xyz", "quats": "wxyz", "log_scales": "xyz"}


def check_count(count: int, name: str) -> None:
    """Refuse a file that announces no Gaussians or more than can be held; call it before taking memory."""
    if count == 0:
        raise InputError(f"{name} holds 0 Gaussians; there is nothing to load.")
    if count > MAX_GAUSSIANS:
        raise InputError(f"{name} announces {count:,} Gaussians, more than the limit of {MAX_GAUSSIANS:,}.")


def drawable(name: str, **fields: np.ndarray) -> Splats:
    """The arrays of the fields of `Splats` that were read from the file `name` -> `Splats`, float32 on the CPU.

    Raises `InputError` where a value is NaN, infinite or too large to draw; a rotation of length zero becomes the identity.
    """
    for field, values in fields.items():
        bad = ~(np.abs(values) <= MAX_VALUE)  # also true for NaN
        if field == "log_scales":
            bad |= values > MAX_LOG_SCALE
        if bad.any():
            rows = bad.reshape(len(bad), -1)
            row, column = np.argwhere(rows)[0]
            value = values.reshape(rows.shape)[row, column]
            part = f".{COMPONENTS[field][column]}" if field in COMPONENTS else ""
            raise InputError(
                f"{name}: {int(rows.any(1).sum())} of {len(values)} Gaussians have values that are NaN, infinite or too large "
                f"to draw (first: {field}{part} = {value} in row {row}); remove them or save the scene again."
            )
    tensors = {field: torch.from_numpy(np.ascontiguousarray(values, np.float32)) for field, values in fields.items()}
    tensors["quats"] = nonzero(tensors["quats"], name)
    return Splats(**tensors)


def nonzero(quats: torch.Tensor, name: str) -> torch.Tensor:
    """A rotation of length zero means nothing; such rows of [N, 4] get the identity, in place."""
    zero = quats.norm(dim=1) < 1e-12
    if zero.any():
        log.warning("%s: %d Gaussians have a rotation of length zero; the identity is used", name, int(zero.sum()))
        quats[zero] = torch.tensor([1.0, 0, 0, 0])
    return quats


def writable(splats: Splats, path: Path) -> Splats:
    """`splats` as float32 on the CPU with unit quaternions, for a writer of `path`.

    Raises `InputError` when there are none, `StoppedLate` for NaN and infinite values.
    """
    if not len(splats):
        raise InputError(f"The scene holds 0 Gaussians, so {path.name} was not written; choose another scene.")
    plain = splats.detach().map(lambda x: x.to("cpu", torch.float32))
    fields = (plain.means, plain.quats, plain.log_scales, plain.opacity_logits, plain.sh)
    bad = torch.stack([~x.isfinite().reshape(len(plain), -1).all(1) for x in fields]).any(0)
    if bad.any():
        raise StoppedLate(
            f"{int(bad.sum())} of {len(plain)} Gaussians hold NaN or infinite values, so {path.name} was not written."
        )
    unit = torch.nn.functional.normalize(nonzero(plain.quats.clone(), "the scene").double(), dim=1).float()
    return Splats(plain.means, unit, plain.log_scales, plain.opacity_logits, plain.sh)
