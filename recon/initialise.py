"""The first splats of a reconstruction: from points, or at random where there are none."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from splat import sh
from splat.cameras import Cameras, nearest_to_axes
from splat.errors import InputError
from splat.gaussians import Splats
from splat.points import PointCloud

log = logging.getLogger(__name__)

SURFACE_NEIGHBOURS = 16  # points that say how the surface lies

Source = Literal["dense", "sparse", "union"]


@dataclass(frozen=True)
class InitialConfig:
    """How points become splats."""

    source: Source = "union"  # which points: of the stereo prior, of the pose solver, or both (the best of the three so far)
    opacity: float = 0.1  # of every splat at the start: a wrong one fades quickly
    scale: float = 1.0  # standard deviation in footprints (depth / focal); less leaves holes between pixels at a slant
    thickness: float = 0.5  # of a splat across the surface, in shares of its width along it; 1 keeps it round
    sh_degree: int = 3  # bands above 0 start at zero
    seed: int = 0


def initial_splats(points: PointCloud, config: InitialConfig | None = None) -> Splats:
    """One splat per point: colour from the point, size from its footprint, else from its 3 nearest neighbours.

    Splats are round along the surface that their neighbours form and thinner across it. Raises `InputError` for an
    empty cloud. Deterministic.
    """
    config = config or InitialConfig()
    if len(points) == 0:
        raise InputError("no points to start from; give photos that overlap more, or start from random splats.")
    spacing = nearest_spacing(points.xyz)
    size = spacing if points.radius is None else config.scale * points.radius
    size = size.clamp_min(1e-6 * float(spacing.max().clamp_min(1e-6)))
    splats = _round_splats(points.xyz, points.rgb, size, config)
    if config.thickness >= 1 or len(points) < SURFACE_NEIGHBOURS:
        return splats
    normals, thickness = surface_directions(points.xyz)
    # The turn that takes +z to the normal: half-way quaternion (1 + z . n, z x n); n and -n are the same surface.
    normals = torch.where(normals[:, 2:] < 0, -normals, normals)
    x, y, z = normals.unbind(-1)
    log_scales = splats.log_scales.clone()
    log_scales[:, 2] += thickness.clamp(config.thickness, 1).log()
    return replace(splats, quats=torch.stack([1 + z, -y, x, torch.zeros_like(x)], dim=-1), log_scales=log_scales)


def surface_directions(xyz: Tensor) -> tuple[Tensor, Tensor]:
    """(normals [N, 3] of either sign, thickness [N]) of the surface through each point's nearest neighbours.

    Thickness is twice their deviation along the normal over that along the next axis: small on a plane.
    """
    from scipy.spatial import cKDTree

    points = xyz.detach().cpu().double().numpy()
    _, near = cKDTree(points).query(points, k=SURFACE_NEIGHBOURS)
    around = points[near] - points[near].mean(1, keepdims=True)  # [N, k, 3]
    spread, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))  # ascending
    ratio = 2 * np.sqrt(np.maximum(spread[:, 0], 0) / np.maximum(spread[:, 1], 1e-30))
    return torch.from_numpy(axes[:, :, 0]).to(xyz), torch.from_numpy(ratio).to(xyz)


def _round_splats(xyz: Tensor, rgb: Tensor, size: Tensor, config: InitialConfig) -> Splats:
    """Isotropic splats of standard deviation `size` [N]."""
    n = len(xyz)
    quats = torch.zeros(n, 4, dtype=xyz.dtype, device=xyz.device)
    quats[:, 0] = 1
    bands = torch.zeros(n, (config.sh_degree + 1) ** 2, 3, dtype=xyz.dtype, device=xyz.device)
    bands[:, 0] = sh.from_rgb(rgb)
    logit = math.log(config.opacity / (1 - config.opacity))
    return Splats(xyz, quats, size.log()[:, None].repeat(1, 3), torch.full((n,), logit).to(xyz), bands)


def nearest_spacing(xyz: Tensor, count: int = 3) -> Tensor:
    """[N] root mean square distance to the `count` nearest other points (3DGS, Kerbl et al. 2023); 1 for a single point."""
    from scipy.spatial import cKDTree

    count = min(count, len(xyz) - 1)
    if count < 1:
        return torch.ones(len(xyz), dtype=xyz.dtype, device=xyz.device)
    points = xyz.detach().cpu().double().numpy()
    distance, _ = cKDTree(points).query(points, k=count + 1)
    return torch.from_numpy(np.sqrt((distance[:, 1:] ** 2).mean(1))).to(xyz)


def choose_points(dense: PointCloud | None, sparse: PointCloud | None, source: Source) -> PointCloud:
    """The points of `source`; when that is empty, the other one. Raises `InputError` when both are.

    The union keeps sparse points only where no dense point lies within two of its footprints: there they add nothing.
    """
    dense = dense if dense is not None and len(dense) else None
    sparse = sparse if sparse is not None and len(sparse) else None
    if dense is None and sparse is None:
        raise InputError("neither the stereo prior nor the pose solver found a point; add photos that overlap more.")
    if dense is None or sparse is None or source != "union":
        wanted, other = (sparse, dense) if source == "sparse" else (dense, sparse)
        if wanted is None:
            log.warning("no %s points; starting from the other kind", "sparse" if source == "sparse" else "dense")
        return other if wanted is None else wanted
    from scipy.spatial import cKDTree

    distance, nearest = cKDTree(dense.xyz.double().cpu().numpy()).query(sparse.xyz.double().cpu().numpy())
    lonely = torch.from_numpy(distance).to(sparse.xyz) > 2 * dense.radius[torch.from_numpy(nearest)]
    added = sparse[lonely]
    if added.radius is None and len(added):
        added = PointCloud(added.xyz, added.rgb, added.confidence, nearest_spacing(sparse.xyz)[lonely])
    return PointCloud.cat([dense, added]) if len(added) else dense


def random_splats(count: int, centre: Tensor, radius: float, config: InitialConfig | None = None) -> Splats:
    """`count` grey splats, even in the ball of `radius` round `centre` [3]; their size from their mean spacing."""
    config = config or InitialConfig()
    generator = torch.Generator().manual_seed(config.seed)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    distance = radius * torch.rand(count, 1, generator=generator) ** (1 / 3)
    xyz = centre.float().cpu() + direction * distance
    rgb = 0.5 + 0.1 * (torch.rand(count, 3, generator=generator) - 0.5)
    size = torch.full((count,), radius * (4 / 3 * math.pi / count) ** (1 / 3) / 2)
    return _round_splats(xyz, rgb, size, config)


def viewing_bound(cameras: list[Cameras], points: PointCloud | None = None) -> tuple[Tensor, float]:
    """(centre [3], radius) of the ball worth filling: robust extent of the points, else round where the cameras look."""
    if points is not None and len(points) >= 10:
        centre = points.xyz.median(0).values
        return centre, 1.5 * float(torch.quantile((points.xyz - centre).norm(dim=1), 0.9))
    centres = torch.cat([c.centers for c in cameras]).double()
    axes = torch.cat([c.forward for c in cameras]).double()
    origin = torch.zeros(3, dtype=torch.float64)  # of the result's frame: its subject; decides for parallel axes alone
    focus = nearest_to_axes(centres, axes, origin, pull=1e-6)
    return focus.float(), 0.5 * float((centres - focus).norm(dim=1).median())
