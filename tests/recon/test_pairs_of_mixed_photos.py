"""Upright and wide photos through a pair prior: each comes back with its own camera and the depth of its own pixels."""

import dataclasses
import sys
import types

import pytest
import torch
from pair_scenes import depths_of, finished, predictions, walk

from recon.pose_error import relative_errors
from recon.poses.from_prior import cameras_and_depths
from recon.priors.learned import LEARNED_PRIORS, PriorWeights

GRID = walk(3, 64, 64)  # what the network sees: every photo in the middle of a square
SIZES = [(64, 48), (48, 64), (64, 48)]


def test_photos_of_two_shapes(monkeypatch):
    module = types.ModuleType("pairs_that_know")
    module.SIDE, module.MULTIPLE = 64, 8
    depth = depths_of(GRID)

    def predict_pairs(images, pairs, weights, device):
        assert images.shape == (3, 3, 64, 64)
        yield from ()
        return [p.prediction for p in predictions(GRID, depth, pairs)]

    module.predict_pairs = predict_pairs
    monkeypatch.setitem(sys.modules, "pairs_that_know", module)
    monkeypatch.setitem(LEARNED_PRIORS, "dust3r", dataclasses.replace(LEARNED_PRIORS["dust3r"], module="pairs_that_know"))
    images = [torch.full((height, width, 3), 0.5) for width, height in SIZES]
    placed, reasons = finished(cameras_and_depths(images, list("abc"), PriorWeights("dust3r", None, "w", "CC0"), "cpu"))
    assert reasons == [None] * 3 and [(c.width, c.height) for c, _ in placed] == SIZES
    errors = relative_errors([c.cam_from_world[0] for c, _ in placed], list(GRID.cam_from_world))
    assert float(errors.max()) < 0.05
    for (camera, found), truth, name, (width, height) in zip(placed, depth, "abc", SIZES):
        assert found.name == name and found.depth.shape == (height, width)
        assert float(camera.K[0, 0, 0]) == pytest.approx(64, rel=1e-3)
        top, left = (64 - height) // 2, (64 - width) // 2
        ratio = found.depth / truth[top : top + height, left : left + width]
        assert float((ratio / ratio.median() - 1).abs().quantile(0.95)) < 0.01
