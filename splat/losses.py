"""What the fit minimises. Each term is a function of a rendering and its truth, weighed in `FitConfig`."""

from __future__ import annotations

import torch
from torch import Tensor

from splat.metrics import ssim_map


def photometric(image: Tensor, truth: Tensor, ssim_weight: float) -> Tensor:
    """image, truth [B, H, W, 3] -> scalar (1 - w) L1 + w (1 - SSIM); 3DGS (Kerbl et al. 2023), eq. 7.

    On CPU the fused kernel computes it when it is built; the values agree to 1e-5.
    """
    if image.device.type == "cpu" and image.dtype == torch.float32:
        from splat.render import native

        if native.available():
            from splat.render.native.loss import fused_l1_ssim

            return fused_l1_ssim(image, truth, ssim_weight)
    l1 = (image - truth).abs().mean()
    return l1 if ssim_weight == 0 else (1 - ssim_weight) * l1 + ssim_weight * (1 - ssim_map(image, truth).mean())
