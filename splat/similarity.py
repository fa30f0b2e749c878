"""A similarity of space: how one world becomes another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Similarity:
    """x' = scale * rotation @ x + translation. float64; `rotation` [3, 3] proper, `translation` [3], `scale` > 0."""

    rotation: Tensor
    translation: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rotation", self.rotation.detach().double().cpu())
        object.__setattr__(self, "translation", self.translation.detach().double().cpu())
        assert self.rotation.shape == (3, 3) and self.translation.shape == (3,), (self.rotation.shape, self.translation.shape)
        assert self.scale > 0, self.scale
        error = (self.rotation @ self.rotation.T - torch.eye(3, dtype=torch.float64)).abs().max()
        assert error < 1e-4 and torch.linalg.det(self.rotation) > 0, f"not a rotation (error {error:.1e})"

    @staticmethod
    def identity() -> Similarity:
        return Similarity(torch.eye(3), torch.zeros(3), 1.0)

    @staticmethod
    def from_matrix(matrix: Tensor) -> Similarity:
        """[4, 4] -> the similarity it spells; asserts that it is one."""
        matrix = matrix.double().cpu()
        scale = float(torch.linalg.det(matrix[:3, :3]).clamp_min(1e-300) ** (1 / 3))
        return Similarity(matrix[:3, :3] / scale, matrix[:3, 3], scale)

    def matrix(self) -> Tensor:
        """[4, 4] float64."""
        out = torch.eye(4, dtype=torch.float64)
        out[:3, :3] = self.scale * self.rotation
        out[:3, 3] = self.translation
        return out

    def inverse(self) -> Similarity:
        return Similarity(self.rotation.T, -(self.rotation.T @ self.translation) / self.scale, 1 / self.scale)

    def __matmul__(self, other: Similarity) -> Similarity:
        """`(a @ b)(x) == a(b(x))`."""
        return Similarity(
            self.rotation @ other.rotation,
            self.scale * (self.rotation @ other.translation) + self.translation,
            self.scale * other.scale,
        )

    def __call__(self, points: Tensor) -> Tensor:
        """Points [..., 3] -> [..., 3], in the points' dtype and device."""
        moved = self.scale * (points.double() @ self.rotation.T.to(points.device)) + self.translation.to(points.device)
        return moved.to(points.dtype)


def fit_similarity(source: Tensor, target: Tensor) -> Similarity:
    """The least-squares similarity with target ~ similarity(source); both [N, 3], N >= 3, not all on a line.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991, eq. 40-42.
    """
    a, b = source.double().cpu(), target.double().cpu()
    a0, b0 = a.mean(0), b.mean(0)
    u, s, vt = torch.linalg.svd((b - b0).T @ (a - a0) / len(a))
    sign = torch.ones(3, dtype=torch.float64)
    if torch.linalg.det(u) * torch.linalg.det(vt) < 0:
        sign[2] = -1
    rotation = u @ torch.diag(sign) @ vt
    scale = float((s * sign).sum() / (a - a0).square().sum(1).mean())
    return Similarity(rotation, b0 - scale * (rotation @ a0), scale)
