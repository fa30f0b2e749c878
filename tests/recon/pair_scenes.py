"""Pairwise predictions of a ray-cast scene whose cameras are known: what a pointmap network would say, with its faults."""

import numpy as np
import torch

from recon.align_pairs import PairPrediction
from recon.priors import StereoPrediction
from splat.cameras import Cameras, intrinsics
from splat.mesh import Mesh
from splat.raycast import raycast


def box(low, high):
    corners = torch.tensor([[(low, high)[i][0], (low, high)[j][1], (low, high)[k][2]] for i, j, k in np.ndindex(2, 2, 2)])
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    faces = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    return corners.float(), faces


def room():
    """Boxes on a floor inside four walls and below a ceiling."""
    parts = [box([-4, -0.1, -4], [4, 4.0, 4]), box([-0.6, 0, -0.5], [0.5, 1.1, 0.4]), box([0.9, 0, -0.2], [1.4, 0.5, 0.6])]
    parts.append(box([-1.5, 0, 0.4], [-1.0, 0.8, 1.0]))
    starts = np.cumsum([0, *(len(v) for v, _ in parts)])
    faces = torch.cat([f + int(s) for (_, f), s in zip(parts, starts)])
    return Mesh(torch.cat([v for v, _ in parts]), faces)


def walk(count, width=64, height=48, focal=1.0, step_deg=15.0):
    """Cameras round the boxes, at heights that differ."""
    azimuth = np.radians(step_deg * np.arange(count))
    eyes = np.stack([2.8 * np.sin(azimuth), 1.2 + 0.3 * np.cos(3 * azimuth), 2.8 * np.cos(azimuth)], 1)
    K = intrinsics(focal * max(width, height), width, height)
    target = torch.tensor([0.0, 0.5, 0.0])
    return Cameras.look_at(torch.from_numpy(eyes), target, torch.tensor([0.0, 1, 0]), K, width, height)


def depths_of(cameras):
    """[C, H, W]."""
    return raycast(room(), cameras, supersample=1, threads=1)[1]


def prediction(cameras, depth, i, j, rng, *, scale=None, noise=0.0, outliers=0.0):
    """What a prior would say of photos i and j: true points in the frame of i, at a random scale, with relative noise."""
    scale = float(np.exp(rng.uniform(-1, 1))) if scale is None else scale
    in_world = [cameras[k].unproject(cameras.pixel_centers, depth[k]).double() for k in (i, j)]
    pose = cameras.cam_from_world[i].double()
    points = torch.stack([p @ pose[:3, :3].T + pose[:3, 3] for p in in_world])
    points = points * (1 + noise * torch.from_numpy(rng.standard_normal((*points.shape[:3], 1))))
    points = points + noise * points[..., 2:] * torch.from_numpy(rng.standard_normal(points.shape)) / 3
    wrong = torch.from_numpy(rng.random(points.shape[:3]) < outliers)
    points[wrong] = torch.from_numpy(rng.uniform(-1, 1, (int(wrong.sum()), 3))) * 2 + torch.tensor([0.0, 0, 3])
    confidence = torch.from_numpy(rng.uniform(0.3, 0.9, points.shape[:3])).float()
    return PairPrediction(i, j, StereoPrediction((scale * points).float(), confidence))


def predictions(cameras, depth, pairs, seed=0, **faults):
    rng = np.random.default_rng(seed)
    return [prediction(cameras, depth, i, j, rng, **faults) for i, j in pairs]


def finished(job):
    """What a generator returns."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value
