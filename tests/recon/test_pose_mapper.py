"""The solver's processes: what becomes of a crash, of an endless one, of a cancelled job."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_plausibility import scene  # noqa: F401  the fixture with exact correspondences

from recon.poses import PoseConfig, colmap
from recon.poses.solution import Solution, Verified

SOLVER = Path(colmap.__file__).with_name("mapper.py")


def drained(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def test_exact_correspondences_give_exact_cameras(scene, tmp_path, caplog):  # noqa: F811
    problem, _, truth = scene
    problem.write(tmp_path / "problem.npz")
    drained(colmap.run_steps(tmp_path, ("verify",), PoseConfig()))
    verified = Verified.read(tmp_path / "verify.npz")
    assert (verified.counts == 60).all() and (verified.second_counts == 0).all()
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
    assert "status" not in caplog.text  # every step ended well
    folders = sorted(path.name for path in tmp_path.glob("models-*"))
    assert len(folders) == 3, f"mappers that share a folder for their models race to make model 0: {folders}"


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
    monkeypatch.setattr(colmap, "PATIENCE", 1.0)
    started = time.monotonic()
    job = colmap.run_steps(tmp_path, ("verify",), PoseConfig(max_cpu_seconds=600 if way == "closed" else 0.3))
    next(job)
    job.close() if way == "closed" else drained(job)
    assert time.monotonic() - started < 10


def test_the_limit_counts_computing_not_waiting(tmp_path):
    """A second of the limit is a second of one core's work: a busy machine changes nothing in what comes out."""
    script = f"import sys; sys.path.insert(0, {str(SOLVER.parent)!r}); import mapper; mapper.limit_cpu(1); {{}}"
    waiting = subprocess.run([sys.executable, "-c", script.format("import time; time.sleep(1.5)")], check=False)
    working = subprocess.run([sys.executable, "-c", script.format("\nwhile True: pass")], check=False, timeout=60)
    assert waiting.returncode == 0 and working.returncode == -signal.SIGXCPU


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the list of children that Linux keeps")
def test_no_step_outlives_a_job_that_is_killed(tmp_path):
    os.mkfifo(tmp_path / "problem.npz")  # nobody writes to it: the step waits for ever
    job = "from pathlib import Path; from recon.poses import PoseConfig, colmap; import time; "
    job += f"steps = colmap.run_steps(Path({str(tmp_path)!r}), ('verify',), PoseConfig()); next(steps); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", job])
    try:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        step = until(lambda: children.read_text().split())[0]
        assert until(lambda: b"mapper.py" in Path(f"/proc/{step}/cmdline").read_bytes())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert until(lambda: ended(step))
    finally:
        parent.kill()
        parent.wait()


def ended(process):
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()  # only its entry is left, to be read by init
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(found, seconds=30):
    """What `found` returns as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def test_every_step_maps_from_a_database_of_its_own(tmp_path):
    """Two mappers that run at once on one SQLite file lock each other out now and then."""
    from recon.poses.mapper import own_database

    (tmp_path / "database.db").write_bytes(b"matches")
    copies = [own_database(tmp_path, step) for step in ("incremental-15", "global")]
    assert len({tmp_path / "database.db", *copies}) == 3
    assert [c.read_bytes() for c in copies] == [b"matches"] * 2
