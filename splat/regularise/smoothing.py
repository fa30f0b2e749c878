"""No Gaussian finer than what the photos sample: the 3-D smoothing filter of Mip-Splatting.

"Mip-Splatting: Alias-free 3D Gaussian Splatting" (Yu et al. 2024), section 4.1. Where a camera comes nearer than any photo did,
or its focal length is longer, unfiltered Gaussians show gaps and needles that no photo could rule out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.gaussians import Splats

VARIANCE = 0.2  # px^2 of the filter, the paper's
MARGIN = 0.15  # share of the image by which a Gaussian may lie outside and still count as seen (the authors' code)


@torch.no_grad()
def filter_widths(means: Tensor, cameras: Sequence[Cameras], near: float = 0.01) -> Tensor:
    """[N] standard deviation of each Gaussian's filter, world units: sqrt(0.2) of the finest pixel that any camera has there.

    Gaussians that no camera sees get the width of the finest that one sees. `near` is the least depth that counts.
    """
    finest = torch.full_like(means[:, 0], torch.inf)  # [N] world units per pixel
    for batch in cameras:
        pixels, depth = batch.project(means)
        size = torch.tensor([batch.width, batch.height]).to(means)
        inside = ((pixels > -MARGIN * size) & (pixels < (1 + MARGIN) * size)).all(-1) & (depth > near)
        focal = torch.maximum(batch.K[:, 0, 0], batch.K[:, 1, 1])
        finest = torch.minimum(finest, torch.where(inside, depth / focal[:, None], torch.inf).amin(0))
    seen = finest.isfinite()
    if not seen.any():
        return torch.zeros_like(finest)
    return torch.where(seen, finest, finest[seen].min()) * VARIANCE**0.5


def smoothed(splats: Splats, widths: Tensor) -> Splats:
    """`splats` convolved with isotropic Gaussians of standard deviation `widths` [N], each keeping its integral.

    Variances add; the opacity falls by the root of the determinants' ratio. Differentiable in `splats`.
    """
    variance = (2 * splats.log_scales).exp()
    wider = variance + widths.square()[:, None]
    fall = (variance.log() - wider.log()).sum(-1) / 2  # log of the ratio of volumes, at most 0
    opacity = (splats.opacities * fall.exp()).clamp(1e-7, 1 - 1e-6)
    return replace(splats, log_scales=wider.log() / 2, opacity_logits=opacity.logit())
