"""Real spherical harmonics to degree 3, in the sign and order convention of 3DGS: rgb = 0.5 + sum_k Y_k(dir) sh_k."""

from __future__ import annotations

import torch
from torch import Tensor

C0 = 0.28209479177387814  # Y_00


def degree_of(terms: int) -> int:
    """Number of SH terms K -> degree. Raises ValueError unless K is 1, 4, 9 or 16."""
    if terms not in (1, 4, 9, 16):
        raise ValueError(f"{terms} spherical-harmonics terms; must be 1, 4, 9 or 16")
    return int(terms**0.5) - 1


def basis(directions: Tensor, degree: int) -> Tensor:
    """Unit directions [..., 3] -> Y [..., (degree+1)^2]. Differentiable; not normalised here."""
    x, y, z = directions.unbind(-1)
    terms = [torch.full_like(x, C0)]
    if degree >= 1:
        c1 = 0.4886025119029199
        terms += [-c1 * y, c1 * z, -c1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        terms += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        terms += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    return torch.stack(terms, dim=-1)


def from_rgb(rgb: Tensor) -> Tensor:
    """sRGB [..., 3] in [0, 1] -> the degree-0 coefficient [..., 3]."""
    return (rgb - 0.5) / C0


def to_rgb(sh0: Tensor) -> Tensor:
    """The degree-0 coefficient [..., 3] -> sRGB [..., 3], not clamped."""
    return 0.5 + C0 * sh0


def colours(sh: Tensor, directions: Tensor, degree: int | None = None) -> Tensor:
    """sh [N, K, 3], unit directions [N, 3] from the camera to the Gaussian -> rgb [N, 3], clamped below at 0.

    `degree` limits the bands used (SH warm-up). Differentiable in both arguments.
    """
    full = degree_of(sh.shape[1])
    degree = full if degree is None else min(degree, full)
    k = (degree + 1) ** 2
    return (0.5 + (basis(directions, degree)[:, :, None] * sh[:, :k]).sum(1)).clamp_min(0)


def rotated(sh: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients [N, K, 3] of the same radiance after the world turns by `rotation` [3, 3].

    Each band turns by its own matrix D with Y(R^T d) = D^T Y(d), solved exactly from sample directions in float64.
    """
    degree = degree_of(sh.shape[1])
    if degree == 0:
        return sh
    # A Fibonacci sphere: well spread, deterministic, and well conditioned up to degree 3.
    i = torch.arange(64, dtype=torch.float64, device=sh.device)
    z = 1 - (2 * i + 1) / 64
    phi = i * torch.pi * (3 - 5**0.5)
    r = (1 - z * z).sqrt()
    directions = torch.stack([r * phi.cos(), r * phi.sin(), z], dim=-1)
    turned = basis(directions @ rotation.to(directions), degree)  # rows d^T R = (R^T d)^T
    plain = basis(directions, degree)
    bands = [sh[:, :1]]
    for band in range(1, degree + 1):
        k = slice(band * band, (band + 1) ** 2)
        matrix = torch.linalg.lstsq(plain[:, k], turned[:, k]).solution  # plain @ matrix = turned
        bands.append(torch.einsum("jk,nkc->njc", matrix, sh[:, k].double()).to(sh))
    return torch.cat(bands, dim=1)
