"""Objects for pictures of longer and shorter lenses."""

import math
from dataclasses import replace

import pytest
import torch

from diffusion.camera_distance import scaled_for_its_camera
from diffusion.data.object_views import DISTANCE
from diffusion.subject import Subject
from splat.gaussians import Splats
from splat.render import RenderOptions, render


def plate(nearer: float, half: float = 0.3) -> Splats:
    """A square of opaque Gaussians parallel to the picture of a level camera, `nearer` to it than the origin."""
    axis = torch.linspace(-half, half, 41)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    means = torch.stack([x.flatten(), y.flatten(), torch.full((x.numel(),), nearer)], -1)
    n = len(means)
    quats = torch.nn.functional.pad(torch.ones(n, 1), (0, 3))
    return Splats(means, quats, torch.full((n, 3), math.log(0.008)), torch.full((n,), 6.0), torch.zeros(n, 1, 3))


def area(splats: Splats, distance: float) -> float:
    camera = subject(distance).cameras(128)
    return float(render(splats, camera, RenderOptions(threads=1)).alpha.sum())


def subject(distance: float) -> Subject:
    return Subject(torch.zeros(8, 8, 3), torch.ones(8, 8), 0.0, 0.0, distance)


@pytest.mark.parametrize("nearer", [-0.3, 0.0, 0.35])
@pytest.mark.parametrize("distance", [1.5, 6.0])
def test_what_the_picture_shows_keeps_its_size(nearer, distance):
    splats = plate(nearer)
    before, without = area(splats, DISTANCE), area(splats, distance)
    after = area(scaled_for_its_camera(splats, subject(distance), threads=1), distance)
    assert after == pytest.approx(before, rel=0.015)
    if nearer:
        assert abs(without / before - 1) > 0.05  # it would not have by itself


def test_the_networks_own_distance_changes_nothing():
    splats = plate(0.2)
    assert scaled_for_its_camera(splats, subject(DISTANCE)) is splats


def test_nothing_to_be_seen_is_left_alone():
    splats = replace(plate(0.2), opacity_logits=torch.full((41 * 41,), -9.0))
    assert scaled_for_its_camera(splats, subject(5.0), threads=1) is splats
