"""A closed triangle mesh of an object's splats: the level set of their density, for splats that agree on no exact surface.

What generators make is a little fuzzy, so that depth maps of two sides contradict each other and `extract_mesh` leaves holes.
Here every voxel gets the opacity that the Gaussians give a point there, as DreamGaussian (Tang et al. 2024, section 3.2) and
LGM do; what is enclosed counts as full, and marching cubes (Lorensen and Cline 1987) draws the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from splat.errors import StoppedLate
from splat.extract_mesh import simplified, without_crumbs
from splat.gaussians import Splats
from splat.marching_cubes import marching_cubes
from splat.mesh import Mesh
from splat.rotations import matrix_from_quat
from splat.sh import to_rgb

REACH = 2.5  # standard deviations up to which a Gaussian is felt
STRAYS = 0.001  # share of the Gaussians that may lie outside of the meshed box on each side
CHUNK = 4_000_000  # evaluations at a time


@dataclass(frozen=True)
class DensityMeshConfig:
    """How the density becomes a mesh."""

    resolution: int = 128  # voxels along the longest side of the splats
    level: float = 0.2  # opacity at which the surface lies; lower closes gaps and thickens
    max_faces: int = 60_000  # triangles left after simplification
    min_part: float = 0.02  # connected parts with fewer triangles than this fraction of the largest are dropped
    min_opacity: float = 0.05  # fainter Gaussians are left out


@torch.no_grad()
def density_mesh(splats: Splats, config: DensityMeshConfig | None = None) -> Mesh:
    """The mesh of an object's `splats` in their frame, with vertex colours; runs on the CPU, not differentiable.

    Raises `StoppedLate` when nothing is dense enough to have a surface.
    """
    c = config or DensityMeshConfig()
    splats = splats.to("cpu")
    splats = splats[splats.opacities > c.min_opacity]
    if not len(splats):
        raise StoppedLate("The splats are too faint to have a surface, so no mesh can be made.")
    felt = REACH * splats.scales.amax(-1, keepdim=True)
    few = min(STRAYS, 10 / len(splats))  # a stray Gaussian far away must not make the voxels coarse
    low, high = (splats.means - felt).quantile(few, dim=0), (splats.means + felt).quantile(1 - few, dim=0)
    voxel = float((high - low).max().clamp(min=1e-6)) / c.resolution
    low, high = low - 2 * voxel, high + 2 * voxel
    size = ((high - low) / voxel).ceil().long() + 1  # [3] x, y, z
    depth, colour = _density(splats, low, voxel, size)
    opacity = 1 - torch.exp(-depth)
    return simplified(without_crumbs(_level_set(opacity, colour, low, voxel, c.level), c.min_part), c.max_faces)


def _density(splats: Splats, low: Tensor, voxel: float, size: Tensor) -> tuple[Tensor, Tensor]:
    """Optical depth [X, Y, Z] and mean colour [X, Y, Z, 3] at the voxels' centres low + voxel * index."""
    total = int(size.prod())
    depth, colour = torch.zeros(total), torch.zeros(total, 3)
    least = 0.5 * voxel  # a Gaussian between the voxels is felt too
    scales = splats.scales.clamp(min=least)
    whitened = matrix_from_quat(splats.quats).transpose(1, 2) / scales[..., None]  # [N, 3, 3] world -> deviations
    reach = (REACH * scales.amax(-1) / voxel).ceil().long().clamp(max=24)
    rgb = to_rgb(splats.sh[:, 0]).clamp(0, 1)
    for r in reach.unique().tolist():
        rows = torch.nonzero(reach == r).squeeze(1)
        axis = torch.arange(-r, r + 1)
        steps = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        for part in rows.split(max(CHUNK // len(steps), 1)):
            at = ((splats.means[part] - low) / voxel).round().long()[:, None] + steps  # [n, S, 3]
            away = low + voxel * at - splats.means[part][:, None]
            squared = torch.einsum("nij,nsj->nsi", whitened[part], away).square().sum(-1)
            felt = ((at >= 0) & (at < size)).all(-1) & (squared < REACH**2)
            alpha = (splats.opacities[part][:, None] * torch.exp(-0.5 * squared)).clamp(max=0.999)[felt]
            flat = ((at[..., 0] * size[1] + at[..., 1]) * size[2] + at[..., 2])[felt]
            thickness = -torch.log1p(-alpha)
            depth.index_add_(0, flat, thickness)
            owner = torch.arange(len(part))[:, None].expand_as(felt)[felt]
            colour.index_add_(0, flat, thickness[:, None] * rgb[part][owner])
    shape = tuple(size.tolist())
    return depth.reshape(shape), _spread(depth.reshape(shape), colour.reshape(*shape, 3))


def _spread(depth: Tensor, colour: Tensor) -> Tensor:
    """Sums weighted by depth -> colours; empty voxels beside others take theirs, for the surface lies between the two."""
    sums = torch.cat([colour.permute(3, 0, 1, 2), depth[None]])
    near = torch.nn.functional.avg_pool3d(sums, 3, 1, 1)
    sums = torch.where(depth > 0, sums, near)
    return (sums[:3] / sums[3:].clamp(min=1e-9)).permute(1, 2, 3, 0)


def _level_set(opacity: Tensor, colour: Tensor, low: Tensor, voxel: float, level: float) -> Mesh:
    """Marching cubes of opacity [X, Y, Z] with enclosed hollows filled."""
    from scipy.ndimage import binary_fill_holes

    hollow = torch.from_numpy(binary_fill_holes((opacity > level).numpy())) & (opacity <= level)
    signed = torch.where(hollow, level - 1, level - opacity)  # negative inside, as a distance is
    mesh = marching_cubes(signed, low, voxel, colour)
    if mesh is None:
        raise StoppedLate("The splats are nowhere dense enough to have a surface, so no mesh can be made.")
    return mesh
