"""From pairwise predictions to first Gaussians: aligned, cleaned of what floats in front, background kept, of pixels' size."""

import dataclasses

import pytest
import torch
from pair_scenes import depths_of, finished, predictions, walk

from recon.align_pairs import align_pairs
from recon.fuse import FuseConfig, clean_depths, fuse
from recon.initialise import InitialConfig, initial_splats
from recon.priors import StereoPrediction
from splat.cameras import Cameras
from splat.similarity import fit_similarity
from splat.views import Views

CAMERAS = walk(4)
DEPTH = depths_of(CAMERAS)
PATCH = (slice(20, 28), slice(24, 40))  # of the first photo: floats at half its depth, unsurely
PAIRS = [(i, j) for i in range(4) for j in range(4) if i != j]


@pytest.fixture(scope="module")
def scene():
    """Views with solved cameras in the true world, and what was said of depth."""
    pairs = predictions(CAMERAS, DEPTH, PAIRS)
    for n, pair in enumerate(pairs):
        confidence = torch.full((2, 48, 64), 0.8)
        if pair.first == 0:
            pair.prediction.points[0][PATCH] *= 0.5
            confidence[0][PATCH] = 0.4
        elif pair.second == 0:
            confidence[1][PATCH] = 0.0
        pairs[n] = dataclasses.replace(pair, prediction=StereoPrediction(pair.prediction.points, confidence))
    found = finished(align_pairs([(64, 48)] * 4, pairs))
    world = fit_similarity(torch.cat([c.centers for c in found.cameras]), CAMERAS.centers)
    names = tuple(d.name for d in found.depths)
    views = Views(torch.full((4, 48, 64, 3), 0.5), names, Cameras.cat(list(found.cameras)).transformed(world))
    return [views], [dataclasses.replace(d, depth=d.depth * world.scale) for d in found.depths]


def test_what_floats_in_front_goes_and_the_background_stays(scene):
    views, depths = scene
    assert float((depths[0].depth[PATCH] / DEPTH[0][PATCH]).median()) == pytest.approx(0.5, abs=0.02)
    config = FuseConfig(tolerance=0.03)
    cleaned = clean_depths(views, depths, config)
    assert float((cleaned[0].depth[PATCH] > 0).float().mean()) < 0.1
    far = DEPTH[1] > 1.5 * DEPTH[1].median()
    assert float((cleaned[1].depth[far] > 0).float().mean()) > 0.5
    low = [dataclasses.replace(d, confidence=0.25 * d.confidence) for d in depths]  # 0.2: background's threshold is lower
    kept = clean_depths(views, low, config)[1].depth > 0
    assert kept[far].float().mean() > 0.5 and not kept[DEPTH[1] < DEPTH[1].median()].any()


def test_gaussians_lie_on_the_surfaces_and_have_their_pixels_size(scene):
    views, depths = scene
    cloud = fuse(views, clean_depths(views, depths, FuseConfig(tolerance=0.03)), FuseConfig(merge=0))
    assert len(cloud) > 0.5 * 4 * 48 * 64
    pixels, z = views[0].cameras.project(cloud.xyz)
    off = []
    for k in range(4):
        x, y = pixels[k].floor().long().unbind(-1)
        inside = (x >= 0) & (x < 64) & (y >= 0) & (y < 48) & (z[k] > 0)
        off.append((z[k] / DEPTH[k][y.clamp(0, 47), x.clamp(0, 63)] - 1).abs()[inside])
    assert float(torch.cat(off).median()) < 0.01
    own = (z / views[0].cameras.K[:, 0, 0, None] / cloud.radius - 1).abs().amin(0)  # depth / focal of the photo it came from
    assert float(own.max()) < 1e-3
    splats = initial_splats(cloud, InitialConfig())
    assert torch.allclose(splats.scales[:, 0], cloud.radius, rtol=1e-4)
