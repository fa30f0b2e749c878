"""The point cloud that reconstruction hands to initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from splat.similarity import Similarity


@dataclass(frozen=True)
class PointCloud:
    """N coloured points in the world."""

    xyz: Tensor  # [N, 3]
    rgb: Tensor  # [N, 3] sRGB in [0, 1]
    confidence: Tensor  # [N] in [0, 1]
    radius: Tensor | None = None  # [N] world footprint of one pixel: depth / focal

    def __post_init__(self) -> None:
        n = self.xyz.shape[0]
        assert self.xyz.shape == (n, 3) and self.rgb.shape == (n, 3), (self.xyz.shape, self.rgb.shape)
        assert self.confidence.shape == (n,), self.confidence.shape
        assert self.radius is None or self.radius.shape == (n,), self.radius.shape

    def __len__(self) -> int:
        return self.xyz.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> PointCloud:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return PointCloud(**{name: None if x is None else x[rows] for name, x in values.items()})

    @staticmethod
    def cat(parts: Sequence[PointCloud]) -> PointCloud:
        """All points in order; the radius survives only when every part has one."""
        radius = None if any(p.radius is None for p in parts) else torch.cat([p.radius for p in parts])
        return PointCloud(
            torch.cat([p.xyz for p in parts]),
            torch.cat([p.rgb for p in parts]),
            torch.cat([p.confidence for p in parts]),
            radius,
        )

    def transformed(self, similarity: Similarity) -> PointCloud:
        radius = None if self.radius is None else self.radius * similarity.scale
        return PointCloud(similarity(self.xyz), self.rgb, self.confidence, radius)
