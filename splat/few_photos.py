"""The fit for three to twelve photos: `FitConfig.for_photos` with what few photos need, each part of which can be left out.

What every part brings, and what was tried and brought nothing, is in docs/few-photos.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Literal, get_args

from splat.optimise import FitConfig
from splat.regularise import RegulariserConfig

FEW_PHOTOS = 12  # up to here they say too little; above, the stereo of the start says enough
Part = Literal["depth", "normals", "poses", "rates"]
PARTS: tuple[Part, ...] = get_args(Part)


def for_few_photos(count: int, *, poses_given: bool, without: Collection[Part] = (), **changes: Any) -> FitConfig:
    """`FitConfig.for_photos(count, **changes)` with all parts but those in `without`; it needs `Priors` of the photos.

    depth: rendered depth stays near that of stereo; normals: so does its slope; poses: cameras move with the fit, unless
    they were given; rates: Gaussians move three times as fast as in 3DGS, so that surfaces find their place in fewer steps.
    """
    method: dict[str, Any] = {} if "rates" in without else {"lr_means": 4.8e-4, "lr_means_final": 4.8e-6}
    terms = {"depth": {"absolute_depth": 0.1}, "normals": {"normals": 0.01}}
    kept = [values for part, values in terms.items() if part not in without]
    method["regularise"] = dataclasses.replace(RegulariserConfig(), **{k: v for values in kept for k, v in values.items()})
    method["refine_poses"] = not poses_given and "poses" not in without
    return FitConfig.for_photos(count, **(method | changes))
