"""Points spread evenly over a mesh's surface, with the colours found there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from splat.mesh import Mesh
from splat.raycast import GREY, bilinear


@dataclass(frozen=True)
class SurfaceSamples:
    """N points drawn with a density of one per unit of area, so that a mean over them is a mean over the surface."""

    points: Tensor  # [N, 3]
    normals: Tensor  # [N, 3] unit, on the side from which the triangle is counter-clockwise
    colors: Tensor  # [N, 3] sRGB


def surface_samples(mesh: Mesh, count: int, seed: int = 0) -> SurfaceSamples:
    """`count` points of `mesh`, stratified by area: texture where it has one, else vertex colours, else grey.

    Triangles without area get none; a mesh of such triangles only is drawn from evenly. Deterministic under `seed`.
    """
    assert len(mesh.faces) > 0 and count > 0, (len(mesh.faces), count)
    generator = torch.Generator().manual_seed(seed)
    corners = mesh.vertices.double()[mesh.faces]  # [F, 3, 3]
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = cross.norm(dim=-1)
    if float(area.sum()) <= 0:
        area = torch.ones_like(area)
    ends = area.cumsum(0) / area.sum()
    strata = (torch.arange(count, dtype=torch.float64) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    face = torch.searchsorted(ends, strata, right=True).clamp_max(len(ends) - 1)
    r1, r2 = torch.rand(2, count, generator=generator, dtype=torch.float64)
    root = r1.sqrt()
    weights = torch.stack([1 - root, root * (1 - r2), root * r2], dim=-1)  # uniform in the triangle
    points = (weights[..., None] * corners[face]).sum(1)
    normals = torch.nn.functional.normalize(cross[face], dim=-1)
    return SurfaceSamples(points.float(), normals.float(), _colors(mesh, face, weights.float()))


def _colors(mesh: Mesh, face: Tensor, weights: Tensor) -> Tensor:
    if mesh.texture is not None and mesh.uvs is not None:
        uv = (weights[..., None] * mesh.uvs[face]).sum(1)
        return torch.from_numpy(bilinear(mesh.texture.float().numpy(), uv.numpy()))
    if mesh.colors is not None:
        return (weights[..., None] * mesh.colors[mesh.faces[face]]).sum(1)
    return torch.full((len(face), 3), GREY)
