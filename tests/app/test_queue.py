"""One queue for all: what happens to its jobs, whoever cancels, dies or comes back."""

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image as Pictures
from toy_jobs import STEPS, Toys, toy

from app import commands
from app.estimate import BYTES_PER_FITTED_GAUSSIAN, estimate_photos, estimate_text, rough_memory
from app.job_record import JobRecord
from app.job_store import KINDS, from_json, to_json
from app.presets import PRESETS, TEXT_PRESETS
from app.queue import JobQueue, QueueLimits
from app.queue_worker import failures, write_preview
from splat.errors import InputError
from splat.optimise import BYTES_PER_GAUSSIAN

ENDED = ("done", "failed", "cancelled")


@pytest.fixture
def opened(tmp_path):
    """Makes queues on the same folder, closed at the end."""
    queues = []

    def queue(pause: float = 0.0, start: bool = True, **limits) -> JobQueue:
        made = JobQueue(tmp_path / "root", QueueLimits(**{"grace_seconds": 20.0} | limits), Toys(tmp_path / "diary", pause))
        queues.append(made)
        if start:
            made.start()
        return made

    yield queue
    for made in queues:
        made.close()


def wait_for(queue: JobQueue, id: str, *states: str, session: str = "me", stage: str = "") -> JobRecord:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        job = queue.get(id, session)
        if job.state in (states or ENDED) and (not stage or job.stage == stage):
            return job
        assert job.state not in ENDED, job
        time.sleep(0.02)
    raise AssertionError(f"{job} never became {states or ENDED}")


def test_jobs_are_made_one_after_the_other_by_a_worker_that_stays(opened, tmp_path):
    queue, toys = opened(pause=0.05), Toys(tmp_path / "diary")
    ids = [queue.submit("me", toy(tmp_path / "toys", words), f"toy {words}") for words in ("waits", "notice", "partly")]
    first = wait_for(queue, ids[0], "running", stage="toy")
    assert [job.id for job in queue.jobs("me")] == ids[::-1], "newest first"
    assert [job.position for job in queue.jobs("me")] == [2, 1, None]
    assert first.total == STEPS and first.eta_s > 0 and first.finished is None and first.results == ()
    assert "toy-0.toy" in str(first.options["inputs"]) and str(tmp_path) not in json.dumps(first.options)
    queue.cancel(ids[0], "me")
    assert wait_for(queue, ids[0]).state == "cancelled"
    jobs = [wait_for(queue, id) for id in ids[1:]]
    assert [job.state for job in jobs] == ["done", "done"] and jobs[0].notices == ("Something is odd.",)
    assert jobs[1].notices == ("other: it did not work.",), "what a batch lacks is told"
    assert jobs[0].results == (jobs[0].out,) and (jobs[0].out / "report.json").exists()
    assert jobs[0].submitted <= jobs[0].started <= jobs[0].finished and jobs[0].error is None
    assert len(toys.lines("prepared")) == 1, "the worker hears of a cancellation and stays"
    assert not (tmp_path / "root" / jobs[0].session / ids[1] / "result.partial").exists()


def test_visitors_take_turns(opened, tmp_path):
    queue, toys = opened(start=False), Toys(tmp_path / "diary")
    asked = [(session, queue.submit(session, toy(tmp_path / "toys"), "t")) for session in ("a", "a", "a", "b", "b", "c")]
    order = [0, 3, 5, 1, 4, 2]
    assert [queue.get(id, session).position - 1 for session, id in asked] == [order.index(i) for i in range(6)]
    queue.start()
    for session, id in asked:
        wait_for(queue, id, session=session)
    assert [id for (id,) in toys.lines("made")] == [asked[i][1] for i in order]


def test_a_job_that_was_cancelled_goes_on_where_it_was(opened, tmp_path):
    queue, toys = opened(), Toys(tmp_path / "diary")
    waits, behind = (queue.submit("me", toy(tmp_path / "toys", words), "t") for words in ("waits", ""))
    wait_for(queue, waits, "running", stage="toy")
    while len(toys.lines("stepped")) < 2:
        time.sleep(0.02)
    queue.cancel(behind, "me")
    assert queue.get(behind, "me").state == "cancelled", "what waits is cancelled at once"
    queue.cancel(waits, "me")
    job = wait_for(queue, waits)
    assert job.state == "cancelled" and not job.out.exists() and (job.out.parent / "result.partial" / "state").is_dir()
    (file,) = (job.out.parent / "inputs").iterdir()
    file.write_text("waits on")  # another job than the one begun: the result folder says so
    queue.resume(waits, "me")
    assert "other words" in wait_for(queue, waits).error
    queue.resume(behind, "me")
    assert wait_for(queue, behind).state == "done"
    with pytest.raises(InputError, match="nothing to resume"):
        queue.resume(behind, "me")
    queue.cancel(behind, "me")
    assert queue.get(behind, "me").state == "done", "what has ended stays as it is"


def test_errors_are_sentences_and_stop_nobody_else(opened, tmp_path, caplog):
    queue = opened()
    ids = [queue.submit("me", toy(tmp_path / "toys", words), words) for words in ("corrupt", "fault", "late", "")]
    jobs = [wait_for(queue, id) for id in ids]
    assert [job.state for job in jobs] == ["failed", "failed", "failed", "done"]
    assert jobs[0].error == "This is no toy; give another."
    assert jobs[1].error == "An unexpected ZeroDivisionError ended it: division by zero."
    assert jobs[2].error == "It did not end well."
    assert "toy_jobs.py" in caplog.text, "the trace of what nobody expected is in the server's log"


def test_sentences_do_not_say_where_the_jobs_lie(opened, tmp_path):
    queue = opened()
    job = wait_for(queue, queue.submit("me", toy(tmp_path / "toys", "path"), "t"))
    assert job.error == "result is no toy, nor is a/b." and job.notices == ("the jobs' folder is nearly full.",)


def test_jobs_that_have_ended_are_looked_up_once(opened, tmp_path, monkeypatch):
    queue = opened()
    ended, again = (queue.submit("me", toy(tmp_path / "toys", words), "t") for words in ("", "corrupt"))
    wait_for(queue, ended)
    wait_for(queue, again)
    told, looked = queue.jobs("me"), []
    monkeypatch.setattr("app.job_record._results", lambda out: looked.append(out) or ())
    assert queue.jobs("me") == told and looked == []
    queue.resume(again, "me")
    assert queue.get(again, "me").finished != told[0].finished
    assert wait_for(queue, again).finished > told[0].finished and {out.parent.name for out in looked} == {again}
    queue.delete(again, "me")
    assert set(queue._told) == {ended}


def test_a_worker_that_dies_is_replaced_and_a_job_that_kills_them_fails(opened, tmp_path):
    queue, toys = opened(), Toys(tmp_path / "diary")
    once, always, after = (queue.submit("me", toy(tmp_path / "toys", words), "t") for words in ("dies", "dies-always", ""))
    job = wait_for(queue, once)
    assert job.state == "done" and "was killed" in job.notices[0] and "goes on" in job.notices[0]
    job = wait_for(queue, always)
    assert job.state == "failed" and "2 times" in job.error and not job.out.exists()
    assert wait_for(queue, after).state == "done"
    assert len([id for id, *_ in toys.lines("began") if id == always]) == 2


def test_a_job_that_does_not_stop_is_killed(opened, tmp_path):
    queue, toys = opened(grace_seconds=0.3), Toys(tmp_path / "diary")
    deaf, after = (queue.submit("me", toy(tmp_path / "toys", words), "t") for words in ("deaf", ""))
    wait_for(queue, deaf, "running", stage="toy")
    ((_, pid, _),) = toys.lines("began")
    queue.cancel(deaf, "me")
    assert queue.get(deaf, "me").note == "Stopping" or queue.get(deaf, "me").state == "cancelled"
    assert wait_for(queue, deaf).state == "cancelled" and wait_for(queue, after).state == "done"
    assert not psutil.pid_exists(int(pid)) and len(toys.lines("prepared")) == 2


def test_a_job_that_takes_too_much_memory_is_ended(opened, tmp_path):
    queue = opened(pause=2.5, memory_budget=400_000_000)
    hog, after = (queue.submit("me", toy(tmp_path / "toys", words), "t") for words in ("hog", "corrupt"))
    job = wait_for(queue, hog)
    assert job.state == "failed" and "GB of memory" in job.error and "its 0.40 GB" in job.error
    assert wait_for(queue, after).state == "failed"


def test_jobs_run_side_by_side_where_the_memory_allows(opened, tmp_path):
    queue, toys = opened(workers=2, memory_budget=8_000_000_000, threads=2), Toys(tmp_path / "diary")
    ids = [queue.submit("me", toy(tmp_path / "toys", "waits"), "t") for _ in range(2)]
    for id in ids:
        wait_for(queue, id, "running", stage="toy")
    assert {threads for *_, threads in toys.lines("began")} == {"1"}, "they share the cores"
    for id in ids:
        queue.cancel(id, "me")
        wait_for(queue, id)
    queue.limits = QueueLimits(workers=2, memory_budget=1_500_000_000)  # less than two toys together say they need
    ids = [queue.submit("me", toy(tmp_path / "toys", words), "t") for words in ("waits", "")]
    wait_for(queue, ids[0], "running", stage="toy")
    time.sleep(1.0)
    assert queue.get(ids[1], "me").state == "queued"
    queue.cancel(ids[0], "me")
    assert wait_for(queue, ids[1]).state == "done"


def test_a_batch_has_workers_of_its_own(opened, tmp_path):
    queue = opened()
    job = wait_for(queue, queue.submit("me", toy(tmp_path / "toys", "batch"), "t"))
    assert job.state == "done", job.error
    assert [folder.name for folder in job.results] == ["a", "c"] and (job.out / "batch.json").exists()
    assert job.notices == ("b: b.toy is no toy; give another.",), "once"


def test_an_idle_worker_is_ended(opened, tmp_path):
    queue, toys = opened(idle_seconds=0.3), Toys(tmp_path / "diary")
    wait_for(queue, queue.submit("me", toy(tmp_path / "toys"), "t"))
    pid = int(toys.lines("began")[0][1])
    deadline = time.monotonic() + 100
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
    assert wait_for(queue, queue.submit("me", toy(tmp_path / "toys"), "t")).state == "done", "the next job gets a new one"


def test_a_server_that_comes_back_shows_and_goes_on(opened, tmp_path):
    queue, toys = opened(), Toys(tmp_path / "diary")
    done, bad, waits, behind = (
        queue.submit("me", toy(tmp_path / "toys", words), f"toy {words}") for words in ("notice", "corrupt", "waits", "")
    )
    wait_for(queue, waits, "running", stage="toy")
    before = {id: queue.get(id, "me") for id in (done, bad)}
    queue.close()
    assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]

    queue = opened(start=False)
    assert {id: queue.get(id, "me") for id in (done, bad)} == before
    assert [queue.get(id, "me").state for id in (waits, behind)] == ["interrupted", "queued"]
    queue.cancel(behind, "me")
    queue.start()
    stepped = len(toys.lines("stepped"))
    wait_for(queue, waits, "running", stage="toy")
    queue.cancel(waits, "me")
    wait_for(queue, waits)
    assert len(toys.lines("stepped")) == stepped, "it went on from the step it was in"
    assert len(toys.lines("made")) == 1


def test_nobody_else_looks_into_the_jobs(opened, tmp_path):
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    old = root / ("a" * 64) / "mine"
    old.mkdir(parents=True)
    (root / "jobs.sqlite").touch(0o644)
    queue = opened(start=False)
    queue.submit("me", toy(tmp_path / "toys"), "t")
    assert not [path for path in root.iterdir() if path.name != "lock" and path.stat().st_mode & 0o077]
    assert {path.name for path in root.iterdir()} >= {"jobs.sqlite", "jobs.sqlite-wal", old.parent.name}


def test_a_second_server_is_refused(opened, tmp_path):
    opened(start=False)
    with pytest.raises(InputError, match="Another server is working in"):
        JobQueue(tmp_path / "root")
    assert not list((tmp_path / "root").glob("*.tmp"))


def test_sessions_know_nothing_of_each_other(opened, tmp_path):
    queue = opened(start=False)
    mine = queue.submit("me", toy(tmp_path / "toys"), "  a\x00title\n" + "x" * 500)
    assert queue.jobs("you") == [] and queue.get(mine, "me").title.startswith("a title x")
    assert len(queue.get(mine, "me").title) == 200
    for ask in (queue.get, queue.cancel, queue.resume, queue.delete):
        for id, session in ((mine, "you"), ("../" + mine, "me"), ("", "me")):
            with pytest.raises(InputError, match="no such job"):
                ask(id, session)
    assert not queue.get(mine, "me").out.is_relative_to(tmp_path / "root" / "me")
    hostile = queue.submit("../../escaped\x00", toy(tmp_path / "toys"), "t")
    assert queue.get(hostile, "../../escaped\x00").out.is_relative_to(tmp_path / "root")
    assert {path.name for path in tmp_path.iterdir()} <= {"root", "toys", "diary"}


def test_a_result_of_another_session_cannot_be_refined(opened, tmp_path):
    queue = opened()
    done = queue.submit("me", toy(tmp_path / "toys"), "t")
    result = wait_for(queue, done).out
    for session, path in (("you", result), ("me", result / "state"), ("me", tmp_path), ("me", result / ".." / "inputs")):
        with pytest.raises(InputError, match="no such result"):
            queue.submit(session, commands.Refine(result=path, out=Path("x")), "r")
    refined = queue.get(queue.submit("me", commands.Refine(result=result, out=Path("x")), "r"), "me")
    assert refined.kind == "refine" and refined.options["result"] == "result"


def test_a_result_stays_while_it_is_being_refined(opened, tmp_path, monkeypatch):
    queue = opened()
    result = wait_for(queue, done := queue.submit("me", toy(tmp_path / "toys"), "t")).out
    queue.close()
    queue = opened(start=False)
    refine = queue.submit("me", commands.Refine(result=result, out=Path("x")), "r")
    with pytest.raises(InputError, match="being refined; wait for that job, or cancel it first"):
        queue.delete(done, "me")
    monkeypatch.setattr("app.queue.time.time", lambda: 1e10)  # long after
    queue._expired = -1e9
    queue._expire()
    assert [job.id for job in queue.jobs("me")] == [refine, done] and result.is_dir()
    queue.cancel(refine, "me")
    queue.delete(done, "me")
    assert not result.exists()


def test_deleted_and_expired_jobs_leave_nothing(opened, tmp_path, monkeypatch):
    queue = opened()
    ids = [queue.submit("me", toy(tmp_path / "toys", words), "t") for words in ("", "", "waits")]
    wait_for(queue, ids[2], "running", stage="toy")
    with pytest.raises(InputError, match="cancel it first"):
        queue.delete(ids[2], "me")
    queue.delete(ids[0], "me")
    home = queue.get(ids[1], "me").out.parents[1]
    assert {path.name for path in home.iterdir()} == set(ids[1:]) and queue.used_bytes("me") > 0

    monkeypatch.setattr("app.queue.time.time", lambda: 1e10)  # long after
    queue._expired = -1e9
    deadline = time.monotonic() + 100
    while len(queue.jobs("me")) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [job.id for job in queue.jobs("me")] == [ids[2]], "one that runs does not expire"
    monkeypatch.undo()
    queue.cancel(ids[2], "me")
    wait_for(queue, ids[2])
    queue.delete(ids[2], "me")
    assert not home.exists() and queue.used_bytes("me") == 0
    queue.close()
    assert opened(start=False).jobs("me") == []


def test_what_a_killed_submission_left_is_removed_and_nothing_else(tmp_path):
    root = tmp_path / "root"
    lost = root / ("a" * 64) / ("b" * 16) / "inputs"
    lost.mkdir(parents=True)
    others = [root / "a" / "x", root / ("a" * 64) / "mine", root / "notes.txt"]
    for other in others:
        other.mkdir(parents=True)
    JobQueue(root).close()
    assert not lost.parent.exists() and all(other.exists() for other in others)


def test_limits_are_told_in_sentences(opened, tmp_path, monkeypatch):
    toys = tmp_path / "toys"
    queue = opened(start=False, queued=4, queued_by_session=3, per_minute=5, kept_by_session=3)
    ids = [queue.submit("me", toy(toys), "t") for _ in range(3)]
    with pytest.raises(InputError, match="3 of your jobs are waiting"):
        queue.submit("me", toy(toys), "t")
    queue.submit("you", toy(toys), "t")
    with pytest.raises(InputError, match=r"The queue is full \(4 jobs wait\)"):
        queue.submit("you", toy(toys), "t")
    queue.cancel(ids[0], "me")
    with pytest.raises(InputError, match="You have 3 jobs"):
        queue.submit("me", toy(toys), "t")
    queue.delete(ids[0], "me")
    with pytest.raises(InputError, match="5 jobs were asked for within a minute"):
        queue.submit("me", toy(toys), "t")
    later = time.monotonic() + 61
    monkeypatch.setattr("app.queue.time.monotonic", lambda: later)
    queue.submit("me", toy(toys), "t")
    assert len(list((tmp_path / "root").glob("*/*"))) == 4, "what was refused left no folder"


def test_quota_and_disk(opened, tmp_path):
    file = tmp_path / "big.png"
    file.write_bytes(b"x" * 60_000)
    command = commands.Photos(inputs=(file,), out=Path("x"))
    queue = opened(start=False, quota=100_000)
    queue.submit("me", command, "t")
    with pytest.raises(InputError, match=r"0\.1 MB and there is room for 0\.0 MB; delete jobs first"):
        queue.submit("me", command, "t")
    queue.submit("you", command, "t")
    queue.check_room("me")
    queue.limits = QueueLimits(quota=50_000)
    for ask in (lambda: queue.submit("me", command, "t"), lambda: queue.check_room("me")):
        with pytest.raises(InputError, match="fill the"):
            ask()
    queue.limits = QueueLimits(disk_reserve=10**18)
    for ask in (lambda: queue.submit("other", command, "t"), lambda: queue.check_room("me")):
        with pytest.raises(InputError, match="nearly full"):
            ask()
    assert len(queue.jobs("me")) == 1 and not list((tmp_path / "root").glob("*/*/*.tmp"))


def test_what_lies_on_the_server_is_not_for_visitors(opened, tmp_path):
    queue = opened(start=False)
    for command in (
        commands.Text(sentences=("a chair",), prompts=Path("/etc/passwd"), out=Path("x")),
        commands.Text(sentences=("a chair",), weights=Path("/"), out=Path("x")),
        commands.Image(inputs=(), matting=Path("/etc/passwd"), out=Path("x")),
        commands.Photos(inputs=(), prior_weights=("/etc",), out=Path("x")),
        commands.Refine(result=Path("r"), repairer="/etc", out=Path("x")),
        commands.Image(inputs=(), cluster="ray://elsewhere:1", out=Path("x")),
    ):
        with pytest.raises(InputError, match="command line alone"):
            queue.submit("me", command, "t")
    with pytest.raises(InputError, match="memory_budget"):
        queue.submit("me", commands.Text(sentences=("a",), memory_budget="much", out=Path("x")), "t")
    id = queue.submit("me", commands.Text(sentences=("a",), memory_budget="90GB", out=tmp_path / "elsewhere"), "t")
    assert queue.get(id, "me").options["memory_budget"] == "4000MB", "never more than the server's"
    assert not (tmp_path / "elsewhere").exists()


def test_uploads_are_copied_and_belong_to_the_job(opened, tmp_path):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for folder in (photos, masks):
        folder.mkdir()
        for name in ("a.png", "b.png"):
            Pictures.new("RGB", (8, 8)).save(folder / name)
    poses = tmp_path / "transforms.json"
    poses.write_text("{}")
    queue = opened(start=False)
    command = commands.Photos(inputs=(photos,), masks=str(masks), poses=str(poses), out=Path("x"))
    id = queue.submit("me", command, "t")
    stored = from_json("photos", queue._jobs[id].command, queue.root)
    home = tmp_path / "root" / queue.get(id, "me").session / id
    assert stored.inputs == (home / "inputs" / "a.png", home / "inputs" / "b.png") and stored.resume
    assert stored.masks == str(home / "masks") and stored.poses == str(home / "poses" / "transforms.json")
    assert stored.out == home / "result" and (home / "masks" / "b.png").exists()
    told = queue.get(id, "me").options
    assert (told["poses"], told["masks"]) == ("transforms.json", "masks") and str(tmp_path) not in json.dumps(told)
    moved = from_json("photos", queue._jobs[id].command, Path("/elsewhere"))
    assert moved.poses == str(Path("/elsewhere") / home.relative_to(queue.root) / "poses" / "transforms.json")


def test_jobs_that_cannot_be_stored_now_are_stored_later(opened, tmp_path, monkeypatch):
    queue = opened(start=False)
    full, save = [True], queue._store.save

    def refuse(job):
        if full[0]:
            raise sqlite3.OperationalError("database or disk is full")
        save(job)

    full[0] = False
    kept = queue.submit("me", toy(tmp_path / "toys"), "t")
    full[0] = True
    monkeypatch.setattr(queue._store, "save", refuse)
    with pytest.raises(InputError, match=r"cannot be stored \(database or disk is full\)"):
        queue.submit("me", toy(tmp_path / "toys"), "t")
    assert [job.id for job in queue.jobs("me")] == [kept] and len(list((tmp_path / "root").glob("*/*"))) == 1
    queue.start()
    assert wait_for(queue, kept).state == "done"
    full[0] = False
    deadline = time.monotonic() + 100
    while queue._unsaved and time.monotonic() < deadline:
        time.sleep(0.02)
    queue.close()
    assert opened(start=False).get(kept, "me").state == "done"


def test_a_damaged_or_foreign_file_of_jobs_is_refused(tmp_path):
    (tmp_path / "jobs.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match="cannot be used"):
        JobQueue(tmp_path)
    (tmp_path / "jobs.sqlite").unlink()
    db = sqlite3.connect(tmp_path / "jobs.sqlite")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(InputError, match="another version"):
        JobQueue(tmp_path)


def test_a_job_stored_by_another_version_fails_with_a_sentence(opened, tmp_path):
    queue = opened(start=False)
    id = queue.submit("me", toy(tmp_path / "toys"), "t")
    queue._jobs[id].command = queue._jobs[id].command.replace('"holdout"', '"holdouts"')
    queue.start()
    assert "another version" in wait_for(queue, id).error


@pytest.mark.parametrize("kind", KINDS)
def test_commands_survive_json(kind, tmp_path):
    given = {
        "photos": {"inputs": (tmp_path / "a.png", Path("b.png")), "real_size": 0.5, "masks": "auto"},
        "image": {"inputs": (tmp_path / "a.png",), "azimuths": (0.0, 90.0), "views": True},
        "text": {"sentences": ("ein “Stuhl”", "b")},
        "refine": {"result": tmp_path / "r", "steps": 7},
    }[kind]
    command = KINDS[kind](out=tmp_path / "out", **given)
    assert from_json(kind, to_json(command, tmp_path), tmp_path) == command
    moved = from_json(kind, to_json(command, tmp_path), Path("/elsewhere"))
    assert moved.out == Path("/elsewhere/out"), "the root may be moved"


def test_options_of_the_server_are_judged():
    limits = QueueLimits.of(
        commands.Ui(memory_budget="3GB", quota="1GB", workers=2, expire_days=0, max_upload="5MB", max_files=7)
    )
    assert (limits.memory_budget, limits.quota, limits.workers, limits.expire_days) == (3e9, 1e9, 2, 0)
    assert (limits.uploads.bytes, limits.uploads.files) == (5e6, 7)
    for bad in ({"memory_budget": "much"}, {"quota": "0"}, {"workers": 0}, {"expire_days": -1.0}, {"per_minute": 0}):
        (name,) = bad
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')}"):
            QueueLimits.of(commands.Ui(**bad))


def test_rough_memory_agrees_with_the_estimates():
    assert BYTES_PER_FITTED_GAUSSIAN == BYTES_PER_GAUSSIAN
    photos = commands.Photos(inputs=(Path("a"),) * 30, out=Path("x"), preset="draft", memory_budget="90GB")
    side = PRESETS["draft"].feature_side
    whole = estimate_photos(30, side * side, 320 * 320, PRESETS["draft"], solve_poses=True, renderer="native", threads=1).memory
    assert rough_memory(photos) == pytest.approx(whole)
    text = commands.Text(sentences=("a",), out=Path("x"), memory_budget="90GB")
    preset = TEXT_PRESETS["standard"]
    whole = estimate_text(1, preset.candidates, preset.steps, preset, renderer="native", threads=1, on_gpu=False).memory
    assert rough_memory(text) == pytest.approx(whole)
    assert rough_memory(commands.Text(sentences=("a",), out=Path("x"), memory_budget="900MB")) == 900e6


def test_the_server_imports_no_torch():
    told = "import sys, app.queue; print(sorted({'torch', 'gradio', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stderr


def test_previews_are_small_pngs_and_whole(tmp_path):
    live = tmp_path / "live.png"
    write_preview(torch.linspace(-1, 2, 900 * 600 * 3).reshape(900, 600, 3), live)
    with Pictures.open(live) as picture:
        assert picture.format == "PNG" and max(picture.size) == 512 and {p.name for p in tmp_path.iterdir()} == {"live.png"}
    write_preview(torch.zeros(4, 4, 3), tmp_path / "gone" / "live.png")  # no room for it: only the picture is missing
    assert {p.name for p in tmp_path.iterdir()} == {"live.png"}


def test_what_is_missing_from_a_batch():
    from types import SimpleNamespace as Fake

    record = Fake(item=Fake(name="a"), error="It is corrupt.")
    assert failures(Fake()) == ((), True)
    assert failures(Fake(failed=((Path("x/b-0"), "Empty."),))) == (("b-0: Empty.",), True)
    batch = Fake(failed=[record], counts={"done": 0, "skipped": 0, "failed": 1})
    assert failures(batch) == (("a: It is corrupt.",), False)
