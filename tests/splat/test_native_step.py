"""Fused steps of the fit against the same steps through autograd."""

from dataclasses import fields, replace

import pytest
import torch

from splat import optimise
from splat.cameras import Cameras
from splat.densify import MCMCDensify
from splat.errors import InputError
from splat.gaussians import Splats
from splat.losses import photometric
from splat.optimise import FitConfig, fit
from splat.render import RenderOptions, native, render
from splat.render.native.adam import NativeAdam
from splat.render.native.step import FusedSteps, Turn
from splat.views import Views

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
CAMERAS = Cameras.orbit(3, 3.0, 20, 50, 45, 37)
WEIGHTS = (0.2, 0.05, 0.3)  # SSIM, opacity, scale
RATE = 1e-2


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


def leaves_and_adam(splats, threads=1, exposures=None):
    leaves = splats.map(lambda x: x.clone().requires_grad_())
    groups = [{"params": [getattr(leaves, f.name)], "lr": RATE} for f in fields(leaves)]
    groups[-1] |= {"head": 3, "lr_later": 1e-3}
    groups += [] if exposures is None else [{"params": [exposures], "lr": RATE}]
    return leaves, NativeAdam(groups, eps=1e-8, threads=threads)


def turn(k, photo=None, **changes):
    photo = truths()[k] if photo is None else photo
    return replace(Turn(photo, CAMERAS.cam_from_world[k], CAMERAS.K[k], sh_degree=3, lr_means=RATE, exposure=k), **changes)


def assert_same(a, b):
    assert all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


MASK = torch.linspace(0, 1, 45).expand(37, 45).contiguous()
TINTED = {"mask": MASK, "backdrop": (0.2, 0.5, 0.9), "tint": (-0.8, -0.5, -0.1)}


@pytest.mark.parametrize(
    "changes, options",
    [
        ({}, RenderOptions()),
        ({"backdrop": (0.2, 0.5, 0.9), "sh_degree": 1}, RenderOptions()),
        ({"sh_degree": 0}, RenderOptions(antialiased=True)),
        (TINTED, RenderOptions()),
    ],
    ids=["plain", "backdrop", "antialiased", "masked"],
)
@pytest.mark.parametrize("exposed", [False, True], ids=["", "exposed"])
@pytest.mark.parametrize("together", [1, 4])
def test_like_autograd(changes, options, exposed, together):
    start = torch.tensor([[[0.2, 0, -0.1], [0, 0.1, 0]], [[-0.1] * 3, [0.05] * 3], [[0.0] * 3, [-0.1] * 3]])
    start = (start - start.mean(0)) if exposed else None
    learnt, expected = (None if start is None else start.clone().requires_grad_() for _ in range(2))
    fused, adam = leaves_and_adam(splats_of(), exposures=learnt)
    steps = FusedSteps(adam, options, *WEIGHTS, exposures=learnt)
    plain, plain_adam = leaves_and_adam(splats_of(), exposures=expected)
    turns = [turn(k % 3, **changes) for k in range(4)]
    for k, step in enumerate(turns):
        backdrop = torch.tensor(step.backdrop)
        drawn = replace(options, background=None if exposed else backdrop, sh_degree=step.sh_degree)
        out = render(plain, CAMERAS[k % 3], drawn, "native")
        image = out.rgb
        if exposed:
            gain, offset = expected[k % 3]
            image = image * (1 + gain) + offset * out.alpha[..., None] + (1 - out.alpha[..., None]) * backdrop
        photo_loss = photometric(image, step.truth()[None], WEIGHTS[0])
        loss = photo_loss + WEIGHTS[1] * plain.opacities.mean() + WEIGHTS[2] * plain.scales.mean()
        plain_adam.zero_grad(set_to_none=False)
        loss.backward()
        plain_adam.step()
        if exposed:
            expected.data -= expected.data.mean(0)
        if (k + 1) % together:
            continue
        done = steps(fused, turns[k + 1 - together : k + 1])
        assert done.done == together
        assert abs(done.photo_loss - photo_loss.item()) < 1e-6 and abs(done.loss - loss.item()) < 1e-6
        assert (done.image - image.detach()).abs().mean() < 1e-6
        torch.testing.assert_close(done.truth[0], step.truth(), atol=1e-6, rtol=0)
        for f in fields(fused):
            ours, theirs = (getattr(s, f.name).detach() for s in (fused, plain))
            moved = (getattr(splats_of(), f.name) - theirs).norm()
            assert moved > 0 and (ours - theirs).norm() <= 1e-3 * moved, f.name
        if exposed:
            assert (learnt - expected).norm() <= 1e-3 * (start - expected).norm() and learnt.mean(0).abs().max() < 1e-7
    for a, b in zip(adam.state.values(), plain_adam.state.values()):
        assert float(a["step"]) == float(b["step"]) == 4


def test_same_bits_for_any_number_of_threads_of_steps_together_and_after_other_sizes():
    narrow = [turn(k, truths()[k, :, : 45 - 9 * k].contiguous(), key=7 + k, backdrop=(0.1 * k, 0, 1)) for k in (0, 1, 0, 2)]
    turns = [replace(t, K=CAMERAS.cropped(0, 0, t.photo.shape[1], 37).K[0]) for t in narrow]
    turns[3] = replace(turns[3], mask=MASK[:, :27].contiguous(), tint=(0.3, 0.2, 0.1))
    results = []
    for threads, together in ((1, 1), (1, 4), (2, 2), (3, 3)):
        exposures = torch.zeros(3, 2, 3).requires_grad_()
        splats, adam = leaves_and_adam(splats_of(), threads, exposures)
        steps = FusedSteps(adam, RenderOptions(threads=threads), *WEIGHTS, exposures=exposures, noise=5e4)
        for first in range(0, len(turns), together):
            steps(splats, turns[first : first + together])
        results.append((splats, exposures))
    for splats, exposures in results[1:]:
        assert_same(splats, results[0][0])
        assert torch.equal(exposures, results[0][1])


class TestJitter:
    def moved(self, splats, noise, keys=(0,)):
        """[len(keys), N, 3] what the jitter alone adds to the means."""
        offsets = []
        for key in keys:
            ends = []
            for strength in (noise, 0.0):
                leaves, adam = leaves_and_adam(splats)
                FusedSteps(adam, RenderOptions(), *WEIGHTS, noise=strength)(leaves, [turn(0, key=key)])
                ends.append(leaves.means.detach())
            offsets.append(ends[0] - ends[1])
        return torch.stack(offsets), leaves.detach()

    def test_has_the_covariance_of_the_equation(self):
        """As `MCMCDensify.perturb`, where all Gaussians are alike."""
        n, noise = 6000, 30.0
        one = splats_of(1)
        splats = one[torch.zeros(n, dtype=torch.long)]
        splats = replace(splats, opacity_logits=torch.full((n,), -6.0), means=torch.full((n, 3), 50.0))  # none is in sight
        (found,), after = self.moved(splats, noise)
        g = torch.Generator().manual_seed(0)
        rows, expected = MCMCDensify(noise=noise).perturb(after, RATE, g)
        assert len(rows) == n
        for offsets in (found, expected):  # eq. 9: covariance times normal noise
            gate = torch.sigmoid(100 * (0.005 - after.opacities[:1])) * noise * RATE
            scale = (after.covariances()[0] * gate).double()
            white = torch.linalg.solve(scale, offsets.double().T).T
            torch.testing.assert_close(white.mean(0), torch.zeros(3).double(), atol=0.05, rtol=0)
            torch.testing.assert_close(white.T @ white / n, torch.eye(3).double(), atol=0.08, rtol=0)
            assert (white.abs() > 2).double().mean() == pytest.approx(0.0455, abs=0.01)

    def test_leaves_all_but_faint_gaussians_alone_and_depends_on_the_key(self):
        splats = replace(splats_of(), opacity_logits=torch.linspace(-8, 4, 400))
        offsets, after = self.moved(splats, 3e3, keys=(0, 1, 0))
        faint = after.opacity_logits < -2.6
        assert not offsets[:, after.opacity_logits > -2.5].any() and offsets[:, faint].any(-1).all()
        assert torch.equal(offsets[0], offsets[2]) and not torch.equal(offsets[0], offsets[1])


def test_nothing_moves_when_the_loss_is_not_finite_and_later_turns_are_not_taken():
    splats, adam = leaves_and_adam(splats_of())
    bad = truths()[0]
    bad[3, 4, 1] = torch.nan
    steps = FusedSteps(adam, RenderOptions(), *WEIGHTS, noise=1e3)
    before = splats.map(lambda x: x.detach().clone())
    done = steps(splats, [turn(0, bad), turn(1)])
    assert done.done == 0 and not done.loss < float("inf")
    assert_same(before, splats)
    assert all(float(state["step"]) == 0 for state in adam.state.values())
    done = steps(splats, [turn(1), turn(0, bad), turn(1)])
    assert done.done == 1 and not done.loss < float("inf")
    alone, adam = leaves_and_adam(splats_of())
    FusedSteps(adam, RenderOptions(), *WEIGHTS, noise=1e3)(alone, [turn(1)])
    assert_same(alone, splats)


def test_a_step_that_makes_nan_is_told_by_the_loss():
    splats, adam = leaves_and_adam(splats_of())
    done = FusedSteps(adam, RenderOptions(), *WEIGHTS)(splats, [turn(0, lr_means=float("nan")), turn(1)])
    assert done.done == 1 and done.loss != done.loss


WRONG = {
    "pose": {"cam_from_world": CAMERAS.cam_from_world[0, :3]},
    "K": {"K": CAMERAS.K[0].double()},
    "photo of two channels": {"photo": torch.zeros(37, 45, 2)},
    "photo of one row": {"photo": torch.zeros(45)},
    "half photo": {"photo": torch.zeros(37, 45, 3).half()},
    "photo elsewhere": {"photo": torch.zeros(37, 45, 3, device="meta")},
    "mask of another size": {"mask": torch.ones(37, 44)},
    "mask of bools": {"mask": torch.ones(37, 45, dtype=torch.bool)},
    "no pixel": {"photo": torch.zeros(0, 45, 3)},
    "exposure below": {"exposure": -1},
    "exposure above": {"exposure": 3},
    "two colours": {"backdrop": (0.5, 0.5)},
    "a name for a colour": {"tint": "red"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_a_python_error(wrong):
    exposures = torch.zeros(3, 2, 3).requires_grad_()
    splats, adam = leaves_and_adam(splats_of(20), exposures=exposures)
    before = splats.map(lambda x: x.detach().clone())
    with pytest.raises((TypeError, ValueError)):
        FusedSteps(adam, RenderOptions(), *WEIGHTS, exposures=exposures)(splats, [turn(1), turn(0, **wrong)])
    assert_same(before, splats)


@pytest.mark.parametrize("field", [f.name for f in fields(Splats)])
def test_wrong_splats_and_exposures_are_python_errors(field):
    for change in (torch.Tensor.double, torch.Tensor.half, lambda x: x.to("meta")):
        splats, adam = leaves_and_adam(replace(splats_of(20), **{field: change(getattr(splats_of(20), field))}))
        with pytest.raises(TypeError, match="contiguous float32"):
            FusedSteps(adam, RenderOptions(), *WEIGHTS)(splats, [turn(0)])
    with pytest.raises(ValueError, match=r"expected \(photos, 2, 3\)"):
        FusedSteps(adam, RenderOptions(), *WEIGHTS, exposures=torch.zeros(3, 6))


def test_no_splats_show_the_backdrop():
    splats, adam = leaves_and_adam(splats_of(0))
    done = FusedSteps(adam, RenderOptions(), *WEIGHTS, noise=1.0)(splats, [turn(0, backdrop=(0.25, 0.5, 0.75))] * 2)
    assert done.done == 2 and torch.equal(done.image, torch.tensor([0.25, 0.5, 0.75]).expand(1, 37, 45, 3))


def test_strided_input_is_mended():
    photo = truths()[0]
    results = []
    for image, pose in (
        (photo, CAMERAS.cam_from_world[0]),
        (photo.mT.contiguous().mT, CAMERAS.cam_from_world[0].mT.contiguous().mT),
    ):
        splats, adam = leaves_and_adam(splats_of(20))
        FusedSteps(adam, RenderOptions(), *WEIGHTS)(splats, [turn(0, image, cam_from_world=pose)])
        results.append(splats)
    assert_same(*results)


def test_options_and_splats_that_cannot_be_drawn():
    splats, adam = leaves_and_adam(splats_of(20))
    with pytest.raises(ValueError, match="near"):
        FusedSteps(adam, RenderOptions(near=0), *WEIGHTS)(splats, [turn(0)])
    with torch.no_grad():
        splats.means[3, 1] = torch.nan
    with pytest.raises(InputError, match="means"):
        FusedSteps(adam, RenderOptions(), *WEIGHTS)(splats, [turn(0)])


@pytest.mark.parametrize("exposure", [False, True], ids=["", "exposure"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_a_fit_is_the_same_with_and_without(masked, exposure, monkeypatch):
    masks = torch.ones(3, 37, 45)
    masks[:, :9] = 0
    photos = Views(truths() * masks[..., None] + 1 - masks[..., None], ("a", "b", "c"), CAMERAS, masks if masked else None)
    config = FitConfig.for_photos(
        100, steps=12, max_gaussians=300, sh_degree=1, threads=1, coarse=((0.5, 0.5),), report_every=1, exposure=exposure
    )
    results = []
    for make in (optimise._fused_steps, lambda *_: None):
        monkeypatch.setattr(optimise, "_fused_steps", make)
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
    torch.testing.assert_close(fused.exposures, plain.exposures, atol=1e-3, rtol=0)
