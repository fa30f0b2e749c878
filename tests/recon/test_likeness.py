"""Patches of matches compared: the same thing passes from any side, chance does not."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from synthetic_scenes import speckle
from test_plausibility import scene  # noqa: F401  the fixture with exact correspondences

from recon.photos import Photo
from recon.poses.likeness import ALIKE, SIDE, likeness, only_alike, pictures
from recon.poses.solution import NOMINAL_SIDE

SCALE = SIDE / NOMINAL_SIDE


def grey(seed):
    return speckle(np.random.default_rng(seed), SIDE).mean(-1).astype(np.float32)


def spots(count, seed=0):
    """[count, 2] places well inside, in the solver's pixels."""
    return np.random.default_rng(seed).uniform(0.3, 0.7, (count, 2)) * NOMINAL_SIDE


@pytest.mark.parametrize("turn_deg, zoom, squeeze", [(0, 1.0, 1.0), (100, 1.0, 1.0), (30, 1.3, 0.6), (-15, 0.8, 1.0)])
def test_the_same_thing_is_alike_from_any_side(turn_deg, zoom, squeeze):
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    change = zoom * np.array([[c, -s], [s, c]]) @ np.diag([squeeze, 1.0])
    first, middle = grey(0), np.full(2, SIDE / 2)
    shift = middle - change @ middle  # in pixels whose centres are at +0.5; OpenCV's are at 0
    matrix = np.column_stack([change, shift + change @ [0.5, 0.5] - 0.5])
    second = 0.6 * cv2.warpAffine(first, matrix, (SIDE, SIDE), flags=cv2.INTER_AREA) + 0.2  # darker and flatter too
    a = spots(60)
    b = a @ change.T + shift / SCALE
    jitter = np.random.default_rng(1).normal(0, 0.5, b.shape)
    values = likeness(a, b + jitter, first, second)
    assert np.mean(values > ALIKE) > 0.9, np.quantile(values, [0, 0.1, 0.5])


def test_different_things_are_not_alike():
    a = spots(60)
    values = likeness(a, a + 3, grey(0), grey(1))
    assert np.mean(values > ALIKE) < 0.05 and np.abs(values).max() <= 1 + 1e-6


def test_a_pair_matched_by_chance_loses_all_and_a_true_pair_its_false_matches(scene):  # noqa: F811
    problem, verified, _ = scene
    a = spots(60)
    keypoints = (a, np.vstack([a[:57], spots(3, seed=9)]), a, *problem.keypoints[3:])
    problem = dataclasses.replace(problem, keypoints=keypoints, pairs=np.array([[0, 1], [0, 2]]))
    rows = np.column_stack([np.arange(60), np.arange(60)])
    verified = dataclasses.replace(verified, inliers=(rows, rows), second=(rows[:0], rows))
    first, other = grey(0), grey(1)
    sieved = only_alike(problem, verified, [first, first, other])
    assert sieved.counts[1] == 0 and sieved.second_counts.tolist() == [0, 0]
    kept = set(sieved.inliers[0][:, 0].tolist())
    assert len(kept & set(range(57))) >= 30 and len(kept - set(range(57))) == 0


def test_pictures_lie_as_the_solver_sees_them(scene):  # noqa: F811
    problem, _, _ = scene
    image = torch.zeros(40, 20, 3)  # portrait, a white corner at the upper right
    image[:4, 16:] = 1
    photo = Photo("a.png", None, "", image, None, None, (20, 40))
    problem = dataclasses.replace(problem, turned=np.array([True] * 8))
    (seen,) = pictures([photo], problem)
    assert seen.shape == (SIDE // 2, SIDE)
    assert seen[:20, :20].mean() > 0.9 and seen.mean() < 0.1  # (x, y) -> (y, width - x): the upper left
