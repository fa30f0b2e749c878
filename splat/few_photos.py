"""The fit for three to twelve photos: `FitConfig.for_photos` with what few photos need, each part of which can be left out.

What every part brings, and what was tried and brought nothing, is in docs/few-photos.md.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, get_args

from splat.optimise import FitConfig
from splat.regularise import RegulariserConfig

MOVE_FROM = 6  # photos; fewer say too little for their cameras to be told from the scene
FEW_PHOTOS = 12  # up to here they say too little; above, the stereo of the start says enough
# Rates of the cameras, radians. Slower than the least, and renders of rendered rooms match worse; as fast, and cameras of our
# own solver that were right within a tenth of a degree end two tenths away, where the photos agree with the splats.
LEAST_RATE, MOST_RATE = 2e-4, 1e-3
POSE_RATE = 0.03  # times what the solver left unexplained, in between
UNSURE = 0.01  # rad, error of cameras of which nobody knows how good they are
Part = Literal["depth", "normals", "poses", "rates"]
PARTS: tuple[Part, ...] = get_args(Part)


def pose_rates(error_rad: float) -> dict[str, float]:
    """Changes of `FitConfig` for cameras whose solver left residuals of about `error_rad` as seen from them."""
    rate = min(max(POSE_RATE * error_rad, LEAST_RATE), MOST_RATE)
    return {"lr_poses": rate, "lr_poses_final": rate / 100}


def for_few_photos(
    count: int,
    *,
    poses_given: bool,
    masked: bool = False,
    normals_given: bool = False,
    pose_error_rad: float = UNSURE,
    without: Collection[Part] = (),
    **changes: Any,
) -> FitConfig:
    """`FitConfig.for_photos(count, **changes)` with all parts but those in `without`; it needs `Priors` of the photos.

    depth: rendered depth stays near that of stereo; normals: so does its slope; both where all photos are `masked`, for whole
    scenes are better without; normals also where `Priors` has those of a network (`normals_given`), which are sharper. poses:
    cameras of six photos and more move with the fit, unless they were given, as fast as `pose_rates` says. rates: Gaussians
    move three times as fast as in 3DGS, so that surfaces find their place in fewer steps.
    """
    method: dict[str, Any] = {} if "rates" in without else {"lr_means": 4.8e-4, "lr_means_final": 4.8e-6}
    depth = 0.1 if masked and "depth" not in without else 0.0
    normals = 0.01 if (masked or normals_given) and "normals" not in without else 0.0
    if depth or normals:
        method["regularise"] = RegulariserConfig(absolute_depth=depth, normals=normals)
    if count >= MOVE_FROM and not poses_given and "poses" not in without:
        method |= {"refine_poses": True} | pose_rates(pose_error_rad)
    return FitConfig.for_photos(count, **(method | changes))
