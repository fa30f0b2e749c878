"""What one photo tells about itself: sharpness, exposure, texture."""

from __future__ import annotations

import torch
from torch import Tensor


def blur(image: Tensor) -> float:
    """[H, W, 3] sRGB -> 0 (crisp) to 1 (blurred), nearly independent of what is shown; about 0.3 for a good photo.

    Crete et al., "The blur effect: perception and estimation with a new no-reference perceptual blur metric", 2007: blurring a
    blurred picture again changes the differences between its neighbouring pixels little.
    """
    grey = image.mean(dim=-1)
    worst = 0.0
    for plane in (grey, grey.T):
        again = torch.nn.functional.avg_pool2d(plane[None], (9, 1), stride=1, padding=(4, 0), count_include_pad=False)[0]
        sharp = plane.diff(dim=0).abs()
        lost = (sharp - again.diff(dim=0).abs()).clamp_min(0)
        total = float(sharp.sum())
        if total > 0:
            worst = max(worst, (total - float(lost.sum())) / total)
    return worst


def texture(image: Tensor) -> float:
    """[H, W, 3] sRGB -> the share of 16 x 16 pixel cells that hold structure above noise."""
    grey = image.mean(dim=-1)[None, None]
    grey = torch.nn.functional.avg_pool2d(grey, 2)  # noise of neighbouring pixels averages out
    mean = torch.nn.functional.avg_pool2d(grey, 8)
    variance = torch.nn.functional.avg_pool2d(grey.square(), 8) - mean.square()
    return float((variance.clamp_min(0).sqrt() > 0.02).float().mean())


def exposure(image: Tensor, mask: Tensor | None = None) -> tuple[float, float, float]:
    """[H, W, 3] sRGB -> (log2 of the mean linear luminance, share of crushed and of burnt pixels), inside the mask."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    luminance = linear @ torch.tensor([0.2126, 0.7152, 0.0722])
    if mask is not None:
        inside = mask > 0.5
        luminance, image = luminance[inside], image[inside]
    stops = float(luminance.mean().clamp_min(1e-6).log2())
    return stops, float((image < 0.02).all(-1).float().mean()), float((image > 0.99).all(-1).float().mean())
