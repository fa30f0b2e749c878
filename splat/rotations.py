"""Rotations: wxyz quaternions, matrices and their conversions. All functions broadcast over leading dimensions."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_from_quat(quats: Tensor) -> Tensor:
    """[..., 4] wxyz, any non-zero length -> [..., 3, 3]. Differentiable; a zero quaternion gives the identity."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1, eps=1e-12).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quat_from_matrix(matrix: Tensor) -> Tensor:
    """[..., 3, 3] rotation -> [..., 4] wxyz unit, w >= 0. Uses the best conditioned of the four classical branches."""
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    w2, x2, y2, z2 = 1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    branches = torch.stack(
        [
            torch.stack([w2, a, b, c], -1),
            torch.stack([a, x2, d, e], -1),
            torch.stack([b, d, y2, f], -1),
            torch.stack([c, e, f, z2], -1),
        ],
        dim=-2,
    )  # [..., 4, 4]
    best = torch.stack([w2, x2, y2, z2], -1).argmax(-1)
    quat = torch.take_along_dim(branches, best[..., None, None].expand(*best.shape, 1, 4), dim=-2).squeeze(-2)
    quat = torch.nn.functional.normalize(quat, dim=-1)
    return torch.where(quat[..., :1] < 0, -quat, quat)


def quat_multiply(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product of [..., 4] wxyz quaternions: the rotation `q` followed by `p`."""
    pw, px, py, pz = p.unbind(-1)
    qw, qx, qy, qz = q.unbind(-1)
    return torch.stack(
        [
            pw * qw - px * qx - py * qy - pz * qz,
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
        ],
        dim=-1,
    )


def se3_exp(tangent: Tensor) -> Tensor:
    """[..., 6] (translation part, then rotation vector in radians) -> [..., 4, 4] rigid motion. Differentiable at zero."""
    rho, omega = tangent[..., :3], tangent[..., 3:]
    x, y, z = omega.unbind(-1)
    zero = torch.zeros_like(x)
    hat = torch.stack(
        [
            torch.stack([zero, -z, y, rho[..., 0]], -1),
            torch.stack([z, zero, -x, rho[..., 1]], -1),
            torch.stack([-y, x, zero, rho[..., 2]], -1),
            torch.stack([zero, zero, zero, zero], -1),
        ],
        dim=-2,
    )
    return torch.linalg.matrix_exp(hat)
