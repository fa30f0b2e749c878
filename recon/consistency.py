"""Do the depth maps of several views tell the same story?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon.priors import DepthMap
from splat.cameras import Cameras


@dataclass(frozen=True)
class Posed:
    """A depth map with the camera of its own pixel grid."""

    map: DepthMap
    camera: Cameras  # batch of one, size of the map

    def points(self) -> Tensor:
        """[H, W, 3] world points; those of unknown depth are meaningless."""
        return self.camera.unproject(self.camera.pixel_centers, self.map.depth)


@dataclass(frozen=True)
class Agreement:
    """What the other views say about each point of one depth map."""

    support: Tensor  # [H, W] other views whose surface passes through the point
    intrusion: Tensor  # [H, W] largest confidence of a view that looks through the point at a surface behind it


def agreement(index: int, posed: list[Posed], tolerance: float, partners: list[int] | None = None) -> Agreement:
    """Compare map `index` with the others (or with `partners`); `tolerance` is relative to depth.

    A view supports a point when its own depth there is within the tolerance, and is intruded upon when the point lies
    more than three tolerances in front of its depth (the cleaning rule of LM-Gaussian, arXiv 2409.03456).
    """
    own = posed[index]
    known = own.map.depth > 0
    points = own.points()[known]  # [P, 3]
    support = torch.zeros(len(points), device=points.device)
    intrusion = torch.zeros(len(points), device=points.device)
    for j in range(len(posed)) if partners is None else partners:
        if j == index:
            continue
        other = posed[j]
        pixels, depth = other.camera.project(points)
        pixels, depth = pixels[0], depth[0]
        height, width = other.map.depth.shape
        x, y = pixels.floor().long().unbind(-1)
        inside = (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
        there = other.map.depth[y, x]
        inside &= there > 0
        difference = (there - depth) / there.clamp_min(1e-12)
        support += (inside & (difference.abs() < tolerance)).float()
        looks_through = inside & (difference > 3 * tolerance)
        intrusion = torch.maximum(intrusion, torch.where(looks_through, other.map.confidence[y, x], 0.0))
    return Agreement(_spread(support, known), _spread(intrusion, known))


def _spread(values: Tensor, where: Tensor) -> Tensor:
    out = torch.zeros(where.shape, device=values.device)
    out[where] = values
    return out
