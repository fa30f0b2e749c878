"""What the learned priors of a job say of its placed photos: depth that fills stereo's maps, and normals for the fit."""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from recon.fill_depths import FillConfig, fill_depths
from recon.poses import Poses
from recon.poses.from_prior import depths_alone
from recon.priors import DepthMap
from recon.priors.depth_guess import DepthGuess
from recon.priors.learned import PriorWeights
from splat.points import PointCloud
from splat.progress import Progress, told_as
from splat.similarity import Similarity
from splat.views import Views


@dataclass(frozen=True)
class LearnedGeometry:
    """Depth maps of all placed views, filled, and what else is known of them."""

    depth_maps: list[DepthMap]
    normals: list[Tensor] | None  # [C, H, W, 3] per entry of the views, in the cameras' frames; 0 where unknown
    warnings: tuple[str, ...]  # what was refused


def learned_geometry(
    views: list[Views],
    depth_maps: list[DepthMap],
    points: PointCloud | None,
    learned: Sequence[PriorWeights],
    poses: Poses,
    world_from_poses: Similarity,
    device: str,
    seed: int = 0,
) -> Generator[Progress, None, LearnedGeometry]:
    """Asks each prior about `views` (placed, in one world with `points`); fills the cleaned `depth_maps` in the priors' order.

    Depth that came with `poses`, in their world, is used as it is and first. Raises `InputError` for weights that do not load.
    """
    normals, warnings = None, []
    own = [guess for guess in poses.depths if guess is not None]
    if own:
        guesses = [DepthGuess(d.name, d.depth * world_from_poses.scale, "scene", d.confidence) for d in own]
        depth_maps, refused = fill_depths(views, depth_maps, guesses, points, FillConfig(seed=seed))
        warnings += refused
    for weights in learned:
        module = importlib.import_module(weights.family.module)
        if weights.family.gives == "normals":
            normals = yield from module.guess_normals(views, weights, device, seed)
            continue
        if weights.family.gives == "depth":
            guesses = yield from module.guess_depths(views, weights, device, seed)
        elif own:
            continue  # it placed the photos, and its depth is in already
        else:
            guesses = yield from _scaled(views, weights, device)
        depth_maps, refused = fill_depths(views, depth_maps, guesses, points, FillConfig(seed=seed))
        warnings += refused
    return LearnedGeometry(depth_maps, normals, tuple(warnings))


def _scaled(views: list[Views], weights: PriorWeights, device: str) -> Generator[Progress, None, list[DepthGuess]]:
    """Depth of a network that gives cameras too, which are not asked for here: up to a scale of each photo."""
    names = [name for view in views for name in view.names]
    images = [image for view in views for image in view.images]
    focals = [float(K[0, 0]) for view in views for K in view.cameras.K]
    job = depths_alone(images, names, weights, device, focals)
    found = yield from told_as(job, lambda event: replace(event, stage="prior"))
    return [DepthGuess(d.name, d.depth, "scaled", d.confidence) for d in found]
