"""The errors a user may see, and the check that stops bad numbers at a stage boundary."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line's options raise these before torch is wanted
    from torch import Tensor


class SplatsmithError(Exception):
    """Base of the errors whose message is one sentence for the user, with numbers and a remedy."""


class InputError(SplatsmithError):
    """What the user gave cannot work: wrong, empty, truncated or out of range. Found before work: exit status 2."""


class StoppedLate(SplatsmithError):
    """Work began and cannot end well: poses implausible, disk full, out of budget. Exit status 4."""


class BackendUnavailable(SplatsmithError):
    """An optional package or device is missing; raised when it is used, with the install command."""


def check_finite(x: Tensor, name: str) -> None:
    """Raise `InputError` naming `name` and the count when `x` (any shape) holds NaN or infinity."""
    bad = x.numel() - int(x.isfinite().sum())
    if bad:
        raise InputError(f"{name} has {bad} of {x.numel()} values that are NaN or infinite; check the input it came from.")
