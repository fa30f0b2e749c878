"""Gaussians laid out as pictures: a network's 14 numbers for every pixel of every view -> `Splats`, and rays as its input."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.data.object_views import DISTANCE
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.sh import from_rgb

MAP_CHANNELS = 14  # depth, 2 offsets, 3 log scales, 4 quaternion, opacity, 3 colours
REACH = 0.87  # world units before and behind the object's centre: half the diagonal of a cube of side 1
MAX_SHIFT = 2.0  # pixels that a Gaussian can move from its pixel's ray
LOW_PASS = 0.3  # px^2 of the maps that every Gaussian is blurred by, as renderers blur: seen larger, it shows no gaps
KNOWN_OPACITY = 4.0  # logit with which a known pixel starts inside the silhouette, its negative outside
EMPTY_OPACITY = -2.0  # and a pixel of a view that is not known
CARVED = 8.0  # logits that a Gaussian loses where a known view shows nothing but background
HULL_SAMPLES = 16  # along the ray of a pixel
HULL_CHANNELS = HULL_SAMPLES + 3


def ray_features(clean: Tensor, is_clean: Tensor, cameras: Cameras, side: int) -> Tensor:
    """[V, 6 + HULL_CHANNELS, side, side] of one object's views: rays, and what known views say of them."""
    return torch.cat([plucker_rays(cameras, side), hull_features(clean, is_clean, cameras, side)], dim=1)


def plucker_rays(cameras: Cameras, side: int) -> Tensor:
    """Cameras [C] -> [C, 6, side, side]: unit direction and moment (centre x direction) of the ray through each pixel.

    In the world of the cameras and its units; the pixels are those of the pictures resized to `side`.
    """
    small = cameras.resized(side, side)
    pixels = small.pixel_centers.flatten(0, 1)[None]  # [1, side side, 2]
    centers = small.centers[:, None]
    directions = F.normalize(small.unproject(pixels, torch.ones_like(pixels[..., 0])) - centers, dim=-1)  # [C, side side, 3]
    moments = torch.cross(centers.expand_as(directions), directions, dim=-1)
    return torch.cat([directions, moments], dim=-1).transpose(1, 2).unflatten(2, (side, side)).contiguous()


def hull_features(clean: Tensor, is_clean: Tensor, cameras: Cameras, side: int) -> Tensor:
    """What the known views say of the space along every ray: [V, HULL_CHANNELS, side, side].

    For points between the front and the back of the object on the ray of each pixel of each view: the least coverage that a
    known view has there, which is the visual hull (Laurentini 1994), and the mean colour of those inside. Without known views
    all is possible: coverage 1, grey. clean [V, 4, S, S], is_clean [V], cameras [V].
    """
    small = cameras.resized(side, side)
    depth = middles(cameras)[:, None] + torch.linspace(-REACH, REACH, HULL_SAMPLES, device=clean.device)  # [V, D]
    pixels = small.pixel_centers.flatten(0, 1).repeat(HULL_SAMPLES, 1)[None]  # [1, D side side, 2]
    points = small.unproject(pixels, depth.repeat_interleave(side * side, dim=1))  # [V, D side side, 3]
    colour, hull = seen_by(points.reshape(-1, 3), clean, is_clean, cameras)
    shape = (len(small), HULL_SAMPLES, side, side)
    colour, hull = colour.reshape(*shape, 3), hull.reshape(shape)
    mean = (colour * hull[..., None]).sum(1) / hull.sum(1).clamp(min=0.05)[..., None]
    return torch.cat([hull, mean.permute(0, 3, 1, 2)], dim=1)


@torch.no_grad()
def seen_by(points: Tensor, clean: Tensor, is_clean: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """What the known views show at world points [M, 3]: straight colour [M, 3], the views' mean weighted by their coverage, and
    the least coverage [M] of all; grey and 1 without known views. Not differentiable.

    Both spread by a pixel, so that rods stay whole and edges keep their colour; outside its pictures an object has nothing.
    """
    known = torch.nonzero(is_clean).squeeze(1)
    if not len(known):
        return torch.full_like(points, 0.5), torch.ones_like(points[:, 0])
    rgba = clean[known]
    near = F.avg_pool2d(rgba, 3, 1, 1)
    straight = torch.where(
        rgba[:, 3:] > 0.5, rgba[:, :3] / rgba[:, 3:].clamp(min=0.5), near[:, :3] / near[:, 3:].clamp(min=1e-3)
    )
    pictures = torch.cat([straight, F.max_pool2d(rgba[:, 3:], 3, 1, 1)], dim=1)
    at, _ = cameras[known].project(points)  # [K, M, 2]
    grid = 2 * at / torch.tensor([cameras.width, cameras.height], device=at.device) - 1
    seen = F.grid_sample(pictures, grid[:, None], align_corners=False)[:, :, 0]  # [K, 4, M]
    weight = seen[:, 3:].clamp(min=1e-3)
    return ((seen[:, :3] * weight).sum(0) / weight.sum(0)).T, seen[:, 3].amin(0)


def to_splats(maps: Tensor, cameras: Cameras, clean: Tensor, is_clean: Tensor) -> Splats:
    """The maps [V, 14, S, S] of one object -> V S S Gaussians in the world of `cameras` [V]; differentiable.

    clean [V, 4, S, S] premultiplied colour and coverage, is_clean [V]: Gaussians start with the colour that the known views
    show at their place and those of known pixels with their coverage, so that the network adds to what is seen; what a known
    view shows to be empty is carved away.
    """
    side = maps.shape[-1]
    small = cameras.resized(side, side)
    depth_map, shift, log_scales, quats, opacity, colour = maps.float().permute(0, 2, 3, 1).split([1, 2, 3, 4, 1, 3], dim=-1)
    depth = depth_of(depth_map[..., 0], middles(cameras)[:, None, None])[..., None]
    footprint = depth / small.K[:, 0, 0][:, None, None, None]  # world units of a pixel there
    pixels = small.pixel_centers + MAX_SHIFT * torch.tanh(shift)  # [V, S, S, 2]
    means = small.unproject(pixels.flatten(1, 2), depth.flatten(1))  # [V, S S, 3]
    known = is_clean[:, None, None].float()
    start = known * KNOWN_OPACITY * (2 * clean[:, 3] - 1) + (1 - known) * EMPTY_OPACITY
    painted, there = seen_by(means.reshape(-1, 3), clean, is_clean, cameras)
    scales = footprint * torch.exp(3 * torch.tanh(log_scales / 3) - 0.5)
    identity = torch.tensor([1.0, 0, 0, 0], device=maps.device)
    return Splats(
        means.reshape(-1, 3),
        (quats + identity).reshape(-1, 4),
        0.5 * (scales**2 + LOW_PASS * footprint**2).log().reshape(-1, 3),
        (opacity[..., 0] + start).reshape(-1) - CARVED * (1 - there),
        from_rgb(torch.sigmoid(colour.reshape(-1, 3) + torch.logit(painted.clamp(0.02, 0.98))))[:, None],
    )


def to_pictures(maps: Tensor) -> Tensor:
    """Maps [V, 14, S, S] -> premultiplied colour and coverage [V, 4, S, S] of every view by itself: no Gaussians between."""
    coverage = torch.sigmoid(maps[:, 10:11].float() + EMPTY_OPACITY)
    return torch.cat([torch.sigmoid(maps[:, 11:14].float()) * coverage, coverage], dim=1)


def depth_of(raw: Tensor, middle: Tensor | float = DISTANCE) -> Tensor:
    """The depth map's numbers -> z in the camera frame, world units; the object's centre is at `middle`."""
    return middle + REACH * torch.tanh(raw)


def middles(cameras: Cameras) -> Tensor:
    """[C] z of the origin, which is the object's centre: `DISTANCE` for the protocol's cameras, that of real ones otherwise."""
    return cameras.cam_from_world[:, 2, 3]
