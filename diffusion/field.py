"""The Gaussian distance field with colours: what the first stage of text-to-3D makes (GVGEN, He et al. 2024, section 3.2).

GVGEN's field is the distance from each node to the nearest Gaussian's centre, cut off at a limit. Ours carries the colour of
that Gaussian along, and is stored as *nearness* and *nearness times colour*, as images carry premultiplied alpha: far
from the surface all four channels fade to 0, so that no network and no principal component is spent on colours nobody sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion.volume import FIELD_LIMIT, SplatVolume, node_positions
from splat.sh import to_rgb

FIELD_CHANNELS = 4  # nearness in [0, 1], then nearness * (2 rgb - 1)
COARSE_LIMIT = 0.2  # world units at which a field of 16 nodes to a side is cut off, 3.2 of its spacings


@dataclass(frozen=True)
class Nearest:
    """Which of N centres is nearest to each node."""

    distance: np.ndarray  # [R^3] world units, infinite beyond the limit
    index: np.ndarray  # [R^3] int64, N beyond the limit
    resolution: int
    limit: float

    def field(self, rgb: Tensor) -> Tensor:
        """sRGB of the centres [N, 3] -> the field [4, R, R, R], grid indexed (z, y, x)."""
        hit = np.isfinite(self.distance)
        near, colours = np.zeros(len(hit), np.float32), np.zeros((len(hit), 3), np.float32)
        near[hit] = 1 - self.distance[hit] / self.limit
        colours[hit] = 2 * rgb.numpy()[self.index[hit]] - 1
        field = np.concatenate([near[:, None], near[:, None] * colours], axis=1)
        return torch.from_numpy(field.T.reshape(FIELD_CHANNELS, *[self.resolution] * 3).copy())


def nearest_centres(centres: Tensor, resolution: int, limit: float = FIELD_LIMIT, side: float = 1.0) -> Nearest:
    """Of centres [N, 3] world, for the nodes of a cube of `side` around the origin."""
    from scipy.spatial import KDTree

    nodes = node_positions(torch.arange(resolution**3), resolution, side).numpy()
    if not len(centres):
        return Nearest(np.full(len(nodes), np.inf), np.zeros(len(nodes), np.int64), resolution, limit)
    distance, index = KDTree(centres.numpy()).query(nodes, distance_upper_bound=limit)
    return Nearest(distance, index, resolution, limit)


def field_of(centres: Tensor, rgb: Tensor, resolution: int, limit: float = FIELD_LIMIT, side: float = 1.0) -> Tensor:
    """Centres [N, 3] world and sRGB [N, 3] -> [4, R, R, R], grid indexed (z, y, x). Not differentiable.

    nearness = 1 - min(distance, limit) / limit. Without any centre the field is 0.
    """
    return nearest_centres(centres, resolution, limit, side).field(rgb)


def field_of_volume(volume: SplatVolume, resolution: int, limit: float = FIELD_LIMIT, index: int = 0) -> Tensor:
    """`field_of` the active Gaussians of one cube of `volume`."""
    splats = volume.to_splats(index).detach()
    return field_of(splats.means, to_rgb(splats.sh[:, 0]).clamp(0, 1), resolution, limit, volume.side)


def distance_of(field: Tensor, limit: float = FIELD_LIMIT) -> Tensor:
    """Field [..., 4, R, R, R] -> [..., R, R, R] world units to the nearest centre, `limit` where there is none."""
    return (1 - field.select(-4, 0).clamp(0, 1)) * limit


def colour_of(field: Tensor) -> Tensor:
    """Field [..., 4, R, R, R] -> sRGB [..., 3, R, R, R]; grey where nothing is near."""
    near = field.narrow(-4, 0, 1)
    return ((field.narrow(-4, 1, 3) / near.clamp_min(0.05) + 1) / 2).clamp(0, 1)
