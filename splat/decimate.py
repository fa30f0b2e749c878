"""Fewer triangles, and clean ones: what a mesh needs before it is unwrapped, textured or printed."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from splat.errors import InputError, check_finite
from splat.mesh import Mesh
from splat.open3d_import import open3d

log = logging.getLogger(__name__)

WELD = 1e-6  # vertices nearer than this fraction of the mesh's extent are one
FLAT = 1e-12  # triangles with less area than this, in squared extents, are none
FOLDED = -0.2  # cosine between a triangle's normal and its neighbours' below which the surface has folded over
RELAXATIONS = 10  # rounds in which folds are smoothed out


def cleaned(mesh: Mesh, min_part: float = 0.0) -> Mesh:
    """`mesh` without what breaks later steps: vertices twice at one place, triangles without area or there twice, specks.

    Connected parts with less area than `min_part` of the whole are dropped. Colours, texture and uvs stay. Raises
    `InputError` for vertices that are not finite and where no triangle with an area is left.
    """
    check_finite(mesh.vertices, "The mesh's vertices")
    vertices = mesh.vertices.detach().cpu().float()
    faces = mesh.faces.cpu()
    extent = float((vertices.amax(0) - vertices.amin(0)).max()) if len(vertices) else 0.0
    if not len(faces) or extent == 0:
        raise InputError(f"The mesh has {len(faces)} triangles and no area; make it again from splats that show a surface.")
    first, where = _welded(vertices.numpy(), WELD * extent)
    faces = torch.from_numpy(where)[faces]
    kept = _good_faces(vertices.numpy()[first], faces.numpy(), FLAT * extent**2)
    if not kept.any():
        raise InputError(
            f"None of the mesh's {len(faces)} triangles has an area; make it again from splats that show a surface."
        )
    chosen = torch.from_numpy(np.flatnonzero(kept))
    if min_part > 0:
        chosen = chosen[torch.from_numpy(_in_large_part(vertices.numpy()[first], faces[chosen].numpy(), min_part))]
    first = torch.from_numpy(first)
    return replace(
        _with_faces(vertices[first], faces[chosen], None if mesh.colors is None else mesh.colors.detach().cpu()[first]),
        uvs=None if mesh.uvs is None else mesh.uvs[chosen],
        texture=mesh.texture,
    )


def decimated(mesh: Mesh, faces: int, min_part: float = 1e-4) -> Mesh:
    """`mesh` with at most `faces` triangles, their normals as before; vertex colours from the nearest old surface.

    Quadric edge collapse (Garland and Heckbert 1997); where the collapse folds the surface over, it is smoothed flat again
    (Laplacian, on the folds alone). A texture is dropped: bake a new one. A mesh that is small enough is only cleaned.
    Deterministic. Raises `InputError` as `cleaned` does, and for a budget below 4 triangles.
    """
    if faces < 4:
        raise InputError(f"{faces} triangles enclose nothing; give at least 4.")
    mesh = cleaned(replace(mesh, uvs=None, texture=None), min_part)
    if len(mesh.faces) <= faces:
        return mesh
    import fast_simplification

    old, triangles = mesh.vertices.numpy(), mesh.faces.numpy().astype(np.int32)
    # The gentlest pace that reaches the goal: a higher one collapses edges in a worse order.
    for aggressiveness in (3, 5, 7, 9):
        points, corners = fast_simplification.simplify(old, triangles, target_count=faces, agg=aggressiveness)
        if len(corners) <= faces:
            break
    else:
        raise InputError(f"The mesh falls into too many parts for {faces} triangles; give at least {len(corners)}.")
    simple = cleaned(Mesh(torch.from_numpy(points.astype(np.float32)), torch.from_numpy(corners.astype(np.int64))))
    flat = _unfolded(simple.vertices.double().numpy(), simple.faces.numpy())
    simple = cleaned(replace(simple, vertices=torch.from_numpy(flat.astype(np.float32))))
    log.info("mesh simplified from %d to %d triangles", len(mesh.faces), len(simple.faces))
    return simple if mesh.colors is None else replace(simple, colors=colors_at(mesh, simple.vertices))


def colors_at(mesh: Mesh, points: Tensor) -> Tensor:
    """Vertex colours of `mesh`, blended at the nearest place of its surface to each of `points` [N, 3]; [N, 3]."""
    assert mesh.colors is not None
    near = _nearest(mesh, points)
    corners = mesh.colors.detach().cpu()[mesh.faces.cpu()[near["primitive_ids"]]]  # [N, 3 corners, 3]
    u, v = near["primitive_uvs"].unbind(-1)
    return (torch.stack([1 - u - v, u, v], dim=-1)[..., None] * corners).sum(1)


def _nearest(mesh: Mesh, points: Tensor) -> dict[str, Tensor]:
    """The nearest triangle of `mesh` to each point [N, 3] and the barycentric place of its second and third corner there."""
    o3d = open3d()
    scene = o3d.t.geometry.RaycastingScene()
    vertices = o3d.core.Tensor(mesh.vertices.detach().cpu().float().contiguous().numpy())
    scene.add_triangles(vertices, o3d.core.Tensor(mesh.faces.cpu().to(torch.uint32).numpy()))
    found = scene.compute_closest_points(o3d.core.Tensor(points.detach().cpu().float().contiguous().numpy()))
    return {
        "primitive_ids": torch.from_numpy(found["primitive_ids"].numpy().astype(np.int64)),
        "primitive_uvs": torch.from_numpy(found["primitive_uvs"].numpy().copy()),
    }


def _welded(vertices: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """The first vertex of each group within about `distance`, [V'], and the group of every vertex, [V]; order is kept."""
    cells = np.round(vertices.astype(np.float64) / distance).astype(np.int64)
    _, first, group = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[group.reshape(-1)]


def _good_faces(vertices: np.ndarray, faces: np.ndarray, least_area: float) -> np.ndarray:
    """[F] which triangles have three corners and an area and are not there twice."""
    area = 0.5 * np.linalg.norm(face_crosses(vertices, faces), axis=1)
    a, b, c = faces.T
    good = np.flatnonzero((a != b) & (b != c) & (c != a) & (area > least_area))
    # Triangles with the same three corners: one stays, on the side that most of them show, or none where they cancel.
    order = np.argsort(faces[good], axis=1)
    swaps = (order[:, 0] > order[:, 1]).astype(int) + (order[:, 0] > order[:, 2]) + (order[:, 1] > order[:, 2])
    turn = 1 - 2 * (swaps % 2)
    _, same = np.unique(np.take_along_axis(faces[good], order, axis=1), axis=0, return_inverse=True)
    same = same.reshape(-1)
    shown = np.sign(np.bincount(same, turn))[same]
    wanted = np.flatnonzero(turn == shown)
    _, first = np.unique(same[wanted], return_index=True)
    kept = np.zeros(len(faces), dtype=bool)
    kept[good[wanted[first]]] = True
    return kept


def _in_large_part(vertices: np.ndarray, faces: np.ndarray, min_part: float) -> np.ndarray:
    """[F] whether a triangle's connected part has at least `min_part` of the area of all, or is the largest."""
    part = parts(faces, len(vertices))
    area = np.bincount(part, 0.5 * np.linalg.norm(face_crosses(vertices, faces), axis=1))
    return ((area >= min_part * area.sum()) | (area == area.max()))[part]


def parts(faces: np.ndarray, vertices: int) -> np.ndarray:
    """[F] the number of the connected part that each triangle belongs to."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    links = coo_matrix((np.ones(len(edges), dtype=bool), edges.T), shape=(vertices, vertices))
    return np.unique(connected_components(links, directed=False)[1][faces[:, 0]], return_inverse=True)[1].reshape(-1)


def face_crosses(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[F, 3] float64 normals as long as twice the areas."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[V, 3] float64 unit normals, means of the triangles round each vertex by area; 0 where none is."""
    crosses = face_crosses(vertices, faces)
    total = np.stack([np.bincount(faces.reshape(-1), np.repeat(crosses[:, k], 3), len(vertices)) for k in range(3)], axis=1)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-30)


def _unfolded(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The vertices of folded triangles pulled to their neighbours' middle until no triangle lies against those round it."""
    from scipy.sparse import coo_matrix, diags

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    both = np.concatenate([edges, edges[:, ::-1]])
    links = coo_matrix((np.ones(len(both)), both.T), shape=(len(vertices),) * 2).tocsr()
    links.data[:] = 1
    mean = diags(1 / np.maximum(links.sum(1).A1, 1)) @ links
    vertices = vertices.copy()
    for _ in range(RELAXATIONS):
        folded = folds(vertices, faces)
        if not folded.any():
            break
        moved = np.unique(faces[folded])
        vertices[moved] = 0.5 * vertices[moved] + 0.5 * (mean @ vertices)[moved]
    return vertices


def folds(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """[F] whether a triangle's normal points against those of the surface round it."""
    crosses = face_crosses(vertices, faces)
    size = np.linalg.norm(crosses, axis=1)
    round_it = vertex_normals(vertices, faces)[faces].sum(1)
    length = np.linalg.norm(round_it, axis=1)
    return (crosses * round_it).sum(1) < FOLDED * size * length


def _with_faces(vertices: Tensor, faces: Tensor, colors: Tensor | None) -> Mesh:
    """Only the vertices that are used, in their order."""
    used, renumbered = torch.unique(faces, return_inverse=True)
    return Mesh(vertices[used], renumbered.reshape(-1, 3), None if colors is None else colors[used])
