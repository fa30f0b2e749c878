"""Scenes whose truth is known: objects on a textured floor between walls, photographed by somebody who walks round them.

Any meshes will do. Colours are painted in space, so that untextured models have something to match from photo to photo. What
poses, depth maps and fits are measured on, and what networks can be trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recon.photos import Photo
from splat.cameras import Cameras, intrinsics
from splat.mesh import Mesh
from splat.raycast import raycast
from splat.views import Views

OCTAVES = (3.0, 8.0, 21.0, 55.0)  # cells per world unit of the painted noise: structure at every scale that photos show


@dataclass(frozen=True)
class SceneConfig:
    """What a scene is made of, in world units: an object's longest side is about 1."""

    contrast: float = 0.35  # of the paint on objects; 0 leaves their own colours
    detail: float = 0.012  # longest edge of a painted triangle, which is the finest texture
    floor: float = 3.2  # half the side of the square floor; the walls stand behind the cameras
    walls: float = 1.8  # height; 0 leaves the scene open, with nothing behind
    step_deg: float = 20.0  # between neighbouring training cameras
    distance: float = 2.3  # of the cameras from the middle
    width: int = 480  # px
    height: int = 360
    focal: float = 1.1  # in long sides
    noise: float = 0.008  # standard deviation of the photos' pixels
    tests: int = 8  # held-out views along the same walk


@dataclass(frozen=True)
class RenderedScene:
    """A scene with its photos. One world for everything, +Y up, the floor at y = 0."""

    name: str
    mesh: Mesh
    train: Views  # with noise and true cameras
    test: Views  # without noise, from between and beside the training cameras
    depth: Tensor  # [C, H, W] of the training views, 0 where nothing is

    def photos(self) -> list[Photo]:
        """The training views as files would give them: no camera but an EXIF focal length."""
        width, height = self.train.size
        focal = [float(k) for k in self.train.cameras.K[:, 0, 0]]
        return [
            Photo(name, None, "", image.contiguous(), None, f, (width, height))
            for name, image, f in zip(self.train.names, self.train.images, focal)
        ]


def rendered_scene(
    name: str, objects: Sequence[Mesh], count: int, seed: int, config: SceneConfig | None = None
) -> RenderedScene:
    """`count` photos of `objects` (each with its longest side about 1) on a floor; everything follows from `seed`.

    The room and the way round it do not depend on `count`: 3 photos are the first 3 of 12.
    """
    config = config or SceneConfig()
    mesh = furnished(objects, seed, config)
    rng = np.random.default_rng(seed + 1)
    start = rng.uniform(0, 360)
    train = hand_held(start + config.step_deg * np.arange(count), rng_of(seed, 2), config)
    reach = config.step_deg * max(count - 1, 1)
    test = hand_held(start + reach * (np.arange(config.tests) + 0.5) / config.tests, rng_of(seed, 3), config)
    views, depth = raycast(mesh, train, names=[f"photo_{i:02d}.png" for i in range(count)], threads=1)
    noise = torch.from_numpy(rng_of(seed, 4).standard_normal(views.images.shape)).float()
    images = ((views.images + config.noise * noise).clamp(0, 1) * 255).round() / 255
    held_out, _ = raycast(mesh, test, names=[f"test_{i:02d}.png" for i in range(config.tests)], threads=1)
    return RenderedScene(name, mesh, replace(views, images=images, masks=None), replace(held_out, masks=None), depth)


def rng_of(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose])


def hand_held(azimuth_deg: np.ndarray, rng: np.random.Generator, config: SceneConfig) -> Cameras:
    """Cameras at about these azimuths round the middle of the scene; height, distance and aim differ a little."""
    count = len(azimuth_deg)
    # One draw per camera, so that the first cameras are the same however many follow.
    jitter = np.array([rng.normal(size=6) for _ in range(count)])
    azimuth = np.radians(azimuth_deg + 2.0 * jitter[:, 0])
    elevation = np.radians(24 + 5.0 * jitter[:, 1].clip(-2, 2))
    distance = config.distance * (1 + 0.05 * jitter[:, 2].clip(-2, 2))
    level = distance * np.cos(elevation)
    eyes = np.stack([level * np.sin(azimuth), distance * np.sin(elevation), level * np.cos(azimuth)], axis=1)
    targets = np.array([0, 0.25, 0]) + 0.05 * jitter[:, 3:]
    K = intrinsics(config.focal * max(config.width, config.height), config.width, config.height)
    up = torch.tensor([0.0, 1, 0])
    return Cameras.look_at(torch.from_numpy(eyes), torch.from_numpy(targets), up, K, config.width, config.height)


def furnished(objects: Sequence[Mesh], seed: int, config: SceneConfig) -> Mesh:
    """Painted objects on a painted floor, the first in the middle, the others round it; walls where they are wanted."""
    rng = rng_of(seed, 0)
    parts = [painted(_placed(mesh, k, len(objects), rng), seed + k, config) for k, mesh in enumerate(objects)]
    half, edge = config.floor, 2 * config.detail
    parts.append(_plain([-half, 0, half], [2 * half, 0, 0], [0, 0, -2 * half], edge, rng))
    if config.walls:
        up = [0, config.walls, 0]
        for x, z, along in ((-1, -1, (1, 0)), (1, -1, (0, 1)), (1, 1, (-1, 0)), (-1, 1, (0, -1))):
            side = [2 * half * along[0], 0, 2 * half * along[1]]
            parts.append(_plain([half * x, 0, half * z], side, up, edge, rng))
    return joined(parts)


def _placed(mesh: Mesh, k: int, count: int, rng: np.random.Generator) -> Mesh:
    """Turned about the vertical, on the floor; all but the first smaller and to the side."""
    angle = rng.uniform(0, 2 * math.pi)
    turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    size = 0.9 if k == 0 else rng.uniform(0.35, 0.5)
    vertices = size * mesh.vertices @ turn.T.float()
    vertices = vertices - torch.tensor([0, float(vertices[:, 1].min()), 0])
    if k:
        azimuth = 2 * math.pi * (k - 1) / max(count - 1, 1) + rng.uniform(-0.4, 0.4)
        vertices = vertices + 0.8 * torch.tensor([math.sin(azimuth), 0, math.cos(azimuth)])
    return replace(mesh, vertices=vertices.float())


def painted(mesh: Mesh, seed: int, config: SceneConfig) -> Mesh:
    """`mesh` in triangles no longer than the detail, its vertex colours (grey without) changed by noise in space."""
    colors = mesh.colors if mesh.colors is not None else torch.full_like(mesh.vertices, 0.6)
    corners = _subdivided(torch.cat([mesh.vertices, colors], dim=1)[mesh.faces].numpy(), config.detail).reshape(-1, 6)
    rgb = (corners[:, 3:] + config.contrast * _noise(corners[:, :3].astype(np.float64), seed)).clip(0, 1)
    faces = torch.arange(len(corners)).view(-1, 3)
    return Mesh(torch.from_numpy(corners[:, :3].copy()), faces, colors=torch.from_numpy(rgb).float())


def _subdivided(triangles: np.ndarray, longest: float) -> np.ndarray:
    """[F, 3, D] corners, positions first, cut across their longest edge until none is longer."""
    done = []
    while len(triangles):
        edges = np.linalg.norm((triangles - np.roll(triangles, -1, axis=1))[..., :3], axis=-1)  # [F, 3]: 01, 12, 20
        fine = edges.max(1) <= longest
        done.append(triangles[fine])
        triangles, first = triangles[~fine], edges[~fine].argmax(1)
        a, b, c = (triangles[np.arange(len(first)), (first + k) % 3] for k in range(3))
        middle = (a + b) / 2
        triangles = np.concatenate([np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)])
    return np.concatenate(done)


def joined(parts: Sequence[Mesh]) -> Mesh:
    """One mesh with vertex colours of several."""
    starts = np.cumsum([0, *(len(p.vertices) for p in parts)])
    faces = torch.cat([p.faces + int(start) for p, start in zip(parts, starts)])
    return Mesh(torch.cat([p.vertices for p in parts]), faces, torch.cat([p.colors for p in parts]))


def _plain(corner: Sequence[float], side: Sequence[float], up: Sequence[float], edge: float, rng: np.random.Generator) -> Mesh:
    """A painted rectangle from `corner`, in a grid of cells about `edge` wide."""
    corner, side, up = (np.asarray(x, dtype=np.float64) for x in (corner, side, up))
    columns, rows = (max(int(np.linalg.norm(x) / edge), 1) for x in (side, up))
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    xyz = corner + u.reshape(-1, 1) * side + v.reshape(-1, 1) * up
    a = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).reshape(-1)
    faces = np.concatenate([np.stack([a, a + 1, a + columns + 2], 1), np.stack([a, a + columns + 2, a + columns + 1], 1)])
    rgb = rng.uniform(0.35, 0.7, 3) + 0.5 * _noise(xyz, int(rng.integers(1 << 30)))
    return Mesh(torch.from_numpy(xyz).float(), torch.from_numpy(faces), torch.from_numpy(rgb.clip(0, 1)).float())


def _noise(xyz: np.ndarray, seed: int) -> np.ndarray:
    """[N, 3] colours about 0, mostly within 0.5: value noise on lattices of several sizes, most of it in brightness."""
    out = np.zeros((len(xyz), 3))
    for octave, cells in enumerate(OCTAVES):
        at = xyz * cells + 1000.0
        cell = np.floor(at).astype(np.int64)
        part = at - cell
        part = part * part * (3 - 2 * part)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, part, 1 - part), axis=1, keepdims=True)
            out += weight * _hashed(cell + corner, seed * 8 + octave)
    grey = out.mean(1, keepdims=True)
    return 0.75 * grey + 0.25 * (out - grey)


def _hashed(cell: np.ndarray, seed: int) -> np.ndarray:
    """[N, 3] lattice cells -> [N, 3] even in [-0.5, 0.5], the same for the same cell."""
    x, y, z = (cell[:, k].astype(np.uint64) for k in range(3))
    with np.errstate(over="ignore"):
        h = x * np.uint64(0x9E3779B97F4A7C15) ^ y * np.uint64(0xC2B2AE3D27D4EB4F) ^ z * np.uint64(0x165667B19E3779F9)
        h = h + np.uint64(seed % 2**31) * np.uint64(0xD6E8FEB86659FD93)
        h = (h ^ (h >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)  # a round of a 64-bit mixer
        h = (h ^ (h >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        h = h ^ (h >> np.uint64(32))
    channels = [(h >> np.uint64(16 * k)) & np.uint64(0xFFFF) for k in range(3)]
    return np.stack(channels, axis=1).astype(np.float64) / 0xFFFF - 0.5
