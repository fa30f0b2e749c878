"""Telling a subject from a plain background: one colour, or one that changes evenly over the picture.

The colour of the background is a linear function of place, fitted to the border of the picture; what is like it and connected
to the border is background. Distances are in CIELAB, where 2 can just be seen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RING = 0.02  # of the long side: how wide the border is from which the background is learnt
ALIKE = 8.0  # Lab; border pixels nearer than this to the fitted background belong to it
PLAIN = 0.75  # share of the border that must be background: the subject may run out of the picture somewhere
NOISE = 4.0  # times the background's own deviation; what differs more is subject
LEAST, MOST = 3.0, 9.0  # Lab, between which that threshold is kept: JPEG noise, and subjects of nearly the same colour
STRONG = 3.0  # times the threshold: no ripple
WIDE = 7  # px: no ripple
HOLE = 0.004  # of the subject's area: smaller enclosed patches of the background's colour are the subject's own
HOLE_ALIKE = 0.5  # of the threshold: a hole must be as even as the background is; a white shirt seldom is
SPECK = 0.004  # of the subject's area: smaller pieces beside it are dirt


def plain_background_mask(image: Tensor) -> Tensor | None:
    """[H, W, 3] sRGB -> [H, W] bool, true on the subject; None where the background is not plain."""
    import cv2

    pixels = np.ascontiguousarray(image.numpy())
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    height, width = lab.shape[:2]
    ring = max(2, round(RING * max(height, width)))
    border = np.ones((height, width), bool)
    border[ring:-ring, ring:-ring] = False
    model = _background(lab, border)
    distance = np.linalg.norm(lab - model, axis=-1)
    like = distance[border] < ALIKE
    if like.mean() < PLAIN:
        return None
    spread = np.percentile(distance[border][like], 90)
    threshold = float(np.clip(NOISE * spread, LEAST, MOST))
    alike = ~_different(distance, threshold)
    subject = _without_specks(~_from_border(alike))
    subject &= ~_holes(subject & alike, distance, threshold, subject.sum())
    return torch.from_numpy(subject)


def _background(lab: np.ndarray, border: np.ndarray) -> np.ndarray:
    """[H, W, 3] the background's colour everywhere: linear in x and y, through the border pixels that agree."""
    height, width = lab.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y], axis=-1)  # [H, W, 3]
    samples, places = lab[border], terms[border]
    colour = _mode(samples)
    near = np.linalg.norm(samples - colour, axis=-1) < 3 * ALIKE
    for reach in (2 * ALIKE, ALIKE, ALIKE):
        plane, *_ = np.linalg.lstsq(places[near], samples[near], rcond=None)
        near = np.linalg.norm(samples - places @ plane, axis=-1) < reach
        if near.sum() < 16:
            return np.broadcast_to(colour, lab.shape)
    return terms @ plane


def _mode(samples: np.ndarray) -> np.ndarray:
    """[3] the middle of the fullest box of 8 Lab units a side: the median would lie between two colours."""
    _, index, counts = np.unique(np.floor(samples / 8), axis=0, return_inverse=True, return_counts=True)
    return np.median(samples[index.reshape(-1) == counts.argmax()], axis=0)


def _different(distance: np.ndarray, threshold: float) -> np.ndarray:
    """[H, W] what is not background. JPEG leaves ripples round a subject, thin and faint; its own faint parts are not thin.

    So what differs but a little counts beside what differs much, and where it is wide.
    """
    import cv2

    faint, strong = distance > threshold, (distance > STRONG * threshold).astype(np.uint8)
    beside = cv2.dilate(strong, np.ones((3, 3), np.uint8)) > 0
    wide = cv2.morphologyEx(faint.astype(np.uint8), cv2.MORPH_OPEN, np.ones((WIDE, WIDE), np.uint8)) > 0
    return faint & (beside | wide)


def _from_border(alike: np.ndarray) -> np.ndarray:
    """The part of `alike` that is connected to the border of the picture."""
    import cv2

    _, pieces = cv2.connectedComponents(np.pad(alike, 1, constant_values=True).astype(np.uint8), connectivity=4)
    return pieces[1:-1, 1:-1] == pieces[0, 0]


def _without_specks(subject: np.ndarray) -> np.ndarray:
    import cv2

    count, pieces, stats, _ = cv2.connectedComponentsWithStats(subject.astype(np.uint8), connectivity=8)
    if count < 2:
        return subject
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0
    return np.isin(pieces, np.flatnonzero(areas > SPECK * areas.max()))


def _holes(enclosed: np.ndarray, distance: np.ndarray, threshold: float, area: int) -> np.ndarray:
    """Those of the enclosed patches of background colour that are holes: large, and as even as the background itself."""
    import cv2

    count, pieces, stats, _ = cv2.connectedComponentsWithStats(enclosed.astype(np.uint8), connectivity=4)
    holes = [
        i
        for i in range(1, count)
        if stats[i, cv2.CC_STAT_AREA] > HOLE * area and np.median(distance[pieces == i]) < HOLE_ALIKE * threshold
    ]
    return np.isin(pieces, holes)
