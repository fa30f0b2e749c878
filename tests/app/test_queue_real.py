"""Real jobs through the queue: what it makes is what the command line makes."""

import time
from pathlib import Path

import psutil
import pytest
from PIL import Image as Pictures
from tiny_capture import Capture

from app import commands
from app.job_record import JobRecord
from app.queue import JobQueue, QueueLimits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    made = JobQueue(tmp_path_factory.mktemp("queue") / "root", QueueLimits(threads=1))
    made.start()
    yield made
    made.close()


def wait_for(queue: JobQueue, id: str, *states: str, stage: str = "") -> JobRecord:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        job = queue.get(id, "me")
        if job.state in (states or ("done", "failed", "cancelled")) and (not stage or job.stage == stage):
            return job
        assert states == () or job.state not in ("failed", "cancelled"), job
        time.sleep(0.05)
    raise AssertionError(job)


def test_words_become_the_same_object_as_on_the_command_line(queue, tmp_path):
    from app.text_pipeline import text_to_scenes

    options = commands.Text(sentences=("a red chair",), out=tmp_path / "out", preset="draft", threads=1)
    ids = [queue.submit("me", options, "a red chair") for _ in range(2)]
    wait_for(queue, ids[0], "running", stage="turntable")
    queue.cancel(ids[0], "me")
    assert wait_for(queue, ids[0]).state == "cancelled"
    queue.resume(ids[0], "me")
    first, second = (wait_for(queue, id) for id in ids)
    assert (first.state, second.state) == ("done", "done") and first.note == "" and first.finished > second.started
    workers = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 1, "one worker, warm"
    with Pictures.open(second.preview) as live:
        assert live.size[0] > 100
    list(text_to_scenes(options))
    scene = (tmp_path / "out" / "a-red-chair-0" / "scene.ply").read_bytes()
    for job in (first, second):
        (result,) = job.results
        assert result.name == "a-red-chair-0" and (result / "scene.ply").read_bytes() == scene


def test_photos_then_refined(queue, capture: Capture):
    options = commands.Photos(
        inputs=(capture.photos,), poses=str(capture.poses), out=Path("x"), preset="draft", steps=100, max_side=64, holdout=4
    )
    job = wait_for(queue, queue.submit("me", options, "balls"))
    assert job.state == "done", job.error
    assert job.results == (job.out,) and (job.out / "mesh.glb").exists() and not (job.out.parent / "result.partial").exists()
    more = commands.Refine(result=job.out, out=Path("x"), preset="draft", steps=50)
    refined = wait_for(queue, queue.submit("me", more, "balls, longer"))
    assert refined.state == "done" and (refined.out / "scene.ply").exists(), refined.error


def test_bad_input_is_a_sentence(queue, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    job = wait_for(queue, queue.submit("me", commands.Photos(inputs=(tmp_path / "a.jpg",), out=Path("x")), "bad"))
    assert job.state == "failed" and "a.jpg" in job.error and not job.out.exists()
    job = wait_for(queue, queue.submit("me", commands.Text(sentences=("a" * 5000,), out=Path("x")), "long"))
    assert job.state == "done" and job.notices, job  # made all the same, with a word about what the model knows
