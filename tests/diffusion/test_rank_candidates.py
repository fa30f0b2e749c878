"""Candidates of one sentence, made by hand, each worse than the best in one way."""

import math

import pytest
import torch

from diffusion.data.colours import TARGETS, Palette
from diffusion.rank_candidates import (
    RankConfig,
    appearance,
    colour_agreement,
    colour_words,
    connectedness,
    rank_candidates,
)  # fmt: skip
from diffusion.volume import CHANNELS, COLOUR, EMPTY, OPACITY, STRETCH, SplatVolume
from splat.sh import from_rgb

RESOLUTION = 16
BODY = (slice(5, 11), slice(4, 12), slice(6, 10))  # z, y, x


def volume(colour: str = "red", opacity: float = 5.0, crumbs: int = 0) -> SplatVolume:
    """A block of Gaussians that fill their cells, and `crumbs` more along the edge of the cube, far from it and each other."""
    grid = EMPTY.reshape(CHANNELS, 1, 1, 1).repeat(1, *[RESOLUTION] * 3)
    places = [BODY, *((0, 0, 4 * i) for i in range(crumbs))]
    for place in places:
        grid[OPACITY][place] = opacity
        for channel, value in zip(range(COLOUR.start, COLOUR.stop), from_rgb(torch.tensor(TARGETS[colour]) / 255)):
            grid[channel][place] = value
        grid[STRETCH][(slice(0, 3), *place)] = math.log(0.6)
    return SplatVolume(grid[None])


EMPTY_VOLUME = SplatVolume(EMPTY.reshape(1, CHANNELS, 1, 1, 1).repeat(1, 1, *[RESOLUTION] * 3))


def order(*volumes: SplatVolume, prompt: str = "a red box", **more) -> tuple[int, ...]:
    return rank_candidates(SplatVolume.cat(list(volumes)), prompt, **more).order


def test_the_colour_that_was_asked_for_comes_first():
    assert order(volume("blue"), volume("red")) == (1, 0)
    assert order(volume("blue"), volume("red"), prompt="a blue box") == (0, 1)
    assert order(volume("blue"), volume("red"), prompt="a box") == (0, 1)  # no colour named: equal, so the order stays


def test_one_piece_comes_before_pieces_and_solid_before_see_through():
    assert order(volume(crumbs=4), volume()) == (1, 0)
    assert order(volume(opacity=-2.0), volume(opacity=5.0)) == (1, 0)


def test_empty_candidates_come_last_whatever_the_generator_says():
    worst = volume("blue", crumbs=4)
    ranking = rank_candidates(SplatVolume.cat([EMPTY_VOLUME, worst]), "a red box", torch.tensor([9.0, -9.0]))
    assert ranking.order == (1, 0) and ranking.best == 1
    assert [score.visible for score in ranking.scores] == [False, True]
    assert ranking.scores[0].total == 0.0


def test_numbers_that_are_none_do_not_spoil_the_other_candidates():
    broken = volume()
    broken.features[0, OPACITY, 7, 7, 7] = math.nan
    assert order(broken, volume("blue")) == (1, 0)


def test_gaussians_too_faint_to_see_are_nothing():
    assert not rank_candidates(volume(opacity=-4.0), "a red box").scores[0].visible


def test_the_generators_own_number_counts_by_its_weight():
    same = [volume(), volume(), volume()]
    own = torch.tensor([0.1, 0.3, 0.2])
    assert order(*same, agreement=own) == (1, 2, 0)
    assert order(*same, agreement=own, config=RankConfig(agreement=0)) == (0, 1, 2)
    assert order(volume("blue"), volume("red"), agreement=torch.tensor([2.0, 0.0])) == (0, 1)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("A light-gray and RED car", ("grey", "red")), ("a chair", ()), ("", ()), ("redcurrant", ()),
        ("🟥 red, red!", ("red",)), ("红色的椅子", ()),
    ],
)  # fmt: skip
def test_colour_words_of_a_sentence(prompt, words):
    assert colour_words(prompt) == words


def test_colours_agree_by_share():
    seen = Palette(("red", "white", "blue"), (0.5, 0.4, 0.1))
    assert colour_agreement((), seen) == 1
    assert colour_agreement(("red",), seen) == pytest.approx(0.5 / 0.6)
    assert colour_agreement(("red", "white"), seen) == 1  # .3 of each is enough
    assert colour_agreement(("red", "blue"), seen) == pytest.approx((1 + 0.1 / 0.3) / 2)
    assert colour_agreement(("green",), seen) == 0


def test_connectedness_is_the_share_of_opacity_in_the_largest_part():
    body = 6 * 8 * 4
    assert connectedness(volume()) == pytest.approx(1)
    assert connectedness(volume(crumbs=3)) == pytest.approx(body / (body + 3))
    assert connectedness(EMPTY_VOLUME) == 0
    diagonal = EMPTY_VOLUME.features.clone()
    for i in range(5):  # touching by corners alone is touching
        diagonal[0, OPACITY, i, i, i] = 5.0
    assert connectedness(SplatVolume(diagonal)) == pytest.approx(1)


def test_what_is_seen_of_a_candidate():
    colours, solid, shown = appearance(volume("green"))
    assert colours.words[0] == "green" and colours.shares[0] > 0.95
    assert 0.8 < solid < 1 and 0.02 < shown < 0.2
    assert appearance(volume("green", opacity=-1.0))[1] < solid - 0.1


def test_ranking_twice_gives_the_same_numbers():
    candidates = SplatVolume.cat([volume("blue", crumbs=2), volume("red", opacity=1.0), EMPTY_VOLUME])
    assert rank_candidates(candidates, "a red box") == rank_candidates(candidates, "a red box")
