"""The result's frame: +Y up, the subject's front towards +Z, cameras inside the unit sphere round what they look at.

A photo says little about absolute orientation, a photographer much: cameras are held level. Up is the direction that every
camera's x axis is perpendicular to; where that leaves a choice (all photos taken one way), the photos' own up decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splat.cameras import Cameras, nearest_to_axes
from splat.points import PointCloud
from splat.similarity import Similarity

ROLL_VARIANCE = 0.003  # rad^2: hand-held photos roll by about 3 degrees; below this the x axes decide nothing
OUTLIER_ROLL = 0.1  # sine of a roll above which a camera's say fades: portrait photos without EXIF, tilted shots
WITHIN_ORBIT = 0.3  # mean of unit azimuths below this: the cameras stand all round, and none of the sides is the front


def align_world(cameras: Sequence[Cameras], points: PointCloud | None = None, up: Tensor | None = None) -> Similarity:
    """The similarity from the cameras' world into the result's: `result_from_input`.

    `cameras` are batches of any sizes, at least one camera in all; `points` help to find the subject; `up` [3] is the up
    direction in the cameras' world where it is known (gravity). All given poses and all degenerate sets get a frame.
    """
    poses = torch.cat([batch.cam_from_world for batch in cameras]).double().cpu()  # [C, 4, 4]
    assert len(poses) > 0, "no cameras"
    rotations = poses[:, :3, :3]  # rows: the camera's axes in the world
    centers = -(rotations.mT @ poses[:, :3, 3:]).squeeze(-1)  # [C, 3]
    vertical = common_up(rotations) if up is None else torch.nn.functional.normalize(up.double().cpu(), dim=0)
    subject = look_at_point(rotations[:, 2], centers, _middle(points))
    front = _front(rotations, centers - subject, vertical)
    rotation = torch.stack([torch.linalg.cross(vertical, front), vertical, front])
    reach = float((centers - subject).norm(dim=-1).max())
    scale = 1 / reach if reach > 1e-9 * max(1.0, float(centers.abs().max())) else 1.0
    return Similarity(rotation, -scale * (rotation @ subject), scale)


def common_up(rotations: Tensor) -> Tensor:
    """Camera axes as rows [C, 3, 3] float64 -> unit up [3] in the world.

    Minimises the mean of (x . u)^2 + ROLL_VARIANCE |u - m|^2, with m the mean up of the photos, cameras with much roll
    weighted down (Cauchy) over a few rounds.
    """
    x = rotations[:, 0]
    weights = torch.ones(len(x), dtype=torch.float64)
    up = prior = _photo_up(rotations, weights)
    for _ in range(8):
        moment = (weights[:, None, None] * x[:, :, None] * x[:, None, :]).sum(0) / weights.sum()
        system = moment + ROLL_VARIANCE * torch.eye(3, dtype=torch.float64)
        up = torch.nn.functional.normalize(torch.linalg.solve(system, prior), dim=0)
        weights = 1 / (1 + ((x @ up) / OUTLIER_ROLL).square())
        prior = _photo_up(rotations, weights)
    return up


def _photo_up(rotations: Tensor, weights: Tensor) -> Tensor:
    """Unit [3]: the mean up of the photos; seen straight from above, where those cancel, the way back to the cameras."""
    for direction in (-rotations[:, 1], -rotations[:, 2]):
        mean = (weights[:, None] * direction).sum(0) / weights.sum()
        if mean.norm() > 0.3:
            return mean / mean.norm()
    return -rotations[0, 1]


def look_at_point(forward: Tensor, centers: Tensor, fallback: Tensor | None) -> Tensor:
    """The point [3] nearest to all optical axes, `forward` [C, 3] unit through `centers` [C, 3].

    Where the axes are nearly parallel their distance is taken from `fallback` [3], the middle of the sparse points, and without
    it from how far the cameras are apart. Axes that meet behind the cameras (looking outwards) give the fallback, or the
    cameras' middle.
    """
    middle = centers.median(dim=0).values
    spread = float((centers - middle).norm(dim=-1).max())
    guess = middle + forward.mean(0) * (2 * spread or 1.0) if fallback is None else fallback
    point = nearest_to_axes(centers, forward, guess, pull=ROLL_VARIANCE)
    in_front = ((point - centers) * forward).sum(-1) > 0
    if in_front.double().mean() >= 0.7:
        return point
    return middle if fallback is None else fallback


def _middle(points: PointCloud | None) -> Tensor | None:
    """[3] the median of the confident half of the points."""
    if points is None or len(points) < 10:
        return None
    confident = points.confidence >= points.confidence.median()
    return points.xyz[confident].double().cpu().median(dim=0).values


def _front(rotations: Tensor, offsets: Tensor, up: Tensor) -> Tensor:
    """Horizontal unit [3] from the subject to where most cameras stand; to the first camera when they stand all round.

    Cameras straight above have no azimuth; then the lower edge of their photos is the front.
    """
    across = torch.eye(3, dtype=torch.float64) - up[:, None] * up[None, :]
    horizontal = offsets @ across
    sizes = horizontal.norm(dim=-1, keepdim=True)
    has_azimuth = sizes[:, 0] > 1e-3 * offsets.norm(dim=-1).clamp_min(1e-12)
    units = horizontal[has_azimuth] / sizes[has_azimuth]
    candidates = [units.mean(0), units[0]] if len(units) else []
    candidates = candidates[1:] if candidates and candidates[0].norm() < WITHIN_ORBIT else candidates
    candidates += [rotations[0, 1] @ across, -rotations[0, 2] @ across, rotations[0, 0] @ across]
    front = next(c for c in candidates if c.norm() > 1e-3)
    return front / front.norm()
