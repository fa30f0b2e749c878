"""Short work that somebody waits for, beside the queue: the check of photos, a file in another format, a picture.

One worker process does it, one errand after the other, so that nobody waits behind a job of minutes.
"""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app import commands
from app.queue_worker import Ended, Make, Prepare, QueueWorker, Step, Task
from splat.errors import InputError
from splat.progress import Progress

MOST_SECONDS = 900.0
IDLE_SECONDS = 300.0  # a worker that nobody needs is ended
GRACE = 5.0  # seconds for a worker to stop


def prepare_errands() -> Make:
    return _errand


def _errand(command: Any) -> Generator[Progress, None, object]:
    match command:
        case commands.Check():
            from app.checkup import check_photos

            return check_photos(command)
        case commands.Export():
            from app.studio.downloads import convert

            return convert(command)
        case commands.Render():
            from app.scenes import render_scene

            return render_scene(command)
    raise AssertionError(type(command))


@dataclass
class Errands:
    """Runs one command at a time in a worker that stays warm for a while."""

    folder: Path  # for what is thrown away
    threads: int
    prepare: Prepare = prepare_errands
    memory_budget: int = 4_000_000_000  # bytes of one errand; by default that of the command line
    _worker: QueueWorker | None = None
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Timer | None = None

    def run(self, command: Any) -> Generator[Progress, None, None]:
        """`command` to its end, with its events; closing the generator stops it. Raises `InputError` with its sentence."""
        began = time.monotonic()
        while not self._turn.acquire(timeout=0.5):
            if time.monotonic() - began > MOST_SECONDS:
                raise InputError("The server is busy with the errands of others; try again later.")
            yield Progress("waiting", 0, 1, "for another visitor's turn to end")
        try:
            yield from self._run(command)
        finally:
            self._rest_later()
            self._turn.release()

    def warm_up(self) -> None:
        """Start the worker, since an errand will follow soon."""
        if self._turn.acquire(blocking=False):
            try:
                self._worker = self._worker or QueueWorker(self.prepare, self.threads)
                self._rest_later()
            finally:
                self._turn.release()

    def close(self) -> None:
        worker, self._worker = self._worker, None
        if self._closing:
            self._closing.cancel()
        if worker:
            worker.leave()
            worker.end(1.0)

    def _rest_later(self) -> None:
        if self._closing:
            self._closing.cancel()
        self._closing = threading.Timer(IDLE_SECONDS, self._rest)
        self._closing.daemon = True
        self._closing.start()

    def _rest(self) -> None:
        with self._turn:
            self.close()

    def _run(self, command: Any) -> Generator[Progress, None, None]:
        self._worker = worker = self._worker or QueueWorker(self.prepare, self.threads)
        if hasattr(command, "threads"):
            command = dataclasses.replace(command, threads=self.threads)
        if hasattr(command, "memory_budget"):
            command = dataclasses.replace(command, memory_budget=f"{self.memory_budget / 1e6:.0f}MB")
        task = Task(secrets.token_hex(8), command, self.folder / "live.png")
        deadline = time.monotonic() + MOST_SECONDS
        with closing(_Hand(worker, self._lose)) as hand:
            worker.give(task)
            while True:
                if time.monotonic() > deadline:
                    raise InputError(f"It took longer than {MOST_SECONDS / 60:.0f} minutes and was stopped; give less.")
                match hand.word(0.3):
                    case Step(_, progress):
                        yield progress
                    case Ended(_, "done"):
                        return
                    case Ended(_, _, sentence):
                        raise InputError(sentence or "It was stopped.")
                    case None:
                        yield Progress("", 0, 1)

    def _lose(self) -> None:
        self._worker = None


@dataclass
class _Hand:
    """A worker at an errand: whatever happens, it is free or gone afterwards."""

    worker: QueueWorker
    lose: Callable[[], None]
    ended: bool = False

    def word(self, timeout: float) -> Any:
        """What the worker says, None when it says nothing for `timeout` seconds."""
        try:
            if not self.worker.pipe.poll(timeout):
                return None
            word = self.worker.pipe.recv()
        except (EOFError, OSError):
            self.ended = True
            self.lose()
            raise InputError(f"The worker process {self.worker.end(1.0)}; try again with less.") from None
        if isinstance(word, Ended):
            self.ended = True
            self.worker.rest()
        return word

    def close(self) -> None:
        if self.ended:
            return
        self.worker.stop(GRACE)
        until = time.monotonic() + GRACE
        try:
            while not self.ended and time.monotonic() < until:
                self.word(0.2)
        except InputError:
            return
        if not self.ended:
            self.lose()
            self.worker.end()
