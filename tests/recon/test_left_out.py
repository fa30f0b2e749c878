"""Pairs for a scene's LoRA: every photo beside what a fit that never saw it shows."""

import dataclasses

import pytest
import torch
from scenes import orbit, random_splats

from recon.repair.left_out import LeftOutConfig, left_out_pairs
from splat.metrics import psnr
from splat.optimise import FitConfig
from splat.render import RenderOptions, render
from splat.views import Views


def photos_of(count):
    """Views of a cloud of Gaussians, photographed all round, in two sizes where there are enough."""
    splats, parts = random_splats(40, degree=0), []
    for first, size in ((0, (40, 32)), (3, (32, 32))):
        rows = list(range(first, min(first + 3, count)))
        if rows:
            cameras = orbit(count, *size)[rows]
            images = render(splats, cameras, RenderOptions(background=torch.ones(3))).rgb.clamp(0, 1)
            parts.append(Views(images, tuple(f"{k}.png" for k in rows), cameras))
    return splats, parts


def pairs(count, blackened=None, **settings):
    splats, views = photos_of(count)
    if blackened is not None:
        views[0].images[blackened] = 0
    start = dataclasses.replace(splats, sh=splats.sh + 0.3)
    config = FitConfig.for_photos(count, steps=10, background=(1.0, 1.0, 1.0), max_gaussians=60, threads=1)
    job = left_out_pairs(views, start, config, None, LeftOutConfig(**({"steps": 15} | settings)))
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return views, end.value, events


def test_every_photo_is_left_out_once_and_some_are_shown_as_they_were_fitted():
    views, made, events = pairs(5, folds=2)
    photos = [image for v in views for image in v.images]
    assert len(made.photos) == len(made.renders) == 7  # each photo once, and one of its own for each fit
    for photo in photos:
        assert any(p.shape == photo.shape and torch.equal(p, photo) for p in made.photos)
    assert all(r.shape == p.shape for r, p in zip(made.renders, made.photos))
    assert all(8 < float(psnr(r, p)) < 45 for r, p in zip(made.renders, made.photos))
    assert events[-1].step == events[-1].total == 30


def test_what_is_shown_in_a_photos_place_does_not_know_of_it():
    _, plain, _ = pairs(3, folds=3, steps=8)
    _, other, _ = pairs(3, folds=3, steps=8, blackened=1)
    same = [
        torch.equal(a, b) for a, b in zip(plain.renders, other.renders)
    ]  # of each fit the photo left out, and one of its own
    assert same == [False, False, True, True, False, False]


@pytest.mark.parametrize("count", [1, 2])
def test_few_photos_are_all_fitted_to(count):
    _, made, _ = pairs(count)
    assert len(made.photos) == count
