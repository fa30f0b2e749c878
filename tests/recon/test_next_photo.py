"""Where one more photo would help: places that could be placed, quick fits that disagree, and words to follow."""

import dataclasses
import math

import pytest
import torch

from recon.next_photo import NextPhoto, NextPhotoConfig, entropy, next_photo, sentence
from recon.standpoints import Around, StandpointConfig, overlap, sized, standpoints, stands_free, surfaces
from splat.cameras import Cameras, intrinsics
from splat.errors import InputError
from splat.gaussians import Splats
from splat.render import RenderOptions, render
from splat.views import Views

QUICK = NextPhotoConfig(members=4, steps=120, side=64, look=32, show=64, max_gaussians=6000, threads=1)
HASTY = dataclasses.replace(QUICK, steps=10)
WHITE = torch.ones(3)


@pytest.mark.parametrize(
    "change", [{"members": 1}, {"members": 7}, {"steps": 0}, {"look": 0}, {"keep": 0.0}, {"keep": 1.5}, {"least_sigma": 0.0}]
)
def test_a_question_that_has_no_answer_is_not_asked(change):
    """The entropy of one hypothesis is 0 / 0, and two that share a backdrop agree about what nobody has seen."""
    with pytest.raises(AssertionError):
        NextPhotoConfig(**change)


def at(*places):
    """Cameras (one batch) at (azimuth, elevation, distance), looking at the origin."""
    azimuth, elevation, distance = torch.tensor(places).double().T
    eyes = distance[:, None] * Around(azimuth, elevation, distance).directions
    return Cameras.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1, 0]), intrinsics(70.0, 64, 48), 64, 48)


def ball(seed=0, n=3000):
    """A sphere of blobs round the origin; colours that change slowly from place to place."""
    g = torch.Generator().manual_seed(seed)
    means = 0.6 * torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    return Splats(
        means=means,
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        log_scales=torch.full((n, 3), math.log(0.04)),
        opacity_logits=torch.full((n,), 4.0),
        sh=(1.2 * (8 * means + torch.tensor([0.0, 1, 2])).sin())[:, None],
    )


def photos_of(splats, cameras):
    with torch.no_grad():
        drawn = render(splats, cameras, RenderOptions(background=WHITE))
    return [Views(drawn.rgb.clamp(0, 1), tuple(f"{i}.jpg" for i in range(len(cameras))), cameras, drawn.alpha)]


def seen_by(splats, cameras):
    """What stereo would start from: the Gaussians that these cameras see, faint."""
    kept = torch.zeros(len(splats), dtype=torch.bool)
    for i in range(len(cameras)):
        with torch.no_grad():
            depth = render(splats, cameras[i]).expected_depth[0]
        pixels, z = (x[0] for x in cameras[i].project(splats.means))
        spot = pixels.floor().long()
        inside = (z > 0) & (spot >= 0).all(-1) & (spot[:, 0] < 64) & (spot[:, 1] < 48)
        rows = inside.nonzero().squeeze(-1)
        kept[rows[z[rows] < depth[spot[rows, 1], spot[rows, 0]] + 0.1]] = True
    return dataclasses.replace(splats[kept], opacity_logits=torch.full((int(kept.sum()),), -1.0))


def finished(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as done:
            return done.value, events


@pytest.fixture(scope="module")
def gap():
    """Photos all round in steps of 30 degrees, but for a hole from -120 to 0."""
    cameras = at(*((azimuth, 20, 2) for azimuth in range(0, 241, 30)))
    return photos_of(ball(), cameras), seen_by(ball(), cameras)


def test_the_unphotographed_side_is_asked_for(gap):
    found, events = finished(next_photo(*gap, QUICK))
    azimuth = float(Around.of(found.camera.centers, found.focus).azimuth_deg)
    assert -115 < azimuth < -5, azimuth
    assert found.nearest in ("0.jpg", "8.jpg") and 5 < abs(found.azimuth_deg) < 60
    assert {e.stage for e in events} == {"next photo"} and events[-1].step == events[-1].total
    assert 0 < found.gain < 1 and found.overlap >= QUICK.standpoints.overlap
    assert found.expected.shape == (48, 64, 3) and found.disagreement.shape == (48, 64)
    assert found.candidates > 5 and 0.9 < found.distance < 1.1


def test_the_same_twice(gap):
    first, second = (finished(next_photo(*gap, HASTY))[0] for _ in range(2))
    assert torch.equal(first.camera.cam_from_world, second.camera.cam_from_world)
    assert first.gain == second.gain and torch.equal(first.disagreement, second.disagreement)


def test_a_photo_alone_is_refused(gap):
    views, initial = gap
    with pytest.raises(InputError, match="at least 2"):
        finished(next_photo([views[0][[0]]], initial, QUICK))
    with pytest.raises(InputError, match="at least 2"):
        finished(next_photo([Views(views[0].images, views[0].names)], initial, QUICK))


def test_nothing_to_say_where_no_place_overlaps(gap):
    strict = dataclasses.replace(HASTY, standpoints=StandpointConfig(overlap=1.1))
    assert finished(next_photo(*gap, strict))[0] is None


def test_entropy_by_hand():
    same, apart = torch.full((3, 1, 1, 3), 0.4), torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].repeat(1, 1, 1, 3)
    assert float(entropy(same, 0.05)) == pytest.approx(0, abs=1e-6)
    assert float(entropy(apart, 0.05)) == pytest.approx(1, abs=1e-6)
    two = torch.tensor([0.0, 0.1])[:, None, None, None].repeat(1, 1, 1, 3)
    likeness = math.exp(-3 * 0.01 / (2 * 0.1**2))
    assert float(entropy(two, 0.1)) == pytest.approx(-math.log((1 + likeness) / 2) / math.log(2), abs=1e-6)


def test_places_stand_round_the_subject_and_not_where_photos_were_taken():
    cameras = at((0, 20, 2), (20, 20, 3))
    photos = [cameras[i] for i in range(2)]
    config = StandpointConfig()
    found = standpoints(photos, torch.zeros(3), config)
    places = Around.of(torch.cat([c.centers for c in found]), torch.zeros(3))
    own = Around.of(cameras.centers, torch.zeros(3))
    apart = places.angles_to(own).min(dim=1).values
    assert float(apart.min()) > 5 and float(apart.max()) <= config.reach
    assert float((places.distance - math.sqrt(6)).abs().max()) < 1e-4  # the mean of both
    assert {round(float(e)) for e in places.elevation_deg} == {4, 20, 36}
    centre, z = found[0].project(torch.zeros(1, 3))
    assert torch.allclose(centre[0, 0], torch.tensor([32.0, 24.0]), atol=1e-3) and float(z) > 0


def test_overlap_is_what_a_photo_shows_from_nearly_there():
    ball_and_floor = ball()
    cameras = at((0, 20, 2), (15, 20, 2), (120, 20, 2))
    with torch.no_grad():
        depths = [render(ball_and_floor, cameras[i]).expected_depth[0] for i in range(3)]
    shown = surfaces([cameras[0]], depths[:1])
    config = StandpointConfig()
    same, beside, behind = (overlap(cameras[i], depths[i], shown, config) for i in range(3))
    assert same > 0.8 and 0.5 < beside <= same and behind < 0.2


def test_nobody_stands_inside_a_wall():
    camera = at((0, 0, 2))
    far = torch.full((48, 64), 2.0)
    wall = camera.centers + 0.1 * torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    config = StandpointConfig()
    assert stands_free(camera, far, 2.0, torch.zeros(100, 3), config)
    assert not stands_free(camera, far, 2.0, wall, config)
    assert not stands_free(camera, torch.full((48, 64), 0.5), 2.0, torch.zeros(100, 3), config)
    assert [(c.width, c.height) for c in sized([camera], 32)] == [(32, 24)]


def suggestion(**changes):
    plain = NextPhoto(
        at((0, 0, 1)), "b.jpg", None, -35.0, 9.0, 1.2, 0.3, 0.7, 12, torch.zeros(3), torch.zeros(4, 4, 3), torch.zeros(4, 4)
    )
    return sentence(dataclasses.replace(plain, **changes))


def test_words_for_the_photographer():
    assert suggestion() == (
        "Take one more photo from the left of b.jpg, about 35° further round the subject, a little higher and 1.2 times as far "
        "away."
    )
    assert suggestion(azimuth_deg=12.0, elevation_deg=0.0, distance=1.0, other_side="c.jpg") == (
        "Take one more photo from between b.jpg and c.jpg, about 12° to the right of b.jpg."
    )
    assert suggestion(azimuth_deg=1.0, elevation_deg=-20.0, distance=1.0) == (
        "Take one more photo from where b.jpg was taken, but clearly lower (by 20°)."
    )


def test_left_is_the_photographers_left():
    """Seen from the photo's camera, a place to its right lies at positive x."""
    first = at((30, 20, 2))
    right = Around.of(first.centers + 0.3 * first.cam_from_world[:, 0, :3], torch.zeros(3))
    assert float(right.azimuth_deg - 30) > 0
