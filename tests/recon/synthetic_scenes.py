"""Procedural scenes with known cameras, photographed with noise: what the pose solver is tested on."""

import math

import numpy as np
import torch

from recon.photos import Photo
from splat.cameras import Cameras, intrinsics
from splat.mesh import Mesh
from splat.raycast import raycast


def speckle(rng, size=512, coarse=True):
    """[size, size, 3] texture with structure at every scale, no part like another."""
    out = np.zeros((size, size, 3), np.float32)
    for cells, weight in ((8, 0.3), (32, 0.3), (128, 0.35), (256, 0.25)) if coarse else ((64, 0.5), (192, 0.4)):
        grid = rng.random((cells + 1, cells + 1, 3)).astype(np.float32) - 0.5
        at = np.linspace(0, cells, size, endpoint=False)
        lower, part = at.astype(int), (at % 1).astype(np.float32)
        rows = grid[lower] * (1 - part)[:, None, None] + grid[lower + 1] * part[:, None, None]
        out += 2 * weight * (rows[:, lower] * (1 - part)[None, :, None] + rows[:, lower + 1] * part[None, :, None])
    grey = out.mean(-1, keepdims=True) * 1.7  # detectors look at brightness: most of the structure is there
    return np.clip(0.5 + grey + 0.3 * (out - out.mean(-1, keepdims=True)), 0, 1)


def box(center, size, tiles, grid):
    """A box standing on y = 0 whose sides show the given tiles of a `grid` x `grid` texture atlas.

    tiles: +x, -x, top, bottom, +z, -z. Returns vertices [24, 3], faces [12, 3], uvs [12, 3, 2].
    """
    sides = []
    for axis in range(3):
        for sign in (1, -1):
            u, v = [(2, 1), (0, 2), (0, 1)][axis]
            corners = np.zeros((4, 3))
            corners[:, axis] = sign
            corners[:, u], corners[:, v] = [-1, 1, 1, -1], [-1, -1, 1, 1]
            sides.append(corners)
    vertices = np.concatenate(sides) * np.asarray(size) / 2 + np.asarray(center) + [0, size[1] / 2, 0]
    faces, uvs = [], []
    for side, tile in enumerate(tiles):
        inside = np.array([[0.01, 0.01], [0.99, 0.01], [0.99, 0.99], [0.01, 0.99]])
        uv = (inside + np.array([tile % grid, tile // grid])) / grid
        for corners in ((0, 1, 2), (0, 2, 3)):
            faces.append([4 * side + c for c in corners])
            uvs.append(uv[list(corners)])
    return vertices, np.array(faces), np.array(uvs)


def joined(parts, texture):
    vertices, faces, uvs, first = [], [], [], 0
    for v, f, uv in parts:
        vertices.append(v)
        faces.append(f + first)
        uvs.append(uv)
        first += len(v)
    return Mesh(
        torch.from_numpy(np.concatenate(vertices)).float(),
        torch.from_numpy(np.concatenate(faces)).long(),
        uvs=torch.from_numpy(np.concatenate(uvs)).float(),
        texture=torch.from_numpy(texture).float(),
    )


def textured(seed):
    """Boxes of several sizes on a textured floor; every side is different."""
    rng = np.random.default_rng(seed)
    grid = 7
    tiles = iter(rng.permutation(grid * grid).tolist())
    parts = [
        box([x, -0.1, z], [1.0, 0.1, 1.0], [next(tiles)] * 6, grid)
        for x in (-1.5, -0.5, 0.5, 1.5)
        for z in (-1.5, -0.5, 0.5, 1.5)
    ]
    for _ in range(5):
        place = rng.uniform(-0.8, 0.8, 2)
        parts.append(box([place[0], 0, place[1]], rng.uniform(0.3, 0.9, 3), [next(tiles) for _ in range(6)], grid))
    return joined(parts, speckle(rng, 1792))


def look_alike(seed, sides=2):
    """One box on nothing whose opposite (sides=2) or all four (sides=4) walls are the same; top and bottom too."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.permutation(9)[:3].tolist()
    walls = [a, a, c, c, a, a] if sides == 4 else [a, a, c, c, b, b]
    size = rng.uniform(0.7, 1.2, 3)
    if sides == 4:
        size[2] = size[0]
    return joined([box([0, -size[1] / 2, 0], size, walls, 3)], speckle(rng, 1024))


def textureless(seed):
    """Plain boxes of one colour each on nothing."""
    rng = np.random.default_rng(seed)
    texture = np.repeat(np.repeat(rng.uniform(0.3, 0.9, (3, 3, 3)), 16, 0), 16, 1).astype(np.float32)
    parts = [
        box([*np.insert(rng.uniform(-0.4, 0.4, 2), 1, -0.4)], rng.uniform(0.3, 0.8, 3), [n] * 6, 3)
        for n in rng.permutation(9)[:3].tolist()
    ]
    return joined(parts, texture)


def walk_around(count, seed, arc_deg=150.0, radius=2.6, focal=1.1, width=640, height=480):
    """Hand-held cameras along an arc round the origin, heights, distances and aim all a little off."""
    rng = np.random.default_rng(seed + 1000)
    azimuth = np.radians(rng.uniform(0, 360) + np.linspace(0, arc_deg, count) + rng.normal(0, arc_deg / count / 8, count))
    elevation = np.radians(rng.uniform(12, 35, count))
    distance = radius * rng.uniform(0.9, 1.1, count)
    eyes = np.stack(
        [
            distance * np.sin(azimuth) * np.cos(elevation),
            distance * np.sin(elevation),
            distance * np.cos(azimuth) * np.cos(elevation),
        ],
        axis=1,
    )
    targets = torch.from_numpy(rng.normal(0, 0.05, (count, 3)))
    K = intrinsics(focal * max(width, height), width, height)
    return Cameras.look_at(torch.from_numpy(eyes), targets, torch.tensor([0.0, 1, 0]), K, width, height)


def photograph(mesh, cameras, seed=0, background=(1.0, 1.0, 1.0), focal_known=True, noise=0.012):
    """Photos of `mesh` with sensor noise; their EXIF focal length is the true one, or missing."""
    rng = np.random.default_rng(seed + 2000)
    views, _ = raycast(mesh, cameras, supersample=2, background=background, threads=1)
    photos = []
    for number in range(len(cameras)):
        image = views.images[number] + noise * torch.from_numpy(rng.standard_normal(views.images[number].shape)).float()
        image = (image.clamp(0, 1) * 255).round() / 255
        focal = float(cameras.K[number, 0, 0]) if focal_known else None
        name = f"photo_{number:03d}.png"
        photos.append(Photo(name, None, "", image.contiguous(), None, focal, (cameras.width, cameras.height)))
    return photos


def relative_errors(found, truth):
    """Degrees, one per pair of photos: the larger of the errors of relative rotation and direction; 180 for an unplaced photo.

    Needs no alignment, and does not change under any similarity of either world.
    """
    errors = []
    for i in range(len(truth)):
        for j in range(i + 1, len(truth)):
            if found[i] is None or found[j] is None:
                errors.append(180.0)
                continue
            a = _relative(found[i].cam_from_world[0], found[j].cam_from_world[0])
            b = _relative(truth.cam_from_world[i], truth.cam_from_world[j])
            turn = math.degrees(math.acos(float((((a[:3, :3] @ b[:3, :3].T).trace() - 1) / 2).clamp(-1, 1))))
            cosine = torch.nn.functional.cosine_similarity(a[:3, 3], b[:3, 3], dim=0).clamp(-1, 1)
            errors.append(max(turn, math.degrees(math.acos(float(cosine)))))
    return np.array(errors)


def _relative(first, second):
    return second.double() @ torch.linalg.inv(first.double())


def pose_auc(errors, limit_deg):
    """Area under the recall curve up to `limit_deg`, in percent: the mean over pairs of max(0, 1 - error / limit)."""
    return float(100 * np.clip(1 - np.asarray(errors) / limit_deg, 0, None).mean())
