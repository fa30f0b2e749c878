"""What the fit minimises. Each term is a function of a rendering and its truth, weighed in `FitConfig`."""

from __future__ import annotations

import torch
from torch import Tensor

from splat.metrics import ssim_map


def photometric(image: Tensor, truth: Tensor, ssim_weight: float) -> Tensor:
    """image, truth [B, H, W, 3] -> scalar (1 - w) L1 + w (1 - SSIM); 3DGS (Kerbl et al. 2023), eq. 7.

    On CPU the fused kernel computes it when it is built, on a GPU what `gpu_ssim` finds fastest; the values agree to 1e-5.
    """
    if image.device.type == "cpu" and image.dtype == torch.float32:
        from splat.render import native

        if native.available():
            from splat.render.native.loss import fused_l1_ssim

            return fused_l1_ssim(image, truth, ssim_weight)
    l1 = (image - truth).abs().mean()
    if ssim_weight == 0:
        return l1
    ssim = ssim_map
    if image.device.type == "cuda":
        from splat.gpu_ssim import fastest_ssim_map

        ssim = fastest_ssim_map(image.device)
    return (1 - ssim_weight) * l1 + ssim_weight * (1 - ssim(image, truth).mean())
