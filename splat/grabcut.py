"""Cutting a subject out of one picture without a trained model.

GrabCut (Rother, Kolmogorov, Blake, "GrabCut", 2004) seeded by what the border of the picture looks like and by a prior for
the middle. It works for one subject in the middle before a background of other colours; where that does not hold it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WORK_SIDE = 320  # pixels; GrabCut's cost grows with the area, its result hardly changes above this
BORDER = 0.04  # of the side; this frame of the picture is taken as background


@dataclass(frozen=True)
class Cutout:
    """What became of one picture."""

    mask: Tensor | None  # [H, W] foreground in [0, 1]; None where it is not to be trusted
    reason: str = ""  # why not
    outline: float = 1.0  # share of the outline along which the eye sees a difference
    doubtful: Tensor | None = None  # [H, W] what would have been cut out, where `mask` is None


def subject_mask(image: Tensor) -> Cutout:
    """The subject of one picture, [H, W, 3] sRGB: what differs from the border. The same on every run."""
    import cv2

    small = _small(image)
    labels = _seeds(small)
    if (labels == cv2.GC_PR_FGD).mean() < 0.005:
        return Cutout(None, "nothing in the middle differs from the border")
    return _grabbed(small, labels, image.shape[:2])


def middle_mask(image: Tensor) -> Cutout:
    """As `subject_mask`, for pictures whose subject looks like their border: what the middle is made of and the border less."""
    small = _small(image)
    return _grabbed(small, _middle_seeds(*small.shape[:2]), image.shape[:2])


def _small(image: Tensor) -> np.ndarray:
    """[h, w, 3] uint8, long side at most WORK_SIDE."""
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, WORK_SIDE / max(height, width))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize((image.numpy() * 255).round().astype(np.uint8), size, interpolation=cv2.INTER_AREA)


def _grabbed(small: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> Cutout:
    """GrabCut from `labels`, at `size` (height, width)."""
    import cv2

    cv2.setRNGSeed(0)
    labels, *_ = cv2.grabCut(
        small[..., ::-1].copy(), labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK
    )
    mask = _largest_piece((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    reason = _why_not(lab, mask)
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7)
    full = torch.from_numpy(cv2.resize(smooth, size[::-1], interpolation=cv2.INTER_LINEAR)).clamp(0, 1)
    return Cutout(None, reason, doubtful=full) if reason else Cutout(full, outline=_visible_outline(lab, mask))


def _middle_seeds(height: int, width: int) -> np.ndarray:
    """GrabCut labels [H, W]: an ellipse in the middle is probably the subject, its core surely, the border surely not."""
    import cv2

    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = np.hypot(x, y)
    labels = np.where(radius < 0.7, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[radius < 0.2] = cv2.GC_FGD
    labels[np.maximum(abs(x), abs(y)) > 1 - 2 * BORDER] = cv2.GC_BGD
    return labels


def _seeds(small: np.ndarray) -> np.ndarray:
    """GrabCut labels [H, W]: the border is background; what differs from it is probably the subject, more so in the middle."""
    import cv2

    height, width = small.shape[:2]
    ring = max(2, round(BORDER * max(height, width)))
    border = np.ones((height, width), bool)
    border[ring:-ring, ring:-ring] = False
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    distance = _distance_to_clusters(lab, lab[border])
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    middle = np.exp(-(x * x + y * y) / (2 * 0.5**2))
    usual = np.percentile(distance[border], 90)
    likely = distance * (0.4 + middle) > max(usual, 6.0)  # 6 in Lab: a difference that one sees
    labels = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[border] = cv2.GC_BGD
    return labels


def _distance_to_clusters(lab: np.ndarray, samples: np.ndarray, clusters: int = 6) -> np.ndarray:
    """[H, W] distance in Lab of each pixel to the nearest of the border's main colours."""
    import cv2

    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, _, centres = cv2.kmeans(
        samples.astype(np.float32), min(clusters, len(samples)), None, criteria, 2, cv2.KMEANS_PP_CENTERS
    )
    return np.sqrt(((lab[:, :, None, :] - centres) ** 2).sum(-1)).min(-1)


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece and any above a fifth of it, holes below 1 % of it closed."""
    import cv2

    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return mask
    areas = stats[1:, cv2.CC_STAT_AREA]
    keep = np.isin(pieces, 1 + np.flatnonzero(areas >= 0.2 * areas.max()))
    _, holes, stats, _ = cv2.connectedComponentsWithStats((~keep).astype(np.uint8))
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < 0.01 * keep.sum())
    return keep | np.isin(holes, small[small > 0])


def _why_not(lab: np.ndarray, mask: np.ndarray) -> str:
    """Why this mask is not to be trusted, or ""."""
    share = mask.mean()
    if share < 0.03:
        return f"the subject would cover {100 * share:.1f} % of the picture"
    if share > 0.8:
        return f"the subject would cover {100 * share:.0f} % of the picture"
    ring = max(2, round(BORDER * max(mask.shape))) + 2
    touching = np.concatenate([mask[:ring].any(0), mask[-ring:].any(0), mask[:, :ring].any(1), mask[:, -ring:].any(1)]).mean()
    if touching > 0.35:
        return f"it would run out of the picture along {100 * touching:.0f} % of the border"
    inside, outside = (_histogram(lab[chosen]) for chosen in (mask, ~mask))
    overlap = np.minimum(inside, outside).sum()
    return "" if overlap < 0.45 else f"subject and background share {100 * overlap:.0f} % of their colours"


def _visible_outline(lab: np.ndarray, mask: np.ndarray, reach: int = 3) -> float:
    """Share of the mask's outline where the colours `reach` pixels inside and outside differ to the eye."""
    import cv2

    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2)
    slope = np.stack([cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)], -1)
    outline = mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) == 0)
    y, x = np.nonzero(outline)
    inwards = slope[y, x] / np.maximum(np.linalg.norm(slope[y, x], axis=1, keepdims=True), 1e-6) * reach
    high = np.array(mask.shape[::-1]) - 1
    inner, outer = (np.clip(np.rint(np.stack([x, y], 1) + sign * inwards).astype(int), 0, high) for sign in (1, -1))
    calm = cv2.GaussianBlur(lab, (0, 0), 1)
    return float((np.linalg.norm(calm[inner[:, 1], inner[:, 0]] - calm[outer[:, 1], outer[:, 0]], axis=1) > 10).mean())


def _histogram(lab: np.ndarray) -> np.ndarray:
    """Normalised counts over 10 x 10 x 10 boxes of Lab."""
    counts, _ = np.histogramdd(lab, bins=10, range=[(0, 100), (-100, 100), (-100, 100)])
    return counts / counts.sum()
