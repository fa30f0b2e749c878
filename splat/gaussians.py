"""The splats themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from splat import sh as harmonics
from splat.rotations import matrix_from_quat, quat_from_matrix, quat_multiply
from splat.similarity import Similarity


@dataclass(frozen=True)
class Splats:
    """N Gaussians in raw space: what the optimiser sees and a PLY stores. Floating dtype, one device for all fields."""

    means: Tensor  # [N, 3] world
    quats: Tensor  # [N, 4] wxyz, need not be unit
    log_scales: Tensor  # [N, 3] natural log of the standard deviation, world units
    opacity_logits: Tensor  # [N]
    sh: Tensor  # [N, K, 3], K = (degree + 1)^2; rgb = 0.5 + C0 * sh[:, 0] + higher bands

    def __post_init__(self) -> None:
        n = self.means.shape[0]
        assert self.means.shape == (n, 3), self.means.shape
        assert self.quats.shape == (n, 4), self.quats.shape
        assert self.log_scales.shape == (n, 3), self.log_scales.shape
        assert self.opacity_logits.shape == (n,), self.opacity_logits.shape
        assert self.sh.ndim == 3 and self.sh.shape[0] == n and self.sh.shape[2] == 3, self.sh.shape
        harmonics.degree_of(self.sh.shape[1])

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def scales(self) -> Tensor:
        """[N, 3] standard deviations, world units."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """[N] in (0, 1)."""
        return self.opacity_logits.sigmoid()

    @property
    def sh_degree(self) -> int:
        return harmonics.degree_of(self.sh.shape[1])

    @property
    def rgb(self) -> Tensor:
        """[N, 3] the view-independent colour, not clamped."""
        return harmonics.to_rgb(self.sh[:, 0])

    def covariances(self) -> Tensor:
        """[N, 3, 3] world units squared."""
        root = matrix_from_quat(self.quats) * self.scales[:, None, :]
        return root @ root.mT

    def widened(self, deviation: float) -> Splats:
        """Every Gaussian convolved with a round one of that standard deviation, in world units; opacities stay."""
        log_scales = torch.logaddexp(2 * self.log_scales, torch.full_like(self.log_scales, 2 * math.log(deviation))) / 2
        return replace(self, log_scales=log_scales)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Splats:
        """`fn` applied to every field."""
        return Splats(**{f.name: fn(getattr(self, f.name)) for f in fields(self)})

    def __getitem__(self, rows: Tensor | slice) -> Splats:
        """Rows by mask, index or slice; all fields together."""
        return self.map(lambda x: x[rows])

    def to(self, target: torch.device | str | torch.dtype) -> Splats:
        return self.map(lambda x: x.to(target))

    def detach(self) -> Splats:
        return self.map(Tensor.detach)

    @staticmethod
    def cat(parts: Sequence[Splats]) -> Splats:
        """All rows of all parts, in order; degrees must agree."""
        return Splats(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Splats)})

    def with_sh_degree(self, degree: int) -> Splats:
        """Higher bands cut off, or added as zeros."""
        k, have = (degree + 1) ** 2, self.sh.shape[1]
        padding = self.sh.new_zeros(len(self), max(k - have, 0), 3)
        return Splats(self.means, self.quats, self.log_scales, self.opacity_logits, torch.cat([self.sh[:, :k], padding], dim=1))

    def transformed(self, similarity: Similarity) -> Splats:
        """The same scene after the world moved by `similarity`; turns the SH bands too."""
        quat = quat_from_matrix(similarity.rotation).to(self.quats)
        return Splats(
            means=similarity(self.means),
            quats=quat_multiply(quat.expand_as(self.quats), self.quats),
            log_scales=self.log_scales + torch.tensor(similarity.scale, dtype=torch.float64).log().item(),
            opacity_logits=self.opacity_logits,
            sh=harmonics.rotated(self.sh, similarity.rotation),
        )
