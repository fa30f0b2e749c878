"""The switches of the regularised fit, and the prior geometry that some of them lean on."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from splat.views import Views


@dataclass(frozen=True)
class RegulariserConfig:
    """Every term is off at 0. Weights are relative to the photometric loss, which is about 0.02 in a good fit."""

    # 1 - Pearson correlation of rendered and prior depth over the photo: right up to the prior's scale and offset.
    depth: float = 0.0
    local_depth: float = 0.0  # the same in square tiles, mean over the tiles: the shape of small parts
    depth_tile: int = 32  # px, side of a tile; the tiling starts elsewhere at each step
    # |rendered - prior| / prior depth: for priors in the scene's own scale, such as stereo with known cameras.
    absolute_depth: float = 0.0
    normals: float = 0.0  # |n - n_prior|_1 + (1 - n . n_prior), n from rendered depth, n_prior given or from prior depth
    virtual_views: float = 0.0  # L1 to renders of the prior's points from cameras between the photos (LM-Gaussian)
    virtual_per_pair: int = 4  # of those cameras between two neighbouring photos
    virtual_scale: float = 0.5  # of the photos' size
    virtual_every: int = 1  # steps between two virtual views
    # Share of the Gaussians left out of a step, growing from 0 to this; the others grow more opaque meanwhile (DropGaussian).
    drop: float = 0.0
    smoothing: bool = False  # no Gaussian finer than the photos' pixels can tell (Mip-Splatting's 3-D filter)

    @property
    def active(self) -> bool:
        return self.smoothing or any(getattr(self, name) > 0 for name in (*PRIOR_TERMS, "drop"))

    @property
    def needs_priors(self) -> bool:
        return any(getattr(self, name) > 0 for name in PRIOR_TERMS)


PRIOR_TERMS = ("depth", "local_depth", "absolute_depth", "normals", "virtual_views")


@dataclass(frozen=True)
class Priors:
    """Geometry of the photos, on their pixels: one entry per `Views`, in the same order."""

    depths: list[Tensor]  # [C, H, W] z in the view's camera, 0 where unknown; world units, or of any scale for `depth` alone
    normals: list[Tensor] | None = None  # [C, H, W, 3] unit, in the camera's frame, towards the camera; 0 where unknown

    def __post_init__(self) -> None:
        assert all(d.ndim == 3 for d in self.depths), [d.shape for d in self.depths]
        if self.normals is not None:
            wanted = [(*d.shape, 3) for d in self.depths]
            assert [n.shape for n in self.normals] == wanted, ([n.shape for n in self.normals], wanted)

    def to(self, device: torch.device | str) -> Priors:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Priors(**{name: None if x is None else [t.to(device) for t in x] for name, x in moved.items()})

    def fits(self, views: list[Views]) -> bool:
        """Whether there is one map per photo, of the photo's size."""
        return [d.shape for d in self.depths] == [v.images.shape[:3] for v in views]
