"""A triangle mesh."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splat.similarity import Similarity


@dataclass(frozen=True)
class Mesh:
    """V vertices, F triangles, counter-clockwise seen from outside, in the result's +Y-up world."""

    vertices: Tensor  # [V, 3] float32
    faces: Tensor  # [F, 3] int64
    colors: Tensor | None = None  # [V, 3] sRGB in [0, 1]
    uvs: Tensor | None = None  # [F, 3, 2] in [0, 1], per corner; (0, 0) is the texture's lower left corner
    texture: Tensor | None = None  # [H, W, 3] sRGB

    def __post_init__(self) -> None:
        v, f = self.vertices.shape[0], self.faces.shape[0]
        assert self.vertices.shape == (v, 3) and self.faces.shape == (f, 3), (self.vertices.shape, self.faces.shape)
        assert self.faces.dtype == torch.int64, self.faces.dtype
        assert f == 0 or (int(self.faces.min()) >= 0 and int(self.faces.max()) < v), "faces index beyond the vertices"
        assert self.colors is None or self.colors.shape == (v, 3), self.colors.shape
        assert self.uvs is None or self.uvs.shape == (f, 3, 2), self.uvs.shape

    def transformed(self, similarity: Similarity) -> Mesh:
        return replace(self, vertices=similarity(self.vertices))
