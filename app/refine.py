"""A finished result fitted further: its state -> splat.optimise.fit -> a result folder of its own."""

from __future__ import annotations

from collections.abc import Generator

from app.commands import Refine
from app.jobs import Outcome
from splat.errors import InputError
from splat.progress import Progress


def refine_result(options: Refine) -> Generator[Progress, None, Outcome]:
    """`options.result` to a result folder at `options.out`. Raises `InputError` before anything is written."""
    raise InputError(f"{options.result} cannot be refined yet.")
    yield
