"""`augment.augmented` for an object that is already points with colours: a fitted volume's Gaussians."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.data.augment import AugmentConfig, Recolouring, choose_recolouring, turned_hues
from diffusion.data.colours import palette
from diffusion.data.words import Words


@dataclass(frozen=True)
class Variant:
    """How an object is changed: colours, then a stretch, then perhaps left and right swapped."""

    recolouring: Recolouring | None = None
    turn: float = 0.0  # radians that all hues turn
    stretch: tuple[float, float] = (1.0, 1.0)  # of x and y, before the longest side is made what it was
    mirrored: bool = False

    def colours(self, rgb: Tensor) -> Tensor:
        """sRGB [N, 3] after the change."""
        if self.recolouring is not None:
            return self.recolouring(rgb)
        return turned_hues(rgb, self.turn) if self.turn else rgb

    def stretched(self, centres: Tensor) -> Tensor:
        """Centres [N, 3] after the stretch alone."""
        if self.stretch == (1.0, 1.0):
            return centres
        longest = (centres.amax(0) - centres.amin(0)).max()
        centres = centres * torch.tensor([*self.stretch, 1.0])
        return centres * (longest / (centres.amax(0) - centres.amin(0)).max())

    def to_dict(self) -> dict:
        """What JSON holds."""
        r = self.recolouring
        colours = None if r is None else [r.center.tolist(), r.shift.tolist(), r.old, r.new]
        return {"recolouring": colours, "turn": self.turn, "stretch": self.stretch, "mirrored": self.mirrored}

    @staticmethod
    def from_dict(d: dict) -> Variant:
        r = d["recolouring"]
        recolouring = None if r is None else Recolouring(torch.tensor(r[0]), torch.tensor(r[1]), r[2], r[3])
        return Variant(recolouring, d["turn"], tuple(d["stretch"]), d["mirrored"])


def point_variant(
    centres: Tensor, rgb: Tensor, words: Words, config: AugmentConfig, rng: random.Random
) -> tuple[Variant, Words]:
    """Centres [N, 3] world, sRGB [N, 3] and the words of an object -> a variant, and the words that hold for it.

    Recoloured, hues turned, mirrored or stretched with the probabilities of `config` (it does not shrink). The points stand
    for equal areas. The same `rng` state gives the same result.
    """
    recolour, turn = rng.random() < config.recolour, rng.random() < config.turn_hues
    variant = Variant()
    if recolour:
        variant = Variant(choose_recolouring(rgb, rng))
        words = words.recoloured(palette(variant.colours(rgb)), {variant.recolouring.old: variant.recolouring.new})
    elif turn:
        variant = Variant(turn=rng.uniform(0.6, 5.6))
        words = words.recoloured(palette(variant.colours(rgb)), {})
    if rng.random() < config.mirror:
        variant, words = replace(variant, mirrored=True), words.mirrored()
    chance, axis, factor = rng.random(), rng.choice("xy"), rng.uniform(*config.stretch_range) ** rng.choice((-1, 1))
    size = centres.amax(0) - centres.amin(0)
    if chance < config.stretch and size["xy".index(axis)] > 0.5 * size.max():  # a chopstick that lies is never tall
        variant = replace(variant, stretch=(factor, 1.0) if axis == "x" else (1.0, factor))
        word = {("x", True): "wide", ("x", False): "narrow", ("y", True): "tall", ("y", False): "low"}[axis, factor > 1]
        words = replace(words, shape=word)
    return variant, words
