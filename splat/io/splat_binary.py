"""The `.splat` files of the first browser viewer (antimatter15): 32 bytes a Gaussian, no header.

A record is the position (3 float32), the standard deviations along the axes (3 float32, not their logarithms), the colour
and opacity (4 bytes in 1/255) and the rotation wxyz (4 bytes, 128 + 128 q). Little endian. View-dependent colour does not
fit in. Axes are left as they are: most viewers of this format expect y down, which is the convention "3dgs".
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from splat.errors import InputError
from splat.gaussians import Splats
from splat.io.atomic import atomically
from splat.io.drawable import MIN_LOG_SCALE, check_count, drawable, writable
from splat.io.quantised import opacity_bytes, opacity_logits, to_byte
from splat.sh import C0

log = logging.getLogger(__name__)

RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])
MAX_SCALE_EXPONENT = 80.0  # e^80 still fits float32


def save_splat(splats: Splats, path: Path) -> None:
    """Write `splats`, the largest and most opaque first, since viewers draw while they load. Same splats, same bytes.

    The file appears whole or not at all. Raises `InputError` for an empty scene, `StoppedLate` for NaN or infinite values
    and for a full disk.
    """
    path = Path(path)
    splats = writable(splats, path)
    if splats.sh_degree:
        log.warning("%s keeps the plain colours only: .splat has no room for colours that change with the view", path.name)
    importance = splats.log_scales.double().sum(1) + splats.opacity_logits.double().sigmoid().log()  # log of volume x opacity
    splats = splats[importance.argsort(descending=True, stable=True)]
    rows = np.empty(len(splats), RECORD)
    rows["position"] = splats.means
    rows["scale"] = splats.log_scales.clamp_max(MAX_SCALE_EXPONENT).exp()
    rows["rgba"][:, :3] = to_byte(255 * splats.rgb.numpy())
    rows["rgba"][:, 3] = opacity_bytes(splats.opacity_logits.numpy())
    rows["rotation"] = to_byte(128 + 128 * splats.quats.numpy())
    with atomically(path) as temporary:
        temporary.write_bytes(rows.tobytes())


def load_splat(path: Path) -> Splats:
    """The splats in `path`, SH degree 0, float32 on the CPU, in the order of the file.

    Raises `InputError` when the size is no multiple of 32 bytes or a value cannot be drawn.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size % RECORD.itemsize:
            raise InputError(
                f"{path.name} has {size:,} bytes, which is no multiple of {RECORD.itemsize}; it is cut off or no .splat file."
            )
        check_count(size // RECORD.itemsize, path.name)
        rows = np.fromfile(path, RECORD)
    except OSError as error:
        raise InputError(f"Could not read {path}: {error.strerror}; check the path.") from error
    with np.errstate(divide="ignore", invalid="ignore"):  # the logarithm of a negative scale is NaN, which is refused
        log_scales = np.maximum(np.log(rows["scale"]), MIN_LOG_SCALE)
    rgba = rows["rgba"]
    return drawable(
        path.name,
        means=rows["position"],
        quats=(rows["rotation"].astype(np.float32) - 128) / 128,
        log_scales=log_scales,
        opacity_logits=opacity_logits(rgba[:, 3]),
        sh=((rgba[:, None, :3].astype(np.float32) / 255 - 0.5) / C0),
    )
