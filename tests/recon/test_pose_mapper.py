"""The solver's processes: what becomes of a crash, of an endless one, of a cancelled job."""

import logging
import time

import numpy as np
import pytest
from test_plausibility import scene  # noqa: F401  the fixture with exact correspondences

from recon.poses import PoseConfig, colmap
from recon.poses.solution import Solution, Verified


def drained(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def test_exact_correspondences_give_exact_cameras(scene, tmp_path):  # noqa: F811
    problem, _, truth = scene
    problem.write(tmp_path / "problem.npz")
    drained(colmap.run_steps(tmp_path, ("verify",), PoseConfig()))
    verified = Verified.read(tmp_path / "verify.npz")
    assert (verified.counts == 60).all() and (verified.second == 0).all()
    drained(colmap.run_steps(tmp_path, ("incremental", "global", "cautious"), PoseConfig()))
    for mapper in ("incremental", "global", "cautious"):
        solution = Solution.read(tmp_path / f"{mapper}.npz", mapper)
        assert solution is not None and len(solution.photos) == 8, mapper
        assert solution.reprojection_error < 0.05
        for i in range(7):
            a = solution.pose[i + 1, :, :3] @ solution.pose[i, :, :3].T
            b = truth.pose[i + 1, :, :3] @ truth.pose[i, :, :3].T
            assert np.degrees(np.arccos(min(1.0, (np.trace(a @ b.T) - 1) / 2))) < 0.1, mapper
        assert abs(solution.camera[0, 0] / truth.camera[0, 0] - 1) < 0.005


def test_a_step_that_dies_is_reported_and_leaves_no_file(tmp_path, caplog):
    (tmp_path / "problem.npz").write_bytes(b"not an archive")
    with caplog.at_level(logging.WARNING):
        drained(colmap.run_steps(tmp_path, ("incremental",), PoseConfig()))
    assert "incremental" in caplog.text and "status" in caplog.text
    assert Solution.read(tmp_path / "incremental.npz", "incremental") is None


@pytest.mark.parametrize("way", ["closed", "out of time"])
def test_an_endless_step_is_ended(tmp_path, monkeypatch, way):
    endless = tmp_path / "mapper.py"
    endless.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(colmap, "__file__", str(tmp_path / "colmap.py"))
    monkeypatch.setattr(colmap, "GRACE", 0.2)
    started = time.monotonic()
    job = colmap.run_steps(tmp_path, ("verify",), PoseConfig(max_seconds=600 if way == "closed" else 0.3))
    next(job)
    job.close() if way == "closed" else drained(job)
    assert time.monotonic() - started < 10


def test_every_step_maps_from_a_database_of_its_own(tmp_path):
    """Two mappers that run at once on one SQLite file lock each other out now and then."""
    from recon.poses.mapper import own_database

    (tmp_path / "database.db").write_bytes(b"matches")
    copies = [own_database(tmp_path, step) for step in ("incremental-15", "global")]
    assert len({tmp_path / "database.db", *copies}) == 3
    assert [c.read_bytes() for c in copies] == [b"matches"] * 2
