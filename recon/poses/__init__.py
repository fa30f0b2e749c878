"""Where each photo was taken: solved from the photos themselves, or read from a file.

Main functions: `solve_poses` runs a back-end of `BACKENDS` over photos and returns `Poses`; `undistort` turns photos with
poses into pinhole `Views`. Depends on `splat`; the back-ends import pycolmap, kornia and OpenCV when they run.

To add a back-end: one file with a function `(photos, config) -> Generator[Progress, None, Poses]` and one line in `BACKENDS`;
it joins the synthetic-scene test.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.points import PointCloud
from splat.progress import Progress
from splat.views import Views

if TYPE_CHECKING:
    from recon.features import Features
    from recon.photos import Photo
    from recon.priors import DepthMap
    from recon.priors.learned import PriorWeights


@dataclass(frozen=True)
class PoseConfig:
    """How camera poses are found."""

    method: Literal["colmap", "prior"] = "colmap"  # a key of BACKENDS
    prior: PriorWeights | None = None  # of the network that "prior" asks for cameras
    # auto: SIFT, whose keypoints are the most exact, and XFeat with it where SIFT alone leaves a photo or a doubt; SIFT of
    # affine views for the photos that are left out then
    features: Literal["auto", "xfeat", "sift", "both"] = "auto"
    max_keypoints: int | None = None  # per photo and kind; None picks 2048; XFeat 1280 above 8 photos, affine views 4900
    intrinsics: Literal["shared", "per-photo"] = "shared"  # shared: one lens per image size; per-photo: zoomed in between
    only_masks: bool = False  # match inside the masks only (an object turned in front of a fixed background)
    exhaustive_up_to: int = 20  # photos; above it only promising pairs are matched
    neighbours: int = 6  # promising partners per photo above that
    max_cpu_seconds: float = 600.0  # a step of the solver that takes more is ended; 40 photos take a tenth of it
    seed: int = 0  # of every random choice
    device: str = "cpu"  # of the feature networks


@dataclass(frozen=True)
class Observations:
    """What one photo saw: its features of one kind, and the row of `Poses.points` that each keypoint shows, -1 for none."""

    features: Features
    point: Tensor  # [N] int64


@dataclass(frozen=True)
class Poses:
    """One entry per photo, in the photos' order; `None` for a camera that could not be placed, with the reason beside it.

    The world is the solver's own: right-handed, any orientation and scale.
    """

    cameras: tuple[Cameras | None, ...]  # batches of one, in the pixels of photo.image
    k1: tuple[float, ...]  # radial distortion: x_photo = x (1 + k1 |x|^2) in coordinates divided by focal
    reasons: tuple[str | None, ...]  # one sentence why a photo has no camera
    points: PointCloud  # sparse, confidence from track length
    warnings: tuple[str, ...] = ()  # sentences for the user
    facts: dict[str, float] = field(default_factory=dict)  # reprojection_px, track_length, points_per_photo, seconds, ...
    observations: tuple[tuple[Observations, ...], ...] = ()  # per photo one entry per kind of feature; () for poses from a file
    depths: tuple[DepthMap | None, ...] = ()  # per photo, of back-ends that see depth too; same world, the whole photo, k1 = 0

    def __post_init__(self) -> None:
        n = len(self.cameras)
        assert len(self.k1) == n and len(self.reasons) == n, (n, len(self.k1), len(self.reasons))
        assert len(self.observations) in (0, n), (n, len(self.observations))
        assert len(self.depths) in (0, n), (n, len(self.depths))
        for camera, reason in zip(self.cameras, self.reasons):
            assert (camera is None) == (reason is not None), "a photo has a camera or a reason"

    @property
    def placed(self) -> tuple[int, ...]:
        """Indices of the photos with a camera."""
        return tuple(i for i, camera in enumerate(self.cameras) if camera is not None)


Solver = Generator[Progress, None, Poses]

# name -> (module, function); imported when first used. Poses from a file come through `recon.poses.from_file.load_poses`.
BACKENDS = {"colmap": ("recon.poses.colmap", "solve"), "prior": ("recon.poses.from_prior", "solve")}


def solve_poses(photos: Sequence[Photo], config: PoseConfig | None = None) -> Solver:
    """Cameras of `photos` from their pixels alone; yields progress, returns `Poses`.

    Raises `InputError` for fewer than two photos or photos that cannot show depth (identical, without texture, taken from one
    spot), `StoppedLate` when fewer than two can be placed or when the cameras found contradict the photos.
    """
    config = config or PoseConfig()
    module, function = BACKENDS[config.method]
    return getattr(importlib.import_module(module), function)(photos, config)


def undistort(photos: Sequence[Photo], poses: Poses) -> list[Views]:
    """The placed photos as pinhole views, one `Views` per image size, in the photos' order within each.

    The new focal length is the smallest that leaves no empty border. Masks are kept when every photo of a size has one.
    """
    assert len(photos) == len(poses.cameras), (len(photos), len(poses.cameras))
    by_size: dict[tuple[int, int], list[tuple[Photo, Cameras, Tensor, Tensor | None]]] = {}
    for photo, camera, k1 in zip(photos, poses.cameras, poses.k1):
        if camera is None:
            continue
        image, mask = photo.image, photo.mask
        if k1 != 0:
            camera, grid = _straightened(camera, k1)
            image = _sampled(image, grid).clamp(0, 1)
            mask = None if mask is None else _sampled(mask[..., None], grid)[..., 0].clamp(0, 1)
        by_size.setdefault((camera.width, camera.height), []).append((photo, camera, image, mask))
    return [
        Views(
            torch.stack([image for _, _, image, _ in group]),
            tuple(photo.name for photo, _, _, _ in group),
            Cameras.cat([camera for _, camera, _, _ in group]),
            None if any(mask is None for *_, mask in group) else torch.stack([mask for *_, mask in group]),
        )
        for group in by_size.values()
    ]


def _straightened(camera: Cameras, k1: float) -> tuple[Cameras, Tensor]:
    """The pinhole camera that replaces a lens with distortion `k1`, and where its pixels lie in the photo: [H, W, 2] pixels."""
    K = camera.K[0].double()
    width, height = camera.width, camera.height
    corner = torch.tensor([0.0, 0.0, width, height], dtype=torch.float64)
    x = torch.linspace(0, width, 33, dtype=torch.float64)
    y = torch.linspace(0, height, 33, dtype=torch.float64)
    edge = torch.cat(
        [
            torch.stack([x, torch.full_like(x, corner[1])], -1),
            torch.stack([x, torch.full_like(x, corner[3])], -1),
            torch.stack([torch.full_like(y, corner[0]), y], -1),
            torch.stack([torch.full_like(y, corner[2]), y], -1),
        ]
    )
    r2 = ((edge - K[:2, 2]) / K.diagonal()[:2]).square().sum(-1)  # [132]
    zoom = torch.ones_like(r2)
    for _ in range(20):  # an edge pixel must come from inside the photo: (1 + k1 r2 / zoom^2) / zoom <= 1
        zoom = 1 + k1 * r2 / zoom.square()
    scale = torch.ones(3, 1, dtype=torch.float64)
    scale[:2] = zoom.max().clamp(0.5, 2.0)
    new_K = K.clone()
    new_K[:2, :2] *= scale[:2]
    pixels = torch.stack(
        torch.meshgrid(
            torch.arange(width, dtype=torch.float64) + 0.5, torch.arange(height, dtype=torch.float64) + 0.5, indexing="xy"
        ),
        dim=-1,
    )  # [H, W, 2]
    plain = (pixels - new_K[:2, 2]) / new_K.diagonal()[:2]
    bent = plain * (1 + k1 * plain.square().sum(-1, keepdim=True))
    return replace(camera, K=new_K[None].to(camera.K)), bent * K.diagonal()[:2] + K[:2, 2]


def _sampled(image: Tensor, pixels: Tensor) -> Tensor:
    """`image` [H, W, C] read at `pixels` [H', W', 2], bicubic, edges repeated."""
    height, width = image.shape[:2]
    grid = (pixels * 2 / torch.tensor([width, height], dtype=pixels.dtype) - 1).to(image.dtype)
    out = torch.nn.functional.grid_sample(
        image.permute(2, 0, 1)[None], grid[None], mode="bicubic", padding_mode="border", align_corners=False
    )
    return out[0].permute(1, 2, 0)
