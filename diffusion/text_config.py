"""Options of text to 3-D, apart from the networks, so that the command line reads them without importing torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextSampleConfig:
    """How a sentence becomes a volume."""

    steps: int = 10  # network calls of the shape stage
    guidance: float = 2.0  # weight of the sentence against no sentence; 1 is the plain conditional model
    threads: int | None = None  # CPU threads; None leaves torch's setting
