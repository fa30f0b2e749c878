"""The native renderer against the reference, in values and gradients, and its promises about threads."""

import time
from dataclasses import replace

import pytest
import torch

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.render import RenderOptions, native, render
from splat.render.native import build, library

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")

FIELDS = ("means", "quats", "log_scales", "opacity_logits", "sh")


def random_splats(n: int, degree: int = 1, seed: int = 0, log_scale: float = -2.5) -> Splats:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    return Splats(
        0.6 * normal(n, 3), normal(n, 4), log_scale + 0.7 * normal(n, 3), 2 * normal(n), 0.3 * normal(n, (degree + 1) ** 2, 3)
    )


def outputs_and_gradients(backend, splats, cameras, options, dtype=torch.float32):
    """The rendering, and gradients of a fixed random projection of rgb, alpha and depth."""
    splats = splats.to(dtype).map(lambda x: x.detach().clone().requires_grad_())
    pose = cameras.cam_from_world.to(dtype).clone().requires_grad_()
    g = torch.Generator().manual_seed(5)
    background = torch.rand(len(cameras), 3, generator=g).to(dtype).requires_grad_()
    cameras = Cameras(pose, cameras.K.to(dtype), cameras.width, cameras.height)
    out = render(splats, cameras, replace(options, background=background, track_means2d=True), backend)
    loss = sum((x * torch.randn(x.shape, generator=g).to(dtype)).sum() for x in (out.rgb, out.alpha, out.depth))
    loss.backward()
    gradients = {name: getattr(splats, name).grad for name in FIELDS}
    gradients |= {"pose": pose.grad[:, :3], "background": background.grad, "means2d": out.means2d_probe.grad}
    gradients["absolute means2d"] = out.means2d_probe.absgrad
    return out, gradients


def assert_like_reference(splats, cameras, options, gradient_tolerance=1e-4):
    expected, expected_gradients = outputs_and_gradients("reference", splats, cameras, options, torch.float64)
    out, gradients = outputs_and_gradients("native", splats, cameras, options)
    for name in ("rgb", "alpha", "depth"):
        error = (getattr(out, name) - getattr(expected, name)).abs() / getattr(expected, name).abs().max().clamp_min(1)
        # A pixel may fall on the other side of a cut-off; such pixels are rare and move little.
        assert error.mean() < 1e-5 and error.quantile(0.999) < 1e-4 and error.max() < 1e-2, (name, error.max())
    assert (out.means2d - expected.means2d).abs().max() < 1e-3
    assert torch.equal(out.radii > 0, expected.radii > 0)
    for name, truth in expected_gradients.items():
        error = (gradients[name] - truth).norm()
        assert error <= gradient_tolerance * truth.norm() + 1e-7, (name, (error / truth.norm()).item())


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_same_images_and_gradients_as_the_reference(degree):
    cameras = Cameras.orbit(2, 3.0, 20, 50, 45, 37)
    assert_like_reference(random_splats(150, degree, seed=degree), cameras, RenderOptions())


def test_antialiased():
    cameras = Cameras.orbit(1, 3.0, 20, 50, 45, 37)
    assert_like_reference(random_splats(150, 1, seed=11, log_scale=-4), cameras, RenderOptions(antialiased=True))


def test_partial_sh_degree():
    splats, cameras = random_splats(60, 3), Cameras.orbit(1, 3.0, 20, 50, 33, 20)
    assert_like_reference(splats, cameras, RenderOptions(sh_degree=1))


def test_off_centre_camera_and_gaussians_outside_the_jacobian_limits():
    cameras = Cameras.orbit(2, 0.8, 20, 70, 40, 40).cropped(-7, 9, 31, 23)
    assert_like_reference(random_splats(150, 1, seed=3), cameras, RenderOptions())


def test_same_bits_for_any_number_of_threads():
    splats, cameras = random_splats(6000, 1, log_scale=-3.5), Cameras.orbit(2, 3.0, 20, 50, 100, 70)
    results = [outputs_and_gradients("native", splats, cameras, RenderOptions(threads=t)) for t in (1, 2, 3)]
    first, first_gradients = results[0]
    for out, gradients in results[1:]:
        assert all(torch.equal(getattr(out, k), getattr(first, k)) for k in ("rgb", "alpha", "depth", "means2d", "radii"))
        assert all(torch.equal(gradients[k], first_gradients[k]) for k in gradients)


def test_cameras_in_one_call_are_the_cameras_one_by_one():
    splats, cameras = random_splats(200), Cameras.orbit(3, 3.0, 20, 50, 40, 30)
    together = render(splats, cameras, backend_name="native")
    for c in range(3):
        alone = render(splats, cameras[c], backend_name="native")
        assert torch.equal(alone.rgb[0], together.rgb[c]) and torch.equal(alone.radii[0], together.radii[c])


# Without SSE2, the portable build takes the path of processors that are not x86.
@pytest.mark.parametrize("variant, flags", [*((v, ()) for v in build.cpu_variants()), ("portable", ("-U__SSE2__",))])
def test_every_variant_draws_the_same(variant, flags, monkeypatch):
    kernels = library.open_library(build.library_path(variant, flags))
    monkeypatch.setattr(library, "load", lambda: kernels)
    cameras = Cameras.orbit(1, 3.0, 20, 50, 45, 37)
    assert_like_reference(random_splats(150, 2, seed=2), cameras, RenderOptions())
    splats = random_splats(3000, 1, log_scale=-3.5)
    out = render(splats, Cameras.orbit(1, 3.0, 20, 50, 200, 150), backend_name="native")
    monkeypatch.undo()
    best = render(splats, Cameras.orbit(1, 3.0, 20, 50, 200, 150), backend_name="native")
    error = (out.rgb - best.rgb).abs()
    assert error.mean() <= 1e-6 and error.flatten()[:: error.numel() // 30000].quantile(0.999) <= 1e-4


def test_threads_sleep_between_calls():
    splats, cameras = random_splats(20_000, 0, log_scale=-4), Cameras.orbit(1, 3.0, 20, 50, 200, 150)
    render(splats, cameras, RenderOptions(threads=3), "native")
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1
