"""Leaving out Gaussians at random, so that each part of a photo is explained by more than the few nearest to its camera."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from splat.gaussians import Splats

GONE = -20.0  # opacity logit: 2e-9, far below what the renderer draws
FULL = 0.9995  # opacity that compensation does not exceed, so that its logit stays finite


def thinned(splats: Splats, share: float, generator: torch.Generator) -> Splats:
    """`splats` with a random `share` of them invisible and the opacity of the others divided by 1 - share.

    "DropGaussian: Structural Regularization for Sparse-view Gaussian Splatting" (Park, Ryu, Kim 2025). Rows stay, so that
    gradients keep their places; opacities that would exceed one stop short of it and get no gradient. CPU generator.
    """
    if share <= 0:
        return splats
    keep = (torch.rand(len(splats), generator=generator) >= share).to(splats.means.device)
    return replace(splats, opacity_logits=torch.where(keep, raised(splats.opacity_logits, 1 / (1 - share)), GONE))


def raised(logits: Tensor, factor: float) -> Tensor:
    """Logits [N] of opacities `factor` times as large, at most `FULL`. Differentiable below that."""
    return (logits.sigmoid() * factor).clamp_max(FULL).logit()
