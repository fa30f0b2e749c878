"""The pieces of the stereo prior: warps, windows, smoothing, planes between photos, neighbours and bounds."""

import math

import pytest
import torch
from stereo_scenes import photographed, plane, sideways, sphere

from recon.priors.matching import UNSEEN, Photo, best_mean, in_frame, neighbour, normalised, pixels_apart, sample, window_sum
from recon.priors.neighbours import choose_neighbours, depth_range, hull_bounds
from recon.priors.semi_global import aggregate
from recon.priors.surface import Surface, carried, fitted_slopes, pixel_grid, spanned
from splat.cameras import Cameras
from splat.points import PointCloud


def photos_of(views):
    masks = [None] * len(views) if views.masks is None else views.masks
    return [Photo(image.mean(-1), mask, views.cameras[i]) for i, (image, mask) in enumerate(zip(views.images, masks))]


def test_warp_is_projection():
    cameras = Cameras.orbit(3, radius=3.0, elevation_deg=20.0, fov_deg=50.0, width=40, height=30)
    a, b = (Photo(torch.zeros(30, 40), None, cameras[i]) for i in (0, 1))
    pixels = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([40.0, 30.0])
    depth = torch.linspace(2, 4, 50)
    link = neighbour(a, b)
    places = link.warp(link.base(pixels), 1 / depth)
    truth, _ = b.camera.project(a.camera.unproject(pixels, depth))
    assert torch.allclose(places, normalised(truth[0], 40, 30), atol=1e-4)
    inside = (truth[0] >= 0).all(-1) & (truth[0, :, 0] <= 40) & (truth[0, :, 1] <= 30)
    assert torch.equal(in_frame(places), inside)


def test_points_behind_the_other_camera_are_out_of_frame():
    cameras = Cameras.look_at(
        torch.tensor([[0.0, 0, 3], [0.0, 0, 3]]), torch.tensor([[0.0, 0, 0], [0.0, 0.0, 6]]), torch.tensor([0.0, 1, 0]),
        sideways(1).K, 96, 96,
    )  # fmt: skip
    a, b = (Photo(torch.zeros(96, 96), None, cameras[i]) for i in (0, 1))
    link = neighbour(a, b)
    pixels = pixel_grid(96, 96, torch.device("cpu")).reshape(-1, 2)
    assert not in_frame(link.warp(link.base(pixels), torch.full((len(pixels),), 0.5))).any()


def test_sample_reads_pixel_centres():
    image = torch.rand(7, 9)
    grid = pixel_grid(7, 9, image.device)
    assert torch.allclose(sample(image, normalised(grid, 9, 7)), image, atol=1e-6)
    between = sample(image, normalised(grid[:, :-1] + torch.tensor([0.5, 0.0]), 9, 7))
    assert torch.allclose(between, (image[:, :-1] + image[:, 1:]) / 2, atol=1e-6)


def test_pixels_apart():
    photo = Photo(torch.zeros(30, 40), None, sideways(1)[0])
    a, b = torch.tensor([[10.0, 5.0]]), torch.tensor([[13.0, 9.0]])
    assert float(pixels_apart(normalised(a, 40, 30), normalised(b, 40, 30), photo)) == pytest.approx(5.0, rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 9])
def test_window_sum(size):
    x = torch.rand(3, 14, 12, generator=torch.Generator().manual_seed(0))
    direct = torch.nn.functional.conv2d(x[:, None], torch.ones(1, 1, size, size))[:, 0]
    assert torch.allclose(window_sum(x, size), direct, atol=1e-5)


def test_best_mean_ignores_the_worst():
    costs = torch.tensor([[0.1], [0.9], [0.3], [1.0], [UNSEEN]])
    assert float(best_mean(costs, 2)) == pytest.approx(0.2)
    assert float(best_mean(costs, 1)) == pytest.approx(0.1)
    assert float(best_mean(costs, 4)) == pytest.approx(0.575)
    assert float(best_mean(costs, 5)) == pytest.approx(0.675)  # one too few
    assert float(best_mean(costs[4:], 2)) == 1


def test_semi_global_matches_a_slow_loop():
    g = torch.Generator().manual_seed(0)
    cost, gray = torch.rand(6, 5, 4, generator=g), torch.rand(5, 4, generator=g)
    small, large = 0.1, 0.5
    total = torch.zeros(6, 5, 4)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        path = cost.clone()
        for y in range(5) if dy >= 0 else reversed(range(5)):
            for x in range(4) if dx >= 0 else reversed(range(4)):
                if not (0 <= y - dy < 5 and 0 <= x - dx < 4):
                    continue
                before = path[:, y - dy, x - dx]
                jump = max(large / (1 + 20 * float((gray[y, x] - gray[y - dy, x - dx]).abs())), 1.5 * small)
                for d in range(6):
                    ways = [before[d], before.min() + jump]
                    ways += [before[e] + small for e in (d - 1, d + 1) if 0 <= e < 6]
                    path[d, y, x] = cost[d, y, x] + min(ways) - before.min()
        total += path
    assert torch.allclose(aggregate(cost, gray, small, large), total / 4, atol=1e-5)


def plane_surface(camera, point, normal):
    """The exact surface of a plane."""
    _, depth = photographed(plane(point, normal), camera)
    inverse = 1 / depth[0]
    slope = torch.stack([torch.gradient(inverse, dim=1)[0], torch.gradient(inverse, dim=0)[0]], dim=-1)
    zero = torch.zeros_like(inverse)
    return Surface(inverse, slope, zero, zero + 1, zero == 0, zero, zero + 10)


def test_slopes_of_a_plane_are_exact():
    surface = plane_surface(sideways(1, size=32), [0.0, 0, 0], [1.0, 0.4, 1.0])
    hole = surface.valid.clone()
    hole[10:14, 8:20] = False
    slopes = fitted_slopes(torch.where(hole, surface.inverse, 7.0), hole)
    assert torch.allclose(slopes[hole], surface.slope[hole], atol=1e-5)


def test_planes_carried_to_another_photo_are_the_same_plane():
    cameras = sideways(2, step=0.4, size=48)
    a, b = (plane_surface(cameras[i], [0.0, 0, 0], [1.0, 0.4, 1.0]) for i in (0, 1))
    inverse, slope, there = carried(a, cameras[0], a.valid, cameras[1])
    assert there.float().mean() > 0.6
    assert torch.allclose(inverse[there], b.inverse[there], atol=1e-4)
    assert torch.allclose(slope[there], b.slope[there], atol=1e-4)


def test_carried_keeps_the_nearer_plane():
    cameras = sideways(1, size=32)
    shifted = cameras.cam_from_world.clone()
    shifted[:, 0, 3] += 0.05
    cameras = Cameras(torch.cat([cameras.cam_from_world, shifted]), cameras.K.expand(2, 3, 3), 32, 32)
    near = plane_surface(cameras[0], [0.0, 0, 1.0], [0.0, 0, 1.0])
    far = plane_surface(cameras[0], [0.0, 0, -1.0], [0.0, 0, 1.0])
    left = torch.arange(32) < 16
    mixed = Surface(
        torch.where(left, near.inverse, far.inverse), near.slope * 0, near.cost, near.distinct, near.valid, near.low, near.high
    )
    for order in (cameras, cameras[[1, 0]]):
        inverse, _, there = carried(mixed, order[0], mixed.valid, order[1])
        values = inverse[there]
        assert set((1 / values).round(decimals=2).tolist()) <= {2.0, 4.0}


def test_planes_spanned_across_a_hole():
    camera = sideways(1, size=48)
    surface = plane_surface(camera, [0.0, 0, 0], [1.0, 0.4, 1.0])
    sure = surface.valid.clone()
    sure[14:34, 14:34] = False
    wrong = surface.inverse.clone()
    wrong[~sure] = 1.0
    guess = Surface(wrong, surface.slope, surface.cost, surface.distinct, surface.valid, surface.low, surface.high)
    inverse, slope, there = spanned(guess, sure, camera.K[0])
    assert torch.equal(there, ~sure)
    assert torch.allclose(inverse[there], surface.inverse[there], atol=1e-5)
    assert torch.allclose(slope[there], surface.slope[there], atol=1e-5)


def test_nothing_is_spanned_over_a_depth_edge():
    camera = sideways(1, size=48)
    near, far = (plane_surface(camera, [0.0, 0, z], [0.0, 0, 1.0]) for z in (1.5, -3.0))
    left = torch.arange(48) < 22
    right = torch.arange(48) >= 26
    inverse = torch.where(left, near.inverse, far.inverse)
    sure = (left | right).expand(48, 48)
    edge = Surface(inverse, near.slope, near.cost, near.distinct, near.valid, near.low, near.high)
    assert not spanned(edge, sure, camera.K[0])[2].any()
    few = torch.zeros_like(sure)
    few[3, 3] = few[3, 20] = few[3, 40] = True  # on one line, and too few
    assert not spanned(edge, few, camera.K[0])[2].any()


def test_neighbours_are_near_but_not_too_near():
    angles = torch.deg2rad(torch.tensor([0.0, 0.5, 12.0, 30.0, 100.0, 180.0]))
    eyes = 3 * torch.stack([angles.sin(), torch.zeros(6), angles.cos()], dim=1)
    cameras = Cameras.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1, 0]), sideways(1).K, 96, 96)
    photos = [Photo(torch.zeros(96, 96), None, cameras[i]) for i in range(6)]
    span = depth_range(photos[0], photos[1:], None)
    chosen = choose_neighbours(0, photos, None, span, 4)
    assert chosen[0] == 2 and 3 in chosen
    assert 4 not in chosen and 5 not in chosen


def test_depth_range():
    photos = photos_of(photographed(plane([0.0, 0, 0], [0.0, 0, 1.0]), sideways(3))[0])
    near, far = depth_range(photos[0], photos[1:], None)  # by where the cameras look
    assert near < 2 and far > 5
    g = torch.Generator().manual_seed(0)
    xyz = torch.rand(200, 3, generator=g) * 0.6 - 0.3
    near, far = depth_range(photos[0], photos[1:], PointCloud(xyz, xyz, torch.ones(200)))
    assert 1.5 < near < 2.7 and 3.3 < far < 6
    few = PointCloud(xyz[:5], xyz[:5], torch.ones(5))
    assert depth_range(photos[0], photos[1:], few) == depth_range(photos[0], photos[1:], None)


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_depth_range_of_cameras_that_look_the_same_way(apart):
    eyes = torch.tensor([[0.0, 0, 0], [apart, 0, 0]])
    cameras = Cameras.look_at(eyes, eyes + torch.tensor([0.0, 0, -1]), torch.tensor([0.0, 1, 0]), sideways(1).K, 96, 96)
    photos = [Photo(torch.zeros(96, 96), None, cameras[i]) for i in range(2)]
    near, far = depth_range(photos[0], photos[1:], None)
    assert 0 < near < far and math.isfinite(far)


def test_silhouettes_bound_the_depth():
    cameras = Cameras.orbit(8, radius=3.0, elevation_deg=10.0, fov_deg=45.0, width=64, height=64)
    views, depth = photographed(sphere([0.0, 0, 0], 0.7), cameras, masked=True)
    photos = photos_of(views)
    low, high = hull_bounds(photos[0], photos[1:], (0.5, 10.0))
    known = depth[0].isfinite()
    inverse = 1 / depth[0][known]
    assert (low[known] <= inverse).all() and (high[known] >= inverse).all()
    assert (1 / low[known]).quantile(0.9) < 5 and (1 / high[known]).quantile(0.1) > 1.5
    empty = [Photo(p.gray, torch.zeros_like(p.mask), p.camera) for p in photos[1:]]
    low, high = hull_bounds(photos[0], empty, (0.5, 10.0))
    assert not (low < high)[known].any()
    unmasked = [Photo(p.gray, None, p.camera) for p in photos[1:]]
    low, high = hull_bounds(photos[0], unmasked, (0.5, 10.0))
    assert torch.allclose(low, torch.tensor(0.1)) and torch.allclose(high, torch.tensor(2.0))
