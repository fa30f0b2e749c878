"""A soft edge for a hard mask: how much of each pixel at the outline is subject, and what colour that part has."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

REACH = 1.5  # px to either side of the outline in which pixels may be mixed
SURE = 2.5  # px from the outline; colours there are unmixed


def soft_edge(image: Tensor, subject: Tensor) -> tuple[Tensor, Tensor]:
    """Picture [H, W, 3] sRGB and mask [H, W] bool -> (picture with the background taken out of mixed pixels, coverage [H, W]).

    A mixed pixel is alpha F + (1 - alpha) B with F and B the nearest sure colours of subject and background, so alpha is its
    place between them (Porter and Duff, "Compositing digital images", 1984).
    """
    import cv2

    pixels, inside = image.numpy(), subject.numpy()
    depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5)
    away = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5)
    mixed = (np.maximum(depth, away) <= REACH) & ((depth > 0) | (away > 0))
    front, behind = _nearest(pixels, depth >= SURE, inside), _nearest(pixels, away >= SURE, ~inside)
    step = front - behind
    size = (step * step).sum(-1)
    along = ((pixels - behind) * step).sum(-1) / np.maximum(size, 1e-6)
    clear = size > 0.05**2  # else the two cannot be told apart, and the mask is as good
    alpha = np.where(mixed & clear, along.clip(0, 1), inside).astype(np.float32)
    pure = (pixels - (1 - alpha[..., None]) * behind) / np.maximum(alpha[..., None], 0.05)
    out = np.where((mixed & clear)[..., None], pure.clip(0, 1), pixels).astype(np.float32)
    return torch.from_numpy(out), torch.from_numpy(alpha)


def _nearest(pixels: np.ndarray, sure: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """[H, W, 3] the colour of the nearest pixel of `sure`, or of `otherwise` where the subject is too thin to have any."""
    import cv2

    thick = cv2.dilate(sure.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    known = sure | (otherwise & ~thick)
    if not known.any():
        return pixels
    _, label = cv2.distanceTransformWithLabels((~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    colours = np.zeros((label.max() + 1, 3), np.float32)
    colours[label[known]] = pixels[known]
    return colours[label]
