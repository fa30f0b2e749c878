"""One photo's depth from all the predictions that show it, once their scales and the cameras are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recon.priors import DepthMap, StereoPrediction

if TYPE_CHECKING:
    from recon.align_pairs import Window


def photo_depth(
    name: str,
    size: tuple[int, int],
    window: Window,
    seen: Sequence[tuple[StereoPrediction, float, int, np.ndarray]],
    least: float,
    tolerance: float,
) -> DepthMap:
    """Of a photo of `size` (width, height); `seen`: predictions, world units per unit of each, which of the two maps shows the
    photo, and the motion [4, 4] in world units from the prediction's frame to the photo's camera.

    Logarithms of depth are averaged, starting at their median, with Cauchy weights of width `tolerance`. Confidence is the
    predictions' own, less where they contradict each other. Where the grid does not show the photo, depth is unknown.
    """
    logs, trusts = [], []
    for prediction, scale, side, motion in seen:
        points = scale * prediction.points[side].detach().cpu().double()
        z = points @ torch.from_numpy(motion[2, :3]) + float(motion[2, 3])  # [H, W]
        trust = prediction.confidence[side].detach().cpu().double()
        good = z.isfinite() & (z > 1e-9) & trust.isfinite() & (trust >= least)
        logs.append(torch.where(good, z, 1.0).log())
        trusts.append(torch.where(good, trust.clamp(0, 1), 0.0))
    if not logs:
        return _of_photo(name, size, window, torch.zeros(8, 8), torch.zeros(8, 8))
    log, trust = torch.stack(logs), torch.stack(trusts)  # [P, H, W]
    middle = _weighted_median(log, trust)
    for _ in range(3):
        agree = 1 / (1 + ((log - middle) / tolerance).square())
        weight = trust * agree
        middle = (weight * log).sum(0) / weight.sum(0).clamp_min(1e-12)
    mass = trust.sum(0)
    known = mass > 0
    confidence = torch.where(known, (trust * agree).sum(0) / mass.clamp_min(1e-12) * trust.amax(0), 0.0)
    return _of_photo(name, size, window, torch.where(known, middle.exp(), 0.0).float(), confidence.float())


def own_depth(
    name: str,
    size: tuple[int, int],
    window: Window,
    predictions: Sequence[StereoPrediction],
    least: float,
    tolerance: float,
) -> DepthMap:
    """Of the first photo of all `predictions`, by its own pointmaps alone: neither their scales nor any motion is needed.

    Median depth 1; as `photo_depth` otherwise.
    """
    seen = []
    for prediction in predictions:
        z = prediction.points[0, ..., 2]
        good = z[(z > 0) & z.isfinite() & (prediction.confidence[0] >= least)]
        if len(good):
            seen.append((prediction, 1 / float(good.double().median()), 0, np.eye(4)))
    return photo_depth(name, size, window, seen, least, tolerance)


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Along the first of [P, H, W]."""
    ordered, order = values.sort(0)
    reached = weights.gather(0, order).cumsum(0)
    at = (reached >= 0.5 * reached[-1:]).to(torch.uint8).argmax(0)
    return ordered.gather(0, at[None])[0]


def _of_photo(name: str, size: tuple[int, int], window: Window, depth: Tensor, confidence: Tensor) -> DepthMap:
    """From the grid over the window to one over the whole photo, with pixels of the same size; the nearest pixel's value."""
    height, width = depth.shape
    if (window.left, window.top, window.width, window.height) == (0, 0, *size):
        return DepthMap(name, depth, confidence)
    w = max(round(size[0] * width / window.width), 1)
    h = max(round(size[1] * height / window.height), 1)
    x = (((torch.arange(w) + 0.5) * size[0] / w - window.left) * width / window.width).floor().long()
    y = (((torch.arange(h) + 0.5) * size[1] / h - window.top) * height / window.height).floor().long()
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    rows, columns = y.clamp(0, height - 1)[:, None], x.clamp(0, width - 1)
    return DepthMap(name, torch.where(inside, depth[rows, columns], 0.0), torch.where(inside, confidence[rows, columns], 0.0))
