"""Global alignment: exact predictions give exact cameras; faults of a network are outvoted; hostile ones are refused."""

import dataclasses
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
import torch
from pair_scenes import depths_of, finished, prediction, predictions, walk

from recon.align_pairs import AlignPairsConfig, PairPrediction, Window, _assembled, align_pairs
from recon.pair_refine import Fit, State, _Problem, _se3_exp
from recon.pair_samples import first_focal, first_motion, sampled_pixels, samples_of, weighted_median
from recon.pose_error import poses_of, relative_errors
from recon.priors import StereoPrediction
from splat.errors import InputError, StoppedLate

FIVE = walk(5)
DEPTH = depths_of(FIVE)
CHAIN = [(i, j) for i, j in combinations(range(5), 2) if j - i <= 2]
SIZES = [(64, 48)] * 5


def errors_deg(found, cameras=FIVE):
    return relative_errors(poses_of(found.cameras), list(cameras.cam_from_world))


def test_exact_predictions_give_exact_cameras():
    found = finished(align_pairs(SIZES, predictions(FIVE, DEPTH, CHAIN)))
    assert float(errors_deg(found).max()) < 0.01
    assert found.focal == pytest.approx(1.0, abs=1e-4) and found.error < 0.01
    assert found.reasons == (None,) * 5 and min(found.scales) > 0
    unit = torch.stack([d.depth for d in found.depths]) / DEPTH  # one scale for all photos
    assert float(unit.std() / unit.mean()) < 1e-3


def test_scales_are_those_of_the_predictions():
    found = finished(
        align_pairs(SIZES, [prediction(FIVE, DEPTH, i, j, np.random.default_rng(0), scale=1 + i + j) for i, j in CHAIN])
    )
    products = np.array(found.scales) * [1 + i + j for i, j in CHAIN]
    assert products == pytest.approx(np.full(len(CHAIN), products[0]), rel=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_outliers_and_a_wrong_pair(seed):
    """3 % noise, 20 % of the pixels anywhere, one pair of another place."""
    pairs = predictions(FIVE, DEPTH, CHAIN, seed, noise=0.03, outliers=0.2)
    elsewhere = prediction(FIVE, DEPTH, 4, 0, np.random.default_rng(9), noise=0.03)
    pairs[2] = dataclasses.replace(elsewhere, first=pairs[2].first, second=pairs[2].second)
    found = finished(align_pairs(SIZES, pairs))
    assert float(errors_deg(found).max()) < 2.5 and float(errors_deg(found).mean()) < 1.5
    assert found.focal == pytest.approx(1.0, abs=0.02)
    assert found.scales[2] == 0 and sum(scale > 0 for scale in found.scales) == len(CHAIN) - 1
    ratio = torch.cat([(d.depth / true)[d.confidence > 0.5] for d, true in zip(found.depths, DEPTH)])
    assert float((ratio / ratio.median() - 1).abs().median()) < 0.02


def test_alignment_is_better_than_any_tree():
    """What all pairs say together beats the first guess along a spanning tree."""
    pairs = predictions(FIVE, DEPTH, list(combinations(range(5), 2)), 3, noise=0.05, outliers=0.1)
    whole = finished(align_pairs(SIZES, pairs))
    tree = finished(align_pairs(SIZES, pairs, AlignPairsConfig(iterations=0)))
    assert float(errors_deg(whole).mean()) < 0.7 * float(errors_deg(tree).mean())


def test_two_photos_and_both_orders():
    found = finished(align_pairs(SIZES[:2], predictions(FIVE, DEPTH, [(0, 1), (1, 0)], noise=0.01)))
    assert float(errors_deg(found, FIVE[:2]).max()) < 0.5 and all(s > 0 for s in found.scales)


def test_it_is_deterministic_and_blind_to_scale_and_frame():
    """Predictions ten times larger are the same predictions; the world is a photo's camera, median depth 1."""
    pairs = predictions(FIVE, DEPTH, CHAIN, noise=0.02)
    a, b = (finished(align_pairs(SIZES, pairs)) for _ in range(2))
    assert all(torch.equal(x.cam_from_world, y.cam_from_world) for x, y in zip(a.cameras, b.cameras))
    larger = [
        dataclasses.replace(p, prediction=StereoPrediction(10 * p.prediction.points, p.prediction.confidence)) for p in pairs
    ]
    c = finished(align_pairs(SIZES, larger))
    torch.testing.assert_close(
        torch.cat([x.cam_from_world for x in a.cameras]), torch.cat([x.cam_from_world for x in c.cameras]), atol=1e-4, rtol=1e-4
    )
    assert any(torch.equal(x.cam_from_world[0], torch.eye(4)) for x in a.cameras)
    assert float(torch.stack([d.depth for d in a.depths]).median()) == pytest.approx(1.0, abs=0.1)


def test_a_known_focal_length_is_kept():
    pairs = predictions(FIVE, DEPTH, CHAIN, noise=0.03)
    found = finished(align_pairs(SIZES, pairs, AlignPairsConfig(focal=1.0, refine_focal=False)))
    assert found.focal == 1.0 and float(errors_deg(found).max()) < 1.5


def test_focal_length_and_motion_of_one_pair():
    pair = predictions(FIVE, DEPTH, [(0, 2)], outliers=0.2)[0]
    pixels = sampled_pixels(48, 64, 600)
    places = np.stack([(pixels % 64 + 0.5 - 32) / 64, (pixels // 64 + 0.5 - 24) / 64], -1)
    inside = np.ones(len(pixels), bool)
    samples = samples_of(0, 2, pair.prediction, pixels, (inside, inside), 0.05)
    assert 500 < len(pixels) < 800 and first_focal(samples, places) == pytest.approx(1.0, abs=0.02)
    motion = first_motion(samples, places, 1.0)
    truth = (FIVE.cam_from_world[2] @ torch.linalg.inv(FIVE.cam_from_world[0])).double().numpy()
    assert np.abs(motion.rotation - truth[:3, :3]).max() < 0.01 and 0.3 < motion.quality < 0.6
    assert weighted_median(np.array([3.0, 1, 2]), np.array([1.0, 1, 5])) == 2


def test_windows_place_a_grid_in_its_photo():
    """The same predictions, of photos twice as large whose middle part is the grid, or whose letterbox it is."""
    cameras = walk(3, 64, 48, focal=1.0)
    pairs = predictions(cameras, DEPTH, [(0, 1), (1, 2), (0, 2)])
    cropped = finished(align_pairs([(160, 120)] * 3, pairs, windows=[Window(16, 12, 128, 96)] * 3))
    assert cropped.focal * 160 == pytest.approx(128, rel=1e-3)  # the window's 64 pixels of focal length, twice as large
    assert float(errors_deg(cropped, cameras).max()) < 0.01
    assert cropped.depths[0].depth.shape == (60, 80) and int((cropped.depths[0].depth > 0).sum()) == 64 * 48
    boxed = finished(align_pairs([(64, 32)] * 3, pairs, windows=[Window(0, -8, 64, 48)] * 3))
    assert boxed.depths[0].depth.shape == (32, 64) and float(errors_deg(boxed, cameras).max()) < 0.01


def test_a_photo_apart_is_left_out_with_a_reason():
    pairs = predictions(FIVE, DEPTH, [(0, 1), (1, 2), (0, 2)])
    found = finished(align_pairs(SIZES, pairs))
    assert [c is None for c in found.cameras] == [False] * 3 + [True] * 2
    assert all("ties it" in r for r in found.reasons[3:]) and found.depths[4] is None
    two_groups = predictions(FIVE, DEPTH, [(0, 1), (1, 2), (3, 4)])
    assert [c is None for c in finished(align_pairs(SIZES, two_groups)).cameras] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("tie", [(3, 4), (4, 3)])
def test_a_photo_tied_only_by_a_pair_that_lost_its_trust_is_left_out(tie):
    """The pair of photo 4 looks fair alone, and next to the exact others it is not believed."""
    good = predictions(FIVE, DEPTH, [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)])
    found = finished(align_pairs(SIZES, [*good, prediction(FIVE, DEPTH, *tie, np.random.default_rng(1), noise=0.05)]))
    assert found.scales[5] == 0 and min(found.scales[:5]) > 0 and found.facts["pairs_used"] == 5
    assert found.cameras[4] is None and found.depths[4] is None and "ties it" in found.reasons[4]
    assert found.reasons[:4] == (None,) * 4 and all((d.depth > 0).any() for d in found.depths[:4])


def test_the_largest_group_of_trusted_pairs_stays_and_has_a_world_of_its_own():
    """Two exact groups that one doubtful pair joins: the larger one is the result, in one of its own photos' frames."""
    cameras = walk(7)
    depth = depths_of(cameras)
    pairs = predictions(cameras, depth, [(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (5, 6), (3, 5), (4, 6)])
    pairs.append(prediction(cameras, depth, 2, 3, np.random.default_rng(1), noise=0.05))
    found = finished(align_pairs([(64, 48)] * 7, pairs))
    assert [c is None for c in found.cameras] == [True] * 3 + [False] * 4
    assert found.scales[:3] == (0,) * 3 and found.scales[8] == 0
    assert any(torch.equal(c.cam_from_world[0], torch.eye(4)) for c in found.cameras[3:])
    errors = relative_errors([c.cam_from_world[0] for c in found.cameras[3:]], list(cameras.cam_from_world[3:]))
    assert float(errors.max()) < 0.1
    assert float(torch.stack([d.depth for d in found.depths[3:]]).median()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("root", [0, 4])
def test_a_root_that_is_left_out_gives_its_world_to_another_photo(root):
    pairs = predictions(FIVE, DEPTH, [(0, 1), (1, 2), (0, 2), (3, 4)])
    pixels = sampled_pixels(48, 64, 100)
    inside = np.ones(len(pixels), bool)
    samples = [samples_of(p.first, p.second, p.prediction, pixels, (inside, inside), 0.05) for p in pairs]
    state = State({k: pose.double().numpy() for k, pose in enumerate(FIVE.cam_from_world)}, np.zeros(4), 0.0)
    state.poses.update({k: pose @ np.linalg.inv(state.poses[root]) for k, pose in list(state.poses.items())})
    shape = (4, 2, len(pixels))
    fit = Fit(np.zeros((*shape, 2)), np.zeros(shape), np.ones(shape), (1e-3, 1e-3), np.ones(4))
    whole = [Window(0, 0, 64, 48)] * 5
    found = _assembled(SIZES, pairs, whole, range(4), samples, root, state, fit, AlignPairsConfig())
    assert [c is None for c in found.cameras] == [False] * 3 + [True] * 2
    assert torch.allclose(found.cameras[0].cam_from_world[0], torch.eye(4), atol=1e-6)


def test_derivatives_are_those_of_the_residuals():
    """The slope of the cost, poses, scales, focal length and eliminated depths, against differences."""
    pixels = sampled_pixels(48, 64, 60)
    places = np.stack([np.stack([(pixels % 64 + 0.5 - 32) / 64, (pixels // 64 + 0.5 - 24) / 64], -1)] * 3)
    inside = np.ones(len(pixels), bool)
    three = [(0, 1), (1, 2), (0, 2)]
    pairs = predictions(FIVE, DEPTH, three, noise=0.05)
    samples = [samples_of(i, j, p.prediction, pixels, (inside, inside), 0.05) for (i, j), p in zip(three, pairs)]
    rng = np.random.default_rng(0)
    truth = FIVE.cam_from_world.double().numpy()
    poses = {k: _se3_exp(0.05 * rng.standard_normal(6)) @ truth[k] for k in range(3)}
    state = State(poses, np.array([np.log(s.unit) for s in samples]) + 0.1 * rng.standard_normal(3), 0.1)
    problem = _Problem(samples, places, [0, 1, 2], {1: 0, 2: 6}, True)
    fit = problem.explain(state)
    weights = problem.weights(state, fit)
    _, slope, cost = problem.normal_equations(state, fit, weights)
    assert cost == pytest.approx(problem.cost(state, weights))
    for k in range(problem.size):
        step = np.zeros(problem.size)
        step[k] = 1e-6
        ahead, back = problem.cost(problem.moved(state, step), weights), problem.cost(problem.moved(state, -step), weights)
        assert (ahead - back) / 4e-6 == pytest.approx(slope[k], rel=1e-3, abs=1e-4 * np.abs(slope).max()), k


def test_memory_grows_with_the_pairs_not_with_their_pixels():
    """What alignment itself holds; predictions may lie on disk."""

    def peak(count):
        cameras = walk(count, step_deg=8)
        pairs = predictions(cameras, depths_of(cameras), [(i, i + 1) for i in range(count - 1)], noise=0.01)
        tracemalloc.start()
        finished(align_pairs([(64, 48)] * count, pairs, AlignPairsConfig(samples=100, iterations=2)))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(3)  # what is imported on the way
    small, large = peak(5), peak(17)
    assert large < 4.6 * small  # 4 times the pairs


@pytest.mark.parametrize("fault", ["nan", "zero", "behind", "huge", "one point"])
def test_useless_predictions_are_refused(fault):
    points, confidence = torch.ones(2, 48, 64, 3), torch.full((2, 48, 64), 0.9)
    if fault == "nan":
        points[...] = torch.nan
    elif fault == "zero":
        confidence[...] = 0
    elif fault == "behind":
        points[..., 2] = -1
    elif fault == "huge":
        points[...] = 3e38
    with pytest.raises(StoppedLate, match="photos"):
        finished(align_pairs(SIZES, [PairPrediction(0, 1, StereoPrediction(points, confidence))]))


def test_some_bad_values_do_no_harm():
    pairs = predictions(FIVE, DEPTH, CHAIN)
    for pair in pairs:
        pair.prediction.points[:, ::7, ::5] = torch.nan
        pair.prediction.points[:, 3::7, ::5] = torch.inf
        pair.prediction.confidence[:, ::5, ::3] = torch.nan
    found = finished(align_pairs(SIZES, pairs))
    assert float(errors_deg(found).max()) < 0.05
    assert all(d.depth.isfinite().all() and d.confidence.isfinite().all() for d in found.depths)


def test_what_cannot_be_aligned_is_said_in_a_sentence():
    pair = predictions(FIVE, DEPTH, [(0, 1)])[0]
    small = StereoPrediction(torch.ones(2, 40, 64, 3), torch.ones(2, 40, 64))
    tiny = StereoPrediction(torch.ones(2, 4, 4, 3), torch.ones(2, 4, 4))
    for sizes, pairs, message in (
        (SIZES[:1], [pair], "at least 2 photos"),
        (SIZES, [], "no prediction"),
        (SIZES, [dataclasses.replace(pair, second=7)], "photos 0 and 7 of 5"),
        (SIZES, [dataclasses.replace(pair, second=0)], "two different"),
        (SIZES, [pair, PairPrediction(1, 2, small)], "2 pixel grids"),
        (SIZES, [PairPrediction(0, 1, tiny)], "too few"),
    ):
        with pytest.raises(InputError, match=message):
            finished(align_pairs(sizes, pairs))
