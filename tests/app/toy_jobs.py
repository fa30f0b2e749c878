"""Toy jobs for the queue, which imports them in worker processes: words in a job's first file make things go wrong.

As a program, a server on them: `python toy_jobs.py ROOT DIARY [MOST_BYTES_OF_A_FILE]`, with orders as lines on its input;
or the page with them: `python toy_jobs.py ROOT DIARY page PORT`.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import toy_batch

from app import commands
from app.batch import BatchConfig, run_batch
from app.queue import JobQueue, QueueLimits
from app.result_folder import begin, check_out, disk_errors_as_sentences
from splat.errors import InputError, StoppedLate
from splat.progress import Progress

STEPS = 5
HELD = 20_000_000  # bytes in use while a job is made
SESSION = "visitor"


@dataclass(frozen=True)
class Toys:
    """Prepares the maker. What is done goes to a file that outlives killed processes: a line for each event."""

    diary: Path
    pause: float = 0.0  # seconds a step takes

    def __call__(self):
        self.note("prepared", os.getpid())
        return partial(make, self)

    def note(self, *words) -> None:
        with open(self.diary, "a") as diary:  # one small write: lines of several processes do not mix
            diary.write(" ".join(map(str, words)) + "\n")

    def lines(self, word: str) -> list[list[str]]:
        written = self.diary.read_text().splitlines() if self.diary.exists() else []
        return [line.split()[1:] for line in written if line.split()[0] == word]


@dataclass(frozen=True)
class Result:
    failed: tuple = ()


def make(toys: Toys, command: commands.Photos | commands.Text):
    out = Path(command.out)
    text = command.sentences[0] if isinstance(command, commands.Text) else Path(command.inputs[0]).read_text()
    id, words = out.parent.name, text.split()
    toys.note("began", id, os.getpid(), command.threads)
    if check_out(out, resume=command.resume, overwrite=command.overwrite):
        return Result()
    if "batch" in words:
        return (yield from _batch(toys, out))
    held = bytearray(os.urandom(1) * HELD)
    if "corrupt" in words:
        raise InputError("This is no toy; give another.")
    if "path" in words:
        yield Progress("notice", 1, 1, f"{out.parent.parent} is nearly full.")
        raise InputError(f"{out} is no toy, nor is {out.parents[2]}/a/b.")
    if "fault" in words:
        raise ZeroDivisionError("division by zero\nsecond line")
    yield Progress("estimate", 1, 1, "about 7 s", values={"seconds": 7.0, "memory": 1e9})
    work = begin(out, {"words": words}, resume=command.resume)
    try:
        with disk_errors_as_sentences(out):
            if "dies-always" in words or ("dies" in words and not (work.state / "died").exists()):
                (work.state / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if "notice" in words:
                yield Progress("notice", 1, 1, "Something is odd.")
            for step in range(STEPS):
                if (work.state / str(step)).exists():  # from an earlier attempt
                    continue
                yield Progress("toy", step, STEPS, values={"gaussians": float(len(held))})
                if "deaf" in words:
                    time.sleep(600)
                if "hog" in words:
                    held += bytearray(os.urandom(1) * 600_000_000)
                deadline = time.monotonic() + (600 if "waits" in words and step == 2 else toys.pause)
                while time.monotonic() < deadline:
                    time.sleep(0.01)
                    yield Progress("toy", step, STEPS)
                (work.state / str(step)).write_bytes(b"x" * (1_000_000 if "big" in words else 10))
                toys.note("stepped", id, step)
            (work.result / "scene.ply").write_text(f"a toy of {text}")
            (work.result / "report.json").write_text("{}")
            work.publish(keep_state=True)
            toys.note("made", id)
    finally:
        work.close()
    if "partly" in words:
        return Result(((Path("other"), "it did not work."),))
    if "late" in words:
        raise StoppedLate("It did not end well.")
    return Result()


def _batch(toys: Toys, out: Path):
    """Toys of `toy_batch`, made by worker processes of the worker's own."""
    files = toy_batch.write_toys(out.parent / "toys", a="", b="corrupt", c="")
    prepare = toy_batch.Toys(toys.diary.with_name("batch-diary"))
    items = toy_batch.items_of(files, out)
    return (yield from run_batch(out, items, partial(toy_batch.crew, prepare), BatchConfig(jobs=2), complete=frozenset()))


def toy(folder: Path, words: str = "") -> commands.Photos:
    """The command for a job of such a file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"toy-{len(list(folder.iterdir()))}.toy"
    file.write_text(words)
    return commands.Photos(inputs=(file,), out=Path("ignored"))


def serve_page(root: str, diary: str, port: str) -> None:
    from app.studio.page import serve

    serve(commands.Ui(root=Path(root), port=int(port), per_minute=12, max_upload="1MB", quiet=True), Toys(Path(diary)))


def main(root: str, diary: str, most: str = "", *more: str) -> None:
    if most == "page":
        return serve_page(root, diary, *more)
    if most:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
    queue = JobQueue(Path(root), QueueLimits(grace_seconds=5.0), Toys(Path(diary), pause=0.02))
    queue.start()
    print("ready", flush=True)
    for line in sys.stdin:
        order, *rest = json.loads(line)
        try:
            if order == "submit":
                answer = queue.submit(SESSION, toy(Path(diary).parent / "toys", rest[0]), rest[0])
            elif order == "states":
                answer = {job.id: job.state for job in queue.jobs(SESSION)}
            else:
                answer = getattr(queue, order)(rest[0], SESSION)
        except InputError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)
    queue.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
