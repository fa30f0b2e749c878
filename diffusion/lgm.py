"""LGM in our frame: pictures with cameras -> `Splats`, and what it wants and gives converted here and nowhere else.

LGM's world (Tang et al. 2024): the first camera is at (0, 0, 1.5) and looks along -z with +y up, all others circle the origin
at the same distance with a field of view of 49.1 degrees; Gaussians lie in [-1, 1]^3. Its Gaussians are 14 channels: position
clamped, opacity by sigmoid, scales 0.1 softplus, quaternion wxyz, colour 0.5 tanh + 0.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.models.lgm import LGM
from splat.cameras import Cameras, nearest_to_axes
from splat.errors import InputError, StoppedLate, check_finite
from splat.gaussians import Splats
from splat.sh import from_rgb
from splat.similarity import Similarity
from splat.views import Views

VIEWS = 4
SIDE = 256  # px of a picture
DISTANCE = 1.5  # of the cameras from the origin, LGM's units
FOV_DEG = 49.1
OPACITY_MIN = 0.005  # fainter Gaussians are dropped, as in LGM's own export
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's, of sRGB
POSITION, OPACITY, SCALE, QUAT, COLOUR = slice(0, 3), 3, slice(4, 7), slice(7, 11), slice(11, 14)


@torch.no_grad()
def reconstruct(model: LGM, views: Views) -> Splats:
    """Four square pictures on white with their cameras -> Gaussians in the cameras' world, on the CPU.

    The pictures are a quarter turn apart (a few degrees off do no harm: the network sees the rays); the first is the main one.
    Raises InputError for other cameras than LGM's, up to a similarity of the world, and StoppedLate when nothing opaque comes.
    """
    device = next(model.parameters()).device
    if len(views) != VIEWS or views.cameras is None:
        raise InputError(f"LGM wants {VIEWS} pictures with cameras; got {len(views)}.")
    views = views.resized(SIDE, SIDE)
    world = world_from_lgm(views.cameras)
    colours = ((views.images - MEAN) / STD).permute(0, 3, 1, 2)
    x = torch.cat([colours, plucker_rays(views.cameras.transformed(world.inverse()))], dim=1)[None].to(device)
    with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):  # what it was published to run in
        maps = model(x)[0].float().cpu()
    check_finite(maps, "what LGM made of these pictures")
    splats = to_splats(maps, model.turned).transformed(world)
    if len(splats) == 0:
        raise StoppedLate("LGM found nothing in these pictures; give pictures of one object that fills most of each.")
    return splats


def to_splats(maps: Tensor, turned: bool = True) -> Splats:
    """Raw maps [V, 14, H, W] -> Gaussians in LGM's world, those below `OPACITY_MIN` left out. Differentiable.

    Row order is view, row, column. Without `turned` the quaternions are not read.
    """
    rows = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])  # [N, 14]
    rows = rows[rows[:, OPACITY] >= math.log(OPACITY_MIN / (1 - OPACITY_MIN))]
    level = torch.tensor([1.0, 0, 0, 0]).to(rows).expand(len(rows), 4)
    return Splats(
        means=rows[:, POSITION].clamp(-1, 1),
        quats=rows[:, QUAT] if turned else level,
        log_scales=(0.1 * F.softplus(rows[:, SCALE])).clamp_min(1e-8).log(),
        opacity_logits=rows[:, OPACITY],
        sh=from_rgb(0.5 * rows[:, COLOUR].tanh() + 0.5)[:, None],
    )


def plucker_rays(cameras: Cameras) -> Tensor:
    """[C, 6, H, W] moment (centre x direction) and unit direction of the ray through every pixel's centre."""
    pixels = cameras.pixel_centers.flatten(0, 1)  # [H W, 2]
    centers = cameras.centers[:, None]  # [C, 1, 3]
    directions = F.normalize(cameras.unproject(pixels, torch.ones(len(pixels)).to(pixels)) - centers, dim=-1)  # [C, H W, 3]
    moments = torch.linalg.cross(centers.expand_as(directions), directions)
    return torch.cat([moments, directions], dim=-1).mT.unflatten(2, (cameras.height, cameras.width))


def world_from_lgm(cameras: Cameras) -> Similarity:
    """From LGM's world, whose front is where the first camera is, to the one that `cameras` are in.

    Raises InputError unless the cameras are LGM's there: one distance, one point looked at, 49.1 degrees.
    """
    right, down, forward = cameras.cam_from_world[0, :3, :3].double()
    middle = nearest_to_axes(cameras.centers.double(), cameras.forward.double(), torch.zeros(3).double(), pull=1e-9)
    distance = float((middle - cameras.centers[0]).norm())
    if not distance > 0:
        raise InputError("One of LGM's cameras is in the object's centre; move it away.")
    world = Similarity(torch.stack([right, -down, -forward], dim=1), middle, distance / DISTANCE)
    own = cameras.transformed(world.inverse())
    aside = torch.linalg.cross(own.centers, own.forward).norm(dim=1)  # how far the axes pass from the origin
    fov_deg = torch.rad2deg(2 * torch.atan(0.5 * torch.tensor([own.width, own.height]) / own.K[:, [0, 1], [0, 1]]))
    off = (own.K[:, :2, 2] / torch.tensor([own.width, own.height]) - 0.5).abs()
    if float((own.centers.norm(dim=1) / DISTANCE - 1).abs().max()) > 0.05 or float(aside.max()) > 0.05 * DISTANCE:
        raise InputError("LGM's cameras look at one point from one distance, and these do not; frame the pictures alike.")
    if float((fov_deg - FOV_DEG).abs().max()) > 1 or float(off.max()) > 0.01:
        raise InputError(
            f"LGM's cameras see {FOV_DEG} degrees around the middle, and these see {float(fov_deg.min()):.1f} to "
            f"{float(fov_deg.max()):.1f}; frame the pictures anew."
        )
    return world
