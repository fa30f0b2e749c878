"""A volume straight from a mesh: one flat Gaussian per cell that the surface passes through."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.data.surface import surface_samples
from diffusion.volume import SCALES, SplatVolume, nearest_nodes
from splat.errors import InputError
from splat.gaussians import Splats
from splat.mesh import Mesh
from splat.rotations import quat_from_matrix
from splat.sh import from_rgb

SPREAD = 1.1  # times the standard deviation of a cell's samples: neighbours overlap, and the gaps between them close
FIRST_LOGIT = 5.0  # opacity of the cells that the surface fills


def surface_volume(
    mesh: Mesh, resolution: int = 32, side: float = 1.0, max_offset: float = 1.5, samples_per_cell: int = 30, seed: int = 0
) -> SplatVolume:
    """Every cell's samples as one Gaussian: their mean, their covariance times `SPREAD` squared, their mean colour.

    `mesh` in the world of the volume: inside [-side / 2, side / 2]^3. Raises InputError for a mesh without area or outside.
    """
    reach = float(mesh.vertices.abs().max()) if len(mesh.vertices) else 0.0
    if not reach <= side / 2 * 1.01:
        raise InputError(f"The mesh reaches {reach:.3g} from the origin, outside a volume of side {side:g}; scale it first.")
    spacing = side / resolution
    corners = mesh.vertices.double()[mesh.faces]
    area = 0.5 * float(torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1).sum())
    if not (math.isfinite(area) and area > 0):
        raise InputError(f"A mesh of {len(mesh.faces)} triangles has no area to sample; check its vertices.")
    cells = min(area / spacing**2, resolution**3)
    samples = surface_samples(mesh, max(int(samples_per_cell * cells), 1000), seed)
    points, colours = samples.points, samples.colors
    nodes, cell, counts = nearest_nodes(points, resolution, side).unique(return_inverse=True, return_counts=True)

    def mean_over_cells(x: Tensor) -> Tensor:  # [M, K] -> [N, K]
        sums = x.new_zeros(len(nodes), x.shape[1]).index_add_(0, cell, x)
        return sums / counts[:, None]

    means = mean_over_cells(points)
    deviations = points - means[cell]
    covariances = mean_over_cells((deviations[:, :, None] * deviations[:, None, :]).flatten(1)).unflatten(1, (3, 3))
    variances, axes = torch.linalg.eigh(covariances.double())
    axes = axes * torch.linalg.det(axes).sign()[:, None, None]
    scales = (variances.clamp_min(0).sqrt() * SPREAD).clamp(SCALES[0] * spacing, SCALES[1] * spacing)
    splats = Splats(
        means,
        quat_from_matrix(axes).float(),
        scales.log().float(),
        torch.full((len(nodes),), FIRST_LOGIT),
        from_rgb(mean_over_cells(colours))[:, None],
    )
    return SplatVolume.from_splats(splats, nodes, resolution, side, max_offset)
