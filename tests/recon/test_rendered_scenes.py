"""Rendered scenes: everything follows from the seed, and truth is truth."""

import numpy as np
import pytest
import torch

from recon.photos import Photo
from recon.rendered_scenes import SceneConfig, _noise, _subdivided, furnished, hand_held, painted, rendered_scene, rng_of
from splat.cameras import Cameras
from splat.mesh import Mesh

SMALL = SceneConfig(detail=0.06, width=96, height=72, tests=2)


def pyramid():
    corners = torch.tensor([[-0.4, 0, -0.4], [0.4, 0, -0.4], [0.4, 0, 0.4], [-0.4, 0, 0.4], [0, 0.8, 0.0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [1, 0, 4], [2, 1, 4], [3, 2, 4], [0, 3, 4]])
    return Mesh(corners, faces, torch.rand(5, 3, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def scene():
    return rendered_scene("pyramids", [pyramid(), pyramid()], 3, 7, SMALL)


def test_everything_follows_from_the_seed(scene):
    again = rendered_scene("pyramids", [pyramid(), pyramid()], 3, 7, SMALL)
    assert torch.equal(scene.train.images, again.train.images) and torch.equal(scene.depth, again.depth)
    other = rendered_scene("pyramids", [pyramid(), pyramid()], 3, 8, SMALL)
    assert not torch.equal(scene.train.cameras.cam_from_world, other.train.cameras.cam_from_world)


def test_three_photos_are_the_first_of_five(scene):
    more = rendered_scene("pyramids", [pyramid(), pyramid()], 5, 7, SMALL)
    assert torch.equal(more.train.cameras.cam_from_world[:3], scene.train.cameras.cam_from_world)
    assert torch.equal(more.depth[:3], scene.depth)
    assert len(more.test) == 2 and more.test.masks is None


def test_depth_takes_one_photo_to_the_next(scene):
    first, second = scene.train.cameras[0], scene.train.cameras[1]
    xyz = first.unproject(first.pixel_centers.reshape(-1, 2), scene.depth[0].reshape(-1))[0]
    pixels, depth = (x[0] for x in second.project(xyz))
    at = pixels.floor().long()
    inside = (at >= 0).all(-1) & (at[:, 0] < 96) & (at[:, 1] < 72)
    seen = scene.depth[1][at[inside, 1], at[inside, 0]]
    same = (depth[inside] - seen).abs() < 0.02 * seen
    assert inside.float().mean() > 0.4 and same.float().mean() > 0.7
    colours = scene.train.images[1][at[inside, 1], at[inside, 0]][same], scene.train.images[0].reshape(-1, 3)[inside][same]
    assert (colours[0] - colours[1]).abs().mean() < 0.12  # neighbouring pixels of a fine texture
    assert (colours[0] - colours[1].roll(50, 0)).abs().mean() > 1.3 * (colours[0] - colours[1]).abs().mean()


def test_photos_hide_their_cameras(scene):
    photos = scene.photos()
    assert len(photos) == 3 and all(isinstance(p, Photo) and p.mask is None for p in photos)
    assert photos[0].focal_px == pytest.approx(SMALL.focal * 96) and photos[0].size == (96, 72)


def test_the_floor_is_the_lowest_and_objects_do_not_meet():
    mesh = furnished([pyramid(), pyramid(), pyramid()], 3, SMALL)
    assert float(mesh.vertices[:, 1].min()) == pytest.approx(0, abs=1e-6)
    assert (mesh.colors >= 0).all() and (mesh.colors <= 1).all()
    rotation = mesh.vertices[:, [0, 2]].abs().amax(0)
    assert torch.allclose(rotation, torch.full((2,), SMALL.floor), atol=1e-5)


def test_subdivision_keeps_area_and_limits_edges():
    mesh = pyramid()
    fine = _subdivided(mesh.vertices[mesh.faces].numpy(), 0.1)
    edges = np.linalg.norm(fine - np.roll(fine, -1, axis=1), axis=-1)
    assert edges.max() <= 0.1 and len(fine) > 100

    def area(triangles):
        a, b = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
        return np.linalg.norm(np.cross(a, b), axis=1).sum() / 2

    assert area(fine) == pytest.approx(area(mesh.vertices[mesh.faces].numpy()), rel=1e-5)


def test_paint_differs_everywhere_and_is_bounded():
    xyz = np.random.default_rng(0).uniform(-1, 1, (2000, 3))
    colours = _noise(xyz, 5)
    assert np.abs(colours).max() < 1.5 and 0.1 < colours.std() < 0.6 and abs(colours.mean()) < 0.05
    near = _noise(xyz + 1e-4, 5)
    assert np.abs(near - colours).max() < 0.1  # continuous
    assert np.abs(np.corrcoef(colours[:, 0], _noise(xyz + 0.7, 5)[:, 0])[0, 1]) < 0.2  # no part like another
    plain = painted(pyramid(), 1, SceneConfig(contrast=0.0, detail=0.3))
    assert (plain.colors <= pyramid().colors.amax() + 1e-6).all()


def test_everybody_stands_inside_the_room():
    config = SceneConfig()
    for seed in range(20):
        centers = hand_held(np.arange(18) * 20.0, rng_of(seed, 2), config).centers
        assert centers[:, [0, 2]].abs().max() < config.floor - 0.1 and centers[:, 1].min() > 0.2


def test_cameras_see_the_middle(scene):
    for cameras in (scene.train.cameras, scene.test.cameras):
        pixels, depth = cameras.project(torch.tensor([[0.0, 0.25, 0]]))
        assert (depth > 1.5).all() and (pixels[..., 0] > 20).all() and (pixels[..., 0] < 76).all()
        assert isinstance(cameras, Cameras)
