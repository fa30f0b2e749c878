"""The event that long work yields."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a batch hands events around where torch is not wanted
    from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """One step of a job. A job is a generator of these; closing it cancels the job; its return value is the result."""

    stage: str  # "photos", "features", "poses", "prior", "fit", "mesh", ...
    step: int  # steps done in this stage
    total: int  # steps this stage has
    note: str = ""  # one short sentence for the user
    preview: Tensor | None = None  # [H, W, 3] sRGB in [0, 1]
    values: dict[str, float] = field(default_factory=dict)  # live figures: psnr, gaussians, loss


def result_of(job: Generator[Progress, None, Any]) -> Any:
    """What `job` returns, its events unheard."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def told_as(job: Generator[Progress, None, Any], tell: Callable[[Progress], Progress]) -> Generator[Progress, None, Any]:
    """`job` as a part of another one: its events as `tell` puts them, its own result."""
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return end.value
        yield tell(event)
