"""20 jobs, random cancels, three servers killed and a full disk: no job lost, no half folder, none made twice; and jobs whose
memory is gone with them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from toy_jobs import HELD, SESSION, STEPS, Toys

from app.queue import JobQueue
from app.result_folder import is_complete

PROGRAM = Path(__file__).with_name("toy_jobs.py")
ROOT = Path(__file__).parents[2]
ENDED = {"done", "failed", "cancelled"}


class Server:
    """A process that runs the queue and takes orders."""

    def __init__(self, folder: Path, *more: object) -> None:
        words = [sys.executable, PROGRAM, folder / "root", folder / "diary", *more]
        self.process = subprocess.Popen(
            list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, *order: str):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @property
    def memory(self) -> int:
        """Resident bytes, its workers' too."""
        server = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (server, *server.children(recursive=True)))

    def workers(self) -> list[int]:
        return [p.pid for p in psutil.Process(self.process.pid).children() if "spawn_main" in " ".join(p.cmdline())]

    def wait(self, *ids: str, states=ENDED) -> dict[str, str]:
        deadline = time.monotonic() + 250
        while time.monotonic() < deadline:
            found = self("states")
            if all(found[id] in states for id in ids or found):
                return found
            time.sleep(0.05)
        raise AssertionError(found)

    def kill(self) -> None:
        """Without a word, as the system does. Its workers notice and end, too."""
        workers = self.workers()
        self.process.send_signal(signal.SIGKILL)
        self.leave()
        deadline = time.monotonic() + 60
        while any(map(psutil.pid_exists, workers)) and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.leave()

    def leave(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        self.process.wait(60)


def test_20_jobs_random_cancels_and_three_killed_servers(tmp_path):
    dice, toys = random.Random(5), Toys(tmp_path / "diary")
    server = Server(tmp_path)
    ids = [server("submit", dice.choice(["", "", "", "notice", "dies"])) for _ in range(20)]
    asked: set[str] = set()
    for killed_after in (3, 7, 11):
        while len({id for id, *_ in toys.lines("began")}) < killed_after:
            if dice.random() < 0.1 and len(asked) < 6:
                asked.add(id := dice.choice(ids))
                server("cancel", id)
            time.sleep(0.02)
        time.sleep(dice.random() * 0.1)
        server.kill()
        server = Server(tmp_path)
        assert set(server("states")) == set(ids), "no job is lost"
    states = server.wait(*ids)
    server.close()

    assert set(states.values()) <= {"done", "cancelled"} and list(states.values()).count("done") >= 14
    assert {id for id in ids if states[id] == "cancelled"} <= asked
    made = [id for (id,) in toys.lines("made")]
    assert len(made) == len(set(made)), "none is made twice"
    assert set(made) <= {id for id in ids if states[id] == "done"}
    steps = [tuple(words) for words in toys.lines("stepped")]
    assert len(set(steps)) >= STEPS * list(states.values()).count("done") > len(steps) - 25, "they went on where they were"
    queue = JobQueue(tmp_path / "root")
    for job in queue.jobs(SESSION):
        folder = {path.name for path in job.out.parent.iterdir()}
        assert is_complete(job.out) == (job.state == "done")
        assert folder <= ({"inputs", "result"} if job.state == "done" else {"inputs", "result.partial"})
        queue.delete(job.id, SESSION)
    queue.close()
    assert not [path for path in (tmp_path / "root").iterdir() if path.is_dir()], "nothing is left"


def test_memory_is_flat_over_many_jobs(tmp_path):
    """One server and one worker: what 20 more jobs leave behind, each of which held HELD, is less than half of one."""
    server = Server(tmp_path)
    weights = []
    for count in (5, 20):
        states = server.wait(*[server("submit", "notice") for _ in range(count)])
        assert set(states.values()) == {"done"}
        weights.append(server.memory)
    (worker,) = server.workers()
    assert {pid for _, pid, _ in Toys(tmp_path / "diary").lines("began")} == {str(worker)}, "the one that was weighed"
    server.close()
    assert weights[1] - weights[0] < HELD / 2, weights


def test_a_full_disk_keeps_every_job(tmp_path):
    """The limit on the size of files refuses what a full disk would: the jobs' files, and the file of jobs itself."""
    server = Server(tmp_path)
    ids = [server("submit", words) for words in ("", "big", "", "big")]
    server.wait(ids[0])
    server.close()

    server = Server(tmp_path, 150_000)
    states = server.wait(ids[0], ids[1], ids[2])
    assert (states[ids[0]], states[ids[1]], states[ids[2]]) == ("done", "failed", "done")
    refused = []
    for _ in range(12):  # until the file of jobs is too large as well
        answer = server("submit", "")
        (ids if len(answer) == 16 else refused).append(answer)
    assert refused and all("cannot be stored" in sentence or "disk is full" in sentence for sentence in refused)
    server.wait(*ids)
    server.kill()

    queue = JobQueue(tmp_path / "root")
    jobs = {job.id: job for job in queue.jobs(SESSION)}
    queue.close()
    assert set(jobs) == set(ids), "what was taken in is there, what was refused is not"
    assert not any(jobs[id].out.exists() for id in (ids[1], ids[3])), "no half folder"
    assert "The disk is full" in jobs[ids[1]].error and "resume the job" in jobs[ids[1]].error

    server = Server(tmp_path)  # with room again
    for id in (ids[1], ids[3]):
        server("resume", id)
    assert set(server.wait(*ids).values()) == {"done"}
    server.close()
    made = [id for (id,) in Toys(tmp_path / "diary").lines("made")]
    assert sorted(made) == sorted(ids), "each once"
