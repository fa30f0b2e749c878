"""Depth of learned priors where stereo knows nothing: fitted to the scene, checked by the other photos, less trusted.

Stereo measures, networks guess. A guess is fitted to what is measured of its own photo, fills only what is not, and is dropped
where another photo looks through it or where a silhouette says that nothing is there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon.consistency import Posed, agreement
from recon.fuse import inside_silhouettes
from recon.priors import DepthMap
from recon.priors.depth_guess import DepthGuess
from recon.priors.scene_scale import fit_to_scene
from splat.cameras import Cameras
from splat.points import PointCloud
from splat.views import Views

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FillConfig:
    """How guesses fill depth maps."""

    confidence: float = 0.1  # of a pixel that a one-photo network filled
    trust: float = 0.5  # share of its own confidence that a network keeps which looked at several photos
    # A guess that lies three times so far (relative) in front of what another photo surely sees is dropped.
    tolerance: float = 0.03
    seed: int = 0  # of the fits' draws


def fill_depths(
    views: list[Views],
    depth_maps: list[DepthMap],
    guesses: list[DepthGuess],
    points: PointCloud | None,
    config: FillConfig | None = None,
) -> tuple[list[DepthMap], list[str]]:
    """The cleaned `depth_maps` (one per placed view, in order) with pixels filled, and a sentence on each refused guess.

    `points` (sparse, same world) count as known where stereo has no depth. Pixels with a depth keep it, maps keep their grids.
    Deterministic; not differentiable.
    """
    config = config or FillConfig()
    placed = [(v, i) for v in views if v.cameras is not None for i in range(len(v))]
    by_name = {guess.name: guess for guess in guesses}
    posed = [
        Posed(m, v.cameras[i].resized(m.depth.shape[1], m.depth.shape[0])) for (v, i), m in zip(placed, depth_maps, strict=True)
    ]
    filled, refused = [], []
    for k, own in enumerate(posed):
        guess = by_name.get(own.map.name)
        found = own.map if guess is None else _filled(k, posed, views, guess, points, config)
        if isinstance(found, str):
            refused.append(f"The network's depth of {own.map.name} is left out: {found}.")
            found = own.map
        filled.append(found)
    return filled, refused


def _filled(
    k: int, posed: list[Posed], views: list[Views], guess: DepthGuess, points: PointCloud | None, config: FillConfig
) -> DepthMap | str:
    own = posed[k]
    height, width = own.map.depth.shape
    guess = replace(guess, values=_sized(guess.values, height, width), confidence=_maybe_sized(guess.confidence, height, width))
    if guess.kind == "scene":
        depth, agreeing = torch.where(guess.values > 0, guess.values, 0.0), 1.0
    else:
        known, weight = _known(own, points)
        fit = fit_to_scene(guess, known, weight, config.seed)
        if isinstance(fit, str):
            return fit
        log.info("%s: %.0f%% agree, %.1f%% off", own.map.name, 100 * fit.agreeing, 100 * fit.error)
        depth, agreeing = fit.depth(guess.values), fit.agreeing
    confidence = torch.full_like(depth, config.confidence) if guess.confidence is None else config.trust * guess.confidence
    confidence = agreeing * confidence
    new = (own.map.depth <= 0) & (depth > 0) & (confidence > 0)
    candidate = DepthMap(own.map.name, torch.where(new, depth, 0.0), torch.where(new, confidence, 0.0))
    others = [candidate if j == k else p.map for j, p in enumerate(posed)]
    told = agreement(k, [Posed(m, p.camera) for m, p in zip(others, posed)], config.tolerance)
    new = new & (told.intrusion <= confidence)
    new[new.clone()] = inside_silhouettes(Posed(candidate, own.camera).points()[new], views)
    return DepthMap(own.map.name, torch.where(new, depth, own.map.depth), torch.where(new, confidence, own.map.confidence))


def _known(own: Posed, points: PointCloud | None) -> tuple[Tensor, Tensor]:
    """Depth and weight [H, W] of what is measured: stereo's, and where it has none, the sparse points in the frame."""
    depth = own.map.depth.clone()
    weight = torch.where(depth > 0, own.map.confidence.clamp_min(0.05), 0.0)
    if points is None or len(points) == 0:
        return depth, weight
    sparse, seen = nearest_points(own.camera, points)
    take = (depth <= 0) & (sparse > 0)
    return torch.where(take, sparse, depth), torch.where(take, seen.clamp_min(0.05), weight)


def nearest_points(camera: Cameras, points: PointCloud) -> tuple[Tensor, Tensor]:
    """Depth and confidence [H, W] of the nearest point in each pixel of one camera, 0 where there is none."""
    pixels, z = (x[0] for x in camera.project(points.xyz.to(camera.K)))
    at = pixels.floor().long()
    inside = (z > 0) & (at >= 0).all(-1) & (at[:, 0] < camera.width) & (at[:, 1] < camera.height)
    cell, z, sure = (at[:, 1] * camera.width + at[:, 0])[inside], z[inside], points.confidence[inside].to(z)
    depth = torch.full((camera.height * camera.width,), torch.inf).scatter_reduce(0, cell, z, "amin")
    first = z == depth[cell]
    confidence = torch.zeros_like(depth).scatter_reduce(0, cell[first], sure[first], "amax")
    depth = torch.where(depth.isfinite(), depth, 0.0)
    return depth.view(camera.height, camera.width), confidence.view(camera.height, camera.width)


def _sized(x: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.interpolate(x[None, None], (height, width), mode="nearest-exact")[0, 0]


def _maybe_sized(x: Tensor | None, height: int, width: int) -> Tensor | None:
    return None if x is None else _sized(x, height, width)
