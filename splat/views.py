"""Photographs or generated images, with cameras once they are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splat.cameras import Cameras


@dataclass(frozen=True)
class Views:
    """C images of one size; photos of mixed sizes are a list of `Views`, one per size."""

    images: Tensor  # [C, H, W, 3] sRGB in [0, 1], float32
    names: tuple[str, ...]
    cameras: Cameras | None = None  # None until poses are known
    masks: Tensor | None = None  # [C, H, W] foreground in [0, 1]

    def __post_init__(self) -> None:
        c, h, w = self.images.shape[:3]
        assert self.images.shape == (c, h, w, 3), self.images.shape
        assert len(self.names) == c, (len(self.names), c)
        if self.cameras is not None:
            assert len(self.cameras) == c and (self.cameras.width, self.cameras.height) == (w, h), (len(self.cameras), c, w, h)
        if self.masks is not None:
            assert self.masks.shape == (c, h, w), self.masks.shape

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.images.shape[2], self.images.shape[1]

    def __getitem__(self, rows: Sequence[int]) -> Views:
        """The chosen views, in that order."""
        rows = list(rows)
        index = torch.tensor(rows, dtype=torch.long)
        return Views(
            self.images[index],
            tuple(self.names[i] for i in rows),
            None if self.cameras is None else self.cameras[index],
            None if self.masks is None else self.masks[index],
        )

    def to(self, device: torch.device | str) -> Views:
        return replace(
            self,
            images=self.images.to(device),
            cameras=None if self.cameras is None else self.cameras.to(device),
            masks=None if self.masks is None else self.masks.to(device),
        )

    def resized(self, width: int, height: int) -> Views:
        """Area-filtered copies of another size, cameras and masks with them."""
        if (width, height) == self.size:
            return self

        def scaled(x: Tensor) -> Tensor:  # [C, K, H, W]
            return torch.nn.functional.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)

        return Views(
            scaled(self.images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous(),
            self.names,
            None if self.cameras is None else self.cameras.resized(width, height),
            None if self.masks is None else scaled(self.masks[:, None])[:, 0].contiguous(),
        )

    def limited(self, max_side: int) -> Views:
        """The views, scaled down where their long side exceeds `max_side` pixels."""
        width, height = self.size
        scale = max_side / max(width, height)
        return self if scale >= 1 else self.resized(max(round(width * scale), 1), max(round(height * scale), 1))
