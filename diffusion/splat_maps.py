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
KNOWN_OPACITY = 4.0  # logit with which a known pixel starts inside the silhouette, its negative outside
EMPTY_OPACITY = -2.0  # and a pixel of a view that is not known


def plucker_rays(cameras: Cameras, side: int) -> Tensor:
    """Cameras [C] -> [C, 6, side, side]: unit direction and moment (centre x direction) of the ray through each pixel.

    In the world of the cameras and its units; the pixels are those of the pictures resized to `side`.
    """
    small = cameras.resized(side, side)
    directions = F.normalize(_directions(small), dim=-1)  # [C, side, side, 3]
    moments = torch.cross(small.centers[:, None, None, :].expand_as(directions), directions, dim=-1)
    return torch.cat([directions, moments], dim=-1).permute(0, 3, 1, 2).contiguous()


def to_splats(maps: Tensor, cameras: Cameras, clean: Tensor, is_clean: Tensor) -> Splats:
    """The maps [V, 14, S, S] of one object -> V S S Gaussians in the world of `cameras` [V]; differentiable.

    clean [V, 4, S, S] premultiplied colour and coverage, is_clean [V]: known pixels start with their own colour and coverage,
    so that the network adds to what is seen.
    """
    side = maps.shape[-1]
    small = cameras.resized(side, side)
    depth_map, shift, log_scales, quats, opacity, colour = maps.float().permute(0, 2, 3, 1).split([1, 2, 3, 4, 1, 3], dim=-1)
    depth = depth_of(depth_map[..., 0])[..., None]
    footprint = depth / small.K[:, 0, 0][:, None, None, None]  # world units of a pixel there
    in_cam = _in_camera(small) * depth + F.pad(MAX_SHIFT * torch.tanh(shift) * footprint, (0, 1))
    rotation = small.cam_from_world[:, :3, :3]
    means = torch.einsum("vhwi,vij->vhwj", in_cam, rotation) + small.centers[:, None, None, :]
    known = is_clean[:, None, None, None].to(maps.dtype).float()
    picture = clean.permute(0, 2, 3, 1)
    straight = (picture[..., :3] / picture[..., 3:].clamp(min=1e-3)).clamp(0.02, 0.98)
    rgb = torch.sigmoid(colour + known * torch.logit(straight))
    start = known * KNOWN_OPACITY * (2 * picture[..., 3:] - 1) + (1 - known) * EMPTY_OPACITY
    identity = torch.tensor([1.0, 0, 0, 0], device=maps.device)
    return Splats(
        means.reshape(-1, 3),
        (quats + identity).reshape(-1, 4),
        (footprint.log() - 0.5 + 3 * torch.tanh(log_scales / 3)).reshape(-1, 3),
        (opacity + start).reshape(-1),
        from_rgb(rgb).reshape(-1, 1, 3),
    )


def depth_of(raw: Tensor) -> Tensor:
    """The depth map's numbers -> z in the camera frame, world units."""
    return DISTANCE + REACH * torch.tanh(raw)


def _in_camera(cameras: Cameras) -> Tensor:
    """[C, H, W, 3] points of z = 1 on the rays through the pixels' centres, in the camera frame."""
    K, device = cameras.K, cameras.K.device
    x = torch.arange(cameras.width, device=device) + 0.5
    y = torch.arange(cameras.height, device=device) + 0.5
    u = (x[None, None, :] - K[:, 0, 2, None, None]) / K[:, 0, 0, None, None]
    v = (y[None, :, None] - K[:, 1, 2, None, None]) / K[:, 1, 1, None, None]
    u, v = torch.broadcast_tensors(u, v)
    return torch.stack([u, v, torch.ones_like(u)], dim=-1)


def _directions(cameras: Cameras) -> Tensor:
    """[C, H, W, 3] the same in the world's axes."""
    return torch.einsum("vhwi,vij->vhwj", _in_camera(cameras), cameras.cam_from_world[:, :3, :3])
