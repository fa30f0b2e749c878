"""Framing a cut-out picture as the networks know pictures, and the camera that its photo then has."""

import math

import pytest
import torch

from diffusion.data.object_views import DISTANCE, FOV_DEG
from diffusion.subject import BELOW, DISTANCES, FILL, Framing, Subject, distance_of, find_framing, framed
from splat.cameras import Cameras
from splat.errors import InputError


def disc(width: int, height: int, x: float, y: float, radius: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return (((columns - x) ** 2 + (rows - y) ** 2) < radius**2).float()


def test_the_frame_holds_the_subject_where_renders_have_it():
    mask = disc(200, 100, 70, 40, 20)
    framing = find_framing(mask)
    assert framing.side == pytest.approx(40 / FILL, abs=2 / FILL)
    assert framing.left + framing.side / 2 == pytest.approx(70, abs=1)
    assert framing.top + (0.5 + BELOW) * framing.side == pytest.approx(40, abs=1)
    assert (framing.width, framing.height) == (200, 100)


def test_the_long_side_decides():
    mask = torch.zeros(100, 100)
    mask[10:90, 45:55] = 1
    assert find_framing(mask).side == pytest.approx(80 / FILL)
    assert find_framing(mask.T).side == pytest.approx(80 / FILL)


def test_a_mask_that_shows_nothing_is_refused():
    mask = torch.zeros(50, 60)
    mask[3, :10] = 1
    with pytest.raises(InputError, match="10 pixels of 60 x 50"):
        find_framing(mask)


def test_a_framed_subject_has_the_pixels_of_its_place():
    """A picture of its own coordinates: what is sampled must be where the frame says."""
    width, height = 160, 120
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    image = torch.stack([x, y, torch.zeros_like(x)], dim=-1)
    framing = Framing(30.3, 20.6, 60.0, width, height)
    subject = framed(image, torch.ones(height, width), framing, 24, 0.0, 20.0)
    at = (torch.arange(24) + 0.5) / 24 * 60
    assert torch.allclose(subject.image[5, :, 0], (30.3 + at) / width, atol=2e-3)
    assert torch.allclose(subject.image[:, 7, 1], (20.6 + at) / height, atol=2e-3)
    assert bool((subject.alpha == 1).all()) and subject.side == 24


@pytest.mark.parametrize("place", [(-40.0, -10.0), (100.0, 70.0), (-200.0, 3.0)])
def test_outside_of_the_photo_is_transparent(place):
    framing = Framing(*place, 80.0, 120, 90)
    subject = framed(torch.full((90, 120, 3), 0.25), torch.ones(90, 120), framing, 40, 0.0, 0.0)
    x = place[0] + (torch.arange(40) + 0.5) * 2
    y = place[1] + (torch.arange(40) + 0.5) * 2
    inside = ((x > 0) & (x < 120))[None, :] & ((y > 0) & (y < 90))[:, None]
    assert torch.equal(subject.alpha > 0.5, inside)
    assert bool((subject.image[subject.alpha > 0.9] - 0.25).abs().max() < 1e-3) if bool(inside.any()) else True


def test_hidden_colours_do_not_bleed():
    image = torch.zeros(64, 64, 3)
    image[..., 1] = 1.0  # green where nothing is
    mask = disc(64, 64, 32, 32, 15)
    image[mask > 0] = torch.tensor([1.0, 0, 0])
    subject = framed(image, mask, find_framing(mask), 20, 0.0, 0.0)
    shown = subject.image[subject.alpha > 0.1]
    assert float(shown[:, 1].max()) < 0.02 and float(shown[:, 0].min()) > 0.98


@pytest.mark.parametrize(("azimuth", "elevation", "distance"), [(0.0, 20.0, DISTANCE), (90.0, -10.0, 5.0), (-35.0, 60.0, 1.5)])
def test_the_photo_and_the_subject_see_the_same(azimuth, elevation, distance):
    """Points of the world through the photo's camera, brought into the frame, are where the subject's camera has them."""
    subject = Subject(torch.zeros(64, 64, 3), torch.ones(64, 64), azimuth, elevation, distance)
    framing = Framing(-35.5, 210.25, 480.0, 400, 600)
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    in_photo, _ = framing.camera(subject).project(points)
    in_frame, _ = subject.cameras().project(points)
    expected = torch.tensor([framing.left, framing.top]) + in_frame / 64 * framing.side
    assert torch.allclose(in_photo, expected, atol=1e-2)
    camera = framing.camera(subject)
    assert (camera.width, camera.height) == (400, 600)


def test_the_camera_is_the_protocols():
    subject = Subject(torch.zeros(48, 48, 3), torch.ones(48, 48), 0.0, 20.0)
    centre = subject.cameras().centers[0]
    e = math.radians(20)
    assert torch.allclose(centre, DISTANCE * torch.tensor([0.0, math.sin(e), math.cos(e)]), atol=1e-5)
    assert torch.allclose(subject.cameras(96).K, Cameras.orbit(1, DISTANCE, 20, FOV_DEG, 96, 96).K)


@pytest.mark.parametrize("distance", [1.5, DISTANCE, 4.0])
def test_a_longer_lens_stands_farther_away(distance):
    """The photo's camera has the focal length that was given, and the object's middle keeps its size."""
    framing = Framing(-10.0, 20.0, 300.0, 320, 400)
    usual = framing.camera(Subject(torch.zeros(8, 8, 3), torch.ones(8, 8)))
    focal = float(usual.K[0, 0, 0]) * distance / DISTANCE
    found = distance_of(focal, framing)
    assert found == pytest.approx(distance, rel=1e-5)
    camera = framing.camera(Subject(torch.zeros(8, 8, 3), torch.ones(8, 8), distance=found))
    assert float(camera.K[0, 0, 0]) == pytest.approx(focal, rel=1e-5)
    assert float(camera.centers[0].norm()) == pytest.approx(distance, rel=1e-5)
    across = torch.tensor([[-0.1, 0.0, 0.0], [0.1, 0.0, 0.0]])  # parallel to the picture
    sizes = [float((uv[1] - uv[0]).norm()) for uv in (c.project(across)[0].reshape(2, 2) for c in (usual, camera))]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-4)


def test_lenses_beyond_all_measure_are_bounded():
    framing = Framing(0.0, 0.0, 300.0, 300, 300)
    assert (distance_of(1.0, framing), distance_of(1e6, framing)) == DISTANCES


def test_compositing():
    subject = Subject(torch.full((4, 4, 3), 0.2), torch.full((4, 4), 0.5))
    assert torch.allclose(subject.on(), torch.full((4, 4, 3), 0.6))
    view = subject.view("a")
    assert torch.equal(view.images[0], subject.on()) and torch.equal(view.masks[0], subject.alpha)
