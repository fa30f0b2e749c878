"""The camera of one more photo, found against photos that are already placed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from recon.features import FeatureConfig, Features, Kind, count_mutual, extract, match
from recon.poses import Observations, PoseConfig, Poses
from splat.cameras import Cameras

if TYPE_CHECKING:
    from recon.photos import Photo

PARTNERS = 8  # placed photos to match with: the most alike by descriptors
MAX_ERROR = 4 / 1024  # x long side: reprojection error of an inlier, the same threshold as the solver's
MIN_INLIERS = 15


def localise(photo: Photo, placed: Sequence[Photo], poses: Poses, config: PoseConfig) -> tuple[Cameras | None, float]:
    """The camera of `photo` in the pixels of `photo.image`, and its radial distortion k1; (None, 0) where it is not found.

    `placed` are the photos of `poses`, which must come from a solver (poses from a file carry no observations: None). The lens
    is taken from a placed photo of the same size. Perspective-n-point with RANSAC, refined on its inliers; deterministic.
    """
    by_kind: dict[Kind, list[Observations]] = {}
    for entry in poses.observations:
        for observed in entry:
            by_kind.setdefault(observed.features.kind, []).append(observed)
    if not by_kind:
        return None, 0.0
    width, height = photo.size
    focal, k1 = _lens(photo, placed, poses)
    bearings, points = [], []
    for kind, seen in by_kind.items():
        count = max(len(o.features) for o in seen)
        found = extract(photo.image, FeatureConfig(kind=kind, max_keypoints=count), config.device)
        pixels, xyz = _correspondences(found, seen, poses)
        bearings.append(_bearings(pixels - [width / 2, height / 2], focal, k1))
        points.append(xyz)
    cam_from_world = _perspective_n_point(np.concatenate(bearings), np.concatenate(points), MAX_ERROR * max(photo.size) / focal)
    if cam_from_world is None:
        return None, 0.0
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float32)
    return Cameras(torch.from_numpy(cam_from_world).float()[None], K[None], width, height), k1


def _correspondences(found: Features, seen: Sequence[Observations], poses: Poses) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [M, 2] of the new photo and the points [M, 3] they show, by way of the placed photos' features."""
    known = [o.features[o.point.to(o.features.keypoints.device) >= 0] for o in seen]
    rows = [o.point[o.point >= 0] for o in seen]
    order = sorted(range(len(seen)), key=lambda i: -count_mutual(found, known[i]))[:PARTNERS]
    votes: dict[tuple[int, int], int] = {}
    for i in order:
        if len(known[i]) < 8:
            continue
        for mine, theirs in match(found, known[i], FeatureConfig(kind=found.kind)).tolist():
            pair = (mine, int(rows[i][theirs]))
            votes[pair] = votes.get(pair, 0) + 1
    pairs = sorted(votes)
    keypoints = found.keypoints.double().cpu().numpy()
    xyz = poses.points.xyz.double().numpy()
    return keypoints[[mine for mine, _ in pairs]].reshape(-1, 2), xyz[[point for _, point in pairs]].reshape(-1, 3)


def _lens(photo: Photo, placed: Sequence[Photo], poses: Poses) -> tuple[float, float]:
    """Focal length in pixels of `photo.image` and k1, from the placed photo most like it: size first, then EXIF focal."""
    long = max(photo.size)

    def unlike(i: int) -> tuple[float, float]:
        other = placed[i]
        shape = abs(min(other.size) / max(other.size) - min(photo.size) / long)
        if photo.focal_px is None or other.focal_px is None:
            return shape, float(photo.focal_px is not other.focal_px)
        return shape, abs(photo.focal_px / long - other.focal_px / max(other.size))

    nearest = min(poses.placed, key=unlike)
    camera = poses.cameras[nearest]
    return float(camera.K[0, 0, 0]) * long / max(camera.width, camera.height), poses.k1[nearest]


def _bearings(offsets: np.ndarray, focal: float, k1: float) -> np.ndarray:
    """Pixels from the image's centre -> x / z, y / z with the distortion removed by fixed-point iteration."""
    bent = offsets / focal
    plain = bent.copy()
    for _ in range(20):
        plain = bent / (1 + k1 * (plain**2).sum(1, keepdims=True))
    return plain


def _perspective_n_point(bearings: np.ndarray, points: np.ndarray, max_error: float) -> np.ndarray | None:
    """[4, 4] cam_from_world, or None without `MIN_INLIERS` agreeing correspondences."""
    import cv2

    if len(points) < MIN_INLIERS:
        return None
    eye = np.eye(3)
    ok, turn, shift, inliers = cv2.solvePnPRansac(
        points,
        bearings,
        eye,
        None,
        iterationsCount=3000,
        reprojectionError=max_error,
        confidence=0.9999,
        flags=cv2.SOLVEPNP_SQPNP,
    )
    for _ in range(3):  # refine, then look again which correspondences agree
        if not ok or inliers is None or len(inliers) < MIN_INLIERS:
            return None
        chosen = inliers[:, 0]
        turn, shift = cv2.solvePnPRefineLM(points[chosen], bearings[chosen], eye, None, turn, shift)
        projected, _ = cv2.projectPoints(points, turn, shift, eye, None)
        in_front = (points @ cv2.Rodrigues(turn)[0].T + shift.T)[:, 2] > 0
        error = np.linalg.norm(projected[:, 0] - bearings, axis=1)
        inliers = np.flatnonzero((error < max_error) & in_front)[:, None]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], shift[:, 0]
    return pose
