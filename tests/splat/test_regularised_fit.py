"""`fit` with regularisers: each does what it is for, and none is in the way when it is off."""

import dataclasses

import pytest
import torch
from test_optimise import config, disturbed, run, truth, views

from splat.checkpoint import load_state
from splat.errors import InputError
from splat.optimise import FitConfig, fit
from splat.regularise import Priors, Regulariser, RegulariserConfig
from splat.regularise.smoothing import filter_widths
from splat.regularise.virtual_views import virtual_loss, virtual_views
from splat.render import native, render
from splat.render.native.step import FusedSteps

TERMS = {
    "depth": {"depth": 0.5},
    "local depth": {"local_depth": 0.5, "depth_tile": 8},
    "absolute depth": {"absolute_depth": 1.0},
    "normals": {"normals": 0.1},
    "virtual views": {"virtual_views": 0.3, "virtual_per_pair": 1},
    "drop": {"drop": 0.3},
    "smoothing": {"smoothing": True},
}


def true_priors(photos):
    with torch.no_grad():
        drawn = render(truth(), photos.cameras)
    return Priors([torch.where(drawn.alpha > 0.7, drawn.expected_depth, 0.0)])


def regularised(**changes):
    return config(regularise=RegulariserConfig(**changes))


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
def test_fused_steps_stay_the_default(monkeypatch):
    calls = []
    real = FusedSteps.__call__
    monkeypatch.setattr(FusedSteps, "__call__", lambda self, *a: calls.append(1) or real(self, *a))
    photos = views()
    plain, _ = run([photos], disturbed(), config())
    assert (
        calls
        and not RegulariserConfig().active
        and FitConfig() == dataclasses.replace(FitConfig(), regularise=RegulariserConfig())
    )
    calls.clear()
    run([photos], disturbed(), regularised(drop=0.1))
    assert not calls
    assert plain.steps == 60


@pytest.mark.parametrize("changes", TERMS.values(), ids=TERMS.keys())
def test_each_term_stops_and_goes_on_to_the_same_bits(tmp_path, changes):
    photos = views(5)
    priors, settings = true_priors(photos), dataclasses.replace(regularised(**changes), steps=20, average_from=0.5)

    def job(state, stop_after=None):
        events, going = 0, fit([photos], disturbed(), settings, state, priors)
        while True:
            try:
                next(going)
                events += 1
            except StopIteration as done:
                return done.value
            if events == stop_after:
                going.close()
                return None

    whole = job(None)
    assert job(tmp_path / "state", stop_after=3) is None
    rest = job(tmp_path / "state")
    for f in dataclasses.fields(whole.splats):
        assert torch.equal(getattr(whole.splats, f.name), getattr(rest.splats, f.name)), f.name
    plain, _ = run([photos], disturbed(), dataclasses.replace(settings, regularise=RegulariserConfig()))
    assert not torch.equal(whole.splats.means, plain.splats.means)


def geometry_error(splats, photos, priors):
    with torch.no_grad():
        drawn = render(splats, photos.cameras)
    known = (priors.depths[0] > 0) & (drawn.alpha > 0.5)
    return float((drawn.expected_depth / priors.depths[0] - 1).abs()[known].mean())


def virtual_error(splats, photos, priors):
    with torch.no_grad():
        targets = virtual_views([photos], priors, 1, 0.5)
        return float(torch.stack([virtual_loss(render(splats, t.camera).rgb, t, torch.zeros(3)) for t in targets]).mean())


@pytest.mark.parametrize(
    "name, error", [("depth", geometry_error), ("absolute depth", geometry_error), ("virtual views", virtual_error)]
)
def test_true_priors_bring_the_fit_nearer_to_the_truth(name, error):
    photos = views(5, 48, 40)
    priors = true_priors(photos)
    errors = []
    for changes in ({}, TERMS[name]):
        settings = dataclasses.replace(regularised(**changes), steps=150)
        going = fit([photos], disturbed(), settings, None, priors)
        while True:
            try:
                next(going)
            except StopIteration as done:
                errors.append(error(done.value.splats, photos, priors))
                break
    assert errors[1] < 0.95 * errors[0], errors


def test_no_gaussian_is_finer_than_the_photos():
    photos = views()
    sharp = disturbed().map(lambda x: x)
    sharp.log_scales.fill_(-9.0)
    result, _ = run([photos], sharp, regularised(smoothing=True))
    widths = filter_widths(result.splats.means, [photos.cameras])
    assert (result.splats.scales >= 0.999 * widths[:, None]).all()


def test_terms_that_need_priors_say_so():
    with pytest.raises(InputError, match="depth maps"):
        run([views()], disturbed(), regularised(depth=0.1))


def test_given_normals_are_taken():
    photos = views()
    priors = true_priors(photos)
    given = torch.zeros(*priors.depths[0].shape, 3)
    given[..., 2] = -1
    regulariser = Regulariser(RegulariserConfig(normals=1.0), [photos], dataclasses.replace(priors, normals=[given]))
    camera = photos.cameras[1]
    rendering = render(truth(), camera)
    loss = regulariser.of_photo(1, camera, rendering, torch.Generator())
    assert 0 < float(loss) < 4
    turned = dataclasses.replace(priors, normals=[-given])
    other = Regulariser(RegulariserConfig(normals=1.0), [photos], turned).of_photo(1, camera, rendering, torch.Generator())
    assert float(other) > float(loss)  # surfaces face the camera


def test_the_mean_of_the_last_steps_is_taken(tmp_path):
    photos, settings = views(), config(min_visibility=0.0)  # 60 steps, of which the mean sees 50 and 60
    last, _ = run([photos], disturbed(), settings)
    run([photos], disturbed(), settings, tmp_path / "state", stop_after=10)
    tensors, facts = load_state(tmp_path / "state")
    assert facts["step"] == 50
    mean, _ = run([photos], disturbed(), dataclasses.replace(settings, average_from=0.5))
    for f in dataclasses.fields(last.splats):
        if f"parameter.{f.name}" in tensors:
            ends = tensors[f"parameter.{f.name}"], getattr(last.splats, f.name)
            torch.testing.assert_close(getattr(mean.splats, f.name), (ends[0] + ends[1]) / 2, atol=1e-6, rtol=1e-6)
    assert not torch.equal(mean.splats.means, last.splats.means)
