"""The built-in stereo prior on surfaces whose depth is known."""

from dataclasses import replace

import pytest
import torch
from stereo_scenes import photographed, plane, sideways, sphere, texture

from recon.priors import POSED_PRIORS, posed_prior
from recon.priors.plane_sweep import PlaneSweepConfig, estimate_depths
from splat.cameras import Cameras, intrinsics
from splat.errors import BackendUnavailable, InputError
from splat.points import PointCloud
from splat.progress import Progress
from splat.views import Views

FAST = PlaneSweepConfig(planes=64, exchanges=1)


def run(views, points=None, config=FAST):
    job = estimate_depths([views], points, config)
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            assert all(isinstance(e, Progress) and e.stage == "prior" and 0 <= e.step <= e.total for e in events)
            assert [e.step for e in events] == sorted(e.step for e in events)
            return end.value


def errors(maps, depth, least=0.3):
    """Relative errors of confident pixels, and their share among those that show the surface."""
    wrong, kept, shown = [], 0, 0
    for m, truth in zip(maps, depth):
        truth = truth[::2, ::2] / 2 + truth[1::2, 1::2] / 2  # pixel centre of the half-size grid
        known = truth.isfinite()
        sure = known & (m.confidence >= least) & (m.depth > 0)
        wrong.append(((m.depth - truth).abs() / truth)[sure])
        kept, shown = kept + int(sure.sum()), shown + int(known.sum())
    return torch.cat(wrong), kept / shown


@pytest.mark.parametrize("tilt", [0.0, 1.0, 1.9])  # tangent of the angle to the image plane
def test_plane(tilt):
    views, depth = photographed(plane([0.0, 0, 0], [tilt, 0.3, 1.0]), sideways())
    wrong, share = errors(run(views), depth)
    assert share > 0.85
    assert wrong.median() < 0.003
    assert (wrong < 0.02).float().mean() > 0.9


def test_slanted_planes_need_the_refinement():
    views, depth = photographed(plane([0.0, 0, 0], [1.9, 0.3, 1.0]), sideways(step=0.3))
    sweep_only, share_before = errors(run(views, config=replace(FAST, rounds=0, exchanges=0)), depth)
    refined, share = errors(run(views), depth)
    assert share > share_before
    assert refined.median() < 0.5 * sweep_only.median()


def test_sphere_with_masks_stays_inside_the_silhouette():
    cameras = Cameras.orbit(8, radius=3.0, elevation_deg=20.0, fov_deg=40.0, width=96, height=96)
    views, depth = photographed(sphere([0.0, 0, 0], 0.8), cameras, masked=True)
    maps = run(views)
    wrong, share = errors(maps, depth)
    assert share > 0.5
    assert wrong.median() < 0.006
    for m, mask in zip(maps, views.masks):
        outside = torch.nn.functional.max_pool2d(mask[None], 2)[0] == 0
        assert float(m.depth[outside].abs().max()) == 0
        assert float(m.confidence[outside].max()) == 0


def test_nothing_to_match_means_low_confidence():
    def grey(xyz):
        return torch.full_like(xyz, 0.6)

    views, _ = photographed(plane([0.0, 0, 0], [0.5, 0, 1.0]), sideways(), colours=grey)
    noise = 0.004 * torch.randn(views.images.shape, generator=torch.Generator().manual_seed(0))
    for m in run(replace(views, images=(views.images + noise).clamp(0, 1))):
        assert float((m.confidence > 0.3).float().mean()) < 0.02


def test_exposure_does_not_matter():
    views, depth = photographed(plane([0.0, 0, 0], [1.0, 0.3, 1.0]), sideways())
    gains = torch.tensor([1.0, 0.6, 0.8, 1.1, 0.7])[:, None, None, None]
    wrong, share = errors(run(replace(views, images=(views.images * gains + 0.02).clamp(0, 1))), depth)
    assert share > 0.85
    assert wrong.median() < 0.003


def test_sparse_points_bound_the_depth():
    hit = plane([0.0, 0, -9.0], [0.3, 0.2, 1.0])  # far beyond where the cameras look
    views, depth = photographed(hit, sideways(step=0.5, distance=3.0), colours=lambda xyz: texture(xyz / 4))
    g = torch.Generator().manual_seed(0)
    xy = torch.rand(100, 2, generator=g) * 6 - 3
    xyz = torch.cat([xy, (-9.0 - 0.3 * xy[:, :1] - 0.2 * xy[:, 1:])], dim=1)
    xyz[:2] = torch.tensor([[0.0, 0, 2.0], [0.0, 0, -500]])  # wrong points at both ends
    wrong, share = errors(run(views, PointCloud(xyz, torch.zeros(100, 3), torch.ones(100))), depth)
    assert share > 0.6
    assert wrong.median() < 0.01


def test_same_answer_twice():
    views, _ = photographed(plane([0.0, 0, 0], [1.0, 0.3, 1.0]), sideways(3, size=64))
    first, second = run(views), run(views)
    for a, b in zip(first, second):
        assert torch.equal(a.depth, b.depth) and torch.equal(a.confidence, b.confidence)


def test_photos_of_two_sizes():
    hit = plane([0.0, 0, 0], [0.5, 0.3, 1.0])
    cameras = sideways(4)
    wide, depth = photographed(hit, cameras[[0, 2]])
    small, small_depth = photographed(hit, cameras[[1, 3]].resized(80, 64))
    maps = []
    job = estimate_depths([wide, small], None, FAST)
    while True:
        try:
            next(job)
        except StopIteration as end:
            maps = end.value
            break
    assert [m.depth.shape for m in maps] == [(48, 48), (48, 48), (32, 40), (32, 40)]
    for part, truth in ((maps[:2], depth), (maps[2:], small_depth)):
        wrong, share = errors(part, truth)
        assert share > 0.5 and wrong.median() < 0.01


def test_photos_without_a_partner_get_an_empty_map():
    back_to_back = Cameras.look_at(
        torch.tensor([[0.0, 0, 3], [0.0, 0, 3]]),
        torch.tensor([[0.0, 0, 0], [0.0, 0, 6]]),
        torch.tensor([0.0, 1, 0]),
        sideways(1).K,
        96,
        96,
    )
    views, _ = photographed(plane([0.0, 0, 0], [0.0, 0, 1.0]), back_to_back)
    for m in run(views):
        assert float(m.confidence.max()) == 0


def test_one_view_is_not_enough():
    views, _ = photographed(plane([0.0, 0, 0], [0.0, 0, 1.0]), sideways(1))
    with pytest.raises(InputError, match="at least 2 placed photos, got 1"):
        run(views)


def test_table_of_priors():
    for name in POSED_PRIORS:
        assert callable(posed_prior(name))
    with pytest.raises(BackendUnavailable, match="no stereo prior named nothing"):
        posed_prior("nothing")


@pytest.mark.cuda
def test_cuda_finds_the_same_surface():
    views, depth = photographed(plane([0.0, 0, 0], [1.0, 0.3, 1.0]), sideways())
    job = estimate_depths([views], None, FAST, device="cuda")
    while True:
        try:
            next(job)
        except StopIteration as end:
            maps = [replace(m, depth=m.depth.cpu(), confidence=m.confidence.cpu()) for m in end.value]
            break
    wrong, share = errors(maps, depth)
    assert share > 0.85
    assert wrong.median() < 0.003


@pytest.mark.parametrize("seed", range(10))
def test_odd_sizes_cameras_masks_and_points_break_nothing(seed):
    g = torch.Generator().manual_seed(seed)
    count, width, height = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((2, 6), (6, 50), (6, 50)))
    eyes = torch.randn(count, 3, generator=g)
    targets = 0.5 * torch.randn(count, 3, generator=g)
    K = intrinsics(30.0, width, height)[None]
    cameras = Cameras.look_at(eyes, targets, torch.tensor([0.0, 1, 0]), K, width, height)
    masks = (torch.rand(count, height, width, generator=g) > torch.rand(1, generator=g)).float() if seed % 2 else None
    if seed % 4 == 1:
        masks[0] = 0
        masks[1:, 1:] = 0
    views = Views(torch.rand(count, height, width, 3, generator=g), tuple(map(str, range(count))), cameras, masks)
    xyz = torch.randn(30, 3, generator=g)
    for m in run(views, PointCloud(xyz, xyz, torch.ones(30)) if seed % 3 else None, replace(FAST, planes=24)):
        assert m.depth.isfinite().all() and (m.depth >= 0).all()
        assert m.confidence.isfinite().all() and (m.confidence >= 0).all() and (m.confidence <= 1).all()
