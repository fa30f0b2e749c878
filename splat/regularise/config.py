"""The switches of the regularised fit, and the prior geometry that some of them lean on."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.similarity import Similarity
from splat.views import Views


@dataclass(frozen=True)
class RegulariserConfig:
    """Every term is off at 0. Weights are relative to the photometric loss."""

    # 1 - Pearson correlation of rendered and prior depth over the photo: right up to the prior's scale and offset.
    depth: float = 0.0
    local_depth: float = 0.0  # the same in square tiles, mean over the tiles: the shape of small parts
    depth_tile: int = 32  # px, side of a tile; the tiling starts elsewhere at each step
    # |rendered - prior| / prior depth: for priors in the scene's own scale, such as stereo with known cameras.
    absolute_depth: float = 0.0
    normals: float = 0.0  # |n - n_prior|_1 + (1 - n . n_prior), n from rendered depth, n_prior given or from prior depth
    virtual_views: float = 0.0  # L1 to renders of the prior's points from cameras between the photos (LM-Gaussian)
    consensus: float = 0.0  # L1 to the mean picture of several fits, `Priors.pictures` (splat/consensus.py)
    repaired: float = 0.0  # L1 and SSIM to repaired pictures of cameras that took no photo, `Priors.repaired` (recon/repair)
    repaired_ssim: float = 0.2  # share of 1 - SSIM in that
    virtual_per_pair: int = 4  # of those cameras between two neighbouring photos
    virtual_scale: float = 0.5  # of the photos' size
    virtual_every: int = 1  # steps between two virtual views
    # Share of the Gaussians left out of a step, growing from 0 to this; the others grow more opaque meanwhile (DropGaussian).
    drop: float = 0.0
    smoothing: bool = False  # no Gaussian finer than the photos' pixels can tell (Mip-Splatting's 3-D filter)

    def __post_init__(self) -> None:
        assert 0 <= self.drop < 1, self.drop

    @property
    def active(self) -> bool:
        return self.smoothing or any(getattr(self, name) > 0 for name in (*PRIOR_TERMS, "drop"))

    @property
    def needs_priors(self) -> bool:
        return any(getattr(self, name) > 0 for name in PRIOR_TERMS)


PRIOR_TERMS = ("depth", "local_depth", "absolute_depth", "normals", "virtual_views", "consensus", "repaired")


@dataclass(frozen=True)
class VirtualView:
    """What a camera that took no photo should see."""

    camera: Cameras  # a batch of one
    image: Tensor  # [1, H, W, 3] sRGB on black; meaningless where not known
    alpha: Tensor  # [1, H, W] how much of it is the scene's, in [0, 1]
    known: Tensor  # [1, H, W] how much a pixel counts, in [0, 1]
    backdrop: Tensor | None = None  # [3] what is behind the scene in `image`, whose alpha is 1 then; None takes any colour

    def to(self, device: torch.device | str) -> VirtualView:
        values = (getattr(self, f.name) for f in fields(self))
        return VirtualView(*(None if x is None else x.to(device) for x in values))


@dataclass(frozen=True)
class Priors:
    """Geometry of the photos, on their pixels: one entry per `Views`, in the same order."""

    depths: list[Tensor]  # [C, H, W] z in the view's camera, 0 where unknown; world units, or of any scale for `depth` alone
    normals: list[Tensor] | None = None  # [C, H, W, 3] unit, in the camera's frame, towards the camera; 0 where unknown
    pictures: tuple[VirtualView, ...] = ()  # what other cameras should see
    repaired: tuple[VirtualView, ...] = ()  # the same, by a repairer's word

    def __post_init__(self) -> None:
        assert all(d.ndim == 3 for d in self.depths), [d.shape for d in self.depths]
        if self.normals is not None:
            wanted = [(*d.shape, 3) for d in self.depths]
            assert [n.shape for n in self.normals] == wanted, ([n.shape for n in self.normals], wanted)

    def to(self, device: torch.device | str) -> Priors:
        normals = None if self.normals is None else [n.to(device) for n in self.normals]
        seen = (tuple(p.to(device) for p in views) for views in (self.pictures, self.repaired))
        return Priors([d.to(device) for d in self.depths], normals, *seen)

    def scaled(self, factor: float) -> Priors:
        """In a world whose units are that much smaller: all lengths times `factor`."""
        larger = Similarity(torch.eye(3), torch.zeros(3), factor)
        seen = (
            tuple(replace(p, camera=p.camera.transformed(larger)) for p in views) for views in (self.pictures, self.repaired)
        )
        return Priors([d * factor for d in self.depths], self.normals, *seen)

    def fits(self, views: list[Views]) -> bool:
        """Whether there is one map per photo, of the photo's size."""
        return [d.shape for d in self.depths] == [v.images.shape[:3] for v in views]
