"""Which photos see the same things: a quick check with small pictures, before the full matching."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from recon.features import Features
    from recon.photos import Photo

SIDE = 640  # pixels; enough to see whether photos overlap
KEYPOINTS = 768
MOVED = 0.02  # of the diagonal; below it a pair shows too little motion to judge
FLAT = 0.75  # share of a pair's matches that one homography explains when the camera only turned, or saw one plane
LINKED = 25  # verified matches; unrelated photos reach 14 by chance, different objects framed alike 25 in 99 of 100 pairs


@dataclass(frozen=True)
class Pair:
    """Two photos that were compared."""

    first: int
    second: int
    shared: int  # matches that fit one epipolar geometry
    motion: float  # median shift of those matches, in picture diagonals
    flat: float  # share of those matches that one homography explains
    homography: Tensor | None  # [3, 3] that homography, float64, in pixels of SIDE-sized photos
    points: Tensor  # [shared, 4] x, y in the first and in the second photo, divided by their sizes

    @property
    def linked(self) -> bool:
        return self.shared >= LINKED


def compare_all(photos: Sequence[Photo]) -> tuple[list[Features], list[Pair]]:
    """Features of small copies of the photos, and every pair compared by nearest neighbours and epipolar geometry.

    Pairs that would connect separate groups of photos are compared again with the full matcher. 0.06 s a photo, 0.01 s a pair.
    """
    from recon.features import FeatureConfig, extract

    config = FeatureConfig(max_side=SIDE, max_keypoints=KEYPOINTS)
    features = [extract(_small(photo.image), config) for photo in photos]
    candidates = {(i, j): mutual_nearest(features[i], features[j]) for i, j in combinations(range(len(photos)), 2)}
    pairs = {ij: verified(features[ij[0]], features[ij[1]], rows, *ij) for ij, rows in candidates.items()}
    for i, j in _bridges(len(photos), pairs, {ij: len(rows) for ij, rows in candidates.items()}):
        from recon.features import match

        again = verified(features[i], features[j], match(features[i], features[j], config), i, j)
        if again.shared > pairs[i, j].shared:
            pairs[i, j] = again
    return features, list(pairs.values())


def show_depth(first: Photo, second: Photo) -> bool:
    """Whether two photos see the same things from two places: linked, moved, and no single plane or turn explains the motion.

    False decides nothing: the two may be far apart, or show a wall.
    """
    from recon.features import FeatureConfig, extract, match

    config = FeatureConfig(kind="sift", max_side=SIDE, max_keypoints=KEYPOINTS)
    a, b = (extract(_small(photo.image), config) for photo in (first, second))
    pair = verified(a, b, match(a, b, config), 0, 1)
    return pair.linked and pair.motion > MOVED and pair.flat < FLAT


def groups(count: int, links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Connected groups of `count` photos, the largest first, each in order."""
    group = list(range(count))
    for i, j in links:
        a, b = group[i], group[j]
        group = [min(a, b) if g in (a, b) else g for g in group]
    members = [[i for i in range(count) if group[i] == g] for g in sorted(set(group))]
    return sorted(members, key=lambda m: (-len(m), m))


def mutual_nearest(a: Features, b: Features, min_cosine: float = 0.82) -> Tensor:
    """[M, 2] rows of descriptors that are each other's nearest neighbour."""
    if min(len(a), len(b)) < 8:
        return torch.zeros(0, 2, dtype=torch.int64)
    best, forth = (a.descriptors @ b.descriptors.T).max(dim=1)
    back = (a.descriptors @ b.descriptors.T).argmax(dim=0)
    rows = torch.arange(len(a))
    good = (back[forth] == rows) & (best > min_cosine)
    return torch.stack([rows[good], forth[good]], dim=1)


def verified(a: Features, b: Features, rows: Tensor, first: int, second: int) -> Pair:
    """The matches that fit one fundamental matrix (MAGSAC), their motion, and how far one homography explains them."""
    import cv2

    nothing = Pair(first, second, 0, 0.0, 0.0, None, torch.zeros(0, 4))
    if len(rows) < 8:
        return nothing
    x = a.keypoints[rows[:, 0]].double().numpy()
    y = b.keypoints[rows[:, 1]].double().numpy()
    _, good = cv2.findFundamentalMat(x, y, cv2.USAC_MAGSAC, 2.0, 0.999, 2000)
    if good is None or good.sum() < 8:
        return nothing
    good = good[:, 0] > 0
    x, y = x[good], y[good]
    # Everything here is small: 4 pixels of 640 for a homography, as keypoints of XFeat are good to about one.
    homography, flat = cv2.findHomography(x, y, cv2.USAC_MAGSAC, 4.0, maxIters=2000, confidence=0.999)
    motion = float(np.median(np.linalg.norm(x - y, axis=1))) / math.hypot(a.width, a.height)
    points = torch.from_numpy(np.hstack([x / [a.width, a.height], y / [b.width, b.height]])).float()
    if homography is None:
        return Pair(first, second, len(x), motion, 0.0, None, points)
    return Pair(first, second, len(x), motion, float(flat.mean()), torch.from_numpy(homography), points)


def only_turned(pairs: Sequence[Pair], sizes: Sequence[tuple[int, int]], focals: Sequence[float | None]) -> bool:
    """Whether the linked pairs with motion look like one camera turned on the spot, which shows no depth.

    A turn moves pixels by K R K^-1; a plane seen from two places by K (R + t n^T / d) K^-1, whose middle part has unequal
    singular values. `focals` in long sides; where unknown, the focal length that makes the turns most alike is taken.
    """
    moving = [pair for pair in pairs if pair.linked and pair.motion > MOVED]
    # Not all: an epipolar geometry always takes a few wrong matches along, more where the overlap is small.
    if not moving or sum(p.flat * p.shared for p in moving) < FLAT * sum(p.shared for p in moving):
        return False
    moving = [pair for pair in moving if pair.flat > FLAT]
    known = [focal for focal in focals if focal]
    trials = [float(np.median(known))] if known else list(np.geomspace(0.6, 3, 17))
    return min(float(np.median([_unlike_turn(pair, sizes, focal) for pair in moving])) for focal in trials) < 1.04


def _unlike_turn(pair: Pair, sizes: Sequence[tuple[int, int]], focal: float) -> float:
    """Ratio of the largest to the smallest singular value of K^-1 H K; 1 for a turn."""
    inner = _intrinsics(sizes[pair.second], focal).inverse() @ pair.homography @ _intrinsics(sizes[pair.first], focal)
    values = torch.linalg.svdvals(inner)
    return float(values[0] / values[2].clamp_min(1e-12))


def _intrinsics(size: tuple[int, int], focal: float) -> Tensor:
    width, height = size
    f = focal * max(width, height)
    return torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], dtype=torch.float64)


def small_size(photo: Photo) -> tuple[int, int]:
    """(width, height) of the copy that is compared."""
    width, height = photo.size
    scale = min(1.0, SIDE / max(width, height))
    return round(width * scale), round(height * scale)


def _small(image: Tensor) -> Tensor:
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    if scale == 1:
        return image
    size = (round(width * scale), round(height * scale))
    return torch.from_numpy(cv2.resize(image.numpy(), size, interpolation=cv2.INTER_AREA))


def _bridges(count: int, pairs: dict[tuple[int, int], Pair], candidates: dict[tuple[int, int], int]) -> list[tuple[int, int]]:
    """Unlinked pairs worth the full matcher: of every group, the three most promising to photos outside it."""
    parts = groups(count, [ij for ij, pair in pairs.items() if pair.linked])
    if len(parts) == 1:
        return []
    chosen: set[tuple[int, int]] = set()
    for part in parts:
        outside = [ij for ij in pairs if (ij[0] in part) != (ij[1] in part) and candidates[ij] >= 8]
        chosen.update(sorted(outside, key=lambda ij: -candidates[ij])[:3])
    return sorted(chosen)
