"""Depth maps as the fit takes them: one per photo, on the photo's pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recon.priors import DepthMap
from splat.regularise import Priors
from splat.regularise.normals import normals_from_depth
from splat.views import Views


def fit_priors(views: Sequence[Views], depth_maps: Sequence[DepthMap], normals: Sequence[Tensor] | None = None) -> Priors:
    """`Priors` of posed `views` from one cleaned depth map per view, in order; same world.

    Every pixel takes the depth of the map's pixel that it lies in: known and unknown are not mixed. `normals` [C, H, W, 3], one
    entry per `Views`, are those of a network on the views' pixels; where it says nothing (0), those of the depth hold.
    """
    names = [name for view in views for name in view.names]
    assert names == [m.name for m in depth_maps], (names, [m.name for m in depth_maps])
    left, depths = iter(depth_maps), []
    for view in views:
        width, height = view.size
        maps = [next(left).depth.to(view.images) for _ in view.names]
        sized = [torch.nn.functional.interpolate(d[None, None], (height, width), mode="nearest-exact")[0, 0] for d in maps]
        depths.append(torch.stack(sized))
    if normals is None:
        return Priors(depths)
    return Priors(depths, [_with_those_of_depth(*x) for x in zip(views, depths, normals, strict=True)])


def _with_those_of_depth(view: Views, depths: Tensor, normals: Tensor) -> Tensor:
    """[C, H, W, 3] with the unknown ones taken from depth [C, H, W], still 0 where that is unknown too."""
    found = []
    for i, (depth, given) in enumerate(zip(depths, normals.to(depths))):
        own, known = normals_from_depth(depth, view.cameras[i])
        found.append(torch.where(given.norm(dim=-1, keepdim=True) > 0.5, given, own * known[..., None]))
    return torch.stack(found)
