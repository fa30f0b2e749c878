"""Image quality figures: PSNR, SSIM, and LPIPS when its package is installed."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

WINDOW = 11  # pixels; with SIGMA, the window of Wang et al. 2004 and of the 3DGS evaluation code
SIGMA = 1.5


def psnr(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """[..., H, W, 3] in [0, 1] -> [...] dB over the image, or over the pixels that `mask` [..., H, W] weighs. Capped at 100."""
    error = (image - truth).square()
    if mask is None:
        mse = error.mean((-3, -2, -1))
    else:
        mse = (error.mean(-1) * mask).sum((-2, -1)) / mask.sum((-2, -1)).clamp_min(1e-12)
    return -10 * mse.clamp_min(1e-10).log10()


def ssim_map(image: Tensor, truth: Tensor) -> Tensor:
    """[B, H, W, 3] in [0, 1] -> [B, H, W, 3] local SSIM, zero padding outside, data range 1. Differentiable.

    "Image quality assessment: from error visibility to structural similarity" (Wang et al. 2004), eq. 13.
    """
    x, y = image.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2)
    b, _, h, w = x.shape
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-(offset**2) / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    maps = torch.cat([x, y, x * x, y * y, x * y]).reshape(-1, 1, h, w)
    maps = torch.nn.functional.conv2d(maps, kernel.view(1, 1, 1, -1), padding=(0, WINDOW // 2))
    maps = torch.nn.functional.conv2d(maps, kernel.view(1, 1, -1, 1), padding=(WINDOW // 2, 0))
    mx, my, xx, yy, xy = maps.reshape(5, b, 3, h, w)
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    bottom = (mx * mx + my * my + c1) * (xx - mx * mx + yy - my * my + c2)
    return (top / bottom).permute(0, 2, 3, 1)


def ssim(image: Tensor, truth: Tensor) -> Tensor:
    """[..., H, W, 3] in [0, 1] -> [...] mean SSIM (11x11 Gaussian, sigma 1.5, zero padding)."""
    batch = image.shape[:-3]
    flat = ssim_map(image.reshape(-1, *image.shape[-3:]), truth.reshape(-1, *truth.shape[-3:]))
    return flat.mean((1, 2, 3)).reshape(batch)


def lpips_available() -> bool:
    """Whether the optional package `lpips` is installed; its weights must be on disk, nothing is downloaded."""
    return importlib.util.find_spec("lpips") is not None
