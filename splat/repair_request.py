"""What a repairer of damaged renders is given: the seam between the rounds of `recon/repair` and the networks of `diffusion`.

Any function from `RepairRequest` to pictures is a repairer, so that our own small network, Stable Diffusion from a local folder
and a test's few lines are exchanged freely (LM-Gaussian, Yu et al. 2024, stage 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RepairRequest:
    """V damaged renders of one scene and what its photos say about them. Colours: sRGB float32 in [0, 1]; one device."""

    images: Tensor  # [V, H, W, 3] the damaged renders, on the scene's background
    alpha: Tensor  # [V, H, W] of the renders
    trust: Tensor  # [V, H, W] in [0, 1]: 1 where photos say what is there, 0 where whatever is drawn is a guess
    warped: Tensor  # [V, R, H, W, 3] the R nearest photos carried into these cameras by the rendered depth; 0 where unseen
    known: Tensor  # [V, R, H, W] in [0, 1]: where `warped` holds, i.e. the photo saw that surface and nothing stood before it
    seed: int = 0  # noise is drawn once per scene and shared by its views, so that they are repaired alike

    def __post_init__(self) -> None:
        v, h, w = self.images.shape[:3]
        r = self.warped.shape[1]
        shapes = {
            "images": (v, h, w, 3),
            "alpha": (v, h, w),
            "trust": (v, h, w),
            "warped": (v, r, h, w, 3),
            "known": (v, r, h, w),
        }
        for name, shape in shapes.items():
            assert getattr(self, name).shape == shape, (name, tuple(getattr(self, name).shape), shape)


Repairer = Callable[[RepairRequest], Tensor]  # -> [V, H, W, 3] in [0, 1], what the views should have looked like
