"""Cameras that move with the fit: what moves them, what does not, and that they can be stored."""

import torch
from scenes import orbit

from splat.moving_cameras import MovingCameras
from splat.optimise import scene_extent
from splat.pose_gauge import similarity_motions
from splat.views import Views


def moving(rate=1e-3, final=1e-3) -> tuple[MovingCameras, list[Views]]:
    views = [Views(torch.rand(4, 8, 8, 3), tuple("abcd"), orbit(4, 8, 8))]
    return MovingCameras(views, scene_extent(views), rate, final), views


def stepped(gradients: torch.Tensor, **rates) -> MovingCameras:
    """After steps along `gradients` [S, 4, 6]."""
    cameras, _ = moving(**rates)
    for k, gradient in enumerate(gradients):
        cameras.tangents.grad = gradient.clone()
        cameras.step(k / len(gradients))
    return cameras


def test_noise_moves_cameras_little_and_what_every_look_says_moves_them_far():
    noise = torch.randn(200, 4, 6, generator=torch.Generator().manual_seed(0))
    steady = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1)).repeat(200, 1, 1)
    assert stepped(steady).tangents.norm() > 5 * stepped(noise).tangents.norm()


def test_steps_get_smaller():
    steady = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1)).repeat(100, 1, 1)
    far, near = (stepped(steady, final=final).tangents.norm() for final in (1e-3, 1e-5))
    assert near < 0.4 * far


def test_what_they_do_together_is_taken_out():
    cameras, views = moving()
    together = similarity_motions(views[0].cameras.cam_from_world, cameras.units)
    cameras.tangents.grad = (together @ torch.ones(together.shape[1], dtype=torch.float64)).reshape(4, 6).float()
    cameras.step(0.0)
    flat = cameras.tangents.detach().double().reshape(-1)
    assert (together.T @ flat).norm() < 1e-6 < flat.norm()  # Adam's signs are no similarity: the rest of it stays


def test_a_camera_moves_as_its_tangent_says():
    cameras, views = moving()
    with torch.no_grad():
        cameras.tangents[2] = torch.tensor([0.1, 0, 0, 0, 0, 0])
    (moved,) = cameras.cameras(views)
    still = views[0].cameras.cam_from_world
    torch.testing.assert_close(moved.cam_from_world[[0, 1, 3]], still[[0, 1, 3]])
    expected = still[2].clone()
    expected[0, 3] += 0.1 * scene_extent(views)
    torch.testing.assert_close(moved.cam_from_world[2], expected)
    torch.testing.assert_close(cameras.moved(2, still[2:3])[0], expected)


def test_they_go_on_from_their_state():
    gradients = torch.randn(20, 4, 6, generator=torch.Generator().manual_seed(0))
    whole = stepped(gradients)
    first, second = stepped(gradients[:10]), moving()[0]
    second.restore({key: value.clone() for key, value in first.state().items()})
    for gradient in gradients[10:]:
        second.tangents.grad = gradient.clone()
        second.step(0.0)
    assert torch.equal(whole.tangents, second.tangents)
    fresh = moving()[0]
    fresh.restore(moving()[0].state())  # before the first step there are no moments yet
    assert not fresh.tangents.any()
