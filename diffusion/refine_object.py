"""Making a generated object agree with the pictures that it was generated from, without changing the sides they do not show.

A short `fit` from the generated Gaussians. Its targets are the pictures at full sharpness and, so that nothing else moves, the
generated object's own renders from all round. These are small: they hold the shape and the colours at the scale at which the
network knows them, and leave what is finer to the pictures.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.data.object_views import DISTANCE, FOV_DEG
from diffusion.subject import Subject
from splat.cameras import Cameras
from splat.densify import ErrorDensify, NoDensify
from splat.gaussians import Splats
from splat.metrics import psnr
from splat.optimise import FitConfig, fit
from splat.progress import Progress
from splat.render import RenderOptions, render
from splat.sh import from_rgb
from splat.views import Views

MISSING = 0.5  # coverage that the splats lack where a picture shows something
SHEET_DEVIATION, SHEET_LOGIT = 0.6, 1.5  # of its pixels; opacity 0.82


@dataclass(frozen=True)
class RefineConfig:
    """How far the object may move towards its pictures."""

    steps: int = 200  # optimiser steps, each of one picture or anchor, for one picture; further ones have theirs added
    photo_share: float = 0.6  # of the steps that look at the pictures; the others look at the anchors
    anchors: int = 12  # renders of the generated object on each of two rings, above and below
    anchor_side: int = 96  # px of the anchors
    anchor_elevations_deg: tuple[float, ...] = (30.0, -10.0)
    max_gaussians: int = 60_000  # up to which Gaussians are split; no object loses any for having more
    sheet_side: int = 128  # px at which what the splats lack of a picture is filled in; 0 leaves it out
    steps_per_edit: int = 200  # between splits of Gaussians where the pictures differ: each costs other views a little
    lr_means: float = 3e-4  # at first, in units of the cameras' spread; a tenth of it at the end
    lr_colours: float = 2e-2
    least_opacity: float = 0.005  # Gaussians fainter than this are dropped first; the network leaves many
    threads: int | None = None  # CPU threads
    backend: str = "auto"  # renderer
    seed: int = 0

    def fit(self, pictures: int) -> FitConfig:
        edits = self.steps // self.steps_per_edit
        return FitConfig(
            steps=round(self.steps * (1 + (pictures - 1) * self.photo_share)),
            sh_degree=0,
            lr_means=self.lr_means,
            lr_means_final=self.lr_means / 10,
            lr_sh0=self.lr_colours,
            opacity_regulariser=0.0,
            scale_regulariser=0.0,
            min_visibility=0.0,
            densify=ErrorDensify(first=1.0, dead=self.least_opacity, edits=edits, start=0.1, full=0.5, stop=0.6)
            if edits
            else NoDensify(),
            max_gaussians=self.max_gaussians,
            random_background="masked",
            seed=self.seed,
            backend=self.backend,
            threads=self.threads,
        )


@dataclass(frozen=True)
class Refined:
    """The object afterwards."""

    splats: Splats
    psnr_before: float  # dB, the main picture on white in its frame
    psnr_after: float


def refine_object(
    splats: Splats, pictures: Sequence[Subject], config: RefineConfig, state: Path | None = None
) -> Generator[Progress, None, Refined]:
    """Fit `splats` to `pictures` (of any side, cut out, the main one first), in the frame of the subjects' cameras.

    Yields the events of `fit`, whose `state` it may leave and go on from; the same bits for the same input on CPU. Raises as
    `fit` does.
    """
    visible = splats.opacities > config.least_opacity
    splats = splats[visible] if bool(visible.any()) else splats
    before = front_psnr(splats, pictures[0], config)
    for picture in pictures:
        splats = completed(splats, picture, config)
    views = [picture.view(f"picture_{i}") for i, picture in enumerate(pictures)]
    anchors = anchor_views(splats, config)
    share = config.photo_share / (1 - config.photo_share)
    turns = max(round(share * len(anchors)), 1)  # a view listed twice is looked at twice as often
    plan = config.fit(len(pictures))
    plan = replace(plan, max_gaussians=max(plan.max_gaussians, len(splats)))  # `fit` drops what is above, at random
    result = yield from fit([*views * turns, anchors], splats, plan, state)
    return Refined(result.splats, before, front_psnr(result.splats, pictures[0], config))


def completed(splats: Splats, picture: Subject, config: RefineConfig) -> Splats:
    """`splats` and a sheet of new ones where the picture shows something that they do not: thin parts that the network missed.

    The sheet lies at the depth of the nearest surface beside it, in pixels of `config.sheet_side`.
    """
    side = config.sheet_side
    if not side:
        return splats
    camera = picture.cameras(side)
    drawn = _drawn(splats, camera, config)
    planes = torch.cat([picture.image * picture.alpha[..., None], picture.alpha[..., None]], dim=-1).permute(2, 0, 1)[None]
    colour, alpha = torch.nn.functional.interpolate(planes, (side, side), mode="area")[0].permute(1, 2, 0).split([3, 1], dim=-1)
    missing = (alpha[..., 0] > 0.5) & (alpha[..., 0] - drawn.alpha[0] > MISSING)  # [side, side]
    depth = _spread(drawn.expected_depth[0], drawn.alpha[0] > 0.5, picture.distance)[missing]
    pixels = camera.pixel_centers[missing]
    count = len(pixels)
    footprint = depth / camera.K[0, 0, 0]
    sheet = Splats(
        camera.unproject(pixels[None], depth[None])[0],
        torch.nn.functional.pad(torch.ones(count, 1), (0, 3)),
        (SHEET_DEVIATION * footprint).log()[:, None].repeat(1, 3),
        torch.full((count,), SHEET_LOGIT),
        from_rgb((colour / alpha)[missing])[:, None],
    )
    return Splats.cat([splats, sheet.with_sh_degree(splats.sh_degree).to(splats.means)])


def _spread(depth: Tensor, known: Tensor, middle: float) -> Tensor:
    """[H, W] depth of the nearest pixel that is `known`; that of the object's `middle` where none is."""
    import cv2

    if not bool(known.any()):
        return torch.full_like(depth, middle)
    unknown = (~known).to(torch.uint8).numpy()
    _, label = cv2.distanceTransformWithLabels(unknown, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    index = torch.from_numpy(label).long()
    by_label = torch.zeros(int(index.max()) + 1)
    by_label[index[known]] = depth[known]
    return by_label[index]


def anchor_views(splats: Splats, config: RefineConfig) -> Views:
    """Renders of `splats` from all round, on white with masks."""
    side = config.anchor_side
    rings = [
        Cameras.orbit(config.anchors, DISTANCE, elevation, FOV_DEG, side, side, azimuth_deg=(i + 0.5) * 180 / config.anchors)
        for i, elevation in enumerate(config.anchor_elevations_deg)
    ]
    cameras = Cameras.cat(rings)
    drawn = _drawn(splats, cameras, config)
    return Views(drawn.rgb.clamp(0, 1), tuple(f"anchor_{i:02d}" for i in range(len(cameras))), cameras, drawn.alpha)


def front_psnr(splats: Splats, picture: Subject, config: RefineConfig) -> float:
    """dB between a picture on white and the render from its camera."""
    drawn = _drawn(splats, picture.cameras(), config)
    return float(psnr(drawn.rgb[0].clamp(0, 1), picture.on()))


@torch.no_grad()
def _drawn(splats: Splats, cameras: Cameras, config: RefineConfig):
    options = RenderOptions(background=torch.ones(3), threads=config.threads)
    return render(splats, cameras.to(splats.means.device), options, config.backend)
