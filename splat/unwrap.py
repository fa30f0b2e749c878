"""Texture coordinates for a mesh: cut into charts, flattened and packed by xatlas."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from splat.decimate import cleaned
from splat.errors import InputError
from splat.mesh import Mesh

log = logging.getLogger(__name__)

LEAST_SIZE, MOST_SIZE = 16, 4096  # px of a texture: many phones take no more
MOST_FACES = 500_000
MOST_AT_ONCE = 15_000  # triangles that one run of xatlas cuts into charts: its time grows faster than their number
TRIES = 4  # packings, each nearer to the wanted size
FIT = 0.99  # share of the wanted size that a packing aims at


@dataclass(frozen=True)
class UnwrapConfig:
    """How a mesh is flattened."""

    size: int = 1024  # px, side of the square texture that the charts are packed for
    padding: int = 2  # px between charts, so that filtering does not mix them


def unwrapped(mesh: Mesh, config: UnwrapConfig | None = None) -> Mesh:
    """`mesh`, cleaned, with uvs whose charts do not overlap and lie `padding` px apart in a square texture of `size` px.

    Vertices and vertex colours are kept; an old texture is dropped. Deterministic. Raises `InputError` for sizes that are no
    texture's, too many triangles, and as `splat.decimate.cleaned` does.
    """
    config = config or UnwrapConfig()
    check_size(config.size)
    mesh = cleaned(replace(mesh, uvs=None, texture=None))
    if len(mesh.faces) > MOST_FACES:
        raise InputError(f"The mesh has {len(mesh.faces):,} triangles, too many to unwrap; give at most --faces {MOST_FACES}.")
    corners, side, charts = _packed(mesh, config)
    log.info("%d triangles unwrapped into %d charts", len(mesh.faces), charts)
    return replace(mesh, uvs=torch.from_numpy((corners / side).astype(np.float32)))


def check_size(size: int) -> None:
    """Raises `InputError` for a side that no texture has."""
    if not LEAST_SIZE <= size <= MOST_SIZE:
        raise InputError(f"A texture of {size} px cannot be made; give {LEAST_SIZE} to {MOST_SIZE}.")


def _packed(mesh: Mesh, config: UnwrapConfig) -> tuple[np.ndarray, int, int]:
    """Corners [F, 3, 2] in px of a square, its side, and how many charts it holds."""
    charts, side, count = _charts(mesh, config)
    unit = side  # xatlas wants coordinates of about 1
    # The first packing misses the size by a fifth: the same charts are packed again, larger or smaller, until they fit.
    scale, best = 1.0, (charts, side)
    for _ in range(TRIES):
        scale *= FIT * config.size / side
        corners, side = _repacked(charts / unit, unit * scale, config)
        if best[1] > config.size or best[1] < side <= config.size:
            best = corners, side
        if FIT**2 * config.size <= side <= config.size:
            break
    return _attached(best[0], mesh.faces.numpy()), max(best[1], config.size), count


def _charts(mesh: Mesh, config: UnwrapConfig) -> tuple[np.ndarray, int, int]:
    """Charts as xatlas cuts them, packed for about the wanted size."""
    import xatlas

    atlas = xatlas.Atlas()
    vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
    pieces = _pieces(vertices[faces].mean(1), MOST_AT_ONCE)
    for rows in pieces:
        used, corners = np.unique(faces[rows], return_inverse=True)
        atlas.add_mesh(vertices[used], corners.reshape(-1, 3).astype(np.uint32))
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear = config.size, config.padding, True
    atlas.generate(xatlas.ChartOptions(), options)
    corners = np.zeros((len(faces), 3, 2))
    for number, rows in enumerate(pieces):
        corners[rows] = _corners(atlas, number)
    return corners, max(atlas.width, atlas.height), atlas.chart_count


def _repacked(corners: np.ndarray, texels_per_unit: float, config: UnwrapConfig) -> tuple[np.ndarray, int]:
    """The charts that `corners` [F, 3, 2] make up at another scale: corners in px, and the longer side of all."""
    import xatlas

    placed = np.isfinite(corners).all((1, 2))
    flat, faces = np.unique(corners[placed].reshape(-1, 2).astype(np.float32), axis=0, return_inverse=True)
    options = xatlas.PackOptions()
    options.padding, options.bilinear, options.texels_per_unit = config.padding, True, texels_per_unit
    atlas = xatlas.Atlas()
    atlas.add_uv_mesh(flat, faces.reshape(-1, 3).astype(np.uint32))
    atlas.generate(xatlas.ChartOptions(), options)
    moved = np.full(corners.shape, np.nan)
    moved[placed] = _corners(atlas, 0)
    return moved, max(atlas.width, atlas.height)


def _corners(atlas, number: int) -> np.ndarray:
    """[F, 3, 2] px in the atlas of one of its meshes; NaN for triangles that xatlas left out of all charts.

    To those, which have next to no area, it gives corners of several charts: they would lie across everything.
    """
    _, triangles, uvs = atlas.get_mesh(number)
    in_chart = np.zeros(len(triangles), dtype=bool)
    for chart in range(atlas.get_mesh_chart_count(number)):
        in_chart[np.asarray(atlas.get_mesh_chart(number, chart).faces, dtype=np.int64)] = True
    corners = (uvs.astype(np.float64) * [atlas.width, atlas.height])[triangles]
    corners[~in_chart] = np.nan
    return corners


def _attached(corners: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """`corners` [F, 3, 2] with the triangles of no chart (NaN) shrunk to the point of a neighbour's corner."""
    missing = np.flatnonzero(np.isnan(corners).any((1, 2)))
    if not len(missing):
        return corners
    point = np.full((int(faces.max()) + 1, 2), np.nan)
    placed = np.isfinite(corners).all((1, 2))
    point[faces[placed].reshape(-1)] = corners[placed].reshape(-1, 2)  # any of the places that a vertex has
    known = np.isfinite(point[faces[missing]]).all(-1)  # [m, 3]
    own = faces[missing, known.argmax(1)]
    corners = corners.copy()
    corners[missing] = np.where(known.any(1)[:, None], np.nan_to_num(point[own]), 0.0)[:, None]
    return corners


def _pieces(centres: np.ndarray, most: int) -> list[np.ndarray]:
    """Rows of `centres` [F, 3] in groups of at most `most` that lie together: halves across the longest side."""
    pieces, halves = [], [np.arange(len(centres))]
    while halves:
        rows = halves.pop()
        if len(rows) <= most:
            pieces.append(np.sort(rows))
            continue
        at = centres[rows]
        order = rows[np.argsort(at[:, np.ptp(at, axis=0).argmax()], kind="stable")]
        halves += [order[: len(order) // 2], order[len(order) // 2 :]]
    return pieces
