"""A reconstructed object in the networks' frame: centred, its longest side 1, upright; and its photos as their known views.

The frame comes from the photos' cameras and masks alone, because splats of few photos lack the sides that nobody saw, and the
box of what is there would have its middle too near to the cameras.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.data.object_views import DISTANCE
from diffusion.subject import FILL, SEEN, focal_in_frames
from splat.cameras import Cameras, intrinsics, nearest_to_axes
from splat.errors import InputError
from splat.similarity import Similarity
from splat.views import Views

FINER = 4  # samples along a pixel's side where photos are resampled
LEAST_PIXELS = 16  # of a silhouette; fewer tell nothing
# World units: the median silhouette of objects whose longest side is 1, seen by the protocol's cameras.
SILHOUETTE = FILL * DISTANCE / focal_in_frames(DISTANCE)
PULL = 1e-3  # towards the guess, for photos that all look the same way


@dataclass(frozen=True)
class _Silhouette:
    """Of one photo: its camera (a batch of one), the middle and the long side of the box of its mask."""

    camera: Cameras
    middle: Tensor  # [2] px
    side: float  # px


def object_frame(views: Sequence[Views], guess: Tensor, turned: bool = True) -> Similarity:
    """The similarity from the world of posed, masked `views` (+Y up) to the networks' frame.

    The object's centre is where the rays through the middles of its silhouettes meet, `guess` [3] deciding what they leave
    open; its size is that at which silhouettes are as large as the protocol's. `turned`: about the vertical, so that the first
    photo is at azimuth 0. Raises `InputError` for views without masks and for masks that show nothing.
    """
    shapes = _silhouettes(views)
    centers = torch.cat([s.camera.centers for s in shapes]).double()
    rays = []
    for s, center in zip(shapes, centers, strict=True):
        far = s.camera.unproject(s.middle[None, None], torch.ones(1, 1))[0, 0].double()
        rays.append(torch.nn.functional.normalize(far - center, dim=0))
    middle = nearest_to_axes(centers, torch.stack(rays), guess.double().cpu(), PULL)
    sides = []
    for s in shapes:
        depth = float(s.camera.project(middle.float()[None])[1])
        sides.append(s.side * depth / float(s.camera.K[0, 0, 0]) / SILHOUETTE)
    scale = 1 / float(torch.tensor(sides).median())
    if not (math.isfinite(scale) and scale > 0):
        raise InputError("The photos' cameras do not look at one object together, so it has no frame; check masks and poses.")
    x, _, z = (centers[0] - middle).tolist()
    angle = -math.atan2(x, z) if turned else 0.0
    turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]).double()
    return Similarity(turn, -scale * (turn @ middle), scale)


def framed_photos(views: Sequence[Views], frame: Similarity, side: int, background: Sequence[float]) -> tuple[Tensor, Cameras]:
    """Every photo as a network's known view: [C, 4, side, side] premultiplied sRGB and coverage, and its camera in the frame.

    The new camera stands where the photo's does, looks at the object's centre, upright, and has the lens that shows the object
    as large as the protocol's cameras do. So no ray is bent: turning a camera and changing its lens only resamples its picture.
    `background` is what masked pixels were composited on.
    """
    pictures, cameras = [], []
    for view in views:
        moved = view.cameras.transformed(frame)
        backdrop = torch.tensor(background).to(view.images)
        cover = view.masks[..., None]
        rgba = torch.cat([(view.images - (1 - cover) * backdrop).clamp(0, 1).minimum(cover), cover], -1)  # [n, H, W, 4]
        for i in range(len(view)):
            target = looking_at_origin(moved[i], side)
            pictures.append(_resampled(rgba[i].permute(2, 0, 1), moved[i], target))
            cameras.append(target)
    return torch.stack(pictures), Cameras.cat(cameras)


def looking_at_origin(camera: Cameras, side: int) -> Cameras:
    """A camera at the place of `camera` (a batch of one) that shows the networks' object in their square frame."""
    eye = camera.centers
    K = intrinsics(focal_in_frames(float(eye.norm())) * side, side, side)
    return Cameras.look_at(eye, torch.zeros(3), torch.tensor([0.0, 1, 0]), K, side, side)


def _resampled(planes: Tensor, camera: Cameras, target: Cameras) -> Tensor:
    """[K, H, W] of `camera` -> [K, S, S] of `target` at the same place, the mean over each pixel; 0 outside."""
    fine = target.resized(target.width * FINER, target.height * FINER)
    points = fine.unproject(fine.pixel_centers, torch.ones(fine.height, fine.width))  # on a plane before the camera
    at, depth = camera.project(points.reshape(-1, 3))
    grid = 2 * at[0] / torch.tensor([camera.width, camera.height]) - 1
    grid = torch.where(depth[0, :, None] > 0, grid, 2.0).reshape(1, fine.height, fine.width, 2)
    seen = torch.nn.functional.grid_sample(planes[None], grid, align_corners=False)
    return torch.nn.functional.avg_pool2d(seen, FINER)[0]


def _silhouettes(views: Sequence[Views]) -> list[_Silhouette]:
    found = []
    for view in views:
        if view.masks is None:
            raise InputError(
                "The photos show a whole scene and the generators know objects alone; reconstruct it again with --masks auto "
                "or --masks DIR."
            )
        for i in range(len(view)):
            seen = view.masks[i] > SEEN
            if int(seen.sum()) < LEAST_PIXELS:
                continue
            rows, columns = (torch.nonzero(seen.any(axis)).squeeze(1) for axis in (1, 0))
            top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
            middle = torch.tensor([(left + right) / 2, (top + bottom) / 2])
            found.append(_Silhouette(view.cameras[i], middle, float(max(right - left, bottom - top))))
    if not found:
        raise InputError("The masks of all photos are empty, so there is no object to refine; give others with --masks.")
    return found
