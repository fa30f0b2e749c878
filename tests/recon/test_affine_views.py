"""Patterns seen from very different sides, and which pairs of photos are matched so."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from synthetic_scenes import speckle

from recon.affine_views import _view
from recon.features import FeatureConfig, extract, match
from recon.poses.colmap import agree, wide_pairs
from recon.poses.plausibility import Judgement

AFFINE = FeatureConfig(kind="affine", max_keypoints=2100)


def seen_from(texture, elevation_deg, turned_deg, size=(240, 320)):
    """A square on the ground photographed from an elevation, and where each of its points [N, 2] in [0, 1] lies."""
    e, t = np.radians(elevation_deg), np.radians(turned_deg)
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * 0.9
    around = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    down = np.array([[1, 0, 0], [0, -np.sin(e), -np.cos(e)], [0, np.cos(e), -np.sin(e)]])
    in_camera = corners @ around.T @ down.T + [0, 0, 3.5]
    pixels = in_camera[:, :2] / in_camera[:, 2:] * 330 + [size[1] / 2, size[0] / 2]
    side = texture.shape[0]
    square = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    ground = cv2.getPerspectiveTransform(square / side, pixels.astype(np.float32))
    shift = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    big = np.diag([4.0, 4, 1]) @ ground @ np.diag([1 / side, 1 / side, 1])  # four times as large, then averaged
    fine = cv2.warpPerspective(texture, shift @ big @ np.linalg.inv(shift), (4 * size[1], 4 * size[0]))
    image = cv2.resize(fine, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(image), lambda points: cv2.perspectiveTransform(points[None].astype(np.float64), ground)[0]


def right_matches(config):
    texture = speckle(np.random.default_rng(0), 768)
    (first, to_first), (second, to_second) = (seen_from(texture, 22, turn) for turn in (0, 75))
    a, b = extract(first, config), extract(second, config)
    pairs = match(a, b, config)
    inverse = cv2.getPerspectiveTransform(
        to_first(np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])).astype(np.float32),
        np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32),
    )
    on_ground = cv2.perspectiveTransform(a.keypoints[pairs[:, 0]][None].double().numpy(), inverse)[0]
    error = np.linalg.norm(to_second(on_ground) - b.keypoints[pairs[:, 1]].numpy(), axis=1)
    return pairs, error


def test_a_floor_seen_at_a_grazing_angle_from_two_sides_matches():
    _, plain_error = right_matches(FeatureConfig(kind="sift"))
    pairs, error = right_matches(AFFINE)
    right = error < 2
    assert right.sum() >= 60 and right.mean() > 0.7, (right.sum(), len(pairs))
    assert right.sum() > 3 * (plain_error < 2).sum()
    assert np.median(error[right]) < 0.6
    for side in (0, 1):
        assert len(pairs[:, side].unique()) == len(pairs)


def test_keypoints_of_several_views_at_one_place_are_one():
    features = extract(torch.from_numpy(speckle(np.random.default_rng(1), 256)), AFFINE)
    assert (features.keypoints > 0).all() and (features.keypoints < 256).all()
    places = features.keypoints.unique(dim=0)
    assert len(places) < 0.9 * len(features)
    assert torch.allclose(features.descriptors.norm(dim=1), torch.ones(len(features)), atol=1e-3)
    same = match(features, features, AFFINE)
    assert torch.equal(same[:, 0], same[:, 1])  # the first row of a place speaks for all
    assert len(extract(torch.full((64, 64, 3), 0.5), AFFINE)) == 0


@pytest.mark.parametrize("squeeze, direction", [(1, 0), (2, 0), (4, 90), (2, 45)])
def test_a_view_says_where_its_pixels_come_from(squeeze, direction):
    picture = np.zeros((120, 160), np.uint8)
    cv2.circle(picture, (100, 40), 7, 255, -1)
    view, linear, shift = _view(picture, squeeze, direction)
    row, column = (
        axis @ view.astype(float).ravel() / view.sum() for axis in np.mgrid[: view.shape[0], : view.shape[1]].reshape(2, -1)
    )
    assert np.allclose(linear @ [100, 40] + shift, [column, row], atol=0.1)
    assert abs(np.linalg.det(linear)) == pytest.approx(1)


def attempt(kept, turns):
    pose = np.zeros((len(turns), 3, 4))
    for row, angle in enumerate(np.radians(turns)):
        pose[row, :, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    solution = SimpleNamespace(photos=np.arange(len(turns)), pose=pose)
    return SimpleNamespace(solution=solution, judgement=Judgement(kept, {}, (), None, 1.0, 1.0))


def test_a_wider_solution_must_turn_the_core_as_before():
    core = attempt((0, 1, 2), [0, 30, 60])
    assert agree(core, attempt((0, 1, 2, 3), [50, 80, 111, 140]))  # the world may be turned
    assert not agree(core, attempt((0, 1, 2, 3), [0, 30, 100, 90]))
    assert not agree(core, attempt((0, 1, 3), [0, 30, 60, 90]))  # a photo of the core is lost
    assert not agree(core, attempt((0, 1, 2), [0, 30, 60]))  # no photo is won


def test_only_pairs_that_can_hang_a_photo_on_the_others_are_matched():
    pairs = np.array([(i, j) for i in range(8) for j in range(i + 1, 8)])
    shared = np.array([100 - 10 * (j - i) for i, j in pairs])
    verified = SimpleNamespace(counts=np.where(pairs.max(axis=1) == 7, 0, shared))
    problem = SimpleNamespace(pairs=pairs, matches=[np.zeros((n, 2)) for n in shared], keypoints=[None] * 8)
    core = SimpleNamespace(problem=problem, verified=verified, judgement=attempt(tuple(range(7)), [0]).judgement)
    chosen = wide_pairs(core, neighbours=2)
    assert {pair for pair in chosen if 7 in pair} == {(5, 7), (6, 7)}  # the two likeliest partners
    assert {pair for pair in chosen if 7 not in pair} == {(4, 5), (5, 6), (4, 6)}  # and their own surest pairs
