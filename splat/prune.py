"""Which Gaussians nobody sees: the ones a finished scene is better without."""

from __future__ import annotations

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.render import RenderOptions, render
from splat.sh import C0


def visibility(splats: Splats, cameras: list[Cameras], options: RenderOptions, backend: str = "auto") -> Tensor:
    """[N] the largest sum of blending weights, in pixels, that each Gaussian reaches in any of the cameras' images.

    A render is linear in colour, so the gradient of its sum with respect to one Gaussian's grey is that sum of weights.
    """
    grey = torch.zeros(len(splats), 1, 3, dtype=splats.means.dtype, device=splats.means.device)
    seen = torch.zeros(len(splats), dtype=splats.means.dtype, device=splats.means.device)
    fixed = splats.detach()
    for batch in cameras:
        for i in range(len(batch)):
            sh = grey.clone().requires_grad_()
            painted = Splats(fixed.means, fixed.quats, fixed.log_scales, fixed.opacity_logits, sh)
            render(painted, batch[i], options, backend).rgb[..., 0].sum().backward()
            seen = torch.maximum(seen, sh.grad[:, 0, 0] / C0)
    return seen
