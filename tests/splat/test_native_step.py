"""A fused step of the fit against the same step through autograd."""

from dataclasses import fields, replace

import pytest
import torch

from splat import optimise
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.losses import photometric
from splat.optimise import FitConfig, fit
from splat.render import RenderOptions, native, render
from splat.render.native.adam import NativeAdam
from splat.render.native.step import FusedStep
from splat.views import Views

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
CAMERAS = Cameras.orbit(3, 3.0, 20, 50, 45, 37)
WEIGHTS = (0.2, 0.05, 0.3)  # SSIM, opacity, scale


def splats_of(n=400, degree=3):
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    return Splats(
        0.6 * normal(n, 3), normal(n, 4), -2.8 + 0.5 * normal(n, 3), 2 * normal(n), 0.3 * normal(n, (degree + 1) ** 2, 3)
    )


def truths():
    with torch.no_grad():
        return render(splats_of(300, 1), CAMERAS, backend_name="native").rgb.clamp(0, 1)


def leaves_and_adam(splats, threads=1):
    leaves = splats.map(lambda x: x.clone().requires_grad_())
    groups = [{"params": [getattr(leaves, f.name)], "lr": 1e-2} for f in fields(leaves)]
    groups[-1] |= {"head": 3, "lr_later": 1e-3}
    return leaves, NativeAdam(groups, eps=1e-8, threads=threads)


@pytest.mark.parametrize(
    "options",
    [
        RenderOptions(),
        RenderOptions(background=torch.tensor([0.2, 0.5, 0.9]), sh_degree=1),
        RenderOptions(antialiased=True, sh_degree=0),
    ],
)
def test_like_autograd(options):
    photos = truths()
    fused, adam = leaves_and_adam(splats_of())
    step = FusedStep(adam, *WEIGHTS)
    plain, plain_adam = leaves_and_adam(splats_of())
    for k in range(4):
        done = step(fused, CAMERAS.cam_from_world[k % 3], CAMERAS.K[k % 3], photos[k % 3], options)
        image = render(plain, CAMERAS[k % 3], options, "native").rgb
        photo_loss = photometric(image, photos[k % 3, None], WEIGHTS[0])
        loss = photo_loss + WEIGHTS[1] * plain.opacities.mean() + WEIGHTS[2] * plain.scales.mean()
        plain_adam.zero_grad()
        loss.backward()
        plain_adam.step()
        assert abs(done.photo_loss - photo_loss.item()) < 1e-6 and abs(done.loss - loss.item()) < 1e-6
        assert (done.image - image.detach()).abs().mean() < 1e-6
        for f in fields(fused):
            ours, theirs = (getattr(s, f.name).detach() for s in (fused, plain))
            moved = (getattr(splats_of(), f.name) - theirs).norm()
            assert moved > 0 and (ours - theirs).norm() <= 1e-3 * moved, f.name
    for a, b in zip(adam.state.values(), plain_adam.state.values()):
        assert float(a["step"]) == float(b["step"]) == 4


def test_same_bits_for_any_number_of_threads_and_after_other_sizes():
    photos, results = truths(), []
    for threads in (1, 2, 3):
        splats, adam = leaves_and_adam(splats_of(), threads)
        step = FusedStep(adam, *WEIGHTS)
        for k in (0, 1, 0):
            wide = CAMERAS.cropped(0, 0, 45 - 9 * k, 37)
            step(splats, wide.cam_from_world[k], wide.K[k], photos[k, :, : wide.width], RenderOptions(threads=threads))
        results.append(splats)
    for other in results[1:]:
        assert all(torch.equal(getattr(other, f.name), getattr(results[0], f.name)) for f in fields(other))


def test_nothing_moves_when_the_loss_is_not_finite():
    splats, adam = leaves_and_adam(splats_of())
    before = splats.map(lambda x: x.detach().clone())
    bad = truths()[0]
    bad[3, 4, 1] = torch.nan
    done = FusedStep(adam, *WEIGHTS)(splats, CAMERAS.cam_from_world[0], CAMERAS.K[0], bad, RenderOptions())
    assert not done.loss < float("inf")
    assert all(torch.equal(getattr(before, f.name), getattr(splats, f.name)) for f in fields(splats))


def test_wrong_input_is_a_python_error():
    splats, adam = leaves_and_adam(splats_of(20))
    step, photo, pose, K = FusedStep(adam, *WEIGHTS), truths()[0], CAMERAS.cam_from_world[0], CAMERAS.K[0]
    for arguments in ((pose[:3], K, photo), (pose, K.double(), photo), (pose, K, photo[..., :2]), (pose, K, photo.half())):
        with pytest.raises((TypeError, ValueError)):
            step(splats, *arguments, RenderOptions())
    with pytest.raises(ValueError, match="near"):
        step(splats, pose, K, photo, RenderOptions(near=0))
    with torch.no_grad():
        splats.means[3, 1] = torch.nan
    with pytest.raises(InputError, match="means"):
        step(splats, pose, K, photo, RenderOptions())


@pytest.mark.parametrize("masked", [False, True])
def test_a_fit_is_the_same_with_and_without(masked, monkeypatch):
    masks = torch.ones(3, 37, 45)
    masks[:, :9] = 0
    photos = Views(truths() * masks[..., None] + 1 - masks[..., None], ("a", "b", "c"), CAMERAS, masks if masked else None)
    config = FitConfig.for_photos(
        100, steps=12, max_gaussians=300, sh_degree=1, threads=1, coarse=((0.5, 0.5),), report_every=1
    )
    results = []
    for make in (optimise._fused_step, lambda *_: None):
        monkeypatch.setattr(optimise, "_fused_step", make)
        seen, job = [], fit([photos], splats_of(300, 1), replace(config, min_visibility=0))
        while True:
            try:
                seen.append(next(job).values)
            except StopIteration as end:
                results.append((end.value, seen))
                break
    (fused, seen), (plain, expected) = results
    assert [x["gaussians"] for x in seen] == [x["gaussians"] for x in expected]
    assert all(abs(x["loss"] - y["loss"]) < 1e-4 and abs(x["psnr"] - y["psnr"]) < 0.02 for x, y in zip(seen, expected))
    assert abs(fused.train_psnr - plain.train_psnr) < 0.02
