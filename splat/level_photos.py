"""Photos brought to the splats' light, so that photos of different exposure make one texture without seams."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from splat.views import Views

FINE = 0.03  # of the picture's long side: standard deviation of the blur that parts light from detail
COARSE = 3.0  # standard deviations in px of a coarser grid on which a wide blur is made
TRUST = 0.15  # sRGB difference to the splats, exposure apart, at which a photo counts half


def levelled(photos: Views, renders: Views) -> Views:
    """`photos` with the low frequencies of `renders`, which are the splats through the same cameras and of the same size.

    The splats agree between all views, whatever the exposure of each photo was, and hold no detail finer than they were fitted
    at; photos hold the detail. So the low band is taken from the splats and the high band from the photo, split by a Gaussian
    (Burt and Adelson 1983, "A multiresolution spline", with two bands). Where photo and splats differ by more than exposure,
    something moved or the geometry is wrong: the mask falls, so that other pictures count more (Waechter et al. 2014).
    `renders.masks` is the splats' alpha; masks of both are multiplied.
    """
    assert photos.images.shape == renders.images.shape, (photos.images.shape, renders.images.shape)
    sure = torch.ones(photos.images.shape[:3]) if renders.masks is None else renders.masks
    if photos.masks is not None:
        sure = sure * (photos.masks > 0.5)
    sigma = FINE * max(photos.size)
    exposed = _same_exposure(photos.images, renders.images, sure)
    away = (exposed - renders.images).square().mean(-1, keepdim=True)
    trust = 1 / (1 + _blurred(away, 0.25 * sigma)[..., 0] / TRUST**2)
    # Normalised: what no splat covers has no say in the light of what is beside it.
    weight = (sure * trust)[..., None]
    light = _blurred((renders.images - exposed) * weight, sigma) / _blurred(weight, sigma).clamp_min(1e-3)
    return replace(photos, images=(exposed + light).clamp(0, 1), masks=sure * trust)


def _same_exposure(images: Tensor, target: Tensor, sure: Tensor) -> Tensor:
    """`images` [C, H, W, 3] with the gain and offset of each channel that bring it nearest to `target`, in least squares."""
    weight = sure[..., None] / sure.sum((1, 2), keepdim=True).clamp_min(1e-6)[..., None]
    a, b = ((x * weight).sum((1, 2), keepdim=True) for x in (images, target))
    variance = ((images - a).square() * weight).sum((1, 2), keepdim=True)
    gain = ((images - a) * (target - b) * weight).sum((1, 2), keepdim=True) / variance.clamp_min(1e-6)
    return (images - a) * gain.clamp(0.25, 4.0) + b


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [C, H, W, D] over H and W, edges repeated; a wide one on a coarser grid, which shows as little of it."""
    planes = x.permute(0, 3, 1, 2).flatten(0, 1)[:, None]  # [C D, 1, H, W]
    size = planes.shape[2:]
    step = max(int(sigma / COARSE), 1)
    if step > 1:
        coarse = [max(n // step, 1) for n in size]
        planes = torch.nn.functional.interpolate(planes, coarse, mode="bilinear", antialias=True, align_corners=False)
        sigma = sigma / step
    radius = max(int(3 * sigma + 0.5), 1)
    at = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for shape, pad in (((1, 1, -1, 1), (0, 0, radius, radius)), ((1, 1, 1, -1), (radius, radius, 0, 0))):
        planes = torch.nn.functional.conv2d(torch.nn.functional.pad(planes, pad, mode="replicate"), kernel.reshape(shape))
    if step > 1:
        planes = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False)
    return planes.reshape(x.shape[0], x.shape[3], *size).permute(0, 2, 3, 1)
