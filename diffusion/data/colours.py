"""Colours as people name them: Oklab, the nearest of eleven basic words and beige, and how much of a surface each covers.

Oklab: B. Ottosson, "A perceptual color space for image processing", 2020.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

# Where each word is at home: sRGB in 0..255, dark to light. The basic colour terms of Berlin and Kay, 1969, and beige.
ANCHORS = {
    "black": [(0, 0, 0), (25, 25, 25), (48, 48, 48), (28, 28, 40)],
    "grey": [(80, 80, 80), (105, 105, 105), (140, 140, 140), (175, 175, 175), (200, 200, 200), (110, 118, 130),
             (150, 160, 172), (175, 175, 158)],
    "white": [(255, 255, 255), (232, 232, 232), (248, 244, 236)],
    "red": [(110, 15, 15), (150, 20, 20), (200, 30, 30), (255, 0, 0), (230, 60, 50), (200, 40, 70)],
    "orange": [(255, 128, 0), (240, 110, 30), (255, 165, 40), (215, 105, 20), (240, 140, 70)],
    "yellow": [(255, 255, 0), (255, 220, 0), (250, 225, 90), (215, 190, 30), (255, 245, 150), (225, 180, 50)],
    "green": [(0, 60, 0), (0, 128, 0), (40, 180, 60), (110, 170, 50), (140, 220, 120), (60, 85, 40), (90, 130, 80),
              (0, 150, 110), (98, 106, 76), (150, 225, 200)],
    "blue": [(10, 20, 90), (20, 50, 180), (30, 110, 230), (80, 160, 240), (150, 205, 245), (50, 80, 120), (40, 170, 200)],
    "purple": [(70, 20, 110), (128, 0, 128), (120, 70, 190), (165, 110, 210), (100, 70, 130), (200, 175, 235)],
    "pink": [(255, 105, 180), (240, 150, 190), (250, 195, 210), (230, 70, 150), (225, 140, 150)],
    "brown": [(60, 35, 15), (100, 60, 30), (130, 80, 45), (155, 100, 60), (120, 55, 30), (90, 70, 55), (165, 120, 80)],
    "beige": [(245, 230, 200), (225, 200, 165), (205, 175, 135), (235, 205, 175), (190, 175, 150), (220, 205, 180),
              (245, 243, 216)],
}  # fmt: skip
COLOUR_WORDS = tuple(ANCHORS)
# One colour for each word, vivid enough to be named by nobody otherwise: what a recoloured part aims at.
TARGETS = {
    "black": (28, 28, 30), "grey": (135, 135, 138), "white": (245, 245, 243), "red": (200, 32, 32), "orange": (243, 128, 24),
    "yellow": (250, 215, 40), "green": (48, 155, 60), "blue": (36, 96, 210), "purple": (122, 56, 172), "pink": (243, 130, 178),
    "brown": (122, 76, 42), "beige": (226, 204, 170),
}  # fmt: skip

_LMS_FROM_RGB = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                 [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
_LAB_FROM_LMS = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                 [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip


@dataclass(frozen=True)
class Palette:
    """Colour words of a surface with the share of its area, largest first; shares sum to at most 1."""

    words: tuple[str, ...]
    shares: tuple[float, ...]

    def dominant(self, least: float = 0.2, most: int = 2) -> tuple[str, ...]:
        """At most `most` words that cover at least `least` of the surface; always the first."""
        return self.words[:1] + tuple(w for w, s in zip(self.words[1:most], self.shares[1:most], strict=True) if s >= least)


def oklab(rgb: Tensor) -> Tensor:
    """sRGB [..., 3] in [0, 1] -> Oklab [..., 3]: lightness in [0, 1], green to red, blue to yellow."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp_min(0) + 0.055) / 1.055) ** 2.4)
    lms = linear @ torch.tensor(_LMS_FROM_RGB, dtype=rgb.dtype).T
    return lms.clamp_min(0).pow(1 / 3) @ torch.tensor(_LAB_FROM_LMS, dtype=rgb.dtype).T


def srgb(lab: Tensor) -> Tensor:
    """The inverse of `oklab`, clamped to [0, 1] channel by channel where sRGB cannot show the colour."""
    lms = lab @ torch.linalg.inv(torch.tensor(_LAB_FROM_LMS, dtype=torch.float64)).to(lab.dtype).T
    linear = lms.pow(3) @ torch.linalg.inv(torch.tensor(_LMS_FROM_RGB, dtype=torch.float64)).to(lab.dtype).T
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(1e-12).pow(1 / 2.4) - 0.055).clamp(0, 1)


def named(rgb: Tensor) -> Tensor:
    """sRGB [N, 3] -> [N] int64 index into `COLOUR_WORDS` of the nearest anchor in Oklab."""
    anchors, word = _anchors()
    return word[torch.cdist(_stretched(oklab(rgb.float())), anchors).argmin(dim=-1)]


def palette(rgb: Tensor, weights: Tensor | None = None) -> Palette:
    """Colours [N, 3], each standing for `weights` [N] of area (default: equal) -> how much of it every word covers."""
    weights = torch.ones(len(rgb)) if weights is None else weights.float()
    shares = torch.zeros(len(COLOUR_WORDS)).index_add_(0, named(rgb), weights) / weights.sum().clamp_min(1e-12)
    order = shares.argsort(descending=True, stable=True)
    order = [i for i in order.tolist() if shares[i] > 0]
    return Palette(tuple(COLOUR_WORDS[i] for i in order), tuple(float(shares[i]) for i in order))


def _stretched(lab: Tensor) -> Tensor:
    """Hue and chroma count double: shading changes the lightness of a thing and not its name."""
    return lab * torch.tensor([1.0, 2.0, 2.0])


@functools.cache
def _anchors() -> tuple[Tensor, Tensor]:
    rgb = torch.tensor([c for group in ANCHORS.values() for c in group], dtype=torch.float32) / 255
    word = torch.tensor([i for i, group in enumerate(ANCHORS.values()) for _ in group])
    return _stretched(oklab(rgb)), word
