"""What becomes of a sound solution when a wider search for the photos it leaves out ends early."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recon.features import Features
from recon.poses import PoseConfig, colmap
from recon.poses.plausibility import Judgement
from recon.poses.solution import Solution
from splat.errors import InputError, StoppedLate
from splat.progress import Progress

PAIRS = list(combinations(range(4), 2))
PHOTOS = [
    SimpleNamespace(name=f"{n}.jpg", size=(64, 48), image=torch.rand(48, 64, 3), mask=None, focal_px=None) for n in range(4)
]
SOLUTION = Solution(
    mapper="incremental",
    photos=np.arange(3),
    pose=np.tile(np.eye(3, 4), (3, 1, 1)),
    camera=np.tile([1000.0, 512, 384, 0], (3, 1)),
    points=np.array([[0.0, 0, 2]]),
    error=np.ones(1),
    seen=np.array([[0, photo, 0] for photo in range(3)]),
)
SOUND = Judgement((0, 1, 2), {}, (), None, 0.99, 50.0)
DOUBTED = Judgement((0, 1, 2), {}, ("Something is odd.",), None, 0.99, 50.0)


@pytest.fixture
def solve(monkeypatch):
    """Runs the solver with stand-ins that place the first three of four photos, until `ends` says that a round ends early."""

    def returning(value):
        yield Progress("poses", 0, 1)
        return value

    def features(photos, kind, *_):
        return returning(tuple(Features(torch.full((8, 2), 20.0), torch.zeros(8, 4), 64, 48, kind) for _ in photos))

    def run(judgement, ends):
        rounds = []

        def mapped(problem, *_):
            rounds.append(len(problem.keypoints[0]) // 8)  # kinds of features
            if rounds[-1] in ends:
                raise ends[rounds[-1]]
            return returning((SimpleNamespace(second=(), counts=np.zeros(len(PAIRS), int)), [SOLUTION]))

        monkeypatch.setattr(colmap, "map_problem", mapped)
        monkeypatch.setattr(colmap, "judge", lambda *_: judgement)
        job = colmap.solve(PHOTOS, PoseConfig())
        while True:
            try:
                next(job)
            except StopIteration as end:
                return end.value, rounds

    monkeypatch.setattr(colmap, "extract_all", features)
    monkeypatch.setattr(colmap, "match_all", lambda *_: returning(tuple(np.zeros((0, 2), np.int64) for _ in PAIRS)))
    monkeypatch.setattr(colmap, "pictures", lambda *_: [None])
    return run


@pytest.mark.parametrize("error", [StoppedLate("Too many photos."), InputError("There is no depth.")])
def test_a_round_with_affine_views_that_ends_early_costs_nothing(solve, error):
    plain, rounds = solve(SOUND, {})
    assert rounds == [1, 2, 3] and not plain.warnings
    poses, rounds = solve(SOUND, {3: error})
    assert rounds == [1, 2, 3] and poses.placed == (0, 1, 2)
    assert len(poses.warnings) == 1 and "3 photos" in poses.warnings[0] and str(error) in poses.warnings[0]
    assert torch.equal(poses.points.xyz, plain.points.xyz)


def test_a_second_round_that_runs_out_of_time_costs_nothing(solve):
    poses, rounds = solve(SOUND, {2: StoppedLate("Too many photos.")})
    assert rounds == [1, 2] and poses.placed == (0, 1, 2) and len(poses.warnings) == 1


def test_what_is_doubted_is_not_kept(solve):
    with pytest.raises(StoppedLate, match="Too many"):
        solve(DOUBTED, {2: StoppedLate("Too many photos.")})
    with pytest.raises(InputError, match="no depth"):  # more matches show what the first ones hid
        solve(SOUND, {2: InputError("There is no depth.")})
    with pytest.raises(StoppedLate, match="Too many"):
        solve(SOUND, {1: StoppedLate("Too many photos.")})
