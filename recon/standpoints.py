"""Where one more photo could be taken from: round the subject, beyond and between the photos, and placed among them later.

The world is the result's: +Y up. Places are told in degrees and distance about what the photos look at together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon.align import look_at_point
from splat.cameras import Cameras
from splat.gaussians import Splats

UP = torch.tensor([0.0, 1, 0])
CELLS = 12  # along the long side of a picture, in which it is asked what another photo shows too


@dataclass(frozen=True)
class StandpointConfig:
    """Which places are looked at."""

    finest_deg: float = 5.0  # smallest and largest step between places; else two thirds of the photos' own steps
    coarsest_deg: float = 15.0
    reach: float = 60.0  # degrees from the nearest photo, at most
    reach_steps: float = 5.0  # and not more than so many steps
    lowest_deg: float = -10.0  # elevation
    highest_deg: float = 70.0
    # Features are found again from up to about this much aside, and so much of a picture must show what a photo shows: else the
    # photo cannot be placed, and helps nobody.
    aside_deg: float = 35.0
    overlap: float = 0.4  # of what the photos themselves show of solid things: sky and plain background tie nothing
    clearance: float = 0.15  # free space round the place, in shares of its distance from the subject
    obstructed: float = 0.2  # share of the picture that something before half of that distance may hide


@dataclass(frozen=True)
class Around:
    """Places as seen from what the photos look at."""

    azimuth_deg: Tensor  # [C] 0 on +Z, positive towards +X
    elevation_deg: Tensor  # [C] positive upwards
    distance: Tensor  # [C] world units

    @staticmethod
    def of(centers: Tensor, focus: Tensor) -> Around:
        offset = centers.double().cpu() - focus.double().cpu()
        distance = offset.norm(dim=-1).clamp_min(1e-9)
        elevation = (offset[:, 1] / distance).clamp(-1, 1).asin()
        return Around(torch.atan2(offset[:, 0], offset[:, 2]).rad2deg(), elevation.rad2deg(), distance)

    @property
    def directions(self) -> Tensor:
        """[C, 3] unit, from the subject outwards."""
        azimuth, elevation = self.azimuth_deg.deg2rad(), self.elevation_deg.deg2rad()
        level = elevation.cos()
        return torch.stack([level * azimuth.sin(), elevation.sin(), level * azimuth.cos()], dim=-1)

    def angles_to(self, other: Around) -> Tensor:
        """[C, D] degrees between directions."""
        return (self.directions @ other.directions.T).clamp(-1, 1).acos().rad2deg()

    def __getitem__(self, rows) -> Around:
        return Around(self.azimuth_deg[rows], self.elevation_deg[rows], self.distance[rows])


def subject_of(photos: Sequence[Cameras], points: Tensor) -> Tensor:
    """[3] float64 what the photos (batches of one) look at together; `points` [N, 3] decide for parallel axes."""
    centers = torch.cat([c.centers for c in photos]).double().cpu()
    forward = torch.cat([c.forward for c in photos]).double().cpu()
    middle = points.double().cpu().median(dim=0).values if len(points) else None
    return look_at_point(forward, centers, middle)


def standpoints(photos: Sequence[Cameras], focus: Tensor, config: StandpointConfig) -> list[Cameras]:
    """Cameras (batches of one) on a grid of directions near the photos' own but not at them, looking at `focus` [3].

    Each has the lens of the photo nearest in direction, and the mean distance of the two nearest. Deterministic.
    """
    own = Around.of(torch.cat([c.centers for c in photos]), focus)
    step = _step(own, config)
    azimuths = own.azimuth_deg[0] + step * torch.arange(round(360 / step), dtype=torch.float64)
    middle = float(own.elevation_deg.median())
    rise = 1.3 * step
    levels = [e for e in (middle - rise, middle, middle + rise) if config.lowest_deg <= e <= config.highest_deg] or [middle]
    grid = Around(
        azimuths.repeat(len(levels)), torch.tensor(levels).double().repeat_interleave(len(azimuths)), torch.ones(1).double()
    )
    apart = grid.angles_to(own)  # [G, C]
    nearest = apart.min(dim=1).values
    kept = (nearest >= 0.6 * step) & (nearest <= min(config.reach, config.reach_steps * step) + 1e-6)
    cameras = []
    for direction, angles in zip(grid.directions[kept], apart[kept]):
        order = angles.argsort()[:2]
        distance = float(own.distance[order].log().mean().exp())
        lens = photos[int(order[0])]
        eye = (focus.double() + distance * direction)[None]
        camera = Cameras.look_at(eye, focus[None], UP, lens.K[0].cpu(), lens.width, lens.height)
        cameras.append(camera.to(lens.K.device))
    return cameras


def _step(own: Around, config: StandpointConfig) -> float:
    apart = own.angles_to(own).fill_diagonal_(math.inf).min(dim=1).values
    return float((apart.median() * 2 / 3).clamp(config.finest_deg, config.coarsest_deg))


# --- which of them would do ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surfaces:
    """What the photos show, in space: points, and the photo that shows each."""

    points: Tensor  # [N, 3]
    to_photo: Tensor  # [N, 3] unit directions from the point back to the photo
    solid: float  # share of the photos that shows something solid


def surfaces(photos: Sequence[Cameras], depths: Sequence[Tensor], step: int = 4) -> Surfaces:
    """Every `step`-th pixel of each photo's depth [H, W], world units, 0 where unknown."""
    points, back, solid = [], [], []
    for camera, depth in zip(photos, depths):
        z = depth[step // 2 :: step, step // 2 :: step]
        pixels = camera.pixel_centers[step // 2 :: step, step // 2 :: step][z > 0]
        xyz = camera.unproject(pixels, z[z > 0])[0]
        points.append(xyz)
        solid.append(float((z > 0).float().mean()))
        back.append(torch.nn.functional.normalize(camera.centers - xyz, dim=-1))
    return Surfaces(torch.cat(points), torch.cat(back), sum(solid) / len(solid))


def overlap(camera: Cameras, depth: Tensor, shown: Surfaces, config: StandpointConfig) -> float:
    """Share of the cells of the picture of `camera` (a batch of one) that show what a photo shows from nearly there.

    In shares of what the photos show of solid things, at most 1. `depth` [H, W] is what the picture itself would show, 0 where
    nothing is known: nothing hidden behind it counts.
    """
    pixels, z = (x[0] for x in camera.project(shown.points))
    at = pixels.floor().long()
    inside = (z > 0) & (at >= 0).all(-1) & (at[:, 0] < camera.width) & (at[:, 1] < camera.height)
    at, z = at[inside], z[inside]
    here = torch.nn.functional.normalize(camera.centers - shown.points[inside], dim=-1)
    near = (here * shown.to_photo[inside]).sum(-1) > math.cos(math.radians(config.aside_deg))
    seen = near & ((z - depth[at[:, 1], at[:, 0]]).abs() < 0.05 * z)
    size = max(camera.width, camera.height) / CELLS
    columns, rows = math.ceil(camera.width / size), math.ceil(camera.height / size)
    cells = (at[seen] / size).long()
    share = len((cells[:, 1] * columns + cells[:, 0]).unique()) / (columns * rows)
    return min(share / max(shown.solid, 1e-6), 1.0)


def stands_free(camera: Cameras, depth: Tensor, distance: float, solid: Tensor, config: StandpointConfig) -> bool:
    """Whether `camera` is in the open: few of the `solid` points [N, 3] close by, and little just before the lens."""
    close = (solid - camera.centers).norm(dim=-1) < config.clearance * distance
    blocked = (depth > 0) & (depth < 0.5 * distance)
    return int(close.sum()) <= 20 and float(blocked.float().mean()) <= config.obstructed


def solid_points(splats: Splats) -> Tensor:
    return splats.means[splats.opacities > 0.3]


def sized(cameras: Sequence[Cameras], side: int) -> list[Cameras]:
    """The cameras with pictures of `side` pixels along the long side."""
    out = []
    for camera in cameras:
        scale = side / max(camera.width, camera.height)
        out.append(camera.resized(max(round(camera.width * scale), 1), max(round(camera.height * scale), 1)))
    return out
