"""Options of image to 3-D, apart from the networks, so that the command line reads them without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion.text_config import LEAST_STRENGTH
from splat.errors import InputError


@dataclass(frozen=True)
class ImageSampleConfig:
    """How pictures of an object become Gaussians."""

    steps: int = 8  # network calls; 1 asks for the mean of all objects that the picture may show: smooth, but safe
    guidance: float = 1.0  # weight of the picture against no picture; 1 is the plain conditional model, others double the calls
    temperature: float = 0.35  # of the noise that unknown views start as: 0 the same for every seed, 1 the most varied
    strength: float = 1.0  # sigma of the noise on views that have a first guess: 1 forgets the guess, near 0 keeps it
    text: str = ""  # what the picture shows, for networks that also take text
    plan: str = "deis2"  # sampler: a preset of diffusion.samplers.plan
    threads: int | None = None  # CPU threads; None leaves torch's setting

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000 or not 0 <= self.guidance <= 20 or not 0 <= self.temperature <= 2:
            raise InputError(
                f"{self.steps} steps at guidance {self.guidance:g} and temperature {self.temperature:g} cannot be sampled; "
                "choose 1 to 1000 steps, guidance 0 to 20, temperature 0 to 2."
            )
        if not LEAST_STRENGTH <= self.strength <= 1:
            raise InputError(f"A strength of {self.strength:g} is out of range; give {LEAST_STRENGTH:g} to 1.")
