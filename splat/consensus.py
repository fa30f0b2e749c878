"""Several fits to the same few photos: where they agree they are likely right, where they do not nobody knows.

Fits that begin with other Gaussians and see the photos in another order err in other ways where the photos say little, so their
mean picture is nearer to the truth than any of theirs ("Self-Ensembling Gaussian Splatting for Few-Shot Novel View Synthesis",
Zhao et al. 2024, trains on perturbed copies for the same reason). The mean pictures of cameras that took no photo then teach
the final fit, and what the members disagree on says where one more photo would help most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.optimise import FitConfig, fit
from splat.progress import Progress, told_as
from splat.regularise import Priors, VirtualView
from splat.regularise.virtual_views import between, neighbours
from splat.render import RenderOptions, render
from splat.views import Views


@dataclass(frozen=True)
class ConsensusConfig:
    """How the members are made, and from where they are asked."""

    members: int = 3
    steps: float = 0.5  # of a member, in shares of the final fit's
    keep: float = 0.7  # share of the first Gaussians that a member starts from, drawn anew for each
    partners: int = 4  # photos that each photo is joined with; pictures come from between
    per_pair: int = 3
    scale: float = 1.0  # size of the pictures in photos


def fit_members(
    views: list[Views], initial: Splats, fit_config: FitConfig, config: ConsensusConfig, priors: Priors | None = None
) -> Generator[Progress, None, list[Splats]]:
    """Independent fits, of other seeds and other parts of `initial`; yields stage "members"."""
    members = []
    for k in range(config.members):
        seed = fit_config.seed + 1000 * (k + 1)
        generator = torch.Generator().manual_seed(seed)
        part = initial[torch.rand(len(initial), generator=generator).to(initial.means.device) < config.keep]
        steps = max(round(config.steps * fit_config.steps), 1)
        alone = dataclasses.replace(fit_config, seed=seed, steps=steps)
        job = fit(views, part if len(part) else initial, alone, None, priors)
        done, total = k * steps, config.members * steps
        fitted = yield from told_as(
            job, lambda e, done=done, total=total: dataclasses.replace(e, stage="members", step=done + e.step, total=total)
        )
        members.append(fitted.splats)
    return members


def cameras_between(views: list[Views], partners: int, per_pair: int, scale: float) -> list[Cameras]:
    """Cameras (batches of one) on the arcs between each photo and its `partners` nearest ones."""
    photos = [v.cameras[i] for v in views for i in range(len(v))]
    found = []
    for a, b in neighbours(photos, partners):
        for k in range(per_pair):
            camera = between(photos[a], photos[b], (k + 1) / (per_pair + 1))
            found.append(camera.resized(max(round(camera.width * scale), 1), max(round(camera.height * scale), 1)))
    return found


@torch.no_grad()
def mean_picture(members: Sequence[Splats], camera: Cameras, backend: str = "auto") -> VirtualView:
    """What the members see on average."""
    drawn = [render(splats, camera, RenderOptions(), backend) for splats in members]
    image, alpha = (torch.stack([getattr(d, name) for d in drawn]).mean(0) for name in ("rgb", "alpha"))
    return VirtualView(camera, image, alpha, torch.ones_like(alpha))


@torch.no_grad()
def disagreement(members: Sequence[Splats], camera: Cameras, background: Tensor, backend: str = "auto") -> Tensor:
    """[C, H, W] standard deviation over the members of what a camera sees on `background` [3], mean over the channels."""
    options = RenderOptions(background=background)
    images = torch.stack([render(splats, camera, options, backend).rgb.clamp(0, 1) for splats in members])
    return images.std(0, correction=0).mean(-1)
