"""Making a generated object agree with the pictures that it was generated from, without changing the sides they do not show.

A short `fit` from the generated Gaussians. Its targets are the pictures at full sharpness and, so that nothing else moves, the
generated object's own renders from all round. These are small: they hold the shape and the colours at the scale at which the
network knows them, and leave what is finer to the pictures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion.data.object_views import DISTANCE, FOV_DEG
from diffusion.subject import Subject
from splat.cameras import Cameras
from splat.densify import ErrorDensify, NoDensify
from splat.gaussians import Splats
from splat.metrics import psnr
from splat.optimise import FitConfig, fit
from splat.progress import Progress
from splat.prune import visibility
from splat.render import RenderOptions, render
from splat.rotations import matrix_from_quat
from splat.sh import from_rgb
from splat.views import Views

SEEN_SIDE, SEEN_PIXELS = 64, 0.05  # px: a Gaussian whose weights in a picture of this side add up to less is not shown
LAYER = 0.03  # world units to either side of what a camera sees in which Gaussians make up the surface
SPACING = 1 / 0.6  # deviations between neighbours on the network's grid


@dataclass(frozen=True)
class RefineConfig:
    """How far the object may move towards its pictures."""

    steps: int = 200  # optimiser steps, each of one picture or anchor, for one picture; further ones have theirs added
    photo_share: float = 0.6  # of the steps that look at the pictures; the others look at the anchors
    anchors: int = 12  # renders of the generated object on each of two rings, above and below
    anchor_side: int = 96  # px of the anchors
    anchor_elevations_deg: tuple[float, ...] = (30.0, -10.0)
    max_gaussians: int = 60_000
    grain: float = (
        0.8  # px of the pictures: Gaussians that they show are split until none has a larger deviation; 0 splits none
    )
    paint: bool = True  # begin with the pictures' own colours on what they show
    edits: int = 0  # times that Gaussians are split where the pictures differ; 0 keeps their number
    lr_means: float = 8e-5  # at first, in units of the cameras' spread; a tenth of it at the end
    lr_colours: float = 2e-2
    least_opacity: float = 0.02  # Gaussians fainter than this are dropped first; the network leaves many
    threads: int | None = None  # CPU threads
    backend: str = "auto"  # renderer
    seed: int = 0

    def fit(self, pictures: int) -> FitConfig:
        return FitConfig(
            steps=round(self.steps * (1 + (pictures - 1) * self.photo_share)),
            sh_degree=0,
            lr_means=self.lr_means,
            lr_means_final=self.lr_means / 10,
            lr_sh0=self.lr_colours,
            opacity_regulariser=0.0,
            scale_regulariser=0.0,
            min_visibility=0.0,
            densify=ErrorDensify(first=1.0, edits=self.edits, start=0.1, full=0.5, stop=0.6) if self.edits else NoDensify(),
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
    views = [picture.view(f"picture_{i}") for i, picture in enumerate(pictures)]
    anchors = anchor_views(splats, config)
    before = front_psnr(splats, pictures[0], config)
    splats = finer(splats, pictures, config)
    for picture in pictures if config.paint else ():
        splats = painted(splats, picture, config)
    share = config.photo_share / (1 - config.photo_share)
    turns = max(round(share * len(anchors)), 1)  # a view listed twice is looked at twice as often
    result = yield from fit([*views * turns, anchors], splats, config.fit(len(pictures)), state)
    return Refined(result.splats, before, front_psnr(result.splats, pictures[0], config))


def finer(splats: Splats, pictures: Sequence[Subject], config: RefineConfig) -> Splats:
    """`splats` with those that the pictures show split until they are as fine as the pixels, or as many as allowed.

    A network's Gaussians lie on a grid of its pixels, about 1 / 0.6 deviations apart. Each half is half as long and as opaque
    as the whole, so that the halves lie on the finer grid in the same way and together look the same.
    """
    if not config.grain:
        return splats
    options = RenderOptions(threads=config.threads)
    limit = min(config.grain * DISTANCE / float(p.cameras().K[0, 0, 0]) for p in pictures)
    small = [p.cameras(SEEN_SIDE) for p in pictures]
    shown = visibility(splats, small, options, config.backend) > SEEN_PIXELS
    while True:
        rows = (shown & (splats.scales.amax(-1) > limit)).nonzero().squeeze(1)
        if len(rows) == 0 or len(splats) + len(rows) > config.max_gaussians:
            return splats
        halves = halved(splats[rows])
        stay = torch.ones(len(splats), dtype=torch.bool).index_fill_(0, rows, False)
        shown = torch.cat([shown[stay], torch.ones(len(halves), dtype=torch.bool)])
        splats = Splats.cat([splats[stay], halves])


def painted(splats: Splats, picture: Subject, config: RefineConfig) -> Splats:
    """`splats` with the picture's colour on those that lie on the surface that it shows, inside of its outline."""
    camera = picture.cameras()
    depth_map = _drawn(splats, camera, config).expected_depth[0]
    pixels, depth = (x[0] for x in camera.project(splats.means))
    grid = (2 * pixels / picture.side - 1)[None, None]  # [1, 1, N, 2]
    planes = torch.cat([picture.image, picture.alpha[..., None], depth_map[..., None]], dim=-1).permute(2, 0, 1)[None]
    sampled = torch.nn.functional.grid_sample(planes, grid, mode="bilinear", align_corners=False)[0, :, 0].T  # [N, 5]
    on_surface = ((depth - sampled[:, 4]).abs() < LAYER) & (sampled[:, 3] > 0.95)
    sh = splats.sh.clone()
    sh[on_surface, 0] = from_rgb(sampled[on_surface, :3])
    return dataclasses.replace(splats, sh=sh)


def halved(splats: Splats) -> Splats:
    """[2 N] the two halves of each along its longest axis."""
    longest = splats.log_scales.argmax(-1, keepdim=True)  # [N, 1]
    axis = matrix_from_quat(splats.quats).gather(2, longest[:, None].expand(-1, 3, 1)).squeeze(-1)  # [N, 3] unit
    shift = SPACING / 4 * splats.scales.gather(1, longest) * axis
    shorter = splats.log_scales.scatter_add(1, longest, torch.full_like(splats.means[:, :1], math.log(0.5)))
    thin = dataclasses.replace(splats, log_scales=shorter)
    return Splats.cat([dataclasses.replace(thin, means=splats.means + sign * shift) for sign in (1, -1)])


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
