"""Worker processes that each do one item at a time; one that dies takes nothing with it but that attempt.

The standard pool of `concurrent.futures` breaks as a whole when one process is killed. Here every process has a pipe of its
own, and the end of the pipe tells of its death, after all that it said before. `app.cluster` has the same on a Ray cluster.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import psutil

from app.result_folder import FULL_DISK
from splat.errors import SplatsmithError
from splat.progress import Progress

GRACE = 5.0  # seconds in which a worker that is told to stop may put its state away
TELL_EVERY = 0.2  # seconds between two events of one stage


@dataclass(frozen=True)
class Item:
    """One thing to make. Must pickle."""

    name: str  # unique within its batch, for people
    out: Path  # result folder
    source: str  # what it is made from, for people
    task: Any = None  # what the maker needs


# Makes one item: its attempts count from 1, and after the first one the maker continues what lies in OUT.partial.
Make = Callable[[Item, int], Generator[Progress, None, object]]
# Run once in each worker process: loads what all items need. Must pickle, so a function of a module or a dataclass.
Prepare = Callable[[], Make]


@dataclass(frozen=True)
class Ready:
    """The worker has loaded what it needs and waits for an item."""


@dataclass(frozen=True)
class Step:
    progress: Progress  # of the worker's item, without preview


@dataclass(frozen=True)
class Made:
    seconds: float
    memory_mb: float  # resident memory of the worker, after the item


@dataclass(frozen=True)
class Failed:
    """The item cannot be made; the worker goes on."""

    sentence: str
    seconds: float
    trace: str = ""  # of an error that nobody expected
    ends_batch: bool = False  # what refuses this item refuses all: a full disk


@dataclass(frozen=True)
class Unfit:
    """The worker cannot be made ready, for a reason that holds for every other one as well."""

    error: SplatsmithError


@dataclass(frozen=True)
class Died:
    how: str


Event = Ready | Step | Made | Failed | Unfit | Died


class Crew(Protocol):
    """Workers by number, wherever they run."""

    def hire(self) -> int:
        """Begin to start a worker; `Ready`, `Unfit` or `Died` follows."""

    def give(self, worker: int, item: Item, attempt: int) -> None:
        """To a worker that is ready; `Step`s, then `Made`, `Failed` or `Died` follow."""

    def events(self, timeout: float) -> list[tuple[int, Event]]:
        """What workers told since the last call; waits up to `timeout` seconds for the first."""

    def dismiss(self, worker: int) -> None:
        """End a worker at once; nothing more is heard of it."""

    def close(self) -> None:
        """End all workers; those at work may put their state away first."""


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection


@dataclass
class LocalCrew:
    """Processes on this machine, each a fresh interpreter (spawn: no threads or locks of the parent are inherited)."""

    prepare: Prepare
    threads: int  # CPU threads of each
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _unstarted: list[tuple[int, Event]] = field(default_factory=list)
    _hired: int = 0

    def hire(self) -> int:
        self._hired += 1
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.threads), daemon=True)
        try:
            with interrupts_held():
                process.start()
        except OSError as error:  # no memory or no process left
            ours.close()
            self._unstarted.append((self._hired, Died(f"could not be started ({error.strerror or error})")))
            return self._hired
        finally:
            theirs.close()  # so that the pipe ends with the process
        self._workers[self._hired] = _Worker(process, ours)
        self._send(self._hired, self.prepare)
        return self._hired

    def give(self, worker: int, item: Item, attempt: int) -> None:
        self._send(worker, (item, attempt))

    def events(self, timeout: float) -> list[tuple[int, Event]]:
        told, self._unstarted = self._unstarted, []
        by_pipe = {worker.pipe: number for number, worker in self._workers.items()}
        if not by_pipe:
            return told
        for pipe in wait(list(by_pipe), 0 if told else timeout):
            number = by_pipe[pipe]
            try:
                told.append((number, pipe.recv()))
            except (EOFError, OSError):  # its end, perhaps in the middle of a word
                told.append((number, Died(self._end_of(number))))
        return told

    def dismiss(self, worker: int) -> None:
        if worker in self._workers:
            self._workers[worker].process.kill()
            self._end_of(worker)

    def close(self) -> None:
        for number in self._workers:
            self._send(number, None)
        deadline = time.monotonic() + GRACE
        for worker in self._workers.values():
            worker.process.join(max(deadline - time.monotonic(), 0))
        for number in list(self._workers):
            self.dismiss(number)

    def _send(self, number: int, what: Any) -> None:
        try:
            self._workers[number].pipe.send(what)
        except OSError:  # it has just died, which `events` tells
            pass

    def _end_of(self, number: int) -> str:
        worker = self._workers.pop(number)
        worker.pipe.close()
        worker.process.join(GRACE)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        code = worker.process.exitcode
        worker.process.close()
        return manner_of_death(code)


def manner_of_death(code: int) -> str:
    """In words, of a process's exit code as Python gives it: negative for a signal."""
    if code == -getattr(signal, "SIGKILL", 9):
        return "was killed, as the system does when memory runs out"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with status {code}"


def work_on(make: Make, item: Item, attempt: int, tell: Callable[[Progress], None]) -> Made | Failed:
    """Make one item; whatever goes wrong with it becomes a `Failed`, except what `tell` raises to cancel."""
    began = time.monotonic()
    try:
        with closing(make(item, attempt)) as job:
            for event in job:
                tell(event)
    except SplatsmithError as error:
        cause = error.__cause__
        full = isinstance(cause, OSError) and cause.errno in FULL_DISK
        return Failed(str(error), time.monotonic() - began, ends_batch=full)
    except Exception as error:  # a fault in the handling of one item is no reason to lose the others
        said = (str(error).splitlines() or ["no message"])[0][:200]
        sentence = f"An unexpected {type(error).__name__} ended it: {said.rstrip('.')}."
        return Failed(sentence, time.monotonic() - began, traceback.format_exc()[-4000:])
    return Made(time.monotonic() - began, psutil.Process().memory_info().rss / 1e6)


def limit_threads(threads: int) -> None:
    """Of the libraries that this process is going to load; torch also has a setter, for later."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # waiting threads sleep: other workers want the cores


class _Cancelled(BaseException):
    """The parent says stop in the middle of an item."""


def _serve(pipe: Connection, threads: int) -> None:
    """A worker process, from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    limit_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare: Prepare = pipe.recv()  # which imports its modules
    try:
        make = prepare()
    except SplatsmithError as error:
        pipe.send(Unfit(error))
        return
    pipe.send(Ready())

    told = ("", 0.0)  # stage and time of the last event

    def tell(event: Progress) -> None:
        nonlocal told
        if pipe.poll():
            raise _Cancelled
        if event.stage != told[0] or time.monotonic() - told[1] > TELL_EVERY:
            told = (event.stage, time.monotonic())
            pipe.send(Step(dataclasses.replace(event, preview=None)))

    while (given := pipe.recv()) is not None:
        try:
            pipe.send(work_on(make, *given, tell))
        except _Cancelled:
            return


def _end_with_parent() -> None:
    """A parent that was killed cannot say stop; what is under way stays in OUT.partial, as after any kill."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block ends, and a process started in it never sees one, not even while it imports."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
