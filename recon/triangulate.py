"""Sparse points of photos whose poses are known: feature matches, seen from both ends.

Given poses often come without points. These are what a structure-from-motion start is made of, and they tell the stereo prior
how far away things are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon.features import FeatureConfig, extract, match
from splat.cameras import Cameras
from splat.points import PointCloud
from splat.views import Views


@dataclass(frozen=True)
class TriangulateConfig:
    """Which matches become points."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    max_error: float = 2.0  # px between a keypoint and its point, in both photos
    min_angle_deg: float = 1.5  # between the two rays; less leaves the depth open
    max_apart_deg: float = 75.0  # photos whose viewing directions differ by more are not matched


def triangulate(views: Sequence[Views], config: TriangulateConfig | None = None) -> PointCloud:
    """The points (possibly none) that pairs of posed photos agree on; same world, coloured from the first of the pair.

    Points outside a photo's mask are dropped. Deterministic.
    """
    config = config or TriangulateConfig()
    photos = [(v, i) for v in views for i in range(len(v))]
    features = [extract(v.images[i], config.features) for v, i in photos]
    parts = []
    for a in range(len(photos)):
        for b in range(a + 1, len(photos)):
            cameras = [photos[k][0].cameras[photos[k][1]] for k in (a, b)]
            if float(cameras[0].forward[0] @ cameras[1].forward[0]) < _cosine(config.max_apart_deg):
                continue
            pairs = match(features[a], features[b], config.features)
            pixels = features[a].keypoints[pairs[:, 0]].cpu(), features[b].keypoints[pairs[:, 1]].cpu()
            xyz, good = seen_by_both(*cameras, *pixels, config)
            parts.append(_coloured(*photos[a], xyz[good], pixels[0][good]))
    if not parts:
        return PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    return PointCloud.cat(parts)


def seen_by_both(
    first: Cameras, second: Cameras, pixels: Tensor, others: Tensor, config: TriangulateConfig
) -> tuple[Tensor, Tensor]:
    """Matched pixels [N, 2] of two cameras (batches of one) -> points [N, 3] and whether they are to be believed [N].

    The point nearest to both rays; believed in front of both cameras, within the error and with enough of an angle.
    """
    eyes = torch.cat([first.centers, second.centers]).double()
    depth = torch.ones(len(pixels))
    ends = [c.unproject(p, depth)[0].double() for c, p in ((first, pixels), (second, others))]
    u, v = (torch.nn.functional.normalize(end - eye, dim=-1) for end, eye in zip(ends, eyes))
    between = eyes[1] - eyes[0]
    cosine = (u * v).sum(-1)
    sine2 = (1 - cosine.square()).clamp_min(1e-12)
    s = ((u @ between) - cosine * (v @ between)) / sine2
    t = (cosine * (u @ between) - (v @ between)) / sine2
    xyz = ((eyes[0] + s[:, None] * u + eyes[1] + t[:, None] * v) / 2).to(first.K)
    good = (s > 0) & (t > 0) & (cosine < _cosine(config.min_angle_deg))
    for camera, seen in ((first, pixels), (second, others)):
        drawn, z = (x[0] for x in camera.project(xyz))
        good &= (z > 0) & ((drawn - seen).norm(dim=-1) <= config.max_error)
    return xyz, good


def _cosine(degrees: float) -> float:
    return float(torch.tensor(degrees).deg2rad().cos())


def _coloured(view: Views, i: int, xyz: Tensor, pixels: Tensor) -> PointCloud:
    x, y = pixels.long().unbind(-1)
    x, y = x.clamp(0, view.size[0] - 1), y.clamp(0, view.size[1] - 1)
    inside = torch.ones(len(xyz), dtype=torch.bool) if view.masks is None else view.masks[i][y, x] > 0.5
    return PointCloud(xyz[inside], view.images[i][y, x][inside], torch.ones(int(inside.sum())))
