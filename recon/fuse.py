"""Depth maps of several views into one point cloud."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon.consistency import Posed, agreement
from recon.priors import DepthMap
from recon.priors.matching import normalised, sample
from splat.points import PointCloud
from splat.views import Views

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FuseConfig:
    """How depth maps become points."""

    min_confidence: float = 0.3  # pixels below are dropped
    background_factor: float = 1.5  # pixels deeper than this many median depths are background ...
    background_confidence: float = 0.15  # ... and kept from here on: far points match worse
    # Other maps that must agree with a pixel that no silhouette bounds. Wrong depths of repeated content, such as floor boards,
    # stand alone; the holes that they leave are filled better than they were.
    support: int = 1
    support_from: int = 4  # views; fewer see most pixels only once or twice
    tolerance: float = 0.01  # two depths agree when they differ by less than this share
    max_points: int = 60_000  # more are merged into coarser cells
    merge: float = 1.0  # cell of merging, in footprints; 0 keeps every point


def clean_depths(views: list[Views], depth_maps: list[DepthMap], config: FuseConfig | None = None) -> list[DepthMap]:
    """The maps with depth 0 at every pixel that is not to be believed; one per placed view, same order.

    A pixel is believed when it is confident enough, agrees with another map, lies inside the silhouettes of all views that
    have one, and no more confident depth of another view lies behind it.
    """
    config = config or FuseConfig()
    posed = _posed(views, depth_maps)
    needed = 0 if len(posed) < config.support_from or any(v.masks is not None for v in views) else config.support
    return [_cleaned(i, posed, views, needed, config) for i in range(len(posed))]


def fuse(views: list[Views], depth_maps: list[DepthMap], config: FuseConfig | None = None) -> PointCloud:
    """One cloud from one cleaned depth map per placed view (same order); coloured from the photos, radius = depth / focal.

    Points in one cell of their footprint's size are merged, weighted by confidence. May be empty. Deterministic; not
    differentiable.
    """
    config = config or FuseConfig()
    posed = _posed(views, depth_maps)
    parts = []
    for own, image in zip(posed, _images(views, depth_maps)):
        keep = own.map.depth > 0
        focal = (own.camera.K[0, 0, 0] * own.camera.K[0, 1, 1]).sqrt()
        parts.append(PointCloud(own.points()[keep], image[keep], own.map.confidence[keep], own.map.depth[keep] / focal))
    cloud = PointCloud.cat(parts)
    log.info("%d points before merging", len(cloud))
    return _merged(cloud, config)


def _cleaned(i: int, posed: list[Posed], views: list[Views], needed: int, config: FuseConfig) -> DepthMap:
    own = posed[i]
    told = agreement(i, posed, config.tolerance)
    keep = _wanted(own.map, config) & (told.intrusion <= own.map.confidence) & (told.support >= needed)
    keep[keep.clone()] = inside_silhouettes(own.points()[keep], views)
    return replace(own.map, depth=torch.where(keep, own.map.depth, 0.0))


def _posed(views: list[Views], depth_maps: list[DepthMap]) -> list[Posed]:
    """Each map with the camera of its pixels."""
    placed = [(batch, i) for batch in views if batch.cameras is not None for i in range(len(batch))]
    names = [batch.names[i] for batch, i in placed]
    assert names == [m.name for m in depth_maps], (names, [m.name for m in depth_maps])
    posed = []
    for (batch, i), depth_map in zip(placed, depth_maps):
        height, width = depth_map.depth.shape
        posed.append(Posed(depth_map, batch.cameras[i].to(depth_map.depth.device).resized(width, height)))
    return posed


def _images(views: list[Views], depth_maps: list[DepthMap]) -> list[Tensor]:
    """[H, W, 3] each map's photo at the map's size."""
    photos = [batch.images[i] for batch in views if batch.cameras is not None for i in range(len(batch))]
    small = []
    for photo, depth_map in zip(photos, depth_maps):
        chw = photo.to(depth_map.depth.device).permute(2, 0, 1)[None]
        small.append(torch.nn.functional.interpolate(chw, depth_map.depth.shape, mode="area")[0].permute(1, 2, 0))
    return small


def _wanted(depth_map: DepthMap, config: FuseConfig) -> Tensor:
    """[H, W] pixels confident enough, background more leniently (LM-Gaussian, arXiv 2409.03456, keeps all of it)."""
    known = depth_map.depth > 0
    if not known.any():
        return known
    far = depth_map.depth > config.background_factor * depth_map.depth[known].median()
    return known & (depth_map.confidence >= torch.where(far, config.background_confidence, config.min_confidence))


def inside_silhouettes(xyz: Tensor, views: list[Views]) -> Tensor:
    """[N] not outside the mask of any view that has one and has the point in its frame; a pixel of tolerance."""
    inside = torch.ones(len(xyz), dtype=torch.bool, device=xyz.device)
    for batch in views:
        if batch.masks is None or batch.cameras is None:
            continue
        width, height = batch.size
        grown = torch.nn.functional.max_pool2d(batch.masks[:, None].to(xyz), 3, stride=1, padding=1)[:, 0]
        pixels, depth = batch.cameras.to(xyz.device).project(xyz)
        for mask, at, z in zip(grown, pixels, depth):
            x, y = at.unbind(-1)
            seen = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            inside &= ~seen | (sample(mask, normalised(at, width, height)) > 0.5)
    return inside


def _merged(cloud: PointCloud, config: FuseConfig) -> PointCloud:
    """At most `max_points`: cells grow until they fit."""
    if config.merge <= 0 or len(cloud) == 0:
        return cloud
    size = config.merge
    merged = merge_cells(cloud, size)
    while len(merged) > config.max_points:
        size *= max(1.1, math.sqrt(len(merged) / config.max_points))  # surfaces: the count falls with the square
        merged = merge_cells(cloud, size)
    return merged


def merge_cells(cloud: PointCloud, size: float) -> PointCloud:
    """Points that share a cell become one; cells are `size` footprints wide, rounded down to a power of two.

    Position, colour and radius are means weighted by confidence, the confidence is the highest one. The radius is at
    least half a cell, so that merged points still cover the surface.
    """
    width = cloud.radius.double() * size
    level = torch.floor(torch.log2(width.clamp_min(1e-30)))
    cell = torch.exp2(level)
    keys = torch.cat([torch.floor(cloud.xyz.double() / cell[:, None]), level[:, None]], dim=1).long()
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    count = int(group.max()) + 1
    weight = cloud.confidence.double().clamp_min(1e-3)

    def mean(x: Tensor) -> Tensor:
        out = torch.zeros((count, *x.shape[1:]), dtype=torch.float64, device=x.device)
        spread = weight.reshape(-1, *[1] * (x.ndim - 1))
        total = torch.zeros(count, dtype=torch.float64, device=x.device).index_add_(0, group, weight)
        return (out.index_add_(0, group, x.double() * spread) / total.reshape(-1, *[1] * (x.ndim - 1))).to(x.dtype)

    best = torch.zeros(count, dtype=cloud.confidence.dtype, device=cloud.confidence.device)
    best = best.scatter_reduce(0, group, cloud.confidence, "amax")
    return PointCloud(mean(cloud.xyz), mean(cloud.rgb), best, torch.maximum(mean(cloud.radius), mean(cell).to(best) / 2))
