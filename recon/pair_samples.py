"""What global alignment keeps of a prediction: some hundred pixels of each photo, a first motion and focal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recon.priors import StereoPrediction

REPROJECTION = 0.012  # long sides: a point this near its pixel agrees with a motion
FEWEST = 24  # pixels of each photo that a pair needs
FOCALS = (0.35, 4.0)  # long sides; from a 125 degree lens to a long telephoto
PNP_PX = 1000.0  # long side in which OpenCV counts


@dataclass(frozen=True)
class PairSamples:
    """Of one prediction, float64; S pixels of each photo, the same ones whatever the pair."""

    first: int
    second: int
    own: np.ndarray  # [S, 3] points of the first photo, in its camera frame, median depth 1
    other: np.ndarray  # [S, 3] points of the second, in the same frame
    own_trust: np.ndarray  # [S] in [0, 1], 0 for what cannot be used
    other_trust: np.ndarray  # [S]
    unit: float  # own and other times this are the prediction's points


@dataclass(frozen=True)
class Motion:
    """From the first photo's camera to the second's, in the unit of a `PairSamples`: x_second = rotation x + translation."""

    rotation: np.ndarray  # [3, 3]
    translation: np.ndarray  # [3]
    quality: float  # mean trust times the share of pixels that agree


def sampled_pixels(height: int, width: int, count: int) -> np.ndarray:
    """Flat indices of about `count` pixels on an even lattice, all of them where there are no more."""
    step = max(np.sqrt(height * width / count), 1.0)
    rows = np.unique((np.arange(0, height, step) + step / 2).astype(int).clip(0, height - 1))
    columns = np.unique((np.arange(0, width, step) + step / 2).astype(int).clip(0, width - 1))
    return (rows[:, None] * width + columns).ravel()


def samples_of(
    first: int, second: int, prediction: StereoPrediction, pixels: np.ndarray, inside: Sequence[np.ndarray], least: float
) -> PairSamples | None:
    """The chosen pixels of a prediction; None where it says too little to be used.

    `inside` [S] bool for each of the two photos: pixels of the grid that show the photo.
    """
    points = prediction.points.detach().cpu().reshape(2, -1, 3)[:, pixels].double().numpy()
    trust = prediction.confidence.detach().cpu().reshape(2, -1)[:, pixels].double().numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.isfinite(points).all(-1) & np.isfinite(trust) & (np.abs(points).max(-1) < 1e12)
    good &= np.where(np.isfinite(trust), trust, 0) >= max(least, 1e-9)
    good &= np.stack([inside[0], inside[1]])
    good[0] &= points[0, :, 2] > 0
    if good.sum(1).min() < FEWEST:
        return None
    unit = weighted_median(points[0, good[0], 2], trust[0, good[0]])
    if unit <= 0:
        return None
    points = np.where(good[..., None], points / unit, [0.0, 0, 1])
    trust = np.where(good, trust.clip(0, 1), 0)
    return PairSamples(first, second, points[0], points[1], trust[0], trust[1], float(unit))


def first_focal(pair: PairSamples, places: np.ndarray) -> float | None:
    """Focal length in long sides that takes `own` to the photo's `places` [S, 2], robustly; None where none does.

    Weiszfeld's iterations for the sum of distances, as DUSt3R section 3.3 finds the focal length of a pointmap.
    """
    use = pair.own_trust > 0
    q, u, w = pair.own[use, :2] / pair.own[use, 2:], places[use], pair.own_trust[use]
    size = (q * q).sum(1)
    focal = weighted_median((q * u).sum(1) / np.maximum(size, 1e-12), w * size)
    for _ in range(20):
        near = w / np.maximum(np.linalg.norm(u - focal * q, axis=1), 1e-6)
        focal = float((near * (q * u).sum(1)).sum() / max((near * size).sum(), 1e-12))
    return focal if np.isfinite(focal) and FOCALS[0] <= focal <= FOCALS[1] else None


def first_motion(pair: PairSamples, places: np.ndarray, focal: float) -> Motion | None:
    """The motion that takes `other` to the second photo's `places` [S, 2]: PnP with RANSAC; None where there is none."""
    import cv2

    use = np.flatnonzero(pair.other_trust > 0)
    points, pixels = np.ascontiguousarray(pair.other[use]), np.ascontiguousarray(PNP_PX * places[use])
    K = np.diag([PNP_PX * focal, PNP_PX * focal, 1.0])
    try:
        found, turn, shift, good = cv2.solvePnPRansac(
            points, pixels, K, None, iterationsCount=300, reprojectionError=PNP_PX * REPROJECTION, confidence=0.999,
            flags=cv2.SOLVEPNP_SQPNP,
        )  # fmt: skip
        if not found or good is None or len(good) < FEWEST / 2:
            return None
        good = good[:, 0]
        turn, shift = cv2.solvePnPRefineLM(points[good], pixels[good], K, None, turn, shift)
    except cv2.error:  # degenerate: all points in one place
        return None
    rotation = cv2.Rodrigues(turn)[0]
    shift = shift[:, 0]
    ahead = (points[good] @ rotation.T + shift)[:, 2] > 1e-3
    if not np.isfinite(shift).all() or ahead.mean() < 0.9:
        return None
    trust = 0.5 * (pair.own_trust[pair.own_trust > 0].mean() + pair.other_trust[use].mean())
    return Motion(rotation, shift, float(trust * len(good) / len(use)))


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Of [N] values; weights >= 0, some above."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order][min(np.searchsorted(reached, 0.5 * reached[-1]), len(order) - 1)])
