"""A triangle mesh of a splat scene: surface depth seen from the photos' cameras, fused in a truncated distance field.

Curless and Levoy, "A Volumetric Method for Building Complex Models from Range Images", 1996, over depth that is close to
the median of each pixel's blend; expected depth would put a surface between a thin veil and what is behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from splat import sh as harmonics
from splat.cameras import Cameras
from splat.errors import StoppedLate
from splat.gaussians import Splats
from splat.mesh import Mesh
from splat.open3d_import import open3d
from splat.render import RenderOptions, render

log = logging.getLogger(__name__)

CLEAR = 0.05  # opacity below which a pixel shows that its ray is empty


@dataclass(frozen=True)
class MeshConfig:
    """How splats become a mesh."""

    resolution: int = 320  # voxels along the longest side of the meshed region; never finer than the photos' pixels
    max_faces: int = 200_000  # triangles left after simplification
    min_alpha: float = 0.6  # pixels less covered than this show no surface
    max_spread: float = 0.03  # a pixel's blend deeper than this fraction of its depth is a surface only with a clear majority
    majority: float = 0.7  # the share of a deep blend's weight that must sit at one depth
    agreement: float = 0.03  # depths of two views closer than this fraction are one surface; twice as far behind denies it
    witnesses: int = 8  # other views that each view's surface is held against
    truncation: float = 5.0  # voxels over which depth maps of one surface are averaged
    reach: float = 0.75  # radius of the meshed region round the subject, in distances of the cameras from it
    min_part: float = 0.02  # connected parts with fewer triangles than this fraction of the largest are dropped
    low_pass: float = 0.3  # px^2 added to each Gaussian's picture, as in a viewer; more thickens what is thinner than a pixel
    carve: bool = False  # where a view shows nothing there is nothing: for an object on its own, seen from all round


def extract_mesh(
    splats: Splats,
    cameras: Sequence[Cameras],
    config: MeshConfig | None = None,
    masks: Sequence[Tensor | None] | None = None,
) -> Mesh:
    """The surface of `splats` as seen from `cameras` (batches of any sizes), with vertex colours, in the splats' frame.

    `masks`, one [C, H, W] or None a batch, hide the pixels below 0.5. What no camera sees has no surface, so the mesh is
    closed only where the cameras go all round. Raises `StoppedLate` when too few pixels show a surface. On the CPU apart
    from the rendering; not differentiable.
    """
    config = config or MeshConfig()
    masks = [None] * len(cameras) if masks is None else masks
    views = []  # (camera, depth [H, W] with 0 where there is no surface, rgb [H, W, 3]) on the CPU
    empty = []  # [H, W] where a view sees through the scene, or None
    for batch, mask in zip(cameras, masks, strict=True):
        for i in range(len(batch)):
            depth, rgb, alpha = surface_depth(splats, batch[i], config)
            hidden = torch.zeros_like(depth, dtype=torch.bool) if mask is None else mask[i].to(depth.device) < 0.5
            views.append((batch[i].to("cpu"), depth.masked_fill(hidden, 0).cpu(), rgb.cpu()))
            empty.append(((alpha < CLEAR) & ~hidden).cpu() if config.carve else None)
    views = _undenied(views, config)
    low, high, footprint = _region(views, config)
    voxel = max(float((high - low).max()) / config.resolution, 0.75 * footprint)
    mesh = _fused(views, empty, low, high, voxel, config)
    mesh = without_crumbs(mesh, config.min_part)
    return simplified(mesh, config.max_faces)


@torch.no_grad()
def surface_depth(splats: Splats, camera: Cameras, config: MeshConfig) -> tuple[Tensor, Tensor, Tensor]:
    """One camera -> depth [H, W] of the visible surface, world units, 0 where it is unclear, rgb [H, W, 3], alpha [H, W].

    Each pixel's blend is a distribution of weight over depth. Its first three moments, blended in place of the colours,
    tell its spread and its lean: a thin blend gets its median; a deep one is read as two layers (the two-point Gauss
    quadrature of those moments) and gets the layer that holds the majority, or nothing.
    """
    camera = camera.to(splats.means.device)
    z = splats.means @ camera.cam_from_world[0, 2, :3] + camera.cam_from_world[0, 2, 3]  # [N]
    in_front = z[z > 0]
    if not len(in_front):
        nothing = splats.means.new_zeros(camera.height, camera.width)
        return nothing, nothing[..., None].repeat(1, 1, 3), nothing
    # Depth as t in [0, 1), fine at the scene's own distance however far its background is; medians survive the change.
    scale = in_front.median()
    t = z.clamp_min(0) / (z.clamp_min(0) + scale)
    moments = torch.stack([t, t**2, t**3], dim=-1)
    options = RenderOptions(low_pass=config.low_pass)
    drawn = render(splats, camera, options)
    carrier = replace(splats, sh=harmonics.from_rgb(moments)[:, None])
    weighted = render(carrier, camera, options)
    alpha = weighted.alpha[0]
    first, second, third = (weighted.rgb[0].double() / alpha.double().clamp_min(1e-6)[..., None]).unbind(-1)
    variance = (second - first**2).clamp_min(1e-9)
    deviation = variance.sqrt()
    skew = (third - 3 * first * second + 2 * first**3) / variance**1.5
    # Unimodal: the median lies about skew / 6 deviations before the mean; the denominator keeps that sane for long tails.
    median = first - deviation * skew / (6 + skew**2)
    root = (1 + skew**2 / 4).sqrt()
    near_share = 0.5 + skew / 4 / root
    nearer, farther = first + deviation * (skew / 2 - root), first + deviation * (skew / 2 + root)
    layer = torch.where(near_share >= 0.5, nearer, farther)
    # dz/z = dt / (t (1 - t))
    thin = deviation < config.max_spread * first * (1 - first)
    clear = torch.maximum(near_share, 1 - near_share) > config.majority
    chosen = torch.where(thin, median, layer).clamp(1e-4, 1 - 1e-4)
    depth = scale * chosen / (1 - chosen)
    seen = (alpha > config.min_alpha) & (thin | clear)
    rgb = drawn.rgb[0] / drawn.alpha[0, ..., None].clamp_min(1e-6)
    return torch.where(seen, depth, 0).to(splats.means.dtype), rgb, alpha


def _points(camera: Cameras, depth: Tensor) -> Tensor:
    """[H, W, 3] world points of one camera's depth [H, W]; its centre where the depth is 0."""
    return camera.unproject(camera.pixel_centers, depth)


def _undenied(views: list, config: MeshConfig) -> list:
    """The views without the surface that more of the others look through than see: what floats before the scene."""
    eyes = torch.cat([camera.centers for camera, _, _ in views])
    kept = []
    for i, (camera, depth, rgb) in enumerate(views):
        order = (eyes - eyes[i]).norm(dim=-1).argsort()
        others = [j for j in order.tolist() if j != i]
        others = others[:: max(1, -(-len(others) // config.witnesses))]  # near and far ones
        seen = depth > 0
        points = _points(camera, depth)[seen]
        balance = torch.zeros(len(points))
        for j in others:
            there, surface, _ = views[j]
            pixels, z = there.project(points)
            column, row = pixels[0].floor().long().unbind(-1)
            inside = (z[0] > 0) & (column >= 0) & (row >= 0) & (column < there.width) & (row < there.height)
            found = surface[row.clamp(0, there.height - 1), column.clamp(0, there.width - 1)]
            behind = torch.where(inside, found, 0) / z[0] - 1  # -1 where that view shows nothing there
            balance += (behind.abs() < config.agreement).float() - (behind > 2 * config.agreement).float()
        depth = depth.clone()
        depth[seen] = torch.where(balance >= 0, depth[seen], 0)
        kept.append((camera, depth, rgb))
    return kept


def _region(views: list, config: MeshConfig) -> tuple[Tensor, Tensor, float]:
    """Corners [3], [3] of the box to mesh, and the world size of a pixel in it.

    The subject is where the middles of the pictures look; the box holds the surface points within `reach` of it.
    """
    middles, points, footprints = [], [], []
    for camera, depth, _ in views:
        seen = _points(camera, depth)
        h, w = depth.shape
        middle = (slice(h // 3, h - h // 3), slice(w // 3, w - w // 3))
        if bool((depth[middle] > 0).any()):
            middles.append(seen[middle][depth[middle] > 0].median(0).values)
        step = max(1, int((h * w * len(views) / 400_000) ** 0.5))
        rows = depth[::step, ::step] > 0
        points.append(seen[::step, ::step][rows])
        footprints.append(depth[::step, ::step][rows] / camera.K[0, 0, 0])
    points, footprints = torch.cat(points), torch.cat(footprints)
    if len(points) < 100:
        raise StoppedLate(
            f"Only {len(points)} pixels of {len(views)} views show a surface, too few for a mesh; "
            "fit longer, or add photos so that the splats become opaque."
        )
    centre = torch.stack(middles).median(0).values if middles else points.median(0).values
    eyes = torch.cat([camera.centers for camera, _, _ in views])
    reach = config.reach * (eyes - centre).norm(dim=-1).median()
    near = (points - centre).norm(dim=-1) < reach
    if near.float().mean() < 0.05:  # the cameras look past their subject: take everything
        near = torch.ones_like(near)
    low, high = (torch.from_numpy(np.quantile(points[near].numpy(), q, axis=0)).float() for q in (0.005, 0.995))
    margin = 0.03 * (high - low).max()
    return low - margin, high + margin, float(footprints[near].median())


def _fused(views: list, empty: list, low: Tensor, high: Tensor, voxel: float, config: MeshConfig) -> Mesh:
    """Integrate every view's depth inside the box, and the empty rays where they are given, and draw the zero level."""
    o3d = open3d()
    core = o3d.core
    one_float, three_floats = core.SizeVector((1,)), core.SizeVector((3,))
    grid = o3d.t.geometry.VoxelBlockGrid(
        attr_names=("tsdf", "weight", "color"),
        attr_dtypes=(core.float32, core.float32, core.float32),
        attr_channels=(one_float, one_float, three_floats),
        voxel_size=voxel,
        block_resolution=8,
        block_count=5000,  # to begin with: it grows
    )
    for camera, depth, rgb in views:
        points = _points(camera, depth)
        inside = ((points > low) & (points < high)).all(-1) & (depth > 0)
        if not bool(inside.any()):
            continue
        kept = torch.where(inside, depth, 0).float().contiguous()
        picture = o3d.t.geometry.Image(core.Tensor(kept.numpy()))
        colour = o3d.t.geometry.Image(core.Tensor(rgb.clamp(0, 1).float().contiguous().numpy()))
        K = core.Tensor(camera.K[0].double().numpy())
        pose = core.Tensor(camera.cam_from_world[0].double().numpy())
        limits = (1.0, float(kept.max()) * 1.01, config.truncation)  # units of the depth, farthest, truncation in voxels
        blocks = grid.compute_unique_block_coordinates(picture, K, pose, *limits)
        grid.integrate(blocks, picture, colour, K, K, pose, *limits)
    if config.carve:
        _carve(grid, views, empty, config)
    surface = grid.extract_triangle_mesh(weight_threshold=0.5)  # one view is enough
    if "indices" not in surface.triangle or not len(surface.triangle.indices):
        raise StoppedLate("The depth of the splats does not agree between views, so no mesh can be made; fit longer.")
    return Mesh(
        torch.from_numpy(surface.vertex.positions.numpy().astype(np.float32)),
        torch.from_numpy(surface.triangle.indices.numpy().astype(np.int64)),
        torch.from_numpy(surface.vertex.colors.numpy().astype(np.float32).clip(0, 1)),
    )


def _carve(grid, views: list, empty: list, config: MeshConfig) -> None:
    """Count the empty rays of every view as views of what lies before the surface: truncation would thicken all edges.

    The colours stay as they are, for empty rays have none.
    """
    o3d = open3d()
    core = o3d.core
    blocks = grid.hashmap().key_tensor()[grid.hashmap().active_buf_indices().to(core.int64)]
    rows, _ = grid.hashmap().find(blocks)  # before the grid grows, which moves them
    colours = grid.attribute("color")[rows.to(core.int64)].clone()
    far = 10 * max(float(depth.max()) for _, depth, _ in views)  # behind all that the grid holds
    for (camera, depth, _), clear in zip(views, empty, strict=True):
        picture = o3d.t.geometry.Image(core.Tensor(torch.where(clear, far, 0.0).float().contiguous().numpy()))
        grey = o3d.t.geometry.Image(core.Tensor(np.zeros((*depth.shape, 3), np.float32)))
        K = core.Tensor(camera.K[0].double().numpy())
        pose = core.Tensor(camera.cam_from_world[0].double().numpy())
        grid.integrate(blocks, picture, grey, K, K, pose, 1.0, far * 1.01, config.truncation)
    rows, _ = grid.hashmap().find(blocks)
    grid.attribute("color")[rows.to(core.int64)] = colours


def without_crumbs(mesh: Mesh, min_part: float) -> Mesh:
    """Connected parts with at least `min_part` of the largest part's triangles, and only the vertices they use."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces = mesh.faces.numpy()
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    links = coo_matrix((np.ones(len(edges), dtype=bool), edges.T), shape=(len(mesh.vertices),) * 2)
    part = connected_components(links, directed=False)[1][faces[:, 0]]  # [F]
    size = np.bincount(part)
    return _with_faces(mesh, torch.from_numpy(faces[size[part] >= max(min_part * size.max(), 8)]))


def _with_faces(mesh: Mesh, faces: Tensor) -> Mesh:
    used, renumbered = torch.unique(faces, return_inverse=True)
    return Mesh(mesh.vertices[used], renumbered.reshape(-1, 3), None if mesh.colors is None else mesh.colors[used])


def simplified(mesh: Mesh, max_faces: int) -> Mesh:
    """Quadric edge collapse (Garland and Heckbert 1997) down to `max_faces`; colours from the nearest old vertices."""
    if len(mesh.faces) <= max_faces:
        return mesh
    import fast_simplification
    from scipy.spatial import cKDTree

    vertices, faces = fast_simplification.simplify(
        mesh.vertices.numpy(), mesh.faces.numpy().astype(np.int32), target_count=max_faces
    )
    colors = None
    if mesh.colors is not None:
        distance, nearest = cKDTree(mesh.vertices.numpy()).query(vertices, k=3)
        weight = 1 / (distance + 1e-9)
        blend = (mesh.colors.numpy()[nearest] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
        colors = torch.from_numpy(blend.astype(np.float32))
    simple = Mesh(torch.from_numpy(vertices.astype(np.float32)), torch.from_numpy(faces.astype(np.int64)), colors)
    log.info("mesh simplified from %d to %d triangles", len(mesh.faces), len(simple.faces))
    return _with_faces(simple, simple.faces)
