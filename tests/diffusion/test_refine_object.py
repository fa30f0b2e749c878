"""Fitting a generated object to its picture: the front becomes the picture, the sides that it does not show stay."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from diffusion.data.object_views import DISTANCE, FOV_DEG
from diffusion.refine_object import RefineConfig, anchor_views, completed, front_psnr, refine_object
from diffusion.subject import Subject
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.metrics import psnr
from splat.render import RenderOptions, render
from splat.sh import from_rgb

YELLOW = torch.tensor([0.7, 0.7, 0.4])
QUICK = RefineConfig(steps=100, anchors=6, anchor_side=32, max_gaussians=2500, threads=1)


def ball(count: int = 1200, seed: int = 0) -> Splats:
    """A grey-blue ball of radius 0.35, as blurred as a network's."""
    generator = torch.Generator().manual_seed(seed)
    direction = F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    colour = torch.tensor([0.4, 0.5, 0.6]) + 0.1 * direction
    return Splats(
        0.35 * direction,
        torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        torch.full((count, 3), 0.035).log(),
        torch.full((count,), 2.0),
        from_rgb(colour)[:, None],
    )


def photo(side: int = 72, elevation_deg: float = 20.0) -> Subject:
    """The ball with a yellow square painted on its front."""
    camera = Cameras.orbit(1, DISTANCE, elevation_deg, FOV_DEG, side, side)
    drawn = render(ball(), camera, RenderOptions(threads=1))
    alpha = drawn.alpha[0].clamp(0, 1)
    image = (drawn.rgb[0] / alpha.clamp_min(1e-3)[..., None]).clamp(0, 1)
    a, b = round(0.42 * side), round(0.55 * side)
    image[a:b, a:b] = YELLOW
    return Subject(image, alpha, 0.0, elevation_deg)


def refined(pictures, config=QUICK, state=None):
    job = refine_object(ball(), pictures, config, state)
    stages = set()
    while True:
        try:
            stages.add(next(job).stage)
        except StopIteration as end:
            assert stages == {"fit"}
            return end.value


def around(splats: Splats, azimuth_deg: float) -> torch.Tensor:
    cameras = Cameras.orbit(3, DISTANCE, 15, FOV_DEG, 64, 64, azimuth_deg=azimuth_deg)[[0]]
    return render(splats, cameras, RenderOptions(background=torch.ones(3), threads=1)).rgb[0]


@pytest.fixture(scope="module")
def result():
    return refined([photo()])


def test_the_front_becomes_the_picture(result):
    assert result.psnr_after > result.psnr_before + 4
    assert result.psnr_after == pytest.approx(front_psnr(result.splats, photo(), QUICK))
    (drawn,) = render(result.splats, photo().cameras(), RenderOptions(background=torch.ones(3), threads=1)).rgb
    middle = drawn[32:37, 32:37].mean((0, 1))
    assert torch.allclose(middle, YELLOW, atol=0.1)


@pytest.mark.parametrize("azimuth", [120.0, 180.0, 240.0])
def test_the_far_side_stays(result, azimuth):
    assert float(psnr(around(result.splats, azimuth), around(ball(), azimuth))) > 30


def test_the_shape_stays(result):
    """The square is painted on the ball, not hung before it."""
    radius = result.splats.means[result.splats.opacities > 0.3].norm(dim=-1)
    assert 0.25 < float(radius.min()) and float(radius.max()) < 0.45
    assert len(result.splats) <= QUICK.max_gaussians


def test_an_object_of_more_gaussians_than_splitting_may_make_keeps_them():
    few = dataclasses.replace(QUICK, steps=2, max_gaussians=300)
    assert len(refined([photo()], few).splats) >= len(ball())


def test_the_same_bits_and_also_when_continued(tmp_path, result):
    again = refined([photo()])
    assert torch.equal(again.splats.means, result.splats.means) and torch.equal(again.splats.sh, result.splats.sh)
    state = tmp_path / "fit.safetensors"
    job = refine_object(ball(), [photo()], QUICK, state)
    for event in job:
        if event.step >= 40:
            job.close()
    continued = refined([photo()], state=state)
    assert torch.equal(continued.splats.means, result.splats.means)


def test_several_pictures():
    back = Subject(torch.full((48, 48, 3), 0.1), photo(48).alpha, 180.0, 20.0)
    both = refined([photo(), back])
    assert float(around(both.splats, 180.0)[28:36, 28:36].mean()) < 0.3  # it was 0.5
    assert both.psnr_after > both.psnr_before + 2


def test_anchors_are_the_object_itself():
    views = anchor_views(ball(), QUICK)
    assert len(views) == 12 and views.size == (32, 32)
    heights = views.cameras.centers[:, 1] / DISTANCE
    assert float(heights.max()) == pytest.approx(0.5, abs=1e-4) and float(heights.min()) == pytest.approx(-0.17365, abs=1e-4)
    assert float(views.masks.amax()) > 0.9 and torch.allclose(views.images[:, 0, 0], torch.ones(12, 3))


def test_what_the_network_missed_is_filled_in():
    """The photo shows a rod beside the ball that the ball's Gaussians know nothing of."""
    subject = photo()
    image, alpha = subject.image.clone(), subject.alpha.clone()
    image[34:38, 60:69], alpha[34:38, 60:69] = torch.tensor([0.1, 0.6, 0.2]), 1.0
    subject = Subject(image, alpha, 0.0, 20.0)
    filled = completed(ball(), subject, QUICK)
    fresh = filled[slice(1200, None)]
    assert 20 < len(fresh) < 400 and torch.equal(filled.means[:1200], ball().means)
    assert torch.allclose(fresh.rgb.median(0).values, torch.tensor([0.1, 0.6, 0.2]), atol=0.05)
    distance = (fresh.means - subject.cameras().centers[0]).norm(dim=-1)
    assert float((distance - DISTANCE).abs().max()) < 0.4  # beside the ball, not on the camera
    result = refined([subject])
    (drawn,) = render(result.splats, subject.cameras(), RenderOptions(background=torch.ones(3), threads=1)).rgb
    assert torch.allclose(drawn[35:37, 62:67].mean((0, 1)), torch.tensor([0.1, 0.6, 0.2]), atol=0.12)


def test_a_picture_that_is_explained_gets_no_sheet():
    assert len(completed(ball(), photo(), QUICK)) - len(ball()) < 10
    empty = dataclasses.replace(ball(), opacity_logits=torch.full((1200,), -12.0))
    sheet = completed(empty, photo(), QUICK)[slice(1200, None)]  # nothing is beside anything: in the middle of the object
    depth = subject_depth(sheet)
    assert len(sheet) > 100 and float((depth - DISTANCE).abs().max()) < 1e-4


def subject_depth(splats: Splats) -> torch.Tensor:
    return photo().cameras().project(splats.means)[1][0]
