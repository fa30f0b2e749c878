"""Memory that is used again holds rubbish: it must never reach an image or a gradient."""

import random
from dataclasses import fields

import pytest
import torch

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.render import RenderOptions, native, render
from splat.render.native import loans
from splat.render.native.adam import NativeAdam
from splat.render.native.step import FusedSteps, Turn

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
WHITE = torch.ones(3)
CASES = [  # Gaussians, SH degree, cameras, width, height, options
    (0, 0, 1, 17, 9, RenderOptions()),
    (1, 3, 2, 1, 1, RenderOptions(track_means2d=True)),
    (37, 1, 1, 7, 5, RenderOptions(antialiased=True)),
    (350, 2, 2, 45, 37, RenderOptions(background=WHITE)),
    (350, 3, 3, 33, 70, RenderOptions(sh_degree=1, track_means2d=True)),
    (1100, 0, 1, 130, 61, RenderOptions(background=WHITE, track_means2d=True)),
    (2100, 3, 1, 24, 24, RenderOptions(threads=2)),
]


@pytest.fixture
def rubbish(monkeypatch):
    """Every result, however small, is lent memory that is full of NaN."""
    lend = loans.empty
    monkeypatch.setattr(loans, "_spare", [])
    monkeypatch.setattr(loans, "LARGE", 1)
    monkeypatch.setattr(loans, "empty", lambda *shape: lend(*shape).fill_(torch.nan))


def splats_of(n, degree):
    """Some behind the camera, some outside the image, some hidden, some too faint, and a long row that nobody sees."""
    g = torch.Generator().manual_seed(n)
    means, quats, scales, logits, sh = (
        torch.randn(n, *shape, generator=g) for shape in ((3,), (4,), (3,), (), ((degree + 1) ** 2, 3))
    )
    logits[n // 3 : n // 3 + 50] = -10  # longer than a vector of the kernels
    size = -1.0 if n > 2000 else -2.5  # large ones finish every pixel of a tile before its list ends
    return Splats(1.5 * means, quats, size + 0.7 * scales, 4 * logits, 0.4 * sh)


def drawn(case):
    """Splats that want gradients, and their rendering."""
    n, degree, cameras, width, height, options = CASES[case]
    splats = splats_of(n, degree).map(lambda x: x.requires_grad_())
    orbit = Cameras.orbit(cameras, 2.5, 20, 50, width, height)
    orbit.cam_from_world.requires_grad_()
    return splats, orbit, render(splats, orbit, options, "native")


def results(splats, orbit, rendering):
    """Everything that comes out, after a backward pass."""
    loss = sum(
        (x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in (rendering.rgb, rendering.alpha, rendering.depth)
    )
    loss.backward()
    out = [rendering.rgb, rendering.alpha, rendering.depth, rendering.means2d, rendering.radii, orbit.cam_from_world.grad]
    out += [getattr(splats, f.name).grad for f in fields(splats)]
    if rendering.means2d_probe is not None:
        out += [rendering.means2d_probe.grad, rendering.means2d_probe.absgrad]
    return [x.detach().clone() for x in out]


def test_images_and_gradients_hold_no_rubbish(rubbish, monkeypatch):
    with monkeypatch.context() as plain:
        plain.setattr(loans, "empty", torch.zeros)
        expected = [results(*drawn(case)) for case in range(len(CASES))]
    rng = random.Random(0)
    for _ in range(40):
        first, second = rng.choices(range(len(CASES)), k=2)
        alive = [(first, drawn(first)), (second, drawn(second))]  # both wait for their backward pass
        rng.shuffle(alive)
        for case, made in alive:
            for ours, clean in zip(results(*made), expected[case], strict=True):
                assert ours.isfinite().all(), CASES[case]
                assert torch.equal(ours, clean), CASES[case]


def test_a_graph_that_is_kept_gives_the_same_gradients_again(rubbish):
    splats, _, rendering = drawn(4)
    leaves = [getattr(splats, f.name) for f in fields(splats)]
    first = torch.autograd.grad(rendering.rgb.sum(), leaves, retain_graph=True)
    drawn(3)[2].rgb.sum().backward()
    second = torch.autograd.grad(rendering.rgb.sum(), leaves)
    for a, b in zip(first, second):
        assert a.isfinite().all() and torch.equal(a, b) and a.data_ptr() != b.data_ptr()


def test_fused_steps_hold_no_rubbish(rubbish, monkeypatch):
    def fitted():
        splats = splats_of(400, 2).map(lambda x: x.requires_grad_())
        adam = NativeAdam([{"params": [getattr(splats, f.name)], "lr": 1e-2} for f in fields(splats)], threads=1)
        step = FusedSteps(adam, RenderOptions(), 0.2, 0.01, 0.01)
        for k, (width, height) in enumerate([(45, 37), (7, 5), (45, 37), (130, 61), (1, 1), (7, 5)]):
            camera = Cameras.orbit(1, 2.5, 20, 50, width, height)
            truth = torch.linspace(0, 1, width * height * 3).view(height, width, 3)
            done = step(splats, [Turn(truth, camera.cam_from_world[0], camera.K[0], sh_degree=k % 3, lr_means=1e-2)])
            assert done.image.isfinite().all() and done.loss < 10
        return splats

    ours = fitted()
    monkeypatch.setattr(loans, "empty", torch.zeros)
    clean = fitted()
    assert all(torch.equal(getattr(ours, f.name), getattr(clean, f.name)) for f in fields(ours))
