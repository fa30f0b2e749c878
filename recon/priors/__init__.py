"""Stereo priors: where dense geometry comes from before any splat is fitted.

A *posed* prior takes placed views and returns one `DepthMap` for each (`recon.priors.plane_sweep.estimate_depths`, built in,
needs no weights). *Learned* priors guess with weights that lie on this machine: the table is `recon.priors.learned`, adapters
are one a file, and `recon.learned_geometry` puts their answers to use. Networks that see two photos answer with a
`StereoPrediction`. To add one: docs/adding-a-prior.md. Depends on splat and torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor

from splat.errors import BackendUnavailable
from splat.progress import Progress


@dataclass(frozen=True)
class DepthMap:
    """Depth of one placed view, on a pixel grid of its own: the view's camera `resized` to it sees these pixels."""

    name: str  # of the view
    depth: Tensor  # [H, W] z in the view's camera, world units; 0 where unknown
    confidence: Tensor  # [H, W] in [0, 1]; 0 where unknown

    def __post_init__(self) -> None:
        assert self.depth.ndim == 2 and self.depth.shape == self.confidence.shape, (self.depth.shape, self.confidence.shape)


@dataclass(frozen=True)
class StereoPrediction:
    """What a pair prior says about two images of one size, up to an unknown scale."""

    points: Tensor  # [2, H, W, 3] both pointmaps in the camera frame of the first image
    confidence: Tensor  # [2, H, W] in [0, 1]

    def __post_init__(self) -> None:
        h, w = self.points.shape[1:3]
        assert self.points.shape == (2, h, w, 3) and self.confidence.shape == (2, h, w), (
            self.points.shape,
            self.confidence.shape,
        )


# (views, sparse points or None, config, device) -> Progress..., list[DepthMap]
PosedPrior = Callable[..., Generator[Progress, None, list[DepthMap]]]

# name -> (module, function); imported when first used.
POSED_PRIORS = {
    "plane_sweep": ("recon.priors.plane_sweep", "estimate_depths"),
}


def posed_prior(name: str) -> PosedPrior:
    """The function behind `name`. Raises `BackendUnavailable` for a name that is not in the table."""
    if name not in POSED_PRIORS:
        raise BackendUnavailable(f"no stereo prior named {name}; choose one of {', '.join(POSED_PRIORS)}.")
    module, function = POSED_PRIORS[name]
    return getattr(importlib.import_module(module), function)
