"""How wrong camera poses are, as papers on unposed photos measure it: no alignment, pairs of photos, area under recall."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splat.cameras import Cameras

LIMITS_DEG = (5, 10, 20)
LOST_DEG = 180.0  # error of a pair of which a photo has no camera
STILL = 1e-9  # of the true cameras' spread: nearer than this, a direction between two cameras means nothing


def relative_errors(found: Sequence[Tensor | None], truth: Sequence[Tensor | None]) -> Tensor:
    """Degrees [P] float64, one per pair of photos whose truth is known; cam_from_world [4, 4] (or None) per photo in both.

    The larger of the angle between relative rotations and that between directions of relative translation, in the first
    camera's frame. A similarity of either world changes nothing. `LOST_DEG` where a photo was not placed.
    """
    assert len(found) == len(truth), (len(found), len(truth))
    known = [i for i, pose in enumerate(truth) if pose is not None]
    errors = []
    for n, i in enumerate(known):
        for j in known[n + 1 :]:
            if found[i] is None or found[j] is None:
                errors.append(LOST_DEG)
                continue
            (turn, way), (true_turn, true_way) = (_relative(poses[i], poses[j]) for poses in (found, truth))
            errors.append(max(_angle_of(turn @ true_turn.T), _angle_between(way, true_way)))
    return torch.tensor(errors, dtype=torch.float64)


def pose_auc(errors_deg: Tensor, limit_deg: float) -> float:
    """In [0, 1]: the area under the recall of `errors_deg` up to the limit, which is the mean of max(0, 1 - error / limit)."""
    return float((1 - errors_deg / limit_deg).clamp_min(0).mean()) if len(errors_deg) else float("nan")


def poses_of(cameras: Sequence[Cameras | None]) -> list[Tensor | None]:
    """cam_from_world [4, 4] of batches of one."""
    return [None if camera is None else camera.cam_from_world[0] for camera in cameras]


def _relative(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    motion = second.double().cpu() @ torch.linalg.inv(first.double().cpu())
    return motion[:3, :3], motion[:3, 3]


def _angle_of(rotation: Tensor) -> float:
    """Degrees; exact for small angles, where the arc cosine of the trace is not."""
    skew = rotation - rotation.T
    sine = torch.stack([skew[2, 1], skew[0, 2], skew[1, 0]]).norm() / 2
    return float(torch.atan2(sine, (rotation.trace() - 1) / 2).rad2deg())


def _angle_between(a: Tensor, b: Tensor) -> float:
    """Degrees; 0 where both are nothing, and `LOST_DEG` where one is."""
    if float(a.norm()) < STILL or float(b.norm()) < STILL:
        return 0.0 if float(a.norm()) < STILL and float(b.norm()) < STILL else LOST_DEG
    return float(torch.atan2(torch.linalg.cross(a, b).norm(), a @ b).rad2deg())
