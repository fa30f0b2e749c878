"""What a generator made of an object, joined to what its photos show: that stays, the other sides are the generator's.

The joined splats are then fitted to the photos for a short while. Small pictures from all round, their own renders and the
generator's, hold what the photos do not show, as in `diffusion.refine_object`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.refine_object import RefineConfig, anchor_views
from splat.gaussians import Splats
from splat.hidden import hidden
from splat.optimise import FitResult, fit
from splat.progress import Progress
from splat.similarity import Similarity
from splat.views import Views


@dataclass(frozen=True)
class GraftConfig:
    """How the generator's Gaussians meet the photos'."""

    margin: float = 0.03  # behind the surface, object's longest side 1: a pixel of the multiview network; and then
    sizes: float = 2.0  # of the Gaussian's own largest deviations
    # Weight of the generator's own renders, against the grafted object's, in what the fit is told of the sides all round.
    taught: float = 0.5
    fit: RefineConfig = field(default_factory=RefineConfig)


def grafted(splats: Splats, made: Splats, views: Sequence[Views], frame: Similarity, config: GraftConfig) -> Splats:
    """Of `splats` what `views` show, of `made` what they do not; both and the result in the world of `views`.

    `frame` leads from there to the networks' frame. `made` takes the degree of `splats`' spherical harmonics.
    """

    def unseen(s: Splats) -> Tensor:
        margins = config.margin / frame.scale + config.sizes * s.scales.amax(1)
        return hidden(s.means, splats, views, margins, config.fit.threads, config.fit.backend)

    own, new = unseen(splats), unseen(made)
    return Splats.cat([splats[~own], made[new].with_sh_degree(splats.sh_degree)])


def settled(
    splats: Splats,
    made: Splats,
    views: Sequence[Views],
    frame: Similarity,
    config: GraftConfig,
    state: Path | None = None,
) -> Generator[Progress, None, FitResult]:
    """Fit grafted `splats` to posed, masked `views` on white; the result's cameras are those of `views`.

    Small pictures from all round are looked at too: means of renders of `splats` and of all that the generator `made`.

    Works in the networks' frame, so that rates mean the same for every scene. Yields the events of `fit`; raises as it does.
    """
    plan = config.fit
    there = splats.transformed(frame)
    anchors = _mean(anchor_views(there, plan), anchor_views(made.transformed(frame), plan), config.taught)
    photos = [replace(v, cameras=v.cameras.transformed(frame)) for v in views]
    count = sum(len(v) for v in photos)
    share = plan.photo_share / (1 - plan.photo_share)
    turns = max(round(share * len(anchors) / count), 1)  # a photo listed several times is looked at as often
    fitting = replace(plan.fit(count), sh_degree=splats.sh_degree, sh_every=0.0)
    fitting = replace(fitting, max_gaussians=max(fitting.max_gaussians, len(splats)))  # `fit` drops what is above, at random
    result = yield from fit([*photos * turns, anchors], there, fitting, state)
    exposures = torch.zeros(count, 2, 3)
    exposures[:, 0] = 1
    return FitResult(
        result.splats.transformed(frame.inverse()), [v.cameras for v in views], exposures, result.train_psnr, result.steps
    )


def _mean(own: Views, taught: Views, weight: float) -> Views:
    """The same views, of pictures and masks mixed with `weight` of the second."""
    if not weight:
        return own
    images, masks = (torch.lerp(a, b, weight) for a, b in ((own.images, taught.images), (own.masks, taught.masks)))
    return replace(own, images=images, masks=masks)
