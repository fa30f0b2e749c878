"""A judge of text to 3-D that shares nothing with the generators: are the nearest real objects of the noun that was asked for?

An object is seen in four views, described by histograms of oriented gradients (Dalal and Triggs, CVPR 2005) and by how much
of which colour is seen, and compared with a gallery of real training objects, equally many of each noun. The settings below
were chosen on real training objects and stay as they are, for figures are comparable only under one judge. How near a shape
is to known ones says `nearest_shapes`.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.data.colours import Palette, oklab, palette
from diffusion.data.object_views import DISTANCE, FOV_DEG
from splat.cameras import Cameras
from splat.mesh import Mesh

VIEWS = 4
SIDE = 64  # px
FIRST_AZIMUTH_DEG = 30.0
ELEVATION_DEG = 15.0
CELL = 8  # px a side of a cell with one histogram
ORIENTATIONS = 9  # bins over half a turn
CLIP = 0.2  # of a normalised block, against single strong edges (Dalal and Triggs)
FAINT = 0.01  # norm of a block below which it counts as empty
COLOUR_SIDE = 32  # px of the pictures whose colours are counted
COLOUR_STEPS = 5  # anchors of the colour histogram along each of red, green and blue
COLOUR_SPREAD = 0.06  # standard deviation in Oklab with which a pixel is shared among anchors
COLOUR_WEIGHT = 0.5  # length of the colour part where that of the gradients is 1
PER_NOUN = 8  # gallery objects of each noun


def judge_cameras() -> Cameras:
    """The four views: FIRST_AZIMUTH_DEG and a quarter turn further each, at the object protocol's distance."""
    return Cameras.orbit(VIEWS, DISTANCE, ELEVATION_DEG, FOV_DEG, SIDE, SIDE, azimuth_deg=FIRST_AZIMUTH_DEG)


def features(images: Tensor, masks: Tensor) -> Tensor:
    """Views [N, 4, H, W, 3] sRGB on white with covered fractions [N, 4, H, W] -> [N, D] of unit length, for dot products."""
    n, v = images.shape[:2]
    assert v == VIEWS and masks.shape == images.shape[:4], (images.shape, masks.shape)
    rgb, covered = images.flatten(0, 1).movedim(-1, 1), masks.flatten(0, 1)[:, None]  # [NV, 3, H, W], [NV, 1, H, W]
    shape = gradient_histograms(torch.cat([rgb, covered], dim=1)).reshape(n, -1)
    colour = colour_histogram(images, masks)
    return F.normalize(torch.cat([F.normalize(shape), COLOUR_WEIGHT * F.normalize(colour)], dim=1))


def gradient_histograms(x: Tensor) -> Tensor:
    """Images [B, K, H, W] -> [B, D]: at every pixel the channel of the steepest gradient votes for its direction."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    gx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    gy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    steepest = (gx.square() + gy.square()).argmax(dim=1, keepdim=True)
    gx, gy = gx.gather(1, steepest), gy.gather(1, steepest)  # [B, 1, H, W]
    direction = torch.atan2(gy, gx) / torch.pi % 1 * ORIENTATIONS
    centres = torch.arange(ORIENTATIONS).to(x)[:, None, None] + 0.5
    away = (direction - centres + ORIENTATIONS / 2) % ORIENTATIONS - ORIENTATIONS / 2
    votes = (1 - away.abs()).clamp_min(0) * (gx.square() + gy.square()).sqrt()  # shared between the two nearest bins
    blocks = F.unfold(F.avg_pool2d(votes, CELL), 2)  # [B, 4 ORIENTATIONS, cells' 2x2 neighbourhoods]
    blocks = (blocks / (blocks.norm(dim=1, keepdim=True) + FAINT)).clamp_max(CLIP)
    return (blocks / (blocks.norm(dim=1, keepdim=True) + FAINT)).flatten(1)


def colour_histogram(images: Tensor, masks: Tensor) -> Tensor:
    """[N, V, H, W, 3] on white and [N, V, H, W] -> [N, COLOUR_STEPS^3] square roots of the shares of the visible surface.

    Square roots, so that a dot product is the Bhattacharyya coefficient. Pixels covered by less than half are left out.
    """
    n = len(images)
    x = torch.cat([images, masks[..., None]], dim=-1).flatten(0, 1).movedim(-1, 1)
    small = F.adaptive_avg_pool2d(x, COLOUR_SIDE).movedim(1, -1).reshape(n, -1, 4)  # [N, pixels of all views, 4]
    alpha = small[..., 3]
    lab = _chromatic(_uncovered(small[..., :3], alpha[..., None]))
    away = torch.cdist(lab.reshape(-1, 3), _chromatic(_anchors())) / COLOUR_SPREAD
    votes = torch.softmax(-0.5 * away.square(), dim=1).reshape(n, -1, COLOUR_STEPS**3)
    counts = (votes * (alpha * (alpha > 0.5))[..., None]).sum(1)
    return (counts / counts.sum(1, keepdim=True).clamp_min(1e-6)).sqrt()


def _anchors() -> Tensor:
    """[COLOUR_STEPS^3, 3] sRGB, at the centres of cells of the colour cube."""
    steps = (torch.arange(COLOUR_STEPS) + 0.5) / COLOUR_STEPS
    return torch.cartesian_prod(steps, steps, steps)


def _chromatic(rgb: Tensor) -> Tensor:
    """Oklab with hue and chroma counting double: shading changes lightness and not what a thing is."""
    return oklab(rgb) * torch.tensor([1.0, 2, 2])


def _uncovered(rgb: Tensor, alpha: Tensor) -> Tensor:
    """The object's own colour where it covers the share `alpha` of a pixel on white."""
    return ((rgb - (1 - alpha)) / alpha.clamp_min(0.05)).clamp(0, 1)


@dataclass(frozen=True)
class NounAgreement:
    """What the nearest gallery objects of N samples are called."""

    neighbours: Tensor  # [N, K] int64 rows of the gallery, nearest first
    agrees: Tensor  # [N, K] bool: the neighbour's noun is the sample's

    @property
    def nearest(self) -> float:
        """Share of samples whose nearest object has their noun: NN@1."""
        return float(self.agrees[:, 0].double().mean())

    @property
    def any_of(self) -> float:
        """Share of samples with their noun among the K nearest."""
        return float(self.agrees.any(dim=1).double().mean())


def noun_agreement(
    samples: Tensor,
    nouns: Sequence[str],
    gallery: Tensor,
    gallery_nouns: Sequence[str],
    left_out: Tensor | None = None,
    count: int = 5,
) -> NounAgreement:
    """Features [N, D] with the nouns that were asked for, against features [G, D] of real objects.

    `left_out` [N, G] bool: gallery objects that do not count for a sample, such as itself.
    """
    assert len(samples) == len(nouns) and len(gallery) == len(gallery_nouns), (len(samples), len(gallery))
    likeness = samples @ gallery.T
    if left_out is not None:
        likeness = likeness.masked_fill(left_out, -torch.inf)
    neighbours = likeness.topk(min(count, len(gallery)), dim=1).indices
    own, theirs = np.array(nouns), np.array(gallery_nouns)
    return NounAgreement(neighbours, torch.from_numpy(theirs[neighbours.numpy()] == own[:, None]))


def balanced_gallery(nouns: Sequence[str], geometries: Sequence[str], per_noun: int = PER_NOUN, seed: int = 0) -> list[int]:
    """Rows with `per_noun` of each noun (all of rarer ones), drawn at random; different geometries first, recolours after."""
    rows_of = defaultdict(list)
    for row in random.Random(seed).sample(range(len(nouns)), len(nouns)):
        rows_of[nouns[row]].append(row)
    chosen = []
    for noun in sorted(rows_of):
        seen, first, again = set(), [], []
        for row in rows_of[noun]:
            (again if geometries[row] in seen else first).append(row)
            seen.add(geometries[row])
        chosen += (first + again)[:per_noun]
    return chosen


def geometry_key(mesh: Mesh) -> str:
    """Equal for an object and its recolours: a hash of the set of vertex positions, to 1/256 of the longest side."""
    steps = np.unique((mesh.vertices * 256).round().to(torch.int32).numpy(), axis=0)
    return hashlib.sha256(steps.tobytes()).hexdigest()[:16]


def shuffled(nouns: Sequence[str], seed: int = 0) -> list[str]:
    """Every noun exchanged for another one, the same everywhere, none for itself: the labels of the shuffled-text control."""
    order = sorted(set(nouns))
    assert len(order) > 1, "one noun cannot be shuffled"
    random.Random(seed).shuffle(order)
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    return [other[n] for n in nouns]


def visible_palette(images: Tensor, masks: Tensor) -> Palette:
    """Colour words of what views [V, H, W, 3] on white show, by area seen; masks [V, H, W] covered fractions.

    Pixels covered by less than half say more of the background than of the object and are left out.
    """
    covered = masks > 0.5
    return palette(_uncovered(images[covered], masks[covered][:, None]), masks[covered])
