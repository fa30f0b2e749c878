"""A camera that was a little wrong comes back; one that was right stays."""

from dataclasses import replace

import pytest
import torch
from scenes import orbit, random_splats

from splat.gaussians import Splats
from splat.metrics import psnr
from splat.refine_camera import refine_camera
from splat.render import RenderOptions, render
from splat.rotations import se3_exp

WHITE = torch.ones(3)


@pytest.fixture(scope="module")
def scene():
    splats = random_splats(40, degree=1, seed=7)
    splats = Splats(splats.means, splats.quats, splats.log_scales + 0.3, splats.opacity_logits + 1, splats.sh)
    camera = orbit(1, 64, 48)
    with torch.no_grad():
        return splats, camera, render(splats, camera, RenderOptions(background=WHITE)).rgb[0].clamp(0, 1)


def quality(splats, camera, image):
    with torch.no_grad():
        return float(psnr(render(splats, camera, RenderOptions(background=WHITE)).rgb[0].clamp(0, 1), image))


def test_a_disturbed_camera_comes_back(scene):
    splats, camera, image = scene
    shift = se3_exp(torch.tensor([[0.04, -0.03, 0.05, 0.01, 0.015, -0.01]]))
    wrong = replace(camera, cam_from_world=shift @ camera.cam_from_world)
    refined = refine_camera(splats, wrong, image, WHITE)
    before = (wrong.cam_from_world - camera.cam_from_world).abs().max()
    after = (refined.cam_from_world - camera.cam_from_world).abs().max()
    assert after < 0.35 * before
    assert quality(splats, refined, image) > quality(splats, wrong, image) + 6
    assert (refined.width, refined.height) == (64, 48) and torch.equal(refined.K, camera.K)


def test_never_worse(scene):
    splats, camera, image = scene
    assert quality(splats, refine_camera(splats, camera, image, WHITE), image) >= quality(splats, camera, image)
    noise = torch.rand(48, 64, 3, generator=torch.Generator().manual_seed(0))
    refined = refine_camera(splats, camera, noise, WHITE)
    assert quality(splats, refined, noise) >= quality(splats, camera, noise)


def test_leaves_the_splats_alone(scene):
    splats, camera, image = scene
    before = splats.means.clone()
    refined = refine_camera(splats.map(lambda x: x.clone().requires_grad_()), camera, image, WHITE, steps=4)
    assert torch.equal(splats.means, before) and not refined.cam_from_world.requires_grad
