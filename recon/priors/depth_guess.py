"""What a network says of a photo's depth, before it is fitted to the scene: plain numbers and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recon.priors.learned import PriorWeights
from splat.errors import StoppedLate
from splat.progress import Progress
from splat.views import Views

# inverse: scale / depth + offset; affine: scale * depth + offset; scaled: depth times an unknown scale; scene: depth in world
# units, nothing to be fitted
Kind = Literal["inverse", "affine", "scaled", "scene"]


@dataclass(frozen=True)
class DepthGuess:
    """A depth map of one placed view as a network gave it; the view's camera `resized` to it sees its pixels."""

    name: str  # of the view
    values: Tensor  # [H, W] see `kind`; NaN where unknown
    kind: Kind
    confidence: Tensor | None = None  # [H, W] in [0, 1]; None where the network does not say

    def __post_init__(self) -> None:
        assert self.values.ndim == 2, self.values.shape
        assert self.confidence is None or self.confidence.shape == self.values.shape, (
            self.values.shape,
            self.confidence.shape,
        )


@torch.inference_mode()
def _guessed(guess: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    return guess(image).float().cpu()


def each_photo(
    views: list[Views], guess: Callable[[Tensor], Tensor], kind: Kind, weights: PriorWeights
) -> Generator[Progress, None, list[DepthGuess]]:
    """`guess` (image [H, W, 3] sRGB -> values [H, W]) of every view in order. Raises `StoppedLate` when one is not finite."""
    total, found = sum(len(v) for v in views), []
    for view in views:
        for name, image in zip(view.names, view.images):
            values = _guessed(guess, image.cpu())
            check_output(values, name, weights)
            found.append(DepthGuess(name, values.clone(), kind))  # out of inference mode: an ordinary tensor
            yield Progress("prior", len(found), total, f"{weights.family.title}: {name}")
    return found


def check_output(values: Tensor, name: str, weights: PriorWeights) -> None:
    """Raise `StoppedLate` when a network's output has numbers that are not finite."""
    bad = values.numel() - int(values.isfinite().sum())
    if bad:
        raise StoppedLate(
            f"{weights.family.title} ({weights.source}) gave {bad} of {values.numel()} values for {name} that are not finite; "
            "its weights are damaged or of half precision: fetch them again, or leave --prior out."
        )
