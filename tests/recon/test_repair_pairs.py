"""Pairs of damaged renders and truth, made as the network's training makes them, only small."""

import pytest
import torch

from recon.rendered_scenes import SceneConfig, hand_held, rng_of
from recon.repair.pairs import PairConfig, _unseen, scene_pairs
from splat.errors import StoppedLate
from splat.mesh import Mesh
from splat.metrics import psnr
from splat.views import Views

SMALL = PairConfig(
    side=96, photos=(4, 4), alone=1.0, early=10, late=(60, 60), regularised=0.0, max_gaussians=3000, early_views=1,
    late_views=2, threads=1,
)  # fmt: skip


def pyramid() -> Mesh:
    corners = torch.tensor([[-0.5, -0.4, -0.5], [0.5, -0.4, -0.5], [0.5, -0.4, 0.5], [-0.5, -0.4, 0.5], [0, 0.6, 0.0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [1, 0, 4], [2, 1, 4], [3, 2, 4], [0, 3, 4]])
    return Mesh(corners, faces, torch.rand(5, 3, generator=torch.Generator().manual_seed(0)))


def run(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def test_a_scene_gives_early_and_late_renders_beside_the_truth():
    pairs = run(scene_pairs([pyramid()], 4, SMALL))
    assert pairs.masked and pairs.truth.shape == (3, 96, 96, 3) == pairs.request.images.shape
    assert pairs.request.warped.shape == (3, 2, 96, 96, 3)
    away = psnr(1 - pairs.truth, pairs.truth)
    assert (psnr(pairs.request.images, pairs.truth) > away + 5).all(), "damaged, but of this object"
    known = pairs.request.known[1:, 0, ..., None]
    if known.sum() > 100:  # what a photo knows is what the truth shows there
        error = ((pairs.request.warped[1:, 0] - pairs.truth[1:]).abs() * known).sum() / known.sum() / 3
        assert error < 0.12


def test_scenes_that_stereo_makes_nothing_of_are_refused(monkeypatch):
    monkeypatch.setattr("recon.repair.pairs.LEAST_POINTS", 10**9)
    with pytest.raises(StoppedLate, match="points"):
        run(scene_pairs([pyramid()], 4, SMALL))


def test_unseen_views_lie_between_the_photos():
    room = SceneConfig(width=32, height=24)
    cameras = hand_held(torch.arange(4).double().numpy() * 20, rng_of(0, 1), room)
    photos = Views(torch.zeros(4, 24, 32, 3), tuple("abcd"), cameras)
    unseen = _unseen(photos, 5, rng_of(0, 2))
    assert len(unseen) == 5 and (unseen.width, unseen.height) == (32, 24)
    rotation = unseen.cam_from_world[:, :3, :3]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5)
    apart = torch.cdist(unseen.centers, cameras.centers)
    assert apart.amin(1).max() < torch.cdist(cameras.centers, cameras.centers).max() / 2 and apart.min() > 1e-3
