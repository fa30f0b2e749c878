"""Depth maps into points: what is kept, what is removed, and what a point knows."""

from dataclasses import replace

import pytest
import torch
from stereo_scenes import photographed, plane, sideways, sphere, texture

from recon.consistency import Posed, agreement
from recon.fuse import FuseConfig, clean_depths, merge_cells
from recon.fuse import fuse as fuse_cleaned
from recon.priors import DepthMap
from splat.cameras import Cameras
from splat.points import PointCloud

KEEP_ALL = FuseConfig(merge=0, support=0)


def fuse(views, maps, config=None):
    return fuse_cleaned(views, clean_depths(views, maps, config), config)


def exact_maps(views, depth, confidence=0.9):
    """The truth as depth maps of the views' own size."""
    known = [torch.where(d.isfinite(), d, 0.0) for d in depth]
    return [DepthMap(name, d, (d > 0) * confidence) for name, d in zip(views.names, known)]


def scene(normal=(0.5, 0.2, 1.0)):
    views, depth = photographed(plane([0.0, 0, 0], list(normal)), sideways(3, size=48))
    return views, depth, exact_maps(views, depth)


def test_points_lie_on_the_surface_with_its_colour_and_footprint():
    views, depth, maps = scene()
    cloud = fuse([views], maps, KEEP_ALL)
    assert len(cloud) == 3 * 48 * 48
    normal = torch.tensor([0.5, 0.2, 1.0])
    assert float((cloud.xyz @ normal).abs().max()) < 1e-4
    assert float((cloud.rgb - texture(cloud.xyz)).abs().mean()) < 0.02
    focal = float(views.cameras.K[0, 0, 0])
    assert torch.allclose(cloud.radius[: 48 * 48].reshape(48, 48), depth[0] / focal, rtol=1e-5)


def test_maps_of_half_size_have_twice_the_footprint():
    views, depth, _ = scene((0.0, 0.0, 1.0))
    half = [DepthMap(n, d[::2, ::2].clone(), torch.ones(24, 24)) for n, d in zip(views.names, depth)]
    cloud = fuse([views], half, KEEP_ALL)
    assert torch.allclose(cloud.radius, 3.0 / (views.cameras.K[0, 0, 0] / 2), rtol=0.05)
    assert float(cloud.xyz[:, 2].abs().max()) < 1e-3  # one camera looks a little askance


def test_agreement():
    views, _, maps = scene()
    posed = [Posed(m, views.cameras[i]) for i, m in enumerate(maps)]
    told = agreement(1, posed, 0.01)
    assert float((told.support == 2).float().mean()) > 0.8
    assert float(told.intrusion.max()) == 0
    closer = replace(maps[1], depth=maps[1].depth * 0.8)
    told = agreement(1, [posed[0], Posed(closer, views.cameras[1]), posed[2]], 0.01)
    assert float(told.support.max()) == 0
    assert float((told.intrusion > 0.8).float().mean()) > 0.7
    farther = replace(maps[1], depth=maps[1].depth * 1.2)  # hidden behind: not in anyone's way
    told = agreement(1, [posed[0], Posed(farther, views.cameras[1]), posed[2]], 0.01)
    assert float(told.support.max()) == 0 and float(told.intrusion.max()) == 0


def test_floaters_in_front_of_surer_depth_go():
    views, _, maps = scene()
    wrong = maps[1].depth.clone()
    wrong[10:20, 10:20] *= 0.6
    doubtful = maps[1].confidence.clone()
    doubtful[10:20, 10:20] = 0.5
    maps[1] = replace(maps[1], depth=wrong, confidence=doubtful)
    cloud = fuse([views], maps, KEEP_ALL)
    normal = torch.tensor([0.5, 0.2, 1.0])
    assert float((cloud.xyz @ normal).abs().max()) < 1e-3
    surest = replace(maps[1], confidence=torch.ones_like(doubtful))  # surer than what lies behind: stays
    cloud = fuse([views], [maps[0], surest, maps[2]], KEEP_ALL)
    assert int(((cloud.xyz @ normal).abs() > 0.1).sum()) == 100


def test_depths_that_stand_alone_go_from_four_views_on():
    views, depth = photographed(plane([0.0, 0, 0], [0.0, 0.0, 1.0]), sideways(4, size=48))
    maps = exact_maps(views, depth)
    alone = maps[1].depth.clone()
    alone[10:20, 10:20] *= 1.4  # behind the others' surface: in nobody's way
    maps[1] = replace(maps[1], depth=alone)
    gone = clean_depths([views], maps)[1].depth == 0
    assert gone[11:19, 11:19].all() and float(gone.float().mean()) < 0.3  # and the rim that no other view sees
    kept = clean_depths([views], maps, KEEP_ALL)[1].depth
    assert (kept > 0).all()
    three = clean_depths([views[[0, 1, 2]]], maps[:3])[1].depth
    assert (three > 0).all()


def test_low_confidence_is_kept_only_in_the_background():
    views, _, maps = scene((0.0, 0.0, 1.0))
    deep = maps[0].depth.clone()
    deep[:, 40:] = 30.0
    weak = torch.full_like(deep, 0.2)
    weak[:, :30] = 0.9
    cloud = fuse([views[[0]]], [DepthMap("photo0", deep, weak)], KEEP_ALL)
    assert len(cloud) == 48 * 30 + 48 * 8
    strict = fuse([views[[0]]], [DepthMap("photo0", deep, weak)], replace(KEEP_ALL, background_confidence=0.3))
    assert len(strict) == 48 * 30


def test_points_outside_a_silhouette_go():
    cameras = Cameras.cat(
        [Cameras.orbit(5, radius=3.0, elevation_deg=e, fov_deg=45.0, width=64, height=64) for e in (10.0, 70.0)]
    )
    views, depth = photographed(sphere([0.0, 0, 0], 0.7), cameras, masked=True)
    maps = exact_maps(views, depth)
    assert len(fuse([views], maps, KEEP_ALL)) > 0.98 * sum(int((m.depth > 0).sum()) for m in maps)
    behind = replace(maps[0], depth=maps[0].depth * 1.6, confidence=maps[0].confidence * 0 + 1)
    silent = [replace(m, depth=m.depth * 0, confidence=m.confidence * 0) for m in maps[1:]]
    free = replace(views, masks=None)
    kept, without = (len(fuse([v], [behind, *silent], KEEP_ALL)) for v in (views, free))
    assert kept < 0.15 * without  # what remains hides behind the sphere from everywhere


def test_merging_keeps_the_surface_and_respects_the_cap():
    views, _, maps = scene()
    every = fuse([views], maps, KEEP_ALL)
    merged = fuse([views], maps, FuseConfig())
    assert len(merged) < 0.7 * len(every)
    capped = fuse([views], maps, FuseConfig(max_points=300))
    assert 60 < len(capped) <= 300
    assert capped.radius.median() > 2 * every.radius.median()  # fewer points cover the same surface
    normal = torch.tensor([0.5, 0.2, 1.0])
    assert float((capped.xyz @ normal).abs().max()) < 1e-3


def test_merge_cells_weighs_by_confidence():
    cloud = PointCloud(
        torch.tensor([[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [5.0, 5, 5]]),
        torch.tensor([[1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1]]),
        torch.tensor([0.9, 0.3, 0.5]),
        torch.tensor([1.0, 1.0, 1.0]),
    )
    merged = merge_cells(cloud, 1.0)
    assert len(merged) == 2
    first = merged[merged.xyz[:, 0] < 1]
    assert torch.allclose(first.xyz, torch.tensor([[0.15, 0.1, 0.1]]))
    assert torch.allclose(first.rgb, torch.tensor([[0.75, 0.25, 0]]))
    assert float(first.confidence) == pytest.approx(0.9)


def test_empty_maps_give_an_empty_cloud():
    views, _, maps = scene()
    nothing = [replace(m, depth=m.depth * 0, confidence=m.confidence * 0) for m in maps]
    assert len(fuse([views], nothing)) == 0
