"""Do the matched places look the same?

Among the matches that fit a pair's geometry some fit by chance, on plain surfaces a whole pair's may. Their patches give them
away: carried over by the affine map that the neighbouring matches imply, the patch round a true match looks the same in the
other photo. What passes is either the same thing or a thing that looks just like it, and only that is evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from recon.poses.solution import NOMINAL_SIDE, Problem, Verified

if TYPE_CHECKING:
    from recon.photos import Photo

SIDE = 512  # px, long side of the pictures that are compared
HALF = 8  # px of these pictures; patches are 2 HALF + 1 wide
NEIGHBOURS = 8  # matches that the affine map round one of them is fitted to
ALIKE = 0.7  # correlation of the patches of a true match; 0.78 (XFeat) to 0.94 (SIFT) of the true ones have more
# Of a pair's matches, the share that must look alike for the pair to count. Measured on pairs that right cameras contradict:
# SIFT at most 0.11, XFeat 0.31 in 98 of 100; on pairs that they explain: 0.36 or more in 98 of 100.
TRUE_SHARE = 0.3


def pictures(photos: Sequence[Photo], problem: Problem) -> list[np.ndarray]:
    """Grey [H, W] float32 of every photo, in the solver's orientation, `SIDE` px long."""
    import cv2

    out = []
    for photo, turned in zip(photos, problem.turned):
        grey = photo.image.mean(-1).cpu().numpy()
        scale = SIDE / max(grey.shape)
        size = (round(grey.shape[1] * scale), round(grey.shape[0] * scale))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        out.append(np.ascontiguousarray(np.rot90(grey)) if turned else grey)
    return out


def only_alike(problem: Problem, verified: Verified, greys: Sequence[np.ndarray]) -> Verified:
    """`verified` with the matches whose patches look the same; pairs where few do lose all."""
    inliers, second = [], []
    for (i, j), rows, others in zip(problem.pairs, verified.inliers, verified.second):
        ends = (problem.keypoints[i], problem.keypoints[j], greys[i], greys[j])
        inliers.append(_alike_rows(rows, *ends))
        second.append(_alike_rows(others, *ends))
    return replace(verified, inliers=tuple(inliers), second=tuple(second))


def _alike_rows(rows: np.ndarray, a: np.ndarray, b: np.ndarray, grey_a: np.ndarray, grey_b: np.ndarray) -> np.ndarray:
    if len(rows) <= NEIGHBOURS:
        return rows[:0]
    alike = likeness(a[rows[:, 0]], b[rows[:, 1]], grey_a, grey_b) > ALIKE
    return rows[alike] if alike.mean() >= TRUE_SHARE else rows[:0]


def likeness(a: np.ndarray, b: np.ndarray, grey_a: np.ndarray, grey_b: np.ndarray) -> np.ndarray:
    """[M] correlation in [-1, 1] of the patches round matched points a, b [M, 2] in the solver's pixels."""
    from scipy.spatial import cKDTree

    _, near = cKDTree(a).query(a, k=min(NEIGHBOURS, len(a)))
    ones = np.ones((*near.shape, 1))
    affine = (np.linalg.pinv(np.concatenate([a[near], ones], axis=-1)) @ b[near])[:, :2]  # [M, 2, 2], rows: d(b) / d(a)
    scale = SIDE / NOMINAL_SIDE
    steps = np.arange(-HALF, HALF + 1) / scale
    offsets = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    patches = [_sampled(grey_a, (a[:, None] + offsets) * scale), _sampled(grey_b, (b[:, None] + offsets @ affine) * scale)]
    first, second = (p - p.mean(axis=1, keepdims=True) for p in patches)
    power = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return (first * second).sum(axis=1) / np.maximum(power, 1e-6)


def _sampled(grey: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear samples at points [M, K, 2] (pixel centres at +0.5), edges repeated."""
    import cv2

    out = np.empty(points.shape[:2], np.float32)
    for first in range(0, len(points), 4096):  # OpenCV's maps are at most 32767 high
        x, y = np.moveaxis(points[first : first + 4096].astype(np.float32) - 0.5, -1, 0)
        out[first : first + 4096] = cv2.remap(
            grey, np.ascontiguousarray(x), np.ascontiguousarray(y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    return out
