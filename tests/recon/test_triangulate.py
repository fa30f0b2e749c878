"""Points from matches of posed photos."""

import torch
from stereo_scenes import photographed, plane, sideways

from recon.triangulate import TriangulateConfig, seen_by_both, triangulate
from splat.cameras import Cameras

CONFIG = TriangulateConfig()


def test_exact_matches_give_the_points_back():
    pair = (
        Cameras.orbit(2, 3.0, 10, 45, 200, 150, azimuth_deg=-15)[[0]],
        Cameras.orbit(1, 3.0, 15, 45, 200, 150, azimuth_deg=10),
    )
    points = 0.5 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    pixels = [c.project(points)[0][0] for c in pair]
    xyz, good = seen_by_both(*pair, *pixels, CONFIG)
    assert good.all()
    torch.testing.assert_close(xyz, points, atol=1e-4, rtol=0)


def test_what_no_point_explains_is_dropped():
    pair = [Cameras.orbit(1, 3.0, 10, 45, 200, 150, azimuth_deg=a) for a in (0, 20)]
    points = 0.5 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    pixels = [c.project(points)[0][0] for c in pair]
    _, good = seen_by_both(*pair, pixels[0], pixels[1].roll(1, 0), CONFIG)
    assert good.sum() < 10
    point = 3 * (pair[0].centers + pair[1].centers)
    _, behind = seen_by_both(*pair, *[c.project(point)[0][0] for c in pair], CONFIG)
    assert not behind.any()
    close = [Cameras.orbit(1, 3.0, 10, 45, 200, 150, azimuth_deg=a) for a in (0, 0.5)]
    _, narrow = seen_by_both(*close, *[c.project(points)[0][0] for c in close], CONFIG)
    assert not narrow.any()


def test_points_of_a_photographed_plane_lie_on_it():
    cameras = sideways(count=3, step=0.8, size=240, focal=300.0)
    views, _ = photographed(plane([0.0, 0, 0], [0.0, 0, 1]), cameras)
    cloud = triangulate([views])
    assert len(cloud) > 50
    assert cloud.xyz[:, 2].abs().median() < 0.04
    assert (cloud.rgb >= 0).all() and (cloud.rgb <= 1).all()
