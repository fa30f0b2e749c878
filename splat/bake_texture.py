"""The texture of an unwrapped mesh, from pictures with cameras: photos, and renders of the splats.

Every texel looks for itself in every picture. It is a mean over those that see it, in which the pictures that look straight at
the surface, from near, and well inside the outlines count most (after Callieri et al. 2008, "Masked photo blending", and
Waechter et al. 2014, "Let there be color!", for what is left out). The weights vary smoothly over the surface: they use
normals that are blended between the vertices, and fade to nothing where visibility ends. So the two sides of a cut between
charts, which are the same place, get the same colour, and no seam is to be levelled afterwards. Photos are levelled before:
`splat.level_photos`.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from splat.cameras import Cameras
from splat.decimate import vertex_normals
from splat.errors import InputError
from splat.mesh import Mesh
from splat.open3d_import import open3d
from splat.progress import Progress, result_of
from splat.raycast import GREY, bilinear, pixel_rays
from splat.unwrap import check_size
from splat.views import Views

log = logging.getLogger(__name__)

UNSEEN = 1e-6  # weight, of the largest, below which a texel counts as seen by no picture
TINY = 1e-30
BLOCK = 512  # rows of the texture that are looked up at a time
CACHE = 400e6  # bytes of what pictures show at the texels that are kept for the second look at them


@dataclass(frozen=True)
class BakeConfig:
    """How pictures become a texture."""

    size: int = 1024  # px, side of the square texture
    sharpness: float = 4.0  # power of the cosine between ray and surface; higher takes the straightest pictures almost alone
    grazing: float = 0.15  # cosine at which a picture begins to count
    margin: float = 3.0  # px from the outlines, in the picture, over which its weight rises
    mixed: float = 1.5  # px at the outlines whose colours are mixed with what is behind: the last resort
    depth_error: float = 0.01  # a texel this fraction of its depth behind the surface that the picture shows is hidden
    outlier: float = 0.12  # colour difference, in sRGB, from the mean of all pictures at which a picture counts a third


@dataclass(frozen=True)
class _Texels:
    """The M texels that show a surface."""

    rows: np.ndarray  # [M] flat index into the texture
    face: np.ndarray  # [M]
    weights: np.ndarray  # [M, 3] of the triangle's corners
    points: np.ndarray  # [M, 3] float32, world
    normals: np.ndarray  # [M, 3] float32 unit, blended between the vertices


def baked(mesh: Mesh, sources: Iterable[Views], config: BakeConfig | None = None) -> Mesh:
    """`bake`, without the events."""
    return result_of(bake(mesh, sources, config))


def bake(mesh: Mesh, sources: Iterable[Views], config: BakeConfig | None = None) -> Generator[Progress, None, Mesh]:
    """`mesh` (with uvs) with a texture [size, size, 3] sRGB; yields stage "texture", a step a picture.

    `sources` are posed pictures of the mesh's world; their masks say how much a pixel counts, in [0, 1], and below half of a
    picture's highest value lies what is not to be seen. They are held one at a time and, for large textures, gone through
    twice: an object that makes them anew keeps memory flat. Texels that no picture sees continue the colours round them, over
    the surface, from the mesh's vertex colours if it has them (grey if nothing is seen at all). On the CPU, deterministic, not
    differentiable. Raises `InputError` without uvs, cameras, or for an impossible size.
    """
    config = config or BakeConfig()
    check_size(config.size)
    if mesh.uvs is None:
        raise InputError("The mesh has no texture coordinates; unwrap it first.")
    texels = _texels(mesh, config.size)
    scene = _scene(mesh.vertices.detach().cpu().float().numpy(), mesh.faces.cpu().numpy())
    sources = list(sources) if isinstance(sources, Iterator) else sources
    pictures = max(_count(sources), 1)
    kept, held = [], 0
    first = np.zeros((2, len(texels.rows), 4), np.float32)  # seen well inside the outlines, and at them
    for number, sample in enumerate(_samples(texels, scene, sources, config)):
        rows, rgb, weight, sure = sample
        # To tell what contradicts the rest, the pictures vote almost alike: the straightest alone would decide.
        _add(first, rows, rgb, np.sqrt(np.sqrt(weight)) if config.outlier > 0 else weight, sure)
        held += sum(x.nbytes for x in sample)
        kept = [*kept, sample] if kept is not None and held < CACHE else None
        yield Progress("texture", number + 1, max(pictures, number + 1), "blending the pictures")
    means, weights = first[..., :3] / np.maximum(first[..., 3:], TINY), first[..., 3]
    if config.outlier > 0:
        total = np.zeros_like(first)
        for rows, rgb, weight, sure in kept if kept is not None else _samples(texels, scene, sources, config):
            away = np.square(rgb - np.where(sure[:, None], means[0, rows], means[1, rows])).sum(1) / config.outlier**2
            _add(total, rows, rgb, weight / np.square(1 + 0.73 * away), sure)  # a third at that difference, then far less
        means, weights = total[..., :3] / np.maximum(total[..., 3:], TINY), total[..., 3]
        yield Progress("texture", pictures, pictures, "what contradicts the rest left out")
    seen = weights > UNSEEN * weights.max(initial=0)
    colours = _filled(mesh, texels, means, seen)
    texture = _dilated(texels.rows, colours, config.size)
    log.info("%d of %d texels are seen by no picture", int((~seen.any(0)).sum()), len(texels.rows))
    return replace(mesh, texture=torch.from_numpy(texture))


def _samples(texels: _Texels, scene, sources: Iterable[Views], config: BakeConfig) -> Iterator[tuple[np.ndarray, ...]]:
    """For each picture what `_seen_in` finds in it."""
    for views in sources:
        if views.cameras is None:
            raise InputError("Pictures without cameras cannot be baked into a texture.")
        for i in range(len(views)):
            mask = None if views.masks is None else views.masks[i].cpu().numpy()
            yield _seen_in(texels, scene, views.images[i].cpu().numpy(), views.cameras[i].to("cpu"), mask, config)


def _add(total: np.ndarray, rows: np.ndarray, rgb: np.ndarray, weight: np.ndarray, sure: np.ndarray) -> None:
    for part, chosen in zip(total, (sure, ~sure), strict=True):
        part[rows[chosen], :3] += weight[chosen, None] * rgb[chosen]
        part[rows[chosen], 3] += weight[chosen]


def _count(sources: Iterable[Views]) -> int:
    """How many pictures there are, as far as that can be known."""
    return sum(len(v) for v in sources) if isinstance(sources, list | tuple) else getattr(sources, "pictures", 0)


def _texels(mesh: Mesh, size: int) -> _Texels:
    """Which texels show what: the texture seen as a flat scene of triangles, one ray down through each texel's centre."""
    vertices, faces = mesh.vertices.detach().cpu().float().numpy(), mesh.faces.cpu().numpy()
    uvs = mesh.uvs.detach().cpu().double().numpy() * size  # [F, 3, 2] px, y up
    flat = np.concatenate([uvs, np.zeros((*uvs.shape[:2], 1))], axis=-1).reshape(-1, 3).astype(np.float32)
    scene = _scene(flat, np.arange(len(flat)).reshape(-1, 3))
    o3d = open3d()
    face, uv, covered = np.zeros(size * size, np.int32), np.zeros((size * size, 2), np.float32), np.zeros(size * size, bool)
    for top in range(0, size, BLOCK):  # rows of the picture, from its upper edge
        bottom = min(top + BLOCK, size)
        rays = np.zeros((bottom - top, size, 6), np.float32)
        rays[..., 0] = np.arange(size) + 0.5
        rays[..., 1] = (size - np.arange(top, bottom) - 0.5)[:, None]
        rays[..., 2], rays[..., 5] = 1.0, -1.0
        hits = scene.cast_rays(o3d.core.Tensor(rays))
        part = slice(top * size, bottom * size)
        covered[part] = np.isfinite(hits["t_hit"].numpy().reshape(-1))
        face[part] = hits["primitive_ids"].numpy().reshape(-1).astype(np.int32)  # of no triangle: -1
        uv[part] = hits["primitive_uvs"].numpy().reshape(-1, 2)
    # A triangle between the centres of texels gets the texel in which its own centre lies, if that is free.
    missing = np.setdiff1d(np.arange(len(faces)), face[covered])
    middle = np.clip(np.floor(uvs[missing].mean(1)).astype(np.int64), 0, size - 1)
    spot = (size - 1 - middle[:, 1]) * size + middle[:, 0]
    spot, first = np.unique(spot, return_index=True)
    free = ~covered[spot]
    spot, missing = spot[free], missing[first[free]]
    face[spot], uv[spot], covered[spot] = missing, 1 / 3, True
    rows = np.flatnonzero(covered)
    face, uv = face[rows], uv[rows]
    weights = np.stack([1 - uv[:, 0] - uv[:, 1], uv[:, 0], uv[:, 1]], axis=1)
    normals, points = np.zeros((2, len(rows), 3), np.float32)
    of_vertices = vertex_normals(vertices, faces).astype(np.float32)
    for k in range(3):
        normals += weights[:, [k]] * of_vertices[faces[face, k]]
        points += weights[:, [k]] * vertices[faces[face, k]]
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return _Texels(rows, face, weights, points, normals)


def _seen_in(
    texels: _Texels, scene, image: np.ndarray, camera: Cameras, mask: np.ndarray | None, config: BakeConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The texels that one picture sees: rows [m], colours [m, 3], weights [m], whether they lie clear of all outlines [m]."""
    K, pose = camera.K[0].numpy(), camera.cam_from_world[0].numpy()
    width, height = camera.width, camera.height
    eye = camera.centers[0].numpy()
    towards = eye - texels.points
    distance = np.linalg.norm(towards, axis=1)
    cosine = np.einsum("md,md->m", towards, texels.normals) / np.maximum(distance, 1e-12)
    rows = np.flatnonzero(cosine > config.grazing)
    in_cam = texels.points[rows] @ pose[:3, :3].T + pose[:3, 3]
    z = in_cam[:, 2]
    pixel = (in_cam @ K.T)[:, :2] / np.where(z > 1e-9, z, 1.0)[:, None]
    inside = (z > 1e-9) & (pixel > 0).all(1) & (pixel[:, 0] < width) & (pixel[:, 1] < height)
    rows, pixel, z = rows[inside], pixel[inside], z[inside]
    shown = scene.cast_rays(open3d().core.Tensor(pixel_rays(camera)))["t_hit"].numpy()
    shown = np.where(np.isfinite(shown), shown, 0.0).astype(np.float32)  # [H, W] depth of the mesh
    away = _away_from_outlines(shown, mask, config)
    column, row = pixel[:, 0].astype(np.int64), pixel[:, 1].astype(np.int64)
    # Hidden is what lies behind all four of the pixels round it: at a slant, one may show a nearer part of the same face.
    near = bilinear_corners(shown, pixel)
    visible = (z < near.max(0) * (1 + config.depth_error)) & (shown[row, column] > 0)
    uv = pixel / [width, height]
    uv[:, 1] = 1 - uv[:, 1]
    inward = bilinear(away[..., None], uv)[:, 0] - config.mixed
    sure = inward > 0
    x = np.clip(np.where(sure, inward, inward + config.mixed) / config.margin, 0, 1)
    fade = x * x * (3 - 2 * x)
    if mask is not None:
        fade = fade * np.clip(mask[row, column], 0, 1)
    facing = (cosine[rows] - config.grazing) / (1 - config.grazing)
    footprint = (camera.K[0, 0, 0].item() / z) ** 2  # squared px a unit: nearer pictures show more
    weight = np.where(visible, facing**config.sharpness * fade * footprint, 0.0)
    kept = weight > 0
    return rows[kept].astype(np.int32), bilinear(image, uv[kept]), weight[kept].astype(np.float32), sure[kept]


def bilinear_corners(image: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """[4, m]: the values of `image` [H, W] at the four pixels whose centres lie round `pixel` [m, 2]."""
    height, width = image.shape
    x, y = np.floor(pixel[:, 0] - 0.5).astype(np.int64), np.floor(pixel[:, 1] - 0.5).astype(np.int64)
    x0, x1 = np.clip(x, 0, width - 1), np.clip(x + 1, 0, width - 1)
    y0, y1 = np.clip(y, 0, height - 1), np.clip(y + 1, 0, height - 1)
    return np.stack([image[y0, x0], image[y0, x1], image[y1, x0], image[y1, x1]])


def _away_from_outlines(depth: np.ndarray, mask: np.ndarray | None, config: BakeConfig) -> np.ndarray:
    """[H, W] px to the nearest outline of the mesh or of what the mask leaves, 0 beyond; half a px at the first pixel inside.

    An outline is where the depth jumps; a slanted plane's depth is no jump, since 1 / depth is linear over the picture.
    """
    from scipy.ndimage import distance_transform_edt

    inverse = np.where(depth > 0, 1 / np.maximum(depth, 1e-9), 0.0)
    jump = np.zeros(depth.shape, dtype=bool)
    for axis in (0, 1):
        bend = np.abs(np.diff(inverse, 2, axis=axis))
        here = bend > 2 * config.depth_error * np.maximum(inverse.take(range(1, depth.shape[axis] - 1), axis), 1e-9)
        middle = [slice(None)] * 2
        middle[axis] = slice(1, -1)
        jump[tuple(middle)] |= here
    open_ = (depth > 0) & ~jump
    if mask is not None:
        open_ &= mask > 0.5 * mask.max()
    padded = np.pad(open_, 1)  # the frame is an outline too
    return np.maximum(distance_transform_edt(padded)[1:-1, 1:-1] - 0.5, 0).astype(np.float32)


def _filled(mesh: Mesh, texels: _Texels, means: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """[M, 3] colours of all texels: what was seen, and beyond it what continues it smoothly over the surface.

    The membrane of Pérez et al. 2003 ("Poisson image editing") on the mesh's graph: the difference between the seen colours and
    the mesh's vertex colours is spread harmonically over the unseen vertices. `means` [2, M, 3] and `seen` [2, M] are of what
    was seen clear of outlines, and at them; the latter counts only in triangles that are nowhere seen better.
    """
    faces, vertices = mesh.faces.cpu().numpy(), len(mesh.vertices)
    clear = seen[0]
    well = np.zeros(vertices, dtype=bool)
    well[faces[texels.face[clear]]] = True
    known = clear | (seen[1] & ~well[faces[texels.face]].all(1))
    colours = np.where(clear[:, None], means[0], means[1])
    if known.all():
        return colours
    base = np.full((vertices, 3), GREY) if mesh.colors is None else mesh.colors.detach().cpu().double().numpy()
    blended = np.einsum("mk,mkd->md", texels.weights, base[faces[texels.face]])
    # How far what was seen is from the vertex colours, at each vertex: the texels of its triangles, the nearer the more.
    corners = faces[texels.face[known]].reshape(-1)
    share = np.square(texels.weights[known]).reshape(-1) + 1e-9
    weight = np.bincount(corners, share, vertices)
    away = np.repeat((colours - blended)[known], 3, axis=0)
    found = np.stack([np.bincount(corners, share * away[:, k], vertices) for k in range(3)], axis=1)
    offset = _harmonic(faces, weight > 0, found / np.maximum(weight, 1e-30)[:, None])
    hidden = ~known
    spread = np.einsum("mk,mkd->md", texels.weights[hidden], offset[faces[texels.face[hidden]]])
    colours[hidden] = blended[hidden] + spread
    return colours


def _harmonic(faces: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` [V, 3] where `known`, and beyond the mean of each vertex's neighbours; 0 in parts where nothing is known."""
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import spsolve

    if known.all() or not known.any():
        return values
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    both = np.concatenate([edges, edges[:, ::-1]])
    links = coo_matrix((np.ones(len(both)), both.T), shape=(len(known),) * 2).tocsr()
    links.data[:] = 1
    unknown = np.flatnonzero(~known)
    # A little pull to 0 keeps parts solvable that touch nothing known, and far places near the mesh's own colours.
    system = (diags(links.sum(1).A1 + 1e-3) - links).tocsc()[unknown]
    right = -system[:, np.flatnonzero(known)] @ values[known]
    out = values.copy()
    out[unknown] = spsolve(system[:, unknown].tocsc(), right).reshape(-1, 3)
    return out


def _dilated(rows: np.ndarray, colours: np.ndarray, size: int) -> np.ndarray:
    """[size, size, 3] float32: the texels, and everywhere else the colour of the nearest of them."""
    from scipy.ndimage import distance_transform_edt

    texture = np.zeros((size * size, 3), np.float32)
    empty = np.ones(size * size, dtype=bool)
    texture[rows], empty[rows] = np.clip(colours, 0, 1), False
    nearest = distance_transform_edt(empty.reshape(size, size), return_distances=False, return_indices=True)
    return texture.reshape(size, size, 3)[nearest[0], nearest[1]]


def _scene(vertices: np.ndarray, faces: np.ndarray):
    o3d = open3d()
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.core.Tensor(np.ascontiguousarray(vertices, np.float32)), o3d.core.Tensor(faces.astype(np.uint32)))
    return scene
