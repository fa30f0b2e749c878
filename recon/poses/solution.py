"""What goes into the solver and what comes out, as plain arrays in the solver's pixels.

The solver works at one nominal size, the long side of every photo being `NOMINAL_SIDE` px, because COLMAP's thresholds are in
pixels; portrait photos are turned on their side, so that one lens serves them and the landscape ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

NOMINAL_SIDE = 1024  # px; 4 px here is a right threshold for XFeat, 4 px at full resolution is far too strict


@dataclass(frozen=True)
class Problem:
    """N photos with K keypoints each, P matched pairs."""

    keypoints: tuple[np.ndarray, ...]  # N of [K, 2] solver's pixels, +0.5 centres
    scale: np.ndarray  # [N] solver's pixels per pixel of photo.image
    turned: np.ndarray  # [N] bool: the photo was turned by 90 degrees: (x, y) -> (y, width - x)
    cameras: np.ndarray  # [L, 4] one row per lens: width, height, focal, 1 when the focal comes from EXIF
    camera_of_photo: np.ndarray  # [N] row of `cameras`
    pairs: np.ndarray  # [P, 2] photos, first < second
    matches: tuple[np.ndarray, ...]  # P of [M, 2] keypoint rows
    refine_focal: bool
    refine_distortion: bool
    exact: (
        bool  # keypoints are exact to half a pixel: what a pair's geometry leaves over tells of repeated content, not of noise
    )
    seed: int
    max_cpu_seconds: float  # of each step of the solver

    def write(self, path: Path) -> None:
        np.savez(
            path,
            keypoints=np.concatenate(self.keypoints),
            keypoint_splits=np.cumsum([len(k) for k in self.keypoints])[:-1],
            cameras=self.cameras,
            camera_of_photo=self.camera_of_photo,
            pairs=self.pairs,
            matches=np.concatenate([*self.matches, np.zeros((0, 2))]).astype(np.int64),
            match_splits=np.cumsum([len(m) for m in self.matches])[:-1],
            refine_focal=self.refine_focal,
            refine_distortion=self.refine_distortion,
            exact=self.exact,
            seed=self.seed,
            max_cpu_seconds=self.max_cpu_seconds,
        )


@dataclass(frozen=True)
class Verified:
    """The two-view geometry of every pair of a problem, in the order of `Problem.pairs`."""

    config: tuple[str, ...]  # COLMAP's verdict: CALIBRATED, UNCALIBRATED, PLANAR, PANORAMIC, DEGENERATE, ...
    inliers: tuple[np.ndarray, ...]  # P of [M, 2] keypoint rows that fit it
    pose: np.ndarray  # [P, 3, 4] second camera from first, translation of unit length
    angle: np.ndarray  # [P] radians, median angle between matched rays
    second: tuple[np.ndarray, ...]  # P of [M, 2] rows outside the geometry that agree on another one: repeated content

    @staticmethod
    def read(path: Path) -> Verified:
        data = np.load(path)
        inliers, second = (
            tuple(np.split(data[name], data[f"{name}_splits"])) if len(data["config"]) else () for name in ("inliers", "second")
        )
        return Verified(tuple(data["config"].tolist()), inliers, data["pose"].reshape(-1, 3, 4), data["angle"], second)

    @property
    def counts(self) -> np.ndarray:
        """[P] inliers of each pair."""
        return np.array([len(x) for x in self.inliers], dtype=np.int64)

    @property
    def second_counts(self) -> np.ndarray:
        """[P] matches of each pair that agree on a second geometry."""
        return np.array([len(x) for x in self.second], dtype=np.int64)


@dataclass(frozen=True)
class Solution:
    """R placed photos and N points from one mapper."""

    mapper: str  # "incremental" or "global"
    photos: np.ndarray  # [R] indices of photos, ascending
    pose: np.ndarray  # [R, 3, 4] cam_from_world
    camera: np.ndarray  # [R, 4] focal, cx, cy, k1 in the solver's pixels
    points: np.ndarray  # [N, 3]
    error: np.ndarray  # [N] px, mean reprojection error over the track
    seen: np.ndarray  # [S, 3] point, photo, keypoint

    @staticmethod
    def read(path: Path, mapper: str) -> Solution | None:
        """None when the mapper placed fewer than two photos or left no file (it crashed or ran out of time)."""
        if not path.exists():
            return None
        data = np.load(path)
        if len(data["photos"]) < 2 or len(data["points"]) == 0:
            return None
        fields = ("photos", "pose", "camera", "points", "error", "seen")
        return Solution(mapper, *(data[name] for name in fields))

    @property
    def reprojection_error(self) -> float:
        """px in the solver's pixels, mean over the observations."""
        length = np.bincount(self.seen[:, 0], minlength=len(self.points))
        return float((self.error * length).sum() / max(length.sum(), 1))

    @property
    def track_length(self) -> float:
        """Mean number of photos that see a point."""
        return len(self.seen) / max(len(self.points), 1)

    @property
    def centers(self) -> np.ndarray:
        """[R, 3] camera positions."""
        return -np.einsum("rji,rj->ri", self.pose[:, :, :3], self.pose[:, :, 3])
