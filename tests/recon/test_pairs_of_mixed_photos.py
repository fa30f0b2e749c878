"""Upright and wide photos through a pair prior: each comes back with its own camera and the depth of its own pixels."""

import dataclasses
import sys
import types

import pytest
import torch
from pair_scenes import depths_of, finished, predictions, walk

from recon.pose_error import relative_errors
from recon.poses.from_prior import cameras_and_depths, depths_alone
from recon.priors.learned import LEARNED_PRIORS, PriorWeights

GRID = walk(3, 64, 64)  # what the network sees: every photo in the middle of a square
DEPTH = depths_of(GRID)
SIZES = [(64, 48), (48, 64), (64, 48)]
IMAGES = [torch.full((height, width, 3), 0.5) for width, height in SIZES]


@pytest.fixture
def weights(monkeypatch):
    """Of a network that knows the scene's depth; of motion too, where the test says so."""
    module = types.ModuleType("pairs_that_know")
    module.SIDE, module.MULTIPLE, module.motion = 64, 8, True

    def predict_pairs(images, pairs, weights, device):
        assert images.shape == (3, 3, 64, 64)
        yield from ()
        found = [p.prediction for p in predictions(GRID, DEPTH, pairs)]
        for prediction in found:
            prediction.points[1] *= 1.0 if module.motion else -1.0
        return found

    module.predict_pairs = predict_pairs
    monkeypatch.setitem(sys.modules, "pairs_that_know", module)
    monkeypatch.setitem(LEARNED_PRIORS, "dust3r", dataclasses.replace(LEARNED_PRIORS["dust3r"], module="pairs_that_know"))
    return PriorWeights("dust3r", None, "w", "CC0")


def part(k):
    """The true depth of photo k's pixels."""
    width, height = SIZES[k]
    top, left = (64 - height) // 2, (64 - width) // 2
    return DEPTH[k][top : top + height, left : left + width]


def test_photos_of_two_shapes(weights):
    placed, reasons = finished(cameras_and_depths(IMAGES, list("abc"), weights, "cpu"))
    assert reasons == [None] * 3 and [(c.width, c.height) for c, _ in placed] == SIZES
    errors = relative_errors([c.cam_from_world[0] for c, _ in placed], list(GRID.cam_from_world))
    assert float(errors.max()) < 0.05
    for k, (camera, found) in enumerate(placed):
        assert found.name == "abc"[k] and float(camera.K[0, 0, 0]) == pytest.approx(64, rel=1e-3)
        ratio = found.depth / part(k)
        assert float((ratio / ratio.median() - 1).abs().quantile(0.95)) < 0.01


def test_depth_alone_needs_no_motion(weights):
    """Where cameras are known, a network that is wrong about them still says what is near and what is far."""
    sys.modules["pairs_that_know"].motion = False
    found = finished(depths_alone(IMAGES, list("abc"), weights, "cpu"))
    assert [d.name for d in found] == list("abc")
    for k, own in enumerate(found):
        ratio = own.depth / part(k)
        assert float((ratio / ratio.median() - 1).abs().quantile(0.95)) < 0.01 and float(own.confidence.min()) > 0.2


@pytest.mark.parametrize(
    ("shares", "told"), [((1.0, 1.01, 0.99), 1.0), ((1.0, 1.0, 1.3), None), ((1.0, 1.0, None), None), ((0.5, 1.0, 1.0), None)]
)
def test_a_focal_length_is_told_only_where_it_is_that_of_one_lens(weights, monkeypatch, shares, told):
    """Two lenses, or a zoom: their median would be held against the photos that have another."""
    module, asked = sys.modules["pairs_that_know"], []
    plain = module.predict_pairs

    def predict_pairs(images, pairs, weights, device, focal):
        asked.append(focal)
        return (yield from plain(images, pairs, weights, device))

    module.predict_pairs, module.TAKES_FOCAL = predict_pairs, True
    focals = [None if share is None else 64 * share for share in shares]
    placed, _ = finished(cameras_and_depths(IMAGES, list("abc"), weights, "cpu", focals))
    finished(depths_alone(IMAGES, list("abc"), weights, "cpu", focals))
    assert asked == [told if told is None else pytest.approx(told)] * 2
    assert float(placed[0][0].K[0, 0, 0]) == pytest.approx(64, rel=1e-3)
