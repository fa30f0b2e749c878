"""Answers of published networks, synthesised from a known scene in their documented formats, become its cameras and depth."""

import pytest
import torch
from learned_stand_ins import CENTRE, AsDepthAnything3, as_dust3r, as_map_anything, as_vggt, orbit, weights
from stereo_scenes import photographed, sphere

from recon.priors import depth_anything_3, dust3r, map_anything, vggt
from recon.priors.scene_prediction import Box, ScenePrediction, checked, confidence_of_loss, framed
from splat.cameras import Cameras
from splat.errors import InputError, StoppedLate

CAMERAS = orbit()
VIEWS, DEPTH = photographed(sphere(CENTRE.tolist(), 0.8), CAMERAS)
DEPTH = torch.where(DEPTH.isfinite(), DEPTH, 0.0)
CONF = torch.where(DEPTH > 0, 5.0, 1.0)

FORMATS = {
    "vggt": lambda: vggt.converted(as_vggt(CAMERAS, DEPTH, CONF)),
    "map_anything": lambda: map_anything.converted(as_map_anything(CAMERAS, DEPTH, CONF)),
    "depth_anything_3": lambda: depth_anything_3.converted(AsDepthAnything3(CAMERAS, DEPTH, CONF)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_known_scene_comes_back(name):
    found = FORMATS[name]()
    torch.testing.assert_close(found.cameras.cam_from_world, CAMERAS.cam_from_world, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.cameras.K, CAMERAS.K, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.depth, DEPTH)
    torch.testing.assert_close(found.confidence, torch.where(DEPTH > 0, 2 / 3, 0.0))
    assert found.metric == (name == "map_anything")


@pytest.mark.parametrize("name", FORMATS)
def test_its_points_lie_on_the_ball_and_project_into_every_photo(name):
    found = FORMATS[name]()
    for i in range(len(CAMERAS)):
        known = found.depth[i] > 0
        points = found.cameras[i].unproject(CAMERAS.pixel_centers, found.depth[i])[known]
        assert float(((points - CENTRE).norm(dim=-1) - 0.8).abs().max()) < 1e-4
        pixels, z = CAMERAS.project(points)  # the true cameras
        inside = (z > 0) & (pixels[..., 0] > 0) & (pixels[..., 0] < CAMERAS.width)
        assert inside.float().mean() > 0.9
        torch.testing.assert_close(pixels[i], CAMERAS.pixel_centers[known], atol=1e-2, rtol=0)


def test_a_pair_lies_in_the_first_cameras_frame():
    for i, j in ((0, 1), (2, 1)):
        found = dust3r.converted(*as_dust3r(CAMERAS, i, j, DEPTH, CONF))
        assert found.points.shape == (2, 70, 98, 3)
        centre = CAMERAS.cam_from_world[i, :3, :3] @ CENTRE + CAMERAS.cam_from_world[i, :3, 3]
        for side, photo in enumerate((i, j)):
            known = DEPTH[photo] > 0
            assert float(((found.points[side][known] - centre).norm(dim=-1) - 0.8).abs().max()) < 1e-4
        torch.testing.assert_close(found.points[0][..., 2][DEPTH[i] > 0], DEPTH[i][DEPTH[i] > 0])
        assert float(found.confidence.max()) == pytest.approx(2 / 3)


def test_depth_anything_3_without_cameras_is_refused_and_its_sky_is_unknown():
    answer = AsDepthAnything3(CAMERAS, DEPTH, CONF)
    answer.sky = (torch.arange(70)[:, None] < 10).expand(4, 70, 98).numpy()
    assert float(depth_anything_3.converted(answer).depth[:, :10].abs().max()) == 0
    answer.extrinsics = None
    with pytest.raises(InputError, match="no cameras"):
        depth_anything_3.converted(answer)


def test_confidence_grows_with_what_the_loss_calls_it_and_stays_in_0_to_1():
    c = torch.tensor([0.5, 1.0, 1.5, 3.0, 30.0, torch.inf, torch.nan])
    found = confidence_of_loss(c)
    torch.testing.assert_close(found, torch.tensor([0, 0, 0.2, 0.5, 29 / 31, 1, 0]))


# --- the photos in the network's grid -----------------------------------------------------------------------------------


def pictures(*sizes):
    """Pictures of (width, height) whose red grows to the right from 0 to 1 and green downwards."""
    out = []
    for width, height in sizes:
        v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        out.append(torch.stack([u, v, torch.zeros_like(u)], dim=-1))
    return out


@pytest.mark.parametrize("sizes", [[(120, 80)] * 2, [(120, 80), (60, 90)], [(100, 100)]])
def test_every_photo_lies_in_its_box_of_the_grid(sizes):
    batch, boxes = framed(pictures(*sizes), 56, 14)
    assert batch.shape[2] % 14 == 0 and batch.shape[3] % 14 == 0 and max(batch.shape[2:]) == 56
    for image, box in zip(batch, boxes):
        part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
        u = (torch.arange(box.width) + 0.5) / box.width
        torch.testing.assert_close(part[0, box.height // 2], u, atol=0.02, rtol=0)
        outside = image.clone()
        outside[:, box.top : box.top + box.height, box.left : box.left + box.width] = 1
        assert bool((outside == 1).all())  # white


@pytest.mark.parametrize("sizes", [[(130, 91)] * 4, [(130, 91), (91, 130), (130, 91), (80, 80)]])
def test_cameras_come_back_to_the_photos_pixels(sizes):
    """A point that a photo's own camera sees at a pixel is seen there by the camera that came through the grid."""
    batch, boxes = framed(pictures(*sizes), 56, 14)
    height, width = batch.shape[2:]
    true = [CAMERAS[i].resized(*size) for i, size in enumerate(sizes)]
    # The camera of the grid in which each photo lies in its box.
    grid = [c.resized(b.width, b.height).cropped(-b.left, -b.top, width, height) for c, b in zip(true, boxes)]
    depth = torch.full((4, height, width), 2.0)
    found = ScenePrediction(Cameras.cat(grid), depth, depth / 4).of_photos(boxes, sizes, list("abcd"))
    for camera, (got, depth_map), size, box in zip(true, found, sizes, boxes):
        assert (got.width, got.height) == size and depth_map.depth.shape == (box.height, box.width)
        torch.testing.assert_close(got.K, camera.K, atol=1e-3, rtol=0)
        torch.testing.assert_close(got.cam_from_world, camera.cam_from_world)


# --- what is no answer --------------------------------------------------------------------------------------------------


def damaged(change):
    cameras = Cameras(CAMERAS.cam_from_world.clone(), CAMERAS.K.clone(), CAMERAS.width, CAMERAS.height)
    found = ScenePrediction(cameras, DEPTH.clone(), torch.full_like(DEPTH, 0.5))
    change(found)
    return found


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda p: p.cameras.cam_from_world[1].fill_(torch.nan), r"no usable camera for 1 of 4 photos \(b\)"),
        (lambda p: p.cameras.K[2, 0, 0].fill_(-3.0), r"no usable camera for 1 of 4 photos \(c\)"),
        (lambda p: p.cameras.cam_from_world[0, :3, :3].mul_(2), "no rotations"),
        (lambda p: p.cameras.cam_from_world[0, 0].mul_(-1), "no rotations"),
        (lambda p: p.depth[3].fill_(torch.nan), r"no depth for 1 of 4 photos \(d\)"),
    ],
    ids=["NaN pose", "negative focal", "scaled", "mirrored", "NaN depth"],
)
def test_an_answer_that_is_no_geometry_stops_the_job_with_a_sentence(change, word, tmp_path):
    with pytest.raises(StoppedLate, match=word):
        checked(damaged(change), list("abcd"), weights("vggt", tmp_path))


def test_single_bad_pixels_become_unknown_and_rotations_exact(tmp_path):
    found = damaged(lambda p: p.depth[0, 30, 40:42].copy_(torch.tensor([torch.nan, torch.inf])))
    found.cameras.cam_from_world[0, 0, 0] += 1e-3
    found = checked(found, list("abcd"), weights("vggt", tmp_path))
    assert found.depth[0, 30, 40:42].tolist() == [0, 0] and found.confidence[0, 30, 40:42].tolist() == [0, 0]
    rotation = found.cameras.cam_from_world[0, :3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-6, rtol=0)


def test_a_box_is_whole_pixels():
    _, boxes = framed(pictures((120, 80), (61, 97)), 518, 14)
    assert all(isinstance(n, int) for box in boxes for n in (box.left, box.top, box.width, box.height))
    assert boxes[0] == Box(0, 86, 518, 345)
