"""First Gaussians for what no photo saw: a fit moves Gaussians and cannot put them into a hole.

Where a repaired view shows something and the splats nothing, Gaussians of its colour go to the depth that the surfaces around
the hole continue to. They are a guess, like the picture. What the repairer leaves to the background stays empty.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.render import RenderOptions, render
from splat.sh import from_rgb

HOLE = 0.5  # alpha below which a pixel shows nothing
SOMETHING = 0.1  # difference from the background, in its largest channel, from which a picture shows something
OPACITY = 0.7  # of a new Gaussian
SIZE = 0.6  # standard deviation, in steps of the grid of new ones
FAR = 4  # power of depth by which a surface beside a hole decides its depth: holes are in what lies behind


@torch.no_grad()
def with_holes_filled(
    splats: Splats,
    cameras: list[Cameras],
    pictures: list[Tensor],
    background: Tensor,
    stride: int,
    most: int,
    backend: str = "auto",
    threads: int | None = None,
) -> Splats:
    """`splats` and Gaussians in the holes of `cameras` (batches of one), which `pictures` [H, W, 3] on `background` [3] fill.

    One every `stride` pixels, not more than `most` together; a hole that an earlier view has filled is none in a later one.
    """
    added: list[Splats] = []
    for camera, picture in zip(cameras, pictures, strict=True):
        room = most - sum(len(a) for a in added)
        drawn = render(Splats.cat([splats, *added]), camera, RenderOptions(threads=threads), backend)
        alpha = drawn.alpha[0]
        if room <= 0 or not bool((alpha < HOLE).any()) or not bool((alpha >= HOLE).any()):
            continue
        depth = continued(drawn.expected_depth[0], alpha >= HOLE)
        grid = torch.zeros_like(alpha, dtype=torch.bool)
        grid[stride // 2 :: stride, stride // 2 :: stride] = True
        # Not at the soft edges of what is there: a hole is wider than the grid.
        around = torch.nn.functional.max_pool2d(alpha[None, None], 2 * stride + 1, 1, stride)[0, 0]
        shown = (picture - background).abs().amax(-1) > SOMETHING
        rows, columns = (grid & shown & (around < HOLE)).nonzero()[:room].unbind(-1)
        if len(rows):
            added.append(_guessed(splats, camera, picture, depth, rows, columns, stride))
    return Splats.cat([splats, *added])


def continued(depth: Tensor, solid: Tensor) -> Tensor:
    """Depth [H, W] with its holes (where `solid` [H, W] is False) filled from around them, rather from what lies farther."""
    weight = solid.to(depth.dtype) * depth.clamp_min(1e-6) ** FAR / depth[solid].median() ** FAR
    levels = [torch.stack([depth * weight, weight])[None]]
    while max(levels[-1].shape[-2:]) > 1:
        levels.append(torch.nn.functional.avg_pool2d(levels[-1], 2, ceil_mode=True))
    value = levels[-1][:, :1] / levels[-1][:, 1:].clamp_min(1e-12)
    for level in reversed(levels[:-1]):
        value = torch.nn.functional.interpolate(value, level.shape[-2:], mode="bilinear", align_corners=False)
        value = torch.where(level[:, 1:] > 0, level[:, :1] / level[:, 1:].clamp_min(1e-12), value)
    return value[0, 0]


def _guessed(
    like: Splats, camera: Cameras, picture: Tensor, depth: Tensor, rows: Tensor, columns: Tensor, stride: int
) -> Splats:
    z = depth[rows, columns]
    xyz = camera.unproject(camera.pixel_centers[rows, columns], z)[0]
    size = SIZE * stride * z / (camera.K[0, 0, 0] * camera.K[0, 1, 1]).sqrt()
    quats = torch.zeros(len(z), 4, device=z.device)
    quats[:, 0] = 1
    opacity = torch.full_like(z, math.log(OPACITY / (1 - OPACITY)))
    fresh = Splats(xyz, quats, size.log()[:, None].repeat(1, 3), opacity, from_rgb(picture[rows, columns])[:, None])
    return fresh.with_sh_degree(like.sh_degree)
