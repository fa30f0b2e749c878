"""Several fits to the same photos, their mean and their quarrels."""

import dataclasses

import pytest
import torch
from scenes import one_splat, orbit
from test_optimise import config, disturbed, run, truth, views

from splat.consensus import ConsensusConfig, cameras_between, disagreement, fit_members, mean_picture
from splat.errors import InputError
from splat.optimise import fit
from splat.regularise import Priors, RegulariserConfig
from splat.render import RenderOptions, render

WHITE = torch.ones(3)


def finished(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as done:
            return done.value, events


def test_members_are_fits_of_their_own():
    settings = config(steps=20)
    members, events = finished(fit_members([views()], disturbed(), settings, ConsensusConfig(members=2, steps=0.5)))
    assert len(members) == 2 and all(len(m) < len(disturbed()) for m in members)
    assert {e.stage for e in events} == {"members"} and events[-1].step == events[-1].total == 20
    again, _ = finished(fit_members([views()], disturbed(), settings, ConsensusConfig(members=2, steps=0.5)))
    assert torch.equal(members[1].means, again[1].means)
    seen = orbit(1)
    first, second = (render(m, seen, RenderOptions(background=WHITE)).rgb for m in members)
    assert (first - second).abs().mean() > 1e-3


def test_mean_picture_and_disagreement_by_hand():
    camera = orbit(1)
    dark, light = (one_splat((0.0, 0, 0), (c, c, c), scales=(0.3, 0.3, 0.3)) for c in (0.2, 0.6))
    picture = mean_picture([dark, light], camera)
    drawn = [render(s, camera) for s in (dark, light)]
    torch.testing.assert_close(picture.image, (drawn[0].rgb + drawn[1].rgb) / 2)
    torch.testing.assert_close(picture.alpha, drawn[0].alpha)
    assert disagreement([dark, dark], camera, WHITE).max() == 0
    torch.testing.assert_close(disagreement([dark, light], camera, WHITE), 0.2 * drawn[0].alpha, atol=1e-5, rtol=0)


def test_cameras_between_photos():
    cameras = cameras_between([views(5)], partners=2, per_pair=3, scale=0.5)
    assert len(cameras) == 5 * 3 and (cameras[0].width, cameras[0].height) == (20, 16)


def test_true_pictures_from_elsewhere_teach_the_fit():
    photos, elsewhere = views(2), orbit(5)[[1, 2, 3, 4]]
    pictures = tuple(mean_picture([truth()], elsewhere[i]) for i in range(4))
    priors = Priors([torch.zeros(2, 32, 40)], pictures=pictures)
    errors = []
    for weight in (0.0, 1.0):
        settings = dataclasses.replace(config(steps=100), regularise=RegulariserConfig(consensus=weight))
        result, _ = finished(fit([photos], disturbed(), settings, None, priors))
        with torch.no_grad():
            drawn = render(result.splats, elsewhere, RenderOptions(background=WHITE)).rgb
            wanted = render(truth(), elsewhere, RenderOptions(background=WHITE)).rgb
        errors.append(float((drawn - wanted).abs().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_consensus_needs_pictures():
    settings = dataclasses.replace(config(), regularise=RegulariserConfig(consensus=0.5))
    with pytest.raises(InputError):
        run([views()], disturbed(), settings)
    with pytest.raises(InputError, match="pictures"):
        finished(fit([views()], disturbed(), settings, None, Priors([torch.zeros(3, 32, 40)])))
