"""Batches of toys: bad items, killed workers, slow ones, cancelling and going on; nothing is lost and nothing made twice."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from toy_batch import HELD, Toys, crew, items_of, write_toys

from app.batch import Batch, BatchConfig, Record, read_batch, replaced_so_far, run_batch, was_cancelled
from app.result_folder import is_complete
from app.workers import Item
from splat.errors import InputError, StoppedLate

ROOT = Path(__file__).parents[2]


def run(tmp_path, toys=None, config=None, *, resume=False, events=None, **options) -> Batch:
    """A batch of all toys in `tmp_path`/toys into `tmp_path`/out, to its end."""
    toys = toys or Toys(tmp_path / "diary")
    items = items_of(tmp_path / "toys", tmp_path / "out")
    complete = {item.out for item in items if resume and is_complete(item.out)}
    job = run_batch(
        tmp_path / "out", items, partial(crew, toys), config or BatchConfig(jobs=2), complete=complete, options=options
    )
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return end.value
        if events is not None:
            events.append(event)


def statuses(out: Path) -> dict[str, str]:
    return {row["name"]: row["status"] for row in read_batch(out)["items"]}


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def alive(pid: str) -> bool:
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE  # nobody may be there to bury an orphan
    except psutil.NoSuchProcess:
        return False


def test_a_bad_item_and_a_killed_worker_stop_nobody_else(tmp_path):
    write_toys(
        tmp_path / "toys", a="", bad="corrupt", fault="fault", dies="dies", dies_late="dies-late", poison="always-dies", z=""
    )
    events, toys = [], Toys(tmp_path / "diary")
    batch = run(tmp_path, toys, BatchConfig(jobs=2, retries=1), events=events, seed=7)
    done = {"a", "dies", "dies-late", "z"}
    assert {r.item.name for r in batch.records if r.status == "done"} == done
    assert sorted(name for name, _ in toys.lines("made")) == sorted(done), "each once"
    assert {name: r.attempts for r in batch.records if (name := r.item.name)} == {
        "a": 1, "bad": 1, "fault": 1, "dies": 2, "dies-late": 1, "poison": 2, "z": 1
    }  # fmt: skip
    kept = (tmp_path / "out" / "dies" / "state").iterdir()
    assert {file.name for file in kept} == {"attempt-1", "attempt-2"}, "the second went on from the first"

    written = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert written["status"] == batch.status == "partial" and written["options"] == {"seed": 7}
    assert written["counts"] == {"total": 7, "done": 4, "failed": 3}
    assert written["finished"] >= written["started"] and written["seconds"] > 0
    rows = {row["name"]: row for row in written["items"]}
    assert rows["bad"]["error"] == "bad.toy is no toy; give another." and rows["bad"]["out"] == "bad"
    assert rows["fault"]["error"] == "An unexpected ZeroDivisionError ended it: division by zero."
    assert "toy_batch.py" in rows["fault"]["trace"] and "trace" not in rows["bad"]
    assert "killed" in rows["poison"]["error"] and "2 attempts" in rows["poison"]["error"]
    assert not (tmp_path / "out" / "lock").exists() and workers() == []

    notices = [event.note for event in events if event.stage == "notice"]
    assert {note.split(":")[0] for note in notices if "tried again" not in note} == {"bad", "fault", "poison"}
    last = [event for event in events if event.stage == "batch"][-1]
    assert (last.step, last.total, last.values["failed"]) == (7, 7, 3)


def test_100_items_with_5_corrupt_a_killed_worker_and_a_restart(tmp_path):
    """Memory stays flat, and 95 come out, each once."""
    folder = write_toys(tmp_path / "toys", **{f"n{i:03}": "corrupt" if i % 20 == 7 else "" for i in range(100)})
    toys = Toys(tmp_path / "diary")
    items = items_of(folder, tmp_path / "out")
    job = run_batch(tmp_path / "out", items, partial(crew, toys), BatchConfig(jobs=2))
    killed = False
    for event in job:
        if event.stage == "batch" and event.step >= 20 and not killed:
            struck, _, worker = toys.lines("began")[-1]
            os.kill(int(worker), signal.SIGKILL)
            killed = True
        if event.stage == "batch" and event.step >= 50:
            break
    job.close()
    first = statuses(tmp_path / "out")
    assert killed and list(first.values()).count("cancelled") in range(40, 51) and workers() == []
    assert read_batch(tmp_path / "out")["status"] == "cancelled"

    before = psutil.Process().memory_info().rss
    batch = run(tmp_path, toys, resume=True)
    assert psutil.Process().memory_info().rss - before < 20e6
    assert batch.counts["done"] + batch.counts["skipped"] == 95 and batch.counts["failed"] == 5
    assert batch.counts["skipped"] == list(first.values()).count("done")
    assert sum(is_complete(item.out) for item in items) == 95
    made = [name for name, _ in toys.lines("made")]
    missing = {i.name for i in items if int(i.name[1:]) % 20 != 7} - set(made)
    assert len(made) == len(set(made)) and missing <= {struck}, "each once; the killed one may have published and not noted it"
    held = [r.memory_mb for r in batch.records if r.memory_mb]
    assert len(held) == batch.counts["done"] > 40
    assert max(held) - min(held) < 0.5 * HELD / 1e6, "what one item holds is given back before the next"
    assert all(row["seconds"] > 0 for row in read_batch(tmp_path / "out")["items"]), "also of those made before"


def test_workers_are_prepared_once(tmp_path):
    write_toys(tmp_path / "toys", **{f"n{i}": "" for i in range(6)})
    toys = Toys(tmp_path / "diary", pause=0.05)
    run(tmp_path, toys, BatchConfig(jobs=2))
    assert toys.count("prepared") == 2 and toys.count("made") == 6
    assert {pid for _, _, pid in toys.lines("began")} == {pid for (pid,) in toys.lines("prepared")}


def test_an_item_that_hangs_is_ended(tmp_path):
    write_toys(tmp_path / "toys", a="", stuck="hangs deaf")
    began = time.monotonic()
    batch = run(tmp_path, config=BatchConfig(jobs=2, item_seconds=1.0))
    assert time.monotonic() - began < 20
    assert [r.status for r in batch.records] == ["done", "failed"]
    assert batch.failed[0].attempts == 1 and "longer than 1 s" in batch.failed[0].error


def test_closing_ends_the_workers_and_says_what_is_left(tmp_path):
    write_toys(tmp_path / "toys", a="", b="hangs", c="hangs deaf", d="")
    toys = Toys(tmp_path / "diary")
    items = items_of(tmp_path / "toys", tmp_path / "out")
    job = run_batch(tmp_path / "out", items, partial(crew, toys), BatchConfig(jobs=2))
    for event in job:
        if event.stage == "batch" and event.step == 1 and toys.count("began") == 3:
            break
    assert len(workers()) == 2
    job.close()
    assert workers() == []
    assert statuses(tmp_path / "out") == {"a": "done", "b": "cancelled", "c": "cancelled", "d": "cancelled"}
    assert "not made" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("fault, error", [("bad input", InputError), ("dies", StoppedLate)])
def test_workers_that_cannot_start(tmp_path, fault, error):
    write_toys(tmp_path / "toys", a="", b="")
    toys = Toys(tmp_path / "diary", fault=fault)
    with pytest.raises(error, match="weights are missing" if fault == "bad input" else "No worker process can be started"):
        run(tmp_path, toys, BatchConfig(jobs=1, retries=1))
    assert not (tmp_path / "out").exists(), "nothing was written"
    assert toys.count("prepared") == (1 if fault == "bad input" else 2)


def test_a_worker_that_dies_at_its_start_is_started_again(tmp_path):
    write_toys(tmp_path / "toys", a="", b="")
    assert run(tmp_path, Toys(tmp_path / "diary", fault="dies once"), BatchConfig(jobs=1)).status == "done"


def test_none_came_out(tmp_path):
    write_toys(tmp_path / "toys", a="corrupt", b="corrupt")
    with pytest.raises(StoppedLate, match=r"None of 2 came out; a: a\.toy is no toy"):
        run(tmp_path)
    assert set(statuses(tmp_path / "out").values()) == {"failed"}
    write_toys(tmp_path / "toys", a="", b="")
    assert run(tmp_path, resume=True).counts == {"done": 2}, "what failed is tried again"
    assert run(tmp_path, resume=True).counts == {"skipped": 2}


SCRIPT = """
import signal, sys
from functools import partial
from pathlib import Path
sys.path.insert(0, "tests/app")
from toy_batch import Toys, crew, items_of
from app.batch import BatchConfig, run_batch

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell without job control has it ignored in the background
    tmp = Path(sys.argv[1])
    items, toys = items_of(tmp / "toys", tmp / "out"), Toys(tmp / "diary")
    for event in run_batch(tmp / "out", items, partial(crew, toys), BatchConfig(jobs=2)):
        pass
"""


def test_a_batch_that_is_killed_leaves_no_workers_and_goes_on(tmp_path):
    write_toys(tmp_path / "toys", a="", b="hangs deaf", c="gone", d="")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    toys = Toys(tmp_path / "diary")
    deadline = time.monotonic() + 10
    pids = [pid for (pid,) in toys.lines("prepared")]
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    assert read_batch(tmp_path / "out")["status"] == "running"
    write_toys(tmp_path / "toys", b="", c="")
    assert run(tmp_path, resume=True).counts == {"skipped": 1, "done": 3}
    assert sorted(name for name, _ in toys.lines("made")) == ["a", "b", "c", "d"]


def test_ctrl_c_reaches_workers_through_the_batch_alone(tmp_path):
    """The whole process group gets the signal, as from a terminal: no worker prints a traceback, all end."""
    write_toys(tmp_path / "toys", a="hangs", b="hangs")
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, tmp_path / "script.py", tmp_path]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    toys = Toys(tmp_path / "diary")
    try:
        while toys.count("began") < 2:
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert told.count("Traceback") == 1 and told.rstrip().endswith("KeyboardInterrupt"), told
    assert set(statuses(tmp_path / "out").values()) == {"cancelled"}
    assert not any(alive(pid) for (pid,) in toys.lines("prepared"))


def test_folders_that_are_not_ours(tmp_path):
    write_toys(tmp_path / "toys", a="")
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("my page")
    with pytest.raises(InputError, match=r"index\.html is not ours"):
        run(tmp_path)
    assert (out / "index.html").read_text() == "my page" and [p.name for p in out.iterdir()] == ["index.html"]
    (out / "index.html").unlink()
    (out / "lock").write_text("my lock")
    with pytest.raises(InputError, match="lock is not ours"):
        run(tmp_path)
    assert (out / "lock").read_text() == "my lock"
    (out / "lock").unlink()
    (out / "report.json").write_text("{}")
    with pytest.raises(InputError, match="is a result itself"):
        run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        next(run_batch(tmp_path / "file", [], partial(crew, None), BatchConfig()))


def test_two_batches_in_one_folder(tmp_path):
    write_toys(tmp_path / "toys", a="hangs")
    toys = Toys(tmp_path / "diary")
    items = items_of(tmp_path / "toys", tmp_path / "out")
    job = run_batch(tmp_path / "out", items, partial(crew, toys), BatchConfig())
    next(job)
    with pytest.raises(InputError, match="Another run is working"):
        run(tmp_path)
    job.close()


def test_the_time_left_is_said_once_an_item_has_ended(tmp_path):
    write_toys(tmp_path / "toys", **{f"n{i}": "" for i in range(6)})
    events = []
    run(tmp_path, Toys(tmp_path / "diary", pause=0.3), BatchConfig(jobs=1), events=events)
    left = [event.values["seconds_left"] for event in events if event.stage == "batch"]
    assert left[0] == 0 and 0.3 < max(left) < 10 and left[-1] == 0
    said = {event.step: event.note for event in events if "left" in event.note}
    assert said and all("toy" in note for note in said.values() if "n5" in note)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 1}', '{"version": 1, "items": [3], "made_by": "splatsmith"}'])
def test_a_damaged_batch_json_counts_as_none(tmp_path, damage):
    assert read_batch(tmp_path) is None
    (tmp_path / "batch.json").write_text(damage)
    assert read_batch(tmp_path) is None and not was_cancelled(tmp_path) and not replaced_so_far(tmp_path)


def test_what_an_interrupted_replacement_had_put_in_place(tmp_path):
    """A batch with --overwrite that was cancelled goes on with what is left, and leaves what it made alone."""
    items = [Item(name, tmp_path / name, name) for name in "abc"]
    for item in items:
        item.out.mkdir()
        (item.out / "report.json").touch()
    records = [Record(items[0], "done"), Record(items[1], "skipped"), Record(items[2], "cancelled")]
    for status, overwrite, expected in (("cancelled", True, {"a", "b"}), ("cancelled", False, set()), ("done", True, set())):
        written = Batch(tmp_path, records, {"overwrite": overwrite}, status).to_json()
        (tmp_path / "batch.json").write_text(json.dumps(written))
        assert {out.name for out in replaced_so_far(tmp_path)} == expected
        assert was_cancelled(tmp_path) == (status == "cancelled")
