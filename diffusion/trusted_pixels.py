"""What photos have settled stays as it is when a network repairs a picture.

An image-to-image network gives a picture back through an autoencoder, with its colours a little off, and a fit would learn that
shift. Where a render is trusted its low frequencies are right already, so that they are put back; what the network may change
there is finer than that. Where the render is a guess, the network's picture stays, with the shift of its trusted surroundings
taken off.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

WIDER = 6.0  # how much farther than the low frequencies reach the shift of the trusted pixels is carried


def keep_trusted(repaired: Tensor, images: Tensor, trust: Tensor, alpha: Tensor, reach: float) -> Tensor:
    """`repaired` with what is trusted put back. All [V, H, W, ...] of one device; sRGB in [0, 1], so is the result.

    images     the renders that were repaired
    trust      [V, H, W] 1 where photos say what is there, 0 where the repair is all there is
    alpha      [V, H, W] of the renders: trusted pixels without it are background and are kept to the last bit
    reach      px, standard deviation of the Gaussian that parts low from high frequencies; 0 leaves `repaired` as it is
    """
    if reach <= 0:
        return repaired.clamp(0, 1)
    weight = trust.clamp(0, 1)[:, None]  # [V, 1, H, W]
    shift = (images - repaired).permute(0, 3, 1, 2) * weight  # [V, 3, H, W]
    near, far = (_mean_about(shift, weight, sigma) for sigma in (reach, WIDER * reach))
    corrected = repaired + (far + weight * (near - far)).permute(0, 2, 3, 1)
    backdrop = (trust.clamp(0, 1) * (1 - alpha.clamp(0, 1)))[..., None]
    return (corrected + backdrop * (images - corrected)).clamp(0, 1)


def _mean_about(weighted: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """Mean [V, 3, H, W] of the pixels about each, in a Gaussian window; 0 where no weight is near.

    A share of the whole picture's mean (1e-3 of a pixel with full weight) decides where the window is nearly empty.
    """
    share = 1e-3
    total = weight.mean((2, 3), keepdim=True)
    overall = weighted.mean((2, 3), keepdim=True) / total.clamp_min(1e-12)
    there = blurred(weight, sigma, beyond="constant")  # nothing, which weighs nothing
    return (blurred(weighted, sigma, beyond="constant") + share * total * overall) / (there + share * total).clamp_min(1e-12)


def blurred(x: Tensor, sigma: float, beyond: Literal["replicate", "constant"] = "replicate") -> Tensor:
    """x [V, C, H, W] under a Gaussian of `sigma` px; beyond the border the picture goes on as at the border, or is 0."""
    taps = int(3 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-taps, taps + 1, device=x.device, dtype=x.dtype) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    v, c, h, w = x.shape
    rows = functional.pad(x.reshape(v * c, 1, h, w), (taps, taps, 0, 0), mode=beyond)
    rows = functional.conv2d(rows, kernel[None, None, None])
    columns = functional.pad(rows, (0, 0, taps, taps), mode=beyond)
    return functional.conv2d(columns, kernel[None, None, :, None]).reshape(v, c, h, w)
