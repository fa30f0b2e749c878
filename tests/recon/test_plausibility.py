"""The gate, on exact correspondences of made-up cameras: what it lets pass and what it stops."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from recon.poses import plausibility
from recon.poses.solution import NOMINAL_SIDE, Problem, Solution, Verified
from splat.errors import InputError

NAMES = [f"p{i}" for i in range(8)]
FOCAL = 1.2 * NOMINAL_SIDE
MIDDLE = np.array([512.0, 384.0])
NOTHING = np.zeros((0, 2), np.int64)


def turn_y(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def walk(count=8, step_deg=15.0):
    """cam_from_world of cameras on an arc of radius 4 that look at the origin."""
    return np.array([np.column_stack([turn_y(np.radians(step_deg * i)), [0, 0, 4.0]]) for i in range(count)])


def project(points, pose):
    in_cam = points @ pose[:, :3].T + pose[:, 3]
    return in_cam[:, :2] / in_cam[:, 2:] * FOCAL + MIDDLE


@pytest.fixture
def scene():
    """Eight cameras, neighbours up to two steps apart share matches of 60 points each; everything exact."""
    return exact_scene(step_deg=15.0)


def exact_scene(step_deg):
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (300, 3))
    poses = walk(step_deg=step_deg)
    keypoints = tuple(project(points, pose) for pose in poses)
    pairs = np.array([(i, j) for i, j in combinations(range(8), 2) if j - i <= 2])
    rows = [np.arange(30 * i, 30 * i + 60) for i, j in pairs]
    matches = tuple(np.column_stack([r, r]) for r in rows)
    problem = Problem(
        keypoints=keypoints,
        scale=np.ones(8),
        turned=np.zeros(8, bool),
        cameras=np.array([[1024.0, 768.0, FOCAL, 1.0]]),
        camera_of_photo=np.zeros(8, np.int64),
        pairs=pairs,
        matches=matches,
        refine_focal=True,
        refine_distortion=True,
        exact=True,
        seed=0,
        max_cpu_seconds=10.0,
    )
    count = len(pairs)
    verified = Verified(("CALIBRATED",) * count, matches, np.zeros((count, 3, 4)), np.zeros(count), (NOTHING,) * count)
    seen = np.array(
        sorted(
            {(p, i, p) for (i, j), r in zip(pairs, rows) for p in r} | {(p, j, p) for (i, j), r in zip(pairs, rows) for p in r}
        )
    )
    camera = np.tile([FOCAL, *MIDDLE, 0.0], (8, 1))
    solution = Solution("incremental", np.arange(8), poses, camera, points, np.zeros(300), seen)
    return problem, verified, solution


def test_a_true_solution_passes_without_a_word(scene):
    judgement = plausibility.judge(*scene, NAMES)
    assert judgement.kept == tuple(range(8)) and not judgement.dropped and not judgement.warnings
    assert judgement.explained == 1.0 and judgement.anchors >= plausibility.ANCHORED


def test_the_whole_world_may_be_moved_and_scaled(scene):
    problem, verified, solution = scene
    rotation, scale, shift = turn_y(0.7), 3.0, np.array([1.0, 2, -5])
    pose = solution.pose.copy()  # x' = s R x + t
    pose[:, :, :3] = solution.pose[:, :, :3] @ rotation.T
    pose[:, :, 3] = scale * solution.pose[:, :, 3] - pose[:, :, :3] @ shift
    moved = dataclasses.replace(solution, pose=pose, points=scale * solution.points @ rotation.T + shift)
    assert plausibility.judge(problem, verified, moved, NAMES).explained == 1.0


def test_a_fold_parts_the_photos(scene):
    """The last three cameras turned as a block to a wrong place: their own pairs still agree, the joint does not."""
    problem, verified, solution = scene
    pose = solution.pose.copy()
    wrong = np.column_stack([turn_y(np.radians(140)), [0.3, 0, 0]])
    for i in (5, 6, 7):
        pose[i] = np.column_stack([pose[i][:, :3] @ wrong[:, :3], pose[i][:, :3] @ wrong[:, 3] + pose[i][:, 3]])
    judgement = plausibility.judge(problem, verified, dataclasses.replace(solution, pose=pose), NAMES)
    assert judgement.kept == (0, 1, 2, 3, 4)
    assert set(judgement.dropped) == {5, 6, 7} and all("contradicts" in r for r in judgement.dropped.values())
    assert len(judgement.warnings) == 1 and "p3 and p5" in judgement.warnings[0], "the photos kept may be the wrong ones"


def test_a_strong_pair_left_unexplained_is_mentioned(scene):
    """Photos 0 and 7 match (look-alike sides) but stand far apart: the solution holds, with a warning that names them."""
    problem, verified, solution = scene
    false = np.column_stack([np.arange(45), np.arange(200, 245)])
    problem = dataclasses.replace(problem, pairs=np.vstack([problem.pairs, [0, 7]]), matches=(*problem.matches, false))
    verified = dataclasses.replace(verified, inliers=(*verified.inliers, false), second=(*verified.second, NOTHING))
    judgement = plausibility.judge(problem, verified, solution, NAMES)
    assert judgement.kept == tuple(range(8))
    assert len(judgement.warnings) == 1 and "p0 and p7" in judgement.warnings[0]


def test_pairs_that_match_in_two_ways_are_mentioned(scene):
    """A box with the same wall on all sides folds without a contradiction; the matches of its top do not fit then."""
    problem, verified, solution = scene
    second = list(verified.second)
    second[3] = np.column_stack([np.arange(100, 130), np.arange(200, 230)])
    judgement = plausibility.judge(problem, dataclasses.replace(verified, second=tuple(second)), solution, NAMES)
    assert judgement.kept == tuple(range(8)) and len(judgement.warnings) == 1 and "two different ways" in judgement.warnings[0]


def test_a_photo_that_no_third_photo_anchors_is_dropped(scene):
    """Photo 7 tied to photo 6 alone: its distance from the others is free, however well the pair agrees."""
    problem, verified, solution = scene
    use = [n for n, (i, j) in enumerate(problem.pairs) if j != 7 or i == 6]
    problem = dataclasses.replace(problem, pairs=problem.pairs[use], matches=tuple(problem.matches[n] for n in use))
    verified = dataclasses.replace(
        verified, inliers=tuple(verified.inliers[n] for n in use), second=tuple(verified.second[n] for n in use)
    )
    only_pair = np.array([(p, photo, p) for p in range(240, 300) for photo in (6, 7)])
    others = solution.seen[(solution.seen[:, 1] != 7) & (solution.seen[:, 0] < 240)]
    solution = dataclasses.replace(solution, seen=np.vstack([others, only_pair]))
    judgement = plausibility.judge(problem, verified, solution, NAMES)
    assert 7 not in judgement.kept and "two other photos" in judgement.dropped[7]


def hinged(scene, second_scale):
    """Photos 0-4 and 4-7 see no point in common but for photo 4, and the second group has a scale of its own."""
    problem, verified, solution = scene
    use = [n for n, (i, j) in enumerate(problem.pairs) if j <= 4 or i >= 4]
    problem = dataclasses.replace(problem, pairs=problem.pairs[use], matches=tuple(problem.matches[n] for n in use))
    verified = dataclasses.replace(
        verified, inliers=tuple(verified.inliers[n] for n in use), second=tuple(verified.second[n] for n in use)
    )
    pose = solution.pose.copy()
    for i in (5, 6, 7):  # centre c -> c4 + scale (c - c4), the points of the group likewise
        center = solution.centers[4] + second_scale * (solution.centers[i] - solution.centers[4])
        pose[i, :, 3] = -pose[i, :, :3] @ center
    first = solution.seen[(solution.seen[:, 1] <= 4)]
    second = solution.seen[(solution.seen[:, 1] >= 4)] + np.array([300, 0, 0])
    seen = np.vstack([first, second])
    points = np.vstack([solution.points, solution.centers[4] + second_scale * (solution.points - solution.centers[4])])
    return problem, verified, dataclasses.replace(solution, pose=pose, points=points, error=np.zeros(600), seen=seen)


@pytest.mark.parametrize("second_scale", [1.0, 3.0])
def test_a_group_that_hangs_on_one_photo_has_no_scale(scene, second_scale):
    """Every match is explained whatever the scale, so nothing but the missing common points can tell."""
    judgement = plausibility.judge(*hinged(scene, second_scale), NAMES)
    assert judgement.explained == 1.0
    assert judgement.kept == (0, 1, 2, 3, 4) and all("two other photos" in judgement.dropped[p] for p in (5, 6, 7))


@pytest.mark.parametrize("step_deg, kept", [(30.0, 8), (5.0, 0)])
def test_a_triangle_of_pairs_has_a_scale_unless_it_is_flat(step_deg, kept):
    """No point is seen by three photos here, but the directions between three photos that form a triangle fix its shape."""
    problem, verified, solution = exact_scene(step_deg)
    pairs = [
        (300 * n + p, photo, p) for n, pair in enumerate(problem.pairs) for p in problem.matches[n][:, 0] for photo in pair
    ]
    points = np.tile(solution.points, (len(problem.pairs), 1))
    solution = dataclasses.replace(solution, points=points, error=np.zeros(len(points)), seen=np.array(pairs))
    assert len(plausibility.judge(problem, verified, solution, NAMES).kept) == kept


@pytest.mark.parametrize("count, word", [(2, "no third"), (8, "2 of 8 photos agree")])
def test_two_photos_alone_are_never_trusted_silently(scene, count, word):
    """Two photos explain all of their own matches whatever they show: of two it is said, of eight it is too few."""
    problem, verified, solution = scene
    problem = dataclasses.replace(problem, keypoints=problem.keypoints[:count])
    use = [n for n, pair in enumerate(problem.pairs) if (pair < 2).all()]
    problem = dataclasses.replace(problem, pairs=problem.pairs[use], matches=tuple(problem.matches[n] for n in use))
    verified = dataclasses.replace(
        verified, inliers=tuple(verified.inliers[n] for n in use), second=tuple(verified.second[n] for n in use)
    )
    seen = solution.seen[solution.seen[:, 1] < 2]
    fields = {name: getattr(solution, name)[:2] for name in ("photos", "pose", "camera")}
    judgement = plausibility.judge(problem, verified, dataclasses.replace(solution, seen=seen, **fields), NAMES)
    assert word in (judgement.refusal or " ".join(judgement.warnings))
    assert (judgement.kept == ()) == (count == 8)


@pytest.mark.parametrize("ratio", [0.3, 9.0])
def test_an_impossible_focal_length_is_refused(scene, ratio):
    problem, verified, solution = scene
    camera = solution.camera.copy()
    camera[:, 0] = ratio * NOMINAL_SIDE
    judgement = plausibility.judge(problem, verified, dataclasses.replace(solution, camera=camera), NAMES)
    assert judgement.kept == () and f"{ratio:.2f} times" in judgement.refusal


def test_turning_on_the_spot_and_standing_still(scene):
    problem, verified, _ = scene
    plausibility.check_motion(NAMES, problem, verified)  # a walk is fine
    points = np.random.default_rng(1).uniform((-1, -1, 5), (1, 1, 7), (300, 3))
    for step, words in ((0.06, "one spot"), (0.0, "same picture")):
        spot = tuple(project(points, np.column_stack([turn_y(step * i), np.zeros(3)])) for i in range(8))
        for known in (1.0, 0.0):
            cameras = problem.cameras * [1, 1, 1, 0] + [0, 0, 0, known]
            turned = dataclasses.replace(problem, keypoints=spot, cameras=cameras)
            with pytest.raises(InputError, match=words):
                plausibility.check_motion(NAMES, turned, verified)


def test_a_flat_scene_seen_from_many_places_is_no_turn(scene):
    problem, verified, solution = scene
    points = solution.points * [1, 1, 0]
    flat = tuple(project(points, pose) for pose in solution.pose)
    plausibility.check_motion(NAMES, dataclasses.replace(problem, keypoints=flat), verified)


def test_the_minimum_cut_is_the_weakest_bridge():
    weight = np.zeros((5, 5))
    for i, j, w in ((0, 1, 90), (1, 2, 7), (2, 3, 80), (3, 4, 60), (2, 4, 50)):
        weight[i, j] = weight[j, i] = w
    value, side = plausibility.minimum_cut(weight, range(5), 0, 4)
    assert value == 7 and side == (0, 1)
