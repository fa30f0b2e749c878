"""An object's other sides from the multiview denoiser: renders of it, partly noised, beside photos that stay as they are.

DSplats' sampler (Miao et al. 2024) started from what a reconstruction looks like instead of from noise, as SDEdit does
(Meng et al. 2022): the stronger the noise, the less of the reconstruction is left in the views that no photo shows.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from diffusion.image_config import ImageSampleConfig
from diffusion.image_to_3d import MAX_VIEWS, RING_ELEVATION_DEG, ImageTo3D, preview_of, widest_gap
from diffusion.sample_views import KnownViews, sampling
from diffusion.view_bank import cameras_at
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.progress import Progress
from splat.render import RenderOptions, render

VIEWS = 6  # known ones and others, together
MOST_KNOWN = 5  # photos that the network sees: the others' sides are denoised beside them


@torch.no_grad()
def known_views(splats: Splats, pictures: Tensor, cameras: Cameras, threads: int | None = None) -> KnownViews:
    """Photos as `framed_photos` makes them, and renders of `splats` (in the networks' frame) in the gaps between them.

    At most `MOST_KNOWN` photos, the first and those that stand farthest from the ones before. The photos come through
    untouched: what the network is given of them is `pictures`, to the bit.
    """
    chosen = spread(cameras, MOST_KNOWN)
    azimuths = [math.degrees(math.atan2(float(x), float(z))) for x, _, z in cameras.centers[chosen]]
    while len(azimuths) < min(max(VIEWS, len(chosen) + 1), MAX_VIEWS):
        azimuths.append(widest_gap(azimuths))
    others = torch.tensor([math.radians(a) for a in azimuths[len(chosen) :]])
    ring = cameras_at(others, torch.full_like(others, math.radians(RING_ELEVATION_DEG)), cameras.width)
    drawn = render(splats, ring, RenderOptions(background=torch.zeros(3), threads=threads))
    guess = torch.cat([drawn.rgb.clamp(0, 1), drawn.alpha[..., None]], dim=-1).permute(0, 3, 1, 2)
    known = pictures[chosen]
    return KnownViews(
        torch.cat([known, torch.zeros_like(guess)]),
        torch.arange(len(azimuths)) < len(chosen),
        Cameras.cat([cameras[chosen], ring]),
        torch.cat([known, guess]),
    )


def spread(cameras: Cameras, most: int) -> list[int]:
    """At most `most` cameras: the first, then always the one farthest in direction from all chosen. In order."""
    directions = torch.nn.functional.normalize(cameras.centers, dim=-1)
    chosen = [0]
    while len(chosen) < min(most, len(cameras)):
        nearest = (directions @ directions[chosen].T).amax(1)
        nearest[chosen] = 2.0
        chosen.append(int(nearest.argmin()))
    return sorted(chosen)


def regenerated_views(
    model: ImageTo3D, given: KnownViews, seed: int, config: ImageSampleConfig
) -> Generator[Progress, None, Splats]:
    """The network's Gaussians of the object, in its frame; the same for the same seed on CPU.

    Yields `Progress("views", call, calls)` with a preview. `config.strength` is how much of the guess is forgotten.
    """
    for done, splats in enumerate(sampling(model.network, model.space, given, seed, config), start=1):
        yield Progress("views", done, config.steps, preview=preview_of(splats.to("cpu"), config.threads))
    return splats.to("cpu")
