"""Options of text to 3-D, apart from the networks, so that the command line reads them without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from splat.errors import InputError

LEAST_STRENGTH = 0.02  # a little above the least noise that the networks were trained with
VIEW_SIDE = 96  # px of the pictures from which the networks that ship learnt Gaussians


@dataclass(frozen=True)
class TextSampleConfig:
    """How a sentence becomes a volume."""

    steps: int = 10  # network calls of the shape stage
    guidance: float = 3.0  # weight of the sentence against no sentence; 1 is the plain conditional model
    plan: str = "deis2"  # sampler: a preset of diffusion.samplers.plan
    strength: float = 1.0  # sigma of the noise on a shape to start from: 1 forgets it, near 0 keeps it
    threads: int | None = None  # CPU threads; None leaves torch's setting

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000 or not 0 <= self.guidance <= 20:
            raise InputError(
                f"{self.steps} steps at guidance {self.guidance:g} cannot be sampled; choose 1 to 1000 steps and 0 to 20."
            )
        if not LEAST_STRENGTH <= self.strength <= 1:
            raise InputError(f"A strength of {self.strength:g} is out of range; give {LEAST_STRENGTH:g} to 1.")
