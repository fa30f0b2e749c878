"""How well a reference photo matches its neighbours under a hypothesis of inverse depth.

With the reference pixel p = (u, v, 1) and inverse depth w, the pixel in a neighbour is `base + w * shift` in homogeneous
coordinates, base = K' R K^-1 p and shift = K' t: linear in w, so any surface is warped by one multiply-add, and a plane
in space is an affine function of pixel coordinates in w. Similarity is the zero-mean normalised cross-correlation of
windows: a change of exposure or contrast between the photos does not alter it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from splat.cameras import Cameras

# Variance below which a window counts as textureless: noise and JPEG ripple have a deviation of about 2 of 255 levels.
NOISE_VARIANCE = (2 / 255) ** 2


@dataclass(frozen=True)
class Photo:
    """One view as the matcher sees it."""

    gray: Tensor  # [H, W] in [0, 1]
    mask: Tensor | None  # [H, W] subject in [0, 1]
    camera: Cameras  # batch of one, of this size


@dataclass(frozen=True)
class Neighbour:
    """A source photo, and the warp from reference pixels into it.

    The warp ends in the normalised coordinates of `grid_sample`: -1 and 1 are the photo's outer edges.
    """

    photo: Photo
    rotation: Tensor  # [3, 3] N K' R K^-1, N from pixels to normalised
    shift: tuple[float, float, float]  # N K' t

    def base(self, pixels: Tensor) -> Tensor:
        """Reference pixels [..., 2] -> their homogeneous place here at infinity: [3, ...]."""
        u, v = pixels.unbind(-1)
        return torch.stack([row[0] * u + row[1] * v + row[2] for row in self.rotation])

    def warp(self, base: Tensor, inverse_depth: Tensor) -> Tensor:
        """`base(pixels)` [3, ...], inverse depth of a shape that broadcasts -> normalised places [..., 2].

        What lies behind the camera lands far outside.
        """
        x, y, z = (torch.add(b, inverse_depth, alpha=s) for b, s in zip(base, self.shift))
        places = torch.empty((*z.shape, 2), dtype=z.dtype, device=z.device)
        z = z.clamp_min(1e-6)
        torch.div(x, z, out=places[..., 0])
        torch.div(y, z, out=places[..., 1])
        return places


def neighbour(reference: Photo, source: Photo) -> Neighbour:
    """The warp between two placed photos, formed in float64."""
    relative = source.camera.cam_from_world[0].double() @ torch.linalg.inv(reference.camera.cam_from_world[0].double())
    height, width = source.gray.shape
    normalised = torch.tensor([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]], dtype=torch.float64)
    K = normalised.to(relative) @ source.camera.K[0].double()
    rotation = K @ relative[:3, :3] @ torch.linalg.inv(reference.camera.K[0].double())
    return Neighbour(source, rotation.float(), tuple((K @ relative[:3, 3]).tolist()))


def in_frame(places: Tensor) -> Tensor:
    """Normalised places [..., 2] -> whether they lie in the photo [...]."""
    return (places[..., 0].abs() <= 1) & (places[..., 1].abs() <= 1)


def sample(image: Tensor, places: Tensor) -> Tensor:
    """Bilinear values [...] of `image` [H, W] at normalised `places` [..., 2]; borders repeat."""
    flat = places.reshape(1, 1, -1, 2)
    return grid_sample(image[None, None], flat, padding_mode="border", align_corners=False).reshape(places.shape[:-1])


def normalised(pixels: Tensor, width: int, height: int) -> Tensor:
    """Pixels [..., 2], centres at +0.5 -> normalised places."""
    return pixels * (2 / torch.tensor([width, height], dtype=pixels.dtype, device=pixels.device)) - 1


def pixels_apart(a: Tensor, b: Tensor, photo: Photo) -> Tensor:
    """Distance in pixels of normalised places [..., 2] of `photo`."""
    height, width = photo.gray.shape
    return torch.hypot((a - b)[..., 0] * (width / 2), (a - b)[..., 1] * (height / 2))


def window_sum(x: Tensor, size: int) -> Tensor:
    """Sums over size x size windows of the last two dimensions: [..., H, W] -> [..., H - size + 1, W - size + 1].

    Runs of length 1, 2, 4, ... are added by halves: six additions for a 5 x 5 window where pooling makes 25.
    """
    for dim in (-1, -2):
        length = x.shape[dim] - size + 1
        run, width, start, total = x, 1, 0, None
        for bit in range(size.bit_length()):
            if size >> bit & 1:
                part = run.narrow(dim, start, length)
                total = part if total is None else total + part
                start += width
            if size >> (bit + 1):
                run = run.narrow(dim, 0, run.shape[dim] - width) + run.narrow(dim, width, run.shape[dim] - width)
                width *= 2
        x = total
    return x


UNSEEN = 9.0  # the cost of a neighbour that does not have the point in its frame: `best_mean` leaves it out
FEWER = 0.1  # what each neighbour too few costs, so that no depth wins by leaving the frames


def best_mean(costs: Tensor, count: int) -> Tensor:
    """[N, ...] costs in [0, 1] of N neighbours, or UNSEEN -> mean of the `count` smallest [...]; 1 where none sees the point.

    The best ones, because a surface point hidden from some neighbours is judged by the others.
    """
    count = min(count, costs.shape[0])
    best = costs.amin(0)[None] if count == 1 else costs.topk(count, dim=0, largest=False).values
    seen = best < UNSEEN
    number = seen.sum(0)
    mean = torch.where(seen, best, 0.0).sum(0) / number.clamp_min(1)
    return torch.where(number > 0, (mean + FEWER * (count - number)).clamp_max(1), 1.0)
