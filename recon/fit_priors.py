"""Depth maps as the fit takes them: one per photo, on the photo's pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recon.priors import DepthMap
from splat.regularise import Priors
from splat.views import Views


def fit_priors(views: Sequence[Views], depth_maps: Sequence[DepthMap]) -> Priors:
    """`Priors` of posed `views` from one cleaned depth map per view, in order; same world.

    Every pixel takes the depth of the map's pixel that it lies in: known and unknown are not mixed.
    """
    names = [name for view in views for name in view.names]
    assert names == [m.name for m in depth_maps], (names, [m.name for m in depth_maps])
    left, depths = iter(depth_maps), []
    for view in views:
        width, height = view.size
        maps = [next(left).depth.to(view.images) for _ in view.names]
        sized = [torch.nn.functional.interpolate(d[None, None], (height, width), mode="nearest-exact")[0, 0] for d in maps]
        depths.append(torch.stack(sized))
    return Priors(depths)
