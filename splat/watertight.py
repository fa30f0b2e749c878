"""A closed solid from any mesh, for printing: what its surface winds round, and what is missing closed towards the ground."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch

from splat.decimate import cleaned, colors_at, decimated, face_crosses
from splat.errors import InputError, StoppedLate
from splat.marching_cubes import marching_cubes
from splat.mesh import Mesh
from splat.open3d_import import open3d

log = logging.getLogger(__name__)

SMALL_HOLE = 0.15  # of the mesh's longest side: a hole with a shorter diagonal is capped where it is
OPEN = 0.02  # length of the summed normals, in areas, above which a mesh is open to one side
BASE = 0.02  # of the longest side: thickness of the base under a mesh that is open to one side
UPRIGHT = 0.5  # cosine between the open side and down above which the base is level
MARGIN = 3  # voxels round the mesh
NEAREST = 0.02  # of a voxel: no grid point lies nearer to the surface, so that no triangle is a sliver
BAND = 2.0  # voxels to either side of the surface within which distances are exact
LEAST_VOXELS = 24  # along the longest side; less shows no shape


@dataclass(frozen=True)
class SolidConfig:
    """How a mesh becomes solid."""

    resolution: int = 256  # voxels along the longest side; thinner parts are lost
    faces: int | None = None  # most triangles; by default what the resolution gives
    min_part: float = 0.005  # separate pieces with less volume than this fraction of the largest are dropped


def watertight(mesh: Mesh, config: SolidConfig | None = None) -> Mesh:
    """A closed mesh round the solid that `mesh` bounds: two triangles at every edge, normals outwards, a positive volume.

    Holes are capped; a mesh that is open to one side, as a scene without its underside, is continued to a flat base there.
    Then the winding number (Jacobson et al. 2013) of the closed surface is an integer everywhere; it is counted along rays of
    three directions at the points of a grid, and the level set of the signed distance is drawn. Hollows are filled, and a mesh
    that is inside out is turned. Vertex colours come along. Raises `InputError` as `cleaned` does and for budgets too small,
    `StoppedLate` when nothing is enclosed.
    """
    config = config or SolidConfig()
    if not LEAST_VOXELS <= config.resolution <= 1024:
        raise InputError(f"A solid of {config.resolution} voxels cannot be made; give {LEAST_VOXELS} to 1024.")
    mesh = cleaned(Mesh(mesh.vertices, mesh.faces, mesh.colors), 1e-4)
    solid = _remeshed(mesh, config.resolution, config.min_part)
    if config.faces is not None and len(solid.faces) > config.faces:
        solid = _within(mesh, solid, config)
    return solid if mesh.colors is None else Mesh(solid.vertices, solid.faces, colors_at(mesh, solid.vertices))


def is_closed(mesh: Mesh) -> bool:
    """Whether every edge has exactly two triangles, which run along it in opposite directions."""
    faces = mesh.faces.cpu().numpy()
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    count = int(faces.max(initial=0)) + 1
    forth, back = np.sort(edges[:, 0] * count + edges[:, 1]), np.sort(edges[:, 1] * count + edges[:, 0])
    return len(faces) > 0 and bool((forth[1:] != forth[:-1]).all()) and np.array_equal(forth, back)


def volume(mesh: Mesh) -> float:
    """Enclosed volume of a closed mesh, positive where the normals point out; cubed units."""
    a, b, c = (mesh.vertices.double()[mesh.faces[:, i]] for i in range(3))
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def _within(mesh: Mesh, solid: Mesh, config: SolidConfig) -> Mesh:
    """The solid with at most `config.faces` triangles: edges collapsed, or where this tears it, or does not get so far, drawn
    on a coarser grid."""
    assert config.faces is not None
    try:
        simple = decimated(solid, config.faces)
        if is_closed(simple) and volume(simple) > 0:
            return simple
    except InputError as error:  # collapsing does not get so far; fewer voxels may
        log.info("the solid is drawn anew: %s", error)
    resolution = config.resolution
    while len(solid.faces) > config.faces:
        resolution = int(resolution * min(0.95, (config.faces / len(solid.faces)) ** 0.5))
        if resolution < LEAST_VOXELS:
            raise InputError(f"{config.faces} triangles are too few for a closed solid of this shape; give more.")
        solid = _remeshed(mesh, resolution, config.min_part)
    log.info("the solid is drawn on %d voxels, for its %d triangles", resolution, len(solid.faces))
    return solid


def _remeshed(mesh: Mesh, resolution: int, min_part: float) -> Mesh:
    from scipy.ndimage import binary_fill_holes, distance_transform_edt

    vertices, faces = closed_soup(mesh.vertices.double().numpy(), mesh.faces.numpy())
    if volume(Mesh(torch.from_numpy(vertices), torch.from_numpy(faces))) < 0:  # inside out, and so closed to the wrong side
        vertices, faces = closed_soup(mesh.vertices.double().numpy(), mesh.faces.flip(1).numpy())
    low, high = vertices[np.unique(faces)].min(0), vertices[np.unique(faces)].max(0)
    voxel = float((high - low).max()) / resolution
    # Off the round numbers that boxes have, where a grid point would lie in a face.
    low = low - voxel * (MARGIN + np.array([0.137, 0.291, 0.419]))
    size = tuple(int(n) for n in np.ceil((high - low) / voxel) + MARGIN + 1)
    scene = _scene(vertices, faces)
    winding = np.median([_winding(scene, vertices, faces, low, voxel, size, axis) for axis in range(3)], axis=0)
    inside = _large_pieces(binary_fill_holes(winding >= 1), min_part)
    if not inside.any():
        raise StoppedLate("The mesh encloses nothing, so there is no solid to print; make a mesh from more sides.")
    away = np.maximum(distance_transform_edt(inside), distance_transform_edt(~inside))  # voxels; at least 1
    band = np.flatnonzero(away <= BAND)
    points = low + voxel * np.stack(np.unravel_index(band, size), axis=1)
    exact = scene.compute_distance(open3d().core.Tensor(points.astype(np.float32))).numpy() / voxel
    distance = np.minimum(away, BAND).reshape(-1)
    distance[band] = np.clip(exact, NEAREST, BAND)
    signed = np.where(inside, -1, 1) * distance.reshape(size)
    solid = marching_cubes(torch.from_numpy(signed), torch.from_numpy(low).float(), voxel)
    assert solid is not None and is_closed(solid), "the level set is torn"
    return solid


def closed_soup(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V', 3] and faces [F', 3] with triangles added so that every edge is passed as often forth as back.

    Small holes get a fan of triangles to their middle. Where the surface as a whole is open to one side, the edges of the
    others are continued to a plane beyond it. The added triangles may cut through others; the winding number does not mind.
    """
    edges, hole = _open_edges(faces)  # [E, 2] as the surface passes them, [E] which hole
    if not len(edges):
        return vertices, faces
    extent = float(np.ptp(vertices, axis=0).max())
    holes = int(hole.max()) + 1
    corners, owner = edges.reshape(-1), np.repeat(hole, 2)
    lows, highs = np.full((holes, 3), np.inf), np.full((holes, 3), -np.inf)
    np.minimum.at(lows, owner, vertices[corners])
    np.maximum.at(highs, owner, vertices[corners])
    middle = np.stack([np.bincount(owner, vertices[corners, k], holes) for k in range(3)], 1) / np.bincount(owner)[:, None]
    small = np.linalg.norm(highs - lows, axis=1) < SMALL_HOLE * extent
    crosses = face_crosses(vertices, faces)
    facing, area = crosses.sum(0), np.linalg.norm(crosses, axis=1).sum()
    if np.linalg.norm(facing) < OPEN * area:
        small[:] = True
    start = len(vertices)
    apex = start + np.arange(holes)
    here = small[hole]
    caps = np.stack([edges[here, 1], edges[here, 0], apex[hole[here]]], axis=1)
    if small.all():
        return np.concatenate([vertices, middle]), np.concatenate([faces, caps])
    down = -facing / np.linalg.norm(facing)
    down = np.array([0.0, -1.0, 0.0]) if -down[1] > UPRIGHT else down
    level = (vertices @ down).max() + BASE * extent
    middle[~small] += (level - middle[~small] @ down)[:, None] * down
    rim, number = np.unique(edges[~here], return_inverse=True)
    foot = vertices[rim] + (level - vertices[rim] @ down)[:, None] * down
    a, b = edges[~here].T
    below_a, below_b = (start + holes + number.reshape(-1, 2)).T
    walls = [np.stack(x, axis=1) for x in ((b, a, below_a), (b, below_a, below_b), (below_b, below_a, apex[hole[~here]]))]
    return np.concatenate([vertices, middle, foot]), np.concatenate([faces, caps, *walls])


def _open_edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[E, 2] directed edges that are passed more often forth than back, once for each time, and [E] the hole of each."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forth = edges[:, 0] < edges[:, 1]
    pairs, where = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True)
    net = np.bincount(where.reshape(-1), np.where(forth, 1, -1), len(pairs)).astype(np.int64)
    open_ = np.flatnonzero(net)
    directed = np.where(net[open_, None] > 0, pairs[open_], pairs[open_][:, ::-1])
    directed = np.repeat(directed, np.abs(net[open_]), axis=0)
    used, number = np.unique(directed, return_inverse=True)
    number = number.reshape(-1, 2)
    links = coo_matrix((np.ones(len(number)), number.T), shape=(len(used),) * 2)
    return directed, connected_components(links, directed=False)[1][number[:, 0]] if len(number) else np.zeros(0, np.int64)


def _winding(scene, vertices: np.ndarray, faces: np.ndarray, low: np.ndarray, voxel: float, size, axis: int) -> np.ndarray:
    """[X, Y, Z] int16 winding numbers, counted along `axis`: how many more times the ray leaves the solid than it enters."""
    others = [k for k in range(3) if k != axis]
    across = [np.arange(size[k]) for k in others]
    first, second = np.meshgrid(*across, indexing="ij")
    rays = np.zeros((first.size, 6), np.float32)
    rays[:, axis] = low[axis] - voxel
    rays[:, others[0]] = low[others[0]] + voxel * first.reshape(-1)
    rays[:, others[1]] = low[others[1]] + voxel * second.reshape(-1)
    rays[:, 3 + axis] = 1
    hits = scene.list_intersections(open3d().core.Tensor(rays))
    ray = hits["ray_ids"].numpy().astype(np.int64)
    leaves = np.sign(face_crosses(vertices, faces)[:, axis])[hits["primitive_ids"].numpy().astype(np.int64)].astype(np.int16)
    before = np.clip(np.ceil(hits["t_hit"].numpy().astype(np.float64) / voxel - 1), 0, size[axis]).astype(np.int64)
    steps = np.zeros((first.size, size[axis] + 1), np.int16)  # grid points before each hit
    np.add.at(steps, (ray, before), leaves)
    winding = steps[:, ::-1].cumsum(1, dtype=np.int16)[:, ::-1][:, 1:]
    return np.moveaxis(winding.reshape(*first.shape, size[axis]), -1, axis)


def _large_pieces(inside: np.ndarray, min_part: float) -> np.ndarray:
    from scipy.ndimage import label

    piece, count = label(inside)
    voxels = np.bincount(piece.reshape(-1), minlength=count + 1)
    voxels[0] = 0
    return (voxels >= max(min_part * voxels.max(), 1))[piece]


def _scene(vertices: np.ndarray, faces: np.ndarray):
    o3d = open3d()
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.core.Tensor(vertices.astype(np.float32)), o3d.core.Tensor(faces.astype(np.uint32)))
    return scene
