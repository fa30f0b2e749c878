"""Made-up places to learn depth from: objects, boxes and tables in rooms and streets, lit, painted, and walked past.

Unlike `recon/rendered_scenes.py`, whose few scenes are measured on and painted triangle by triangle, these are many and
quick: patterns are looked up where a ray hits, so that geometry stays coarse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from recon.pointmap.textures import SIDE, mip_levels, random_texture
from splat.cameras import Cameras, intrinsics
from splat.mesh import Mesh
from splat.open3d_import import open3d
from splat.raycast import pixel_rays


@dataclass(frozen=True)
class RoomConfig:
    """What places are drawn from; lengths in world units, an object's longest side is about 0.3 to 1."""

    views: int = 6  # pictures of a place
    width: int = 320  # px of the long side of a picture; the short one is three quarters of it
    turn_deg: tuple[float, float] = (4.0, 17.0)  # from one camera to the next, round what they look at
    focal: tuple[float, float] = (0.6, 1.7)  # in long sides
    distance: tuple[float, float] = (1.1, 4.0)  # of the cameras from what they look at
    outdoors: float = 0.45  # share of places without walls
    walk: float = 0.3  # share of places that are walked past, not round
    portrait: float = 0.2  # share of places photographed upright
    nearest: float = 0.25  # of a picture in which anything is nearer, another is taken
    shadows: bool = True


@dataclass(frozen=True)
class Room:
    """Triangles with colours, and the pattern painted on each surface that they belong to."""

    mesh: Mesh
    surface: np.ndarray  # [F] which surface a triangle belongs to
    patterns: tuple[list[np.ndarray], ...]  # per surface, mip levels
    paint: np.ndarray  # [S, 5] per surface: strength, patterns per world unit, offset u, v, and how rough the light falls
    light: np.ndarray  # [3] towards the sun or lamp
    ambient: float
    sky: np.ndarray  # [2, 3] colours at the horizon and overhead
    middle: float  # height of what there is to look at
    sunlit: float  # how far away something may be that throws a shadow: a lamp hangs below the ceiling


@dataclass(frozen=True)
class RoomViews:
    """Pictures of one room."""

    images: np.ndarray  # [V, H, W, 3] float32 sRGB in [0, 1]
    depth: np.ndarray  # [V, H / 2, W / 2] z in the camera, 0 for sky
    cameras: Cameras  # in the pixels of the images


def random_room(objects: Sequence[Mesh], rng: np.random.Generator, config: RoomConfig) -> Room:
    """`objects` (longest side 1, box centre at the origin, +Y up) among boxes on a floor or table, with or without walls."""
    outdoors = rng.random() < config.outdoors
    parts: list[tuple[Mesh, bool]] = []  # mesh, and whether it has colours of its own
    table = 0.0
    if not outdoors and rng.random() < 0.6:
        table = rng.uniform(0.3, 0.9)
        wide, deep = rng.uniform(0.5, 1.1, 2)
        parts.append((_box([-wide, table - rng.uniform(0.02, 0.1), -deep], [wide, table, deep]), False))
        parts.append((_box([-0.08, 0, -0.08], [0.08, table - 0.02, 0.08]), False))
    for k, mesh in enumerate(objects):
        size = np.exp(rng.uniform(math.log(0.3), math.log(1.2))) * (0.5 if table else 1.0)
        parts.append((_stood(mesh, k, size, table, rng), True))
    for _ in range(int(rng.integers(1, 7))):
        half = np.exp(rng.uniform(math.log(0.03), math.log(0.4), 3)) * (0.5 if table else 1.0)
        box = _box([-half[0], 0, -half[2]], [half[0], 2 * half[1], half[2]])
        parts.append((_stood(box, int(rng.integers(1, 4)), 1.0, table, rng), False))
    if outdoors:
        parts += [(mesh, False) for mesh in _street(rng)]
    else:
        parts += [(mesh, False) for mesh in _walls(rng)]
    return _painted(parts, rng, outdoors, table + 0.3)


def _stood(mesh: Mesh, k: int, size: float, floor: float, rng: np.random.Generator) -> Mesh:
    """Turned about the vertical, scaled, put down somewhere; the first in the middle."""
    angle = rng.uniform(0, 2 * math.pi)
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    vertices = size * mesh.vertices @ turn.T.float()
    reach = (0.8 if floor else 1.6) * math.sqrt(rng.random()) * (k > 0)
    way = rng.uniform(0, 2 * math.pi)
    shift = torch.tensor([reach * math.sin(way), floor - float(vertices[:, 1].min()), reach * math.cos(way)])
    return Mesh((vertices + shift).float(), mesh.faces, mesh.colors)


def _box(low: Sequence[float], high: Sequence[float]) -> Mesh:
    corners = torch.tensor([[(low, high)[i][0], (low, high)[j][1], (low, high)[k][2]] for i, j, k in np.ndindex(2, 2, 2)])
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    faces = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    return Mesh(corners.float(), faces)


def _plane(origin: Sequence[float], side: Sequence[float], up: Sequence[float]) -> Mesh:
    origin, side, up = (torch.tensor(x, dtype=torch.float32) for x in (origin, side, up))
    corners = torch.stack([origin, origin + side, origin + side + up, origin + up])
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]))


def _walls(rng: np.random.Generator) -> list[Mesh]:
    """Floor, four walls each a surface of its own, ceiling."""
    x, z = rng.uniform(2.0, 4.5, 2)
    h = rng.uniform(2.0, 3.4)
    return [
        _plane([-x, 0, z], [2 * x, 0, 0], [0, 0, -2 * z]),
        _plane([-x, h, -z], [2 * x, 0, 0], [0, 0, 2 * z]),
        _plane([-x, 0, -z], [2 * x, 0, 0], [0, h, 0]),
        _plane([x, 0, -z], [0, 0, 2 * z], [0, h, 0]),
        _plane([x, 0, z], [-2 * x, 0, 0], [0, h, 0]),
        _plane([-x, 0, z], [0, 0, -2 * z], [0, h, 0]),
    ]


def _street(rng: np.random.Generator) -> list[Mesh]:
    """Ground out to far away, and houses round the middle."""
    parts = [_plane([-60, 0, 60], [120, 0, 0], [0, 0, -120])]
    for _ in range(int(rng.integers(0, 8))):
        wide, deep = rng.uniform(0.5, 6, 2)
        tall = rng.uniform(0.6, 9)
        angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(5.0, 16.0)
        house = _box([-wide, 0, -deep], [wide, tall, deep])
        turn = rng.uniform(0, 2 * math.pi)
        c, s = math.cos(turn), math.sin(turn)
        vertices = house.vertices @ torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]]).float()
        away = far + math.hypot(wide, deep)
        parts.append(Mesh(vertices + torch.tensor([away * math.sin(angle), 0, away * math.cos(angle)]).float(), house.faces))
    return parts


def _painted(parts: Sequence[tuple[Mesh, bool]], rng: np.random.Generator, outdoors: bool, middle: float) -> Room:
    vertices, faces, colors, surface, patterns, paint = [], [], [], [], [], []
    start = 0
    for number, (mesh, coloured) in enumerate(parts):
        vertices.append(mesh.vertices)
        faces.append(mesh.faces + start)
        start += len(mesh.vertices)
        own = mesh.colors if coloured and mesh.colors is not None else None
        base = torch.from_numpy(rng.uniform(0.2, 0.95) + 0.07 * rng.normal(size=3)).float().clamp(0.05, 0.95)
        colors.append(base.expand(len(mesh.vertices), 3) if own is None else own)
        surface.append(np.full(len(mesh.faces), number))
        patterns.append(mip_levels(random_texture(rng)))
        strength = rng.uniform(0.0, 0.5) if own is not None else rng.uniform(0.05, 1.0)
        scale = np.exp(rng.uniform(math.log(0.4), math.log(4.0)))
        paint.append([strength, scale, *rng.uniform(0, 1, 2), rng.uniform(0.4, 1.0)])
    light = np.array([rng.normal(), rng.uniform(0.5, 2.0), rng.normal()])
    horizon = rng.uniform(0.55, 1.0) * np.array([1, 1, 1]) + rng.normal(0, 0.05, 3)
    sky = np.clip([horizon, horizon * np.array([0.55, 0.7, 0.95])], 0, 1) if outdoors else np.full((2, 3), 0.1)
    mesh = Mesh(torch.cat(vertices), torch.cat(faces), torch.cat(colors))
    return Room(
        mesh, np.concatenate(surface), tuple(patterns), np.array(paint), light / np.linalg.norm(light),
        float(rng.uniform(0.35, 0.8)), sky, middle, 50.0 if outdoors else 1.2,
    )  # fmt: skip


def random_cameras(rng: np.random.Generator, config: RoomConfig, middle: float) -> Cameras:
    """`config.views` cameras of one lens that go round something at height `middle`, or past it."""
    count = config.views
    short = config.width * 3 // 4
    width, height = (short, config.width) if rng.random() < config.portrait else (config.width, short)
    focal = np.exp(rng.uniform(*np.log(config.focal)))
    distance = np.exp(rng.uniform(*np.log(config.distance))) * math.sqrt(focal)
    elevation = math.radians(rng.choice([rng.uniform(-2, 15), rng.uniform(10, 55)]))
    turns = np.radians(rng.uniform(*config.turn_deg, count)) * rng.choice([-1, 1])
    azimuth = rng.uniform(0, 2 * math.pi) + np.cumsum(turns)
    target = np.array([0, middle * rng.uniform(0.5, 1.2), 0]) + 0.3 * rng.normal(size=3) * [1, 0.3, 1]
    jitter = rng.normal(size=(count, 7))
    elevation = elevation + 0.06 * jitter[:, 0]
    reach = distance * (1 + 0.08 * jitter[:, 1])
    if rng.random() < config.walk:  # along a line, looking about the same way
        middle = azimuth[count // 2]
        side = np.array([math.cos(middle), 0, -math.sin(middle)])
        along = distance * (azimuth - middle)
        eyes = target + _on_sphere(middle, elevation, reach) + along[:, None] * side
        targets = target + rng.uniform(0.3, 1.0) * along[:, None] * side + 0.1 * jitter[:, 2:5]
    else:
        eyes = target + _on_sphere(azimuth, elevation, reach)
        targets = target + 0.12 * jitter[:, 2:5]
    eyes[:, 1] = np.maximum(eyes[:, 1], 0.15)
    K = intrinsics(focal * config.width, width, height)
    roll = 0.05 * rng.normal(size=2)
    up = torch.tensor([roll[0], 1.0, roll[1]])
    return Cameras.look_at(torch.from_numpy(eyes), torch.from_numpy(targets), up, K, width, height)


def _on_sphere(azimuth: np.ndarray, elevation: np.ndarray, radius: np.ndarray) -> np.ndarray:
    azimuth = azimuth + 0 * elevation
    level = radius * np.cos(elevation)
    return np.stack([level * np.sin(azimuth), radius * np.sin(elevation), level * np.cos(azimuth)], axis=1)


def photographed(room: Room, cameras: Cameras, config: RoomConfig) -> RoomViews:
    """Pictures through every camera, one ray a pixel, and depth at half their size, one ray a pixel too."""
    o3d = open3d()
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(
        o3d.core.Tensor(room.mesh.vertices.contiguous().numpy()), o3d.core.Tensor(room.mesh.faces.to(torch.uint32).numpy())
    )
    corners = room.mesh.vertices.numpy()[room.mesh.faces.numpy()]  # [F, 3, 3]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    images, depths = [], []
    for k in range(len(cameras)):
        camera = cameras[k]
        rays = pixel_rays(camera)
        hits = scene.cast_rays(o3d.core.Tensor(rays), nthreads=1)
        images.append(_shaded(room, scene, camera, rays, hits, normals, config))
        small = camera.resized(camera.width // 2, camera.height // 2)
        depth = scene.cast_rays(o3d.core.Tensor(pixel_rays(small)), nthreads=1)["t_hit"].numpy()
        depths.append(np.where(np.isfinite(depth), depth, 0))
    return RoomViews(np.stack(images), np.stack(depths).astype(np.float32), cameras)


def _shaded(room: Room, scene, camera: Cameras, rays: np.ndarray, hits, normals: np.ndarray, config: RoomConfig) -> np.ndarray:
    """[H, W, 3] colours where the rays hit: paint, sun, shadow; the sky elsewhere."""
    distance, face = hits["t_hit"].numpy(), hits["primitive_ids"].numpy()
    hit = np.isfinite(distance)
    directions = rays[..., 3:]
    overhead = np.clip(directions[..., 1] / np.linalg.norm(directions, axis=-1), 0, 1)[..., None]
    image = room.sky[0] * (1 - overhead) + room.sky[1] * overhead
    face, depth = face[hit], distance[hit]
    uv = hits["primitive_uvs"].numpy()[hit]
    xyz = rays[..., :3][hit] + depth[:, None] * directions[hit]
    weights = np.stack([1 - uv[:, 0] - uv[:, 1], uv[:, 0], uv[:, 1]], axis=-1)
    rgb = np.einsum("mk,mkd->md", weights, room.mesh.colors.numpy()[room.mesh.faces.numpy()[face]])
    rgb = rgb + _pattern(room, face, xyz, normals, depth / float(camera.K[0, 0, 0]))
    normal = normals[face]
    facing = np.sign(-(normal * directions[hit]).sum(1, keepdims=True)) * normal
    slope = facing @ room.light
    lit = np.clip(slope, 0, 1)
    if config.shadows:
        origin = xyz + 2e-3 * facing
        shadow_rays = np.concatenate([origin, np.broadcast_to(room.light, origin.shape)], axis=1).astype(np.float32)
        lit = lit * ~scene.test_occlusions(open3d().core.Tensor(shadow_rays), tfar=room.sunlit, nthreads=1).numpy()
    rough = room.paint[room.surface[face], 4]
    # light from all sides is a little weaker from below, so that corners between shaded faces stay visible
    bright = room.ambient * (0.85 + 0.15 * facing[:, 1]) + (1.15 - room.ambient) * (rough * lit + (1 - rough) * 0.5)
    image[hit] = np.clip(rgb, 0.02, 1) * bright[:, None]
    return np.clip(image, 0, 1).astype(np.float32)


def _pattern(room: Room, face: np.ndarray, xyz: np.ndarray, normals: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """[M, 3] colour differences: the pattern is laid along the two axes that the triangle faces least."""
    surface = room.surface[face]
    strength, scale, left, top, _ = room.paint[surface].T
    axis = np.abs(normals[face]).argmax(1)
    u = np.where(axis == 0, xyz[:, 2], xyz[:, 0]) * scale + left
    v = np.where(axis == 1, xyz[:, 2], xyz[:, 1]) * scale + top
    level = np.log2(np.maximum(footprint * scale * SIDE, 1)).round().astype(int)
    out = np.zeros((len(face), 3), np.float32)
    for number in np.unique(surface):
        mips = room.patterns[number]
        for depth in np.unique(level[surface == number]):
            rows = np.flatnonzero((surface == number) & (level == depth))
            out[rows] = _wrapped(mips[min(depth, len(mips) - 1)], u[rows], v[rows])
            # the same, large and turned: real surfaces seldom repeat exactly
            out[rows] += 0.7 * _wrapped(mips[min(max(depth - 2, 0), len(mips) - 1)], 0.23 * v[rows], 0.23 * u[rows])
    return out * strength[:, None]


def _wrapped(texture: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear, repeating every unit."""
    side = len(texture)
    x, y = (u % 1) * side - 0.5, (v % 1) * side - 0.5
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    x0, y0, x1, y1 = x0 % side, y0 % side, (x0 + 1) % side, (y0 + 1) % side
    upper = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    lower = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    return upper * (1 - fy) + lower * fy
