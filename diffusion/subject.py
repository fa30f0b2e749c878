"""One picture of an object made ready for the networks: cut out, and framed as the pictures that they were trained on.

The frame of a subject is a square that a protocol camera (`diffusion.data.object_views`) would show. It lies anywhere in the
photo, also partly outside; the photo's own camera is that camera with the photo's window, so that the two agree on every ray.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion.data.object_views import DISTANCE, FOV_DEG
from splat.cameras import Cameras, intrinsics
from splat.errors import InputError
from splat.views import Views

# Of the protocol's pictures at elevation 20, over 1,200 objects and 12 azimuths (the same within 0.01 at -10 to 45 degrees):
FILL = 0.61  # median long side of the silhouette's box, in sides of the frame; 0.52 to 0.73 for 8 of 10
BELOW = 0.02  # mean height of the middle of that box below the middle of the frame
# Of a camera of which nothing is known. A linear regression on the framed pictures is off by 12.0 degrees on average over
# unseen objects at -10 to 45 degrees, this by 13.7: pictures alone do not tell.
ELEVATION_DEG = 20.0
DISTANCES = (1.4, 12.0)  # of cameras: nearer ones would be inside of some objects, farther ones see no perspective
SEEN = 0.25  # coverage from which a pixel counts as the silhouette's
LEAST_PIXELS = 16  # of a silhouette; fewer show nothing


@dataclass(frozen=True)
class Subject:
    """One picture of an object, in the frame of a protocol camera."""

    image: Tensor  # [S, S, 3] sRGB, straight (not multiplied by alpha), float32; what lies under alpha 0 means nothing
    alpha: Tensor  # [S, S] coverage in [0, 1]
    azimuth_deg: float = 0.0  # 0 for the main picture, others relative to it, positive towards +X
    elevation_deg: float = ELEVATION_DEG
    distance: float = DISTANCE  # of its camera; a longer one has a longer lens, so that objects are as large in the frame

    def __post_init__(self) -> None:
        side = self.image.shape[0]
        assert self.image.shape == (side, side, 3), self.image.shape
        assert self.alpha.shape == (side, side), self.alpha.shape

    @property
    def side(self) -> int:
        return self.image.shape[0]

    def on(self, background: float | Tensor = 1.0) -> Tensor:
        """[S, S, 3] composited on a grey value or a colour [3]."""
        return self.image * self.alpha[..., None] + (1 - self.alpha[..., None]) * background

    def cameras(self, side: int | None = None) -> Cameras:
        """Its camera, a batch of one; pictures of `side` px, by default its own."""
        side = side or self.side
        poses = Cameras.orbit(1, self.distance, self.elevation_deg, FOV_DEG, side, side, azimuth_deg=self.azimuth_deg)
        return Cameras(poses.cam_from_world, intrinsics(focal_in_frames(self.distance) * side, side, side)[None], side, side)

    def view(self, name: str) -> Views:
        """The picture on white with its camera and mask: what `splat.optimise.fit` takes."""
        return Views(self.on()[None], (name,), self.cameras(), self.alpha[None])


@dataclass(frozen=True)
class Framing:
    """Where the square frame of a subject lies in its photo of `width` x `height` pixels. May reach outside."""

    left: float  # px of the photo
    top: float
    side: float
    width: int
    height: int

    def camera(self, subject: Subject) -> Cameras:
        """The photo's own camera: the subject's, with the photo's window and size."""
        focal = focal_in_frames(subject.distance) * self.side
        K = torch.tensor([[focal, 0, self.left + self.side / 2], [0, focal, self.top + self.side / 2], [0, 0, 1]])
        return Cameras(subject.cameras().cam_from_world, K[None], self.width, self.height)


def find_framing(mask: Tensor) -> Framing:
    """The frame in which the subject under `mask` [H, W] fills what objects fill in the protocol's pictures.

    Raises `InputError` when the mask shows nothing.
    """
    seen = mask > SEEN
    if int(seen.sum()) < LEAST_PIXELS:
        raise InputError(
            f"The cut-out subject covers {int(seen.sum())} pixels of {mask.shape[1]} x {mask.shape[0]}, which is nothing to "
            "make an object of; give a mask or a picture with a larger subject."
        )
    rows, columns = (torch.nonzero(seen.any(axis)).squeeze(1) for axis in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = max(right - left, bottom - top) / FILL
    return Framing((left + right - side) / 2, (top + bottom - side) / 2 - BELOW * side, side, mask.shape[1], mask.shape[0])


def focal_in_frames(distance: float) -> float:
    """Focal length, in sides of the frame, of a camera at `distance` to which objects are as large as to the protocol's."""
    return 0.5 / math.tan(math.radians(FOV_DEG) / 2) * distance / DISTANCE


def distance_of(focal_px: float, framing: Framing) -> float:
    """Where a camera of that focal length, in the pixels of the photo, was for the subject to be as large as it is.

    Kept within `DISTANCES`; turning the camera from the middle of the photo to that of the frame is neglected.
    """
    low, high = DISTANCES
    return min(max(focal_px / framing.side / focal_in_frames(1.0), low), high)


def framed(
    image: Tensor,
    mask: Tensor,
    framing: Framing,
    side: int,
    azimuth_deg: float,
    elevation_deg: float,
    distance: float = DISTANCE,
) -> Subject:
    """The subject of a photo [H, W, 3] under its mask [H, W], resampled to `side` px with an antialiasing filter."""
    from PIL import Image

    left, top, width = framing.left, framing.top, framing.side
    before = (max(math.ceil(-left), 0) + 1, max(math.ceil(-top), 0) + 1)
    behind = (max(math.ceil(left + width - framing.width), 0) + 1, max(math.ceil(top + width - framing.height), 0) + 1)
    planes = torch.cat([image * mask[..., None], mask[..., None]], dim=-1).permute(2, 0, 1)  # premultiplied: no fringes
    planes = torch.nn.functional.pad(planes, (before[0], behind[0], before[1], behind[1]))
    box = (left + before[0], top + before[1], left + before[0] + width, top + before[1] + width)
    small = [
        # Hamming: as sharp as an area mean, without its dislocations at ratios that are not whole numbers.
        np.asarray(Image.fromarray(plane.numpy()).resize((side, side), Image.Resampling.HAMMING, box=box))
        for plane in planes.contiguous()
    ]
    rgba = torch.from_numpy(np.stack(small, axis=-1)).clamp(0, 1)
    alpha = rgba[..., 3]
    straight = (rgba[..., :3] / alpha.clamp_min(1 / 255)[..., None]).clamp(0, 1)
    return Subject(straight.contiguous(), alpha.contiguous(), azimuth_deg, elevation_deg, distance)
