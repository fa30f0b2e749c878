"""Several volumes made for one sentence, the best first: do their colours agree with the words, and are they clean?

Clean is one connected thing, opaque inside its silhouette. What no measure here can see, whether the shape is the one that was
asked for, a generator may add as a number of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.data.colours import COLOUR_WORDS, Palette, palette
from diffusion.data.object_views import DISTANCE, FOV_DEG
from diffusion.volume import OPACITY, SplatVolume
from splat.cameras import Cameras
from splat.render import RenderOptions, render

SPELLINGS = {"gray": "grey"} | {word: word for word in COLOUR_WORDS}
VIEWS, SIDE = 6, 96  # pictures that a candidate is judged by, and their px
ENOUGH_OF_A_COLOUR = 0.6  # of the visible surface, shared by the colour words of the sentence: more counts no better
SOLID_NODE = 0.1  # opacity from which a node holds the thing together
SILHOUETTE = 0.1  # opacity from which a pixel belongs to the silhouette
SEEN = 0.5  # opacity from which a pixel shows a colour
LEAST_SEEN = 0.002  # of the pictures' pixels; a candidate that shows less is empty


@dataclass(frozen=True)
class RankConfig:
    """How much each part of a score counts."""

    colour: float = 1.0
    connected: float = 1.0
    solid: float = 0.5
    agreement: float = 1.0  # of the generator's own number, on whatever scale it has


@dataclass(frozen=True)
class CandidateScore:
    """What was measured on one candidate; higher is better."""

    visible: bool  # false for a volume that is empty or not finite, and then all the rest is 0
    colour: float  # [0, 1] how much of the surface has the colours of the sentence; 1 where it names none
    connected: float  # [0, 1] share of the opacity in the largest connected part of the grid
    solid: float  # [0, 1] mean opacity inside the silhouette
    agreement: float  # the generator's own number, 0 where it gave none
    total: float


@dataclass(frozen=True)
class Ranking:
    """`order` lists the candidates best first; `scores` stay in the order in which they were given."""

    order: tuple[int, ...]
    scores: tuple[CandidateScore, ...]

    @property
    def best(self) -> int:
        return self.order[0]


def rank_candidates(
    volumes: SplatVolume,
    prompt: str,
    agreement: Tensor | None = None,
    config: RankConfig | None = None,
    threads: int | None = None,
) -> Ranking:
    """Rank the cubes of `volumes`, all made for `prompt`; `agreement` [B] is the generator's own judgement, higher is better.

    Empty cubes, and those that hold NaN or infinity, come last; equal ones keep their order. Deterministic: it runs on the CPU.
    """
    config = config or RankConfig()
    agreement = torch.zeros(len(volumes)) if agreement is None else agreement.detach().float().cpu()
    assert agreement.shape == (len(volumes),), (agreement.shape, len(volumes))
    volumes = volumes.to("cpu")
    words = colour_words(prompt)
    scores = tuple(_score(volumes, i, words, float(agreement[i]), config, threads) for i in range(len(volumes)))
    order = sorted(range(len(scores)), key=lambda i: (not scores[i].visible, -scores[i].total, i))
    return Ranking(tuple(order), scores)


def colour_words(prompt: str) -> tuple[str, ...]:
    """The basic colours that `prompt` names, each once, in its order: "A light-gray and RED car" -> grey, red."""
    words = "".join(c if c.isalpha() else " " for c in prompt.lower()).split()
    return tuple(dict.fromkeys(SPELLINGS[word] for word in words if word in SPELLINGS))


def colour_agreement(words: tuple[str, ...], seen: Palette) -> float:
    """[0, 1] how far each of `words` covers its part of the surface, on average; 1 without words."""
    if not words:
        return 1.0
    shares = dict(zip(seen.words, seen.shares, strict=True))
    enough = ENOUGH_OF_A_COLOUR / len(words)
    return sum(min(shares.get(word, 0.0) / enough, 1.0) for word in words) / len(words)


def connectedness(volumes: SplatVolume, index: int = 0) -> float:
    """[0, 1] share of a cube's opacity in its largest part: solid nodes that touch by face, edge or corner. 0 when empty."""
    import numpy as np
    from scipy import ndimage

    opacity = torch.where(volumes.active[index], volumes.features[index, OPACITY].sigmoid(), 0).double().cpu().numpy()
    parts, count = ndimage.label(opacity >= SOLID_NODE, structure=np.ones((3, 3, 3)))
    return float(ndimage.sum(opacity, parts, range(1, count + 1)).max() / opacity.sum()) if count else 0.0


def appearance(volumes: SplatVolume, index: int = 0, threads: int | None = None) -> tuple[Palette, float, float]:
    """From all round: the colours seen, by area; the mean opacity inside the silhouette; the share of pixels that show it."""
    half = VIEWS // 2
    cameras = [Cameras.orbit(half, DISTANCE, e, FOV_DEG, SIDE, SIDE, azimuth_deg=a) for e, a in ((10, 30), (40, 90))]
    with torch.no_grad():
        drawn = render(volumes.to_splats(index), Cameras.cat(cameras), RenderOptions(threads=threads))
    seen = drawn.alpha > SEEN
    rgb = (drawn.rgb[seen] / drawn.alpha[seen][:, None]).clamp(0, 1)
    inside = drawn.alpha[drawn.alpha > SILHOUETTE]
    return palette(rgb), float(inside.mean()) if len(inside) else 0.0, float(seen.float().mean())


def _score(
    volumes: SplatVolume, index: int, words: tuple[str, ...], agreement: float, config: RankConfig, threads: int | None
) -> CandidateScore:
    nothing = CandidateScore(False, 0.0, 0.0, 0.0, 0.0, 0.0)
    if not bool(volumes.active[index].any()) or not bool(volumes.features[index].isfinite().all()):
        return nothing
    seen, solid, shown = appearance(volumes, index, threads)
    if shown < LEAST_SEEN:
        return nothing
    colour, connected = colour_agreement(words, seen), connectedness(volumes, index)
    total = config.colour * colour + config.connected * connected + config.solid * solid + config.agreement * agreement
    return CandidateScore(True, colour, connected, solid, agreement, total)
