"""Changes to an object that its words follow: recoloured, mirrored, stretched or shrunk, never turned (front stays front)."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.data.colours import COLOUR_WORDS, TARGETS, named, oklab, palette, srgb
from diffusion.data.surface import surface_samples
from diffusion.data.words import Words
from splat.mesh import Mesh


@dataclass(frozen=True)
class AugmentConfig:
    """How often and how much objects are changed; probabilities are independent of each other."""

    recolour: float = 0.4  # probability that one colour of the object becomes another
    turn_hues: float = 0.1  # probability that all hues turn together, where no colour was replaced
    mirror: float = 0.5  # probability of left and right swapped
    stretch: float = 0.15  # probability of a stretch along one axis, with the word for it
    stretch_range: tuple[float, float] = (1.3, 1.7)  # factor, or its inverse
    shrink: float = 0.05  # probability of a smaller object in the same box, called small
    shrink_range: tuple[float, float] = (0.5, 0.7)
    samples: int = 2048  # surface points on which colours are measured


@dataclass(frozen=True)
class Recolouring:
    """Moves the colours near `center` by `shift` in Oklab and leaves those far from it; also for colours of splats."""

    center: Tensor  # [3] Oklab
    shift: Tensor  # [3] Oklab
    old: str
    new: str

    def __call__(self, rgb: Tensor) -> Tensor:
        """sRGB [..., 3] -> [..., 3]. Shading survives: within the part, lightness keeps its differences."""
        lab = oklab(rgb)
        away = ((lab - self.center) * torch.tensor([0.4, 1.0, 1.0])).norm(dim=-1, keepdim=True)
        weight = 1 - ((away - 0.08) / 0.06).clamp(0, 1)  # all of a part moves, its neighbours in colour fade out
        return srgb(lab + weight * self.shift)


def augmented(mesh: Mesh, words: Words, config: AugmentConfig, rng: random.Random) -> tuple[Mesh, Words]:
    """A changed object with the words that hold for it now. Colours in the words are measured again on the new surface.

    The result keeps the frame, and the longest side 1 unless it was made small. The same `rng` state gives the same result.
    """
    mesh, words = _colours_changed(mesh, words, config, rng)
    if rng.random() < config.mirror:
        mesh, words = mirrored(mesh), words.mirrored()
    stretch, axis, factor = rng.random(), rng.choice("xy"), rng.uniform(*config.stretch_range) ** rng.choice((-1, 1))
    size = mesh.vertices.amax(0) - mesh.vertices.amin(0)
    if stretch < config.stretch and size["xy".index(axis)] > 0.5 * size.max():  # a chopstick that lies is never tall
        mesh, word = stretched(mesh, axis, factor)
        words = replace(words, shape=word)
    if rng.random() < config.shrink:
        mesh = replace(mesh, vertices=mesh.vertices * rng.uniform(*config.shrink_range))
        words = replace(words, shape="small")
    return mesh, words


def choose_recolouring(rgb: Tensor, rng: random.Random) -> Recolouring:
    """Of surface colours [N, 3]: one of the words that cover a fifth of it, and another word drawn at random for it."""
    found = palette(rgb)
    old = rng.choice(found.dominant(least=0.2, most=3))
    new = rng.choice([w for w in COLOUR_WORDS if w != old])
    lab = oklab(rgb)
    center = lab[named(rgb) == COLOUR_WORDS.index(old)].median(dim=0).values
    target = oklab(torch.tensor(TARGETS[new]) / 255)
    return Recolouring(center, target - center, old, new)


def with_colours(mesh: Mesh, change) -> Mesh:
    """`mesh` with `change` (sRGB [N, 3] -> [N, 3]) applied to its texture or vertex colours; a mesh without stays so."""
    if mesh.texture is not None:
        return replace(mesh, texture=change(mesh.texture.reshape(-1, 3)).reshape(mesh.texture.shape))
    return mesh if mesh.colors is None else replace(mesh, colors=change(mesh.colors))


def turned_hues(rgb: Tensor, angle: float) -> Tensor:
    """sRGB [N, 3] with every hue turned by `angle` radians in Oklab, lightness and chroma kept."""
    lightness, a, b = oklab(rgb).unbind(-1)
    c, s = torch.tensor(angle).cos(), torch.tensor(angle).sin()
    return srgb(torch.stack([lightness, c * a - s * b, s * a + c * b], dim=-1))


def mirrored(mesh: Mesh) -> Mesh:
    """Left and right swapped; triangles stay counter-clockwise seen from outside."""
    order = [0, 2, 1]
    return replace(
        mesh,
        vertices=mesh.vertices * torch.tensor([-1.0, 1, 1]),
        faces=mesh.faces[:, order],
        uvs=None if mesh.uvs is None else mesh.uvs[:, order],
    )


def stretched(mesh: Mesh, axis: str, factor: float) -> tuple[Mesh, str]:
    """`mesh` scaled along x or y by `factor`, longest side 1 again, and the word that says so."""
    scale = torch.tensor([factor if axis == "x" else 1.0, factor if axis == "y" else 1.0, 1.0])
    vertices = mesh.vertices * scale
    side = (vertices.amax(0) - vertices.amin(0)).max()
    word = {("x", True): "wide", ("x", False): "narrow", ("y", True): "tall", ("y", False): "low"}[axis, factor > 1]
    return replace(mesh, vertices=vertices / side), word


def _colours_changed(mesh: Mesh, words: Words, config: AugmentConfig, rng: random.Random) -> tuple[Mesh, Words]:
    recolour, turn = rng.random() < config.recolour, rng.random() < config.turn_hues
    if not (recolour or turn) or (mesh.colors is None and mesh.texture is None):
        return mesh, words
    if recolour:
        change = choose_recolouring(surface_samples(mesh, config.samples).colors, rng)
        replaced = {change.old: change.new}
        mesh = with_colours(mesh, change)
    else:
        angle = rng.uniform(0.6, 5.6)
        replaced = {}
        mesh = with_colours(mesh, lambda rgb: turned_hues(rgb, angle))
    return mesh, words.recoloured(palette(surface_samples(mesh, config.samples).colors), replaced)
