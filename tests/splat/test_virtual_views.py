"""Cameras between photos, and what they should see."""

import math

import pytest
import torch

from splat.cameras import Cameras
from splat.mesh import Mesh
from splat.raycast import raycast
from splat.regularise import Priors
from splat.regularise.virtual_views import between, neighbours, virtual_loss, virtual_views


def ring(azimuths, size=128):
    return [Cameras.orbit(1, 3.0, 20, 45, size, size, azimuth_deg=a) for a in azimuths]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_between_goes_round_the_subject(share):
    first, second, expected = (Cameras.orbit(1, 3.0, 0, 45, 48, 48, azimuth_deg=a) for a in (10, 70, 10 + 60 * share))
    camera = between(first, second, share)
    torch.testing.assert_close(camera.cam_from_world, expected.cam_from_world, atol=1e-3, rtol=0)
    high = between(*ring((10, 70)), share)
    assert high.centers.norm() == pytest.approx(3.0, abs=1e-3)  # the straight line would come as near as 2.64
    assert torch.linalg.det(camera.cam_from_world[0, :3, :3]) == pytest.approx(1, abs=1e-5)


def test_between_parallel_cameras_is_a_straight_line():
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[1, 0, 3] = -1.0
    pair = Cameras(pose, ring((0,))[0].K.expand(2, 3, 3), 128, 128)
    middle = between(pair[0], pair[1], 0.5)
    assert abs(float(middle.centers[0, 0]) - 0.5) < 1e-3 and abs(float(middle.centers[0, 1])) < 1e-6
    torch.testing.assert_close(middle.cam_from_world[0, :3, :3], torch.eye(3), atol=1e-5, rtol=0)


def test_neighbours_stand_side_by_side():
    assert neighbours(ring((0, 90, 30, 60))) == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert neighbours(ring((0, 120))) == []  # too far apart to look from between


def coloured_sphere(rings=40, sectors=80):
    """A sphere of radius 0.7 whose colours change smoothly."""
    polar, turn = torch.meshgrid(
        torch.linspace(0, math.pi, rings + 1), torch.linspace(0, 2 * math.pi, sectors + 1), indexing="ij"
    )
    unit = torch.stack([polar.sin() * turn.sin(), polar.cos(), polar.sin() * turn.cos()], -1).reshape(-1, 3)
    a = (torch.arange(rings)[:, None] * (sectors + 1) + torch.arange(sectors)).flatten()
    faces = torch.cat([torch.stack([a, a + sectors + 1, a + 1], 1), torch.stack([a + 1, a + sectors + 1, a + sectors + 2], 1)])
    return Mesh(0.7 * unit, faces, 0.5 + 0.4 * torch.sin(2 * unit))


@pytest.fixture(scope="module")
def scene():
    cameras = Cameras.cat(ring((0, 40, 80)))
    views, depth = raycast(coloured_sphere(), cameras, threads=1)
    return views, Priors([depth])


def test_virtual_views_show_what_is_there(scene):
    views, priors = scene
    targets = virtual_views([views], priors, per_pair=3, scale=1.0)
    assert len(targets) == 9  # three pairs within 100 degrees
    for target in targets:
        truth, _ = raycast(coloured_sphere(), target.camera, threads=1)
        known = target.known[0] > 0
        assert known.sum() > 0.6 * truth.masks[0].sum()
        assert (truth.masks[0][known] > 0).float().mean() > 0.95  # next to nothing beside the subject
        assert (target.image[0] - truth.images[0]).abs().mean(-1)[known].median() < 0.02


def test_half_the_size(scene):
    views, priors = scene
    target = virtual_views([views], priors, per_pair=1, scale=0.5)[0]
    assert target.image.shape == (1, 64, 64, 3) and target.camera.width == 64
    truth, _ = raycast(coloured_sphere(), target.camera, threads=1)
    known = target.known[0] > 0
    assert known.sum() > 0.6 * truth.masks[0].sum()
    assert (target.image[0] - truth.images[0]).abs().mean(-1)[known].median() < 0.03


def test_what_a_third_photo_knows_to_be_in_front_hides(scene):
    views, priors = scene
    wall = priors.depths[0].clone()
    wall[1] = torch.where(wall[1] > 0, 1.5, 0.0)  # the photo in the middle sees a wall half-way to the subject
    plain, hidden = (virtual_views([views], p, 1, 1.0)[1] for p in (priors, Priors([wall])))  # between the outer two
    assert torch.equal(plain.camera.cam_from_world, hidden.camera.cam_from_world)
    assert hidden.known.sum() < 0.9 * plain.known.sum()


def test_nothing_known_gives_nothing(scene):
    views, priors = scene
    assert virtual_views([views], Priors([torch.zeros_like(priors.depths[0])]), 2, 0.5) == []


def test_loss_counts_known_pixels_alone(scene):
    views, priors = scene
    target = virtual_views([views], priors, 1, 0.5)[0]
    image = torch.where(target.known[..., None] > 0, target.image + 0.1, 5.0).requires_grad_()
    loss = virtual_loss(image, target, torch.zeros(3))
    loss.backward()
    assert loss.item() == pytest.approx(0.1 * float(target.known.mean()), rel=1e-4)
    assert torch.equal(image.grad.abs().sum(-1) > 0, target.known > 0)
