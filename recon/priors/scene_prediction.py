"""Cameras and depth of several photos from one network: its picture of the photos, and its answer in terms of the photos.

Networks of this kind (VGGT, MapAnything, Depth Anything 3) see all photos at one size. `framed` makes that batch, and
`ScenePrediction.of_photos` takes the answer back to the photos' own pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon.priors import DepthMap
from recon.priors.learned import PriorWeights
from splat.cameras import Cameras
from splat.errors import StoppedLate

WHITE = 1.0  # round photos that do not fill the grid


@dataclass(frozen=True)
class Box:
    """Where a photo lies in the grid: whole pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class ScenePrediction:
    """What a network says of C pictures of one size: in one world of its own, OpenCV axes, pixel centres at +0.5."""

    cameras: Cameras  # C, of the grid
    depth: Tensor  # [C, H, W] z in the camera, world units; 0 where unknown
    confidence: Tensor  # [C, H, W] in [0, 1]
    metric: bool = False  # world units are metres

    def __post_init__(self) -> None:
        c, h, w = self.depth.shape
        assert self.confidence.shape == (c, h, w), (self.depth.shape, self.confidence.shape)
        assert len(self.cameras) == c and (self.cameras.width, self.cameras.height) == (w, h), (len(self.cameras), c, w, h)

    def of_photos(
        self, boxes: Sequence[Box], sizes: Sequence[tuple[int, int]], names: Sequence[str]
    ) -> list[tuple[Cameras, DepthMap]]:
        """For each photo of (width, height) its camera in its own pixels, and its depth on the grid's part that shows it."""
        found = []
        for i, (box, (width, height), name) in enumerate(zip(boxes, sizes, names, strict=True)):
            camera = self.cameras[i].cropped(box.left, box.top, box.width, box.height).resized(width, height)
            part = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
            depth = self.depth[i][part]
            found.append((camera, DepthMap(name, depth.contiguous(), torch.where(depth > 0, self.confidence[i][part], 0.0))))
        return found


def framed(images: Sequence[Tensor], side: int, multiple: int) -> tuple[Tensor, list[Box]]:
    """Pictures [H, W, 3] sRGB -> one batch [C, 3, h, w] whose sides are multiples of `multiple`, and where each picture lies.

    Pictures of one size fill the grid, with the long side `side` px; of several sizes, each is centred in a white square.
    """
    assert side % multiple == 0, (side, multiple)
    sizes = {image.shape[:2] for image in images}
    if len(sizes) == 1:
        height, width = next(iter(sizes))
        scale = side / max(height, width)
        h, w = (max(round(n * scale / multiple) * multiple, multiple) for n in (height, width))
        return torch.stack([_resized(image, w, h) for image in images]), [Box(0, 0, w, h)] * len(images)
    batch, boxes = torch.full((len(images), 3, side, side), WHITE), []
    for canvas, image in zip(batch, images):
        height, width = image.shape[:2]
        scale = side / max(height, width)
        h, w = (max(round(n * scale), 1) for n in (height, width))
        box = Box((side - w) // 2, (side - h) // 2, w, h)
        canvas[:, box.top : box.top + h, box.left : box.left + w] = _resized(image, w, h)
        boxes.append(box)
    return batch, boxes


def _resized(image: Tensor, width: int, height: int) -> Tensor:
    """[H, W, 3] -> [3, height, width]."""
    out = torch.nn.functional.interpolate(
        image.permute(2, 0, 1)[None], (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return out[0].clamp(0, 1)


def confidence_of_loss(c: Tensor) -> Tensor:
    """The confidence of networks trained with c |error| - alpha log c (DUSt3R, eq. 4), c >= 1 -> [0, 1].

    Such a c is inverse to the error that the network expects: 1 becomes 0, DUSt3R's usual threshold 3 becomes 0.5. What is
    not a number becomes 0.
    """
    excess = (c - 1).clamp_min(0)
    return torch.where(c.isfinite(), excess / (excess + 2), torch.where(c == torch.inf, 1.0, 0.0))


def checked(prediction: ScenePrediction, names: Sequence[str], weights: PriorWeights) -> ScenePrediction:
    """`prediction` with rotations made exact and bad depth made unknown.

    Raises `StoppedLate` when cameras are not finite or no cameras, or when a photo has no depth at all.
    """
    title = f"{weights.family.title} ({weights.source})"
    remedy = "its weights are damaged, or the photos show nothing that it knows: leave --prior out."
    cameras = prediction.cameras
    pose, K = cameras.cam_from_world.double(), cameras.K.double()
    fine = pose.flatten(1).isfinite().all(1) & K.flatten(1).isfinite().all(1)
    fine &= (K[:, 0, 0] > 0) & (K[:, 1, 1] > 0)
    if not fine.all():
        bad = [name for name, ok in zip(names, fine.tolist()) if not ok]
        raise StoppedLate(f"{title} gave no usable camera for {len(bad)} of {len(names)} photos ({bad[0]}); {remedy}")
    u, s, vt = torch.linalg.svd(pose[:, :3, :3])
    if not bool(((s - 1).abs() < 0.1).all()) or not bool((torch.linalg.det(pose[:, :3, :3]) > 0).all()):
        raise StoppedLate(f"{title} gave poses that are no rotations; {remedy}")
    pose = pose.clone()
    pose[:, :3, :3] = u @ vt
    pose[:, 3] = torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
    known = prediction.depth.isfinite() & (prediction.depth > 0)
    empty = [name for name, some in zip(names, known.flatten(1).any(1).tolist()) if not some]
    if empty:
        raise StoppedLate(f"{title} gave no depth for {len(empty)} of {len(names)} photos ({empty[0]}); {remedy}")
    return ScenePrediction(
        Cameras(pose.float(), cameras.K.float(), cameras.width, cameras.height),
        torch.where(known, prediction.depth, 0.0).float(),
        torch.where(known, prediction.confidence.nan_to_num(0, 0, 0), 0.0).float().clamp(0, 1),
        prediction.metric,
    )
