"""The process that makes the jobs of `app.queue`: it stays warm between jobs, and may be killed at any moment.

A pipe of its own joins each to the queue; its end tells of the worker's death, after all that the worker said before.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from app import commands
from app.result_folder import FULL_DISK, write_atomic
from app.workers import TELL_EVERY, interrupts_held, limit_threads, manner_of_death
from splat.errors import SplatsmithError
from splat.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

PREVIEW_EVERY = 1.0  # seconds between two live pictures
PREVIEW_SIDE = 512  # px

# Makes one job; its value is a result, of which `failures` tells what is missing.
Make = Callable[[Any], Generator[Progress, None, object]]
# Run once in each worker. Must pickle, so a function of a module or a dataclass.
Prepare = Callable[[], Make]


@dataclass(frozen=True)
class Task:
    """One job to make."""

    id: str
    command: Any  # of app.commands, with --resume
    live: Path  # where its newest preview goes


@dataclass(frozen=True)
class Stop:
    """Cancel the job with this id, if that is the one in hand."""

    id: str


@dataclass(frozen=True)
class Step:
    id: str
    progress: Progress  # without preview


@dataclass(frozen=True)
class Ended:
    """The job has ended and the worker waits for another."""

    id: str
    state: Literal["done", "failed", "cancelled"]
    sentence: str = ""  # why it failed
    notices: tuple[str, ...] = ()  # of a result that is not whole
    trace: str = ""  # of an error that nobody expected


def prepare_pipelines() -> Make:
    """The pipelines of the command line, with models that stay loaded from job to job."""
    return functools.partial(_pipeline, _kept(_load_text), _kept(_load_image))


def _pipeline(load_text: Callable, load_image: Callable, command: Any) -> Generator[Progress, None, object]:
    match command:
        case commands.Photos():
            from app.pipelines import photos_to_scene

            return photos_to_scene(command)
        case commands.Text():
            from app.text_pipeline import text_to_scenes

            return text_to_scenes(command, load_text)
        case commands.Image():
            from app.image_batch import image_batch, makes_batch
            from app.image_pipeline import picture_to_scene

            return image_batch(command) if makes_batch(command) else picture_to_scene(command, load_image)
        case commands.Refine():
            from app.refine import refine_result

            return refine_result(command)
    raise AssertionError(type(command))


_kept = functools.lru_cache(maxsize=1)  # models fill gigabytes: only those of the last job of a kind stay


def _load_text(folder: Path | None, device: str) -> Any:
    from app.text_pipeline import load_generator

    return load_generator(folder, device)


def _load_image(folder: Path | None, device: str) -> Any:
    from app.image_pipeline import load_generator

    return load_generator(folder, device)


class QueueWorker:
    """A worker process, seen from the queue: a fresh interpreter that inherits no threads or locks."""

    def __init__(self, prepare: Prepare, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # Not a daemon in multiprocessing's sense: those may have no children, and batches do.
        self.process = context.Process(target=_serve, args=(theirs, threads), daemon=False)
        try:
            with interrupts_held():
                self.process.start()
        finally:
            theirs.close()  # so that the pipe ends with the process
        self.job: str | None = None
        self.jobs_made = 0
        self.idle_since = time.monotonic()
        self.stop_before: float | None = None  # by then it must have stopped
        self._send(prepare)

    def give(self, task: Task) -> None:
        self.job, self.stop_before = task.id, None
        self._send(task)

    def stop(self, grace: float) -> None:
        """Ask it to cancel its job."""
        if self.stop_before is None and self.job is not None:
            self.stop_before = time.monotonic() + grace
            self._send(Stop(self.job))

    def rest(self) -> None:
        self.job, self.stop_before = None, None
        self.jobs_made += 1
        self.idle_since = time.monotonic()

    def leave(self) -> None:
        """Ask it to end, after it has put the state of its job away."""
        self._send(None)

    def memory(self) -> int:
        """Resident bytes of it and its children; 0 when it is gone."""
        total = 0
        try:
            process = psutil.Process(self.process.pid)
            for one in (process, *process.children(recursive=True)):
                try:
                    total += one.memory_info().rss
                except psutil.Error:  # a child that has just ended
                    pass
        except psutil.Error:
            pass
        return total

    def end(self, wait_seconds: float = 0.0) -> str:
        """End it, by force after `wait_seconds`; says in words how it ended."""
        self.process.join(wait_seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        self.pipe.close()
        self.process.close()
        return manner_of_death(code)

    def _send(self, what: Any) -> None:
        try:
            self.pipe.send(what)
        except OSError:  # it has just died, which the pipe's end tells
            pass


class _Cancelled(BaseException):
    """The queue says stop in the middle of a job."""


class _Leave(BaseException):
    """The queue says stop, and that there will be no more jobs."""


def _serve(pipe: Connection, threads: int) -> None:
    """A worker process, from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the queue decides
    limit_threads(threads)
    threading.Thread(target=_end_with_queue, daemon=True).start()
    make = pipe.recv()()
    try:
        while (given := pipe.recv()) is not None:
            if isinstance(given, Task):  # a Stop that came too late is passed over
                pipe.send(_work_on(make, given, _Voice(pipe, given)))
    except (_Leave, EOFError, BrokenPipeError):
        return


def _work_on(make: Make, task: Task, tell: Callable[[Progress], None]) -> Ended:
    try:
        with closing(make(task.command)) as job:
            result = _run(job, tell)
    except _Cancelled:
        return Ended(task.id, "cancelled")
    except SplatsmithError as error:
        return Ended(task.id, "failed", _sentence(error, task))
    except MemoryError:
        return Ended(task.id, "failed", "The machine ran out of memory; give less or smaller input.")
    except Exception as error:  # a fault in the handling of one job is no reason to lose the others
        said = (str(error).splitlines() or ["no message"])[0][:200]
        sentence = f"An unexpected {type(error).__name__} ended it: {said.rstrip('.')}."
        return Ended(task.id, "failed", sentence, trace=traceback.format_exc()[-4000:])
    missing, whole = failures(result)
    if missing and not whole:
        return Ended(task.id, "failed", missing[0], missing)
    return Ended(task.id, "done", notices=missing)


def _run(job: Generator[Progress, None, object], tell: Callable[[Progress], None]) -> object:
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return end.value
        tell(event)


def failures(result: object) -> tuple[tuple[str, ...], bool]:
    """Sentences about what is missing, worded as the pipelines' notices, and whether anything was made at all."""
    failed = getattr(result, "failed", ())
    if hasattr(result, "counts"):  # app.batch.Batch
        made = result.counts["done"] + result.counts["skipped"] > 0
        return tuple(f"{record.item.name}: {record.error}" for record in failed), made
    return tuple(f"{out.name}: {sentence}" for out, sentence in failed), True


def _sentence(error: SplatsmithError, task: Task) -> str:
    """A full disk is told without the flags of the command line."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in FULL_DISK:
        free = shutil.disk_usage(task.live.parent).free / 1e6
        return f"The disk is full ({free:.0f} MB free); make room and resume the job, which has kept what was finished."
    return str(error)


class _Voice:
    """Passes the events of a job on to the queue, not too many of them, and hears whether to stop."""

    def __init__(self, pipe: Connection, task: Task) -> None:
        self.pipe, self.task = pipe, task
        self.stage, self.told, self.pictured = "", 0.0, 0.0

    def __call__(self, event: Progress) -> None:
        while self.pipe.poll():
            word = self.pipe.recv()
            if word is None:
                raise _Leave
            if isinstance(word, Stop) and word.id == self.task.id:
                raise _Cancelled
        now = time.monotonic()
        if event.preview is not None and now - self.pictured > PREVIEW_EVERY:
            self.pictured = now
            write_preview(event.preview, self.task.live)
        if event.stage in ("notice", "estimate") or event.stage != self.stage or now - self.told > TELL_EVERY:
            self.stage, self.told = event.stage, now
            self.pipe.send(Step(self.task.id, dataclasses.replace(event, preview=None)))


def write_preview(picture: Tensor, path: Path) -> None:
    """A small PNG of [H, W, 3] sRGB in [0, 1], whole at every moment; a full disk costs the picture, not the job."""
    import io

    from PIL import Image

    pixels = (picture.detach().clamp(0, 1) * 255).round().byte().cpu().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    data = io.BytesIO()
    image.save(data, "PNG")
    try:
        write_atomic(path, data.getvalue())
    except OSError:
        path.with_name(path.name + ".tmp").unlink(missing_ok=True)


def _end_with_queue() -> None:
    """A queue that was killed cannot say stop; what is under way stays in OUT.partial, as after any kill."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
