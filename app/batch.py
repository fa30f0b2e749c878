"""Many items, each made apart from the others by a crew of worker processes: nothing is lost and nothing made twice.

`run_batch` hands the items out, follows them, and keeps two files beside the result folders up to date: `batch.json` for
programs and `index.html` for people. It knows nothing of pictures or prompts: what an item is made from, and how, is in its
`task` and in the crew's `Make`.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from app.estimate import clock
from app.result_folder import check_out, disk_errors_as_sentences, is_complete, locked, write_atomic
from app.workers import Crew, Died, Failed, Item, Made, Ready, Step, Unfit
from splat.errors import InputError, SplatsmithError, StoppedLate
from splat.progress import Progress

MADE_BY, VERSION = "splatsmith", 1  # of the form of batch.json
WAIT = 0.5  # seconds between two events of the batch when no worker has anything to tell
PAGE_EVERY = 5.0  # seconds between two index.html, each of which is written as a whole

# waiting and running are read only while a batch runs, or after its process was killed.
Status = Literal["waiting", "running", "done", "failed", "skipped", "cancelled"]


@dataclass(frozen=True)
class BatchConfig:
    """How the items of a batch are worked through."""

    jobs: int = 1  # workers
    retries: int = 2  # further attempts at an item whose worker died, and at starting a worker
    item_seconds: float | None = None  # longest time for one attempt at one item


@dataclass
class Record:
    """What became of one item so far."""

    item: Item
    status: Status = "waiting"
    seconds: float = 0.0  # of the attempt that ended it
    attempts: int = 0
    error: str | None = None
    trace: str = ""  # of an error that nobody expected
    memory_mb: float | None = None  # of the worker, after the item


@dataclass
class Batch:
    """What batch.json holds."""

    out: Path
    records: list[Record]
    options: dict[str, Any] = field(default_factory=dict)
    status: Literal["running", "done", "partial", "stopped", "cancelled"] = "running"
    started: str = field(default_factory=lambda: _now())
    finished: str | None = None
    seconds: float = 0.0

    @property
    def counts(self) -> Counter[str]:
        return Counter(record.status for record in self.records)

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.status == "failed"]

    def to_json(self) -> dict[str, Any]:
        return {
            "made_by": MADE_BY,
            "version": VERSION,
            "status": self.status,
            "started": self.started,
            "finished": self.finished,
            "seconds": round(self.seconds, 3),
            "options": self.options,
            "counts": {"total": len(self.records), **dict(sorted(self.counts.items()))},
            "items": [_row(record) for record in self.records],
        }


def run_batch(
    out: Path,
    items: Sequence[Item],
    hire_crew: Callable[[], Crew],
    config: BatchConfig,
    *,
    complete: Collection[Path] = (),
    options: dict[str, Any] | None = None,
) -> Generator[Progress, None, Batch]:
    """Make `items`, whose result folders lie directly in `out`; those whose folder is in `complete` are left as they are.

    Yields `Progress("batch", items that have ended, all items)` several times a second with `values` seconds_left (0 while
    unknown), failed and working, and a notice for each item that fails. An item whose worker dies is tried again on a fresh
    one, after those that wait. Closing the generator stops the workers; finished results stay, and batch.json says what is
    left. `options` goes into batch.json as it is.

    Raises `InputError` when nothing could start, and `StoppedLate` when no worker stays alive, the disk is full or no item
    came out.
    """
    _check_folder(out)
    records = [Record(item, "skipped" if item.out in complete else "waiting") for item in items]
    _remember_skipped(out, records)
    batch = Batch(out, records, options or {})
    created = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made ({error.strerror}); give another --out.") from error
    with disk_errors_as_sentences(out), closing(locked(out)) as lock:
        try:
            yield from _Run(batch, hire_crew, config).work()
        finally:
            Path(lock.name).unlink(missing_ok=True)
            if created and not any(out.iterdir()):
                out.rmdir()
    failed = batch.failed
    if failed and len(failed) == len(records):
        raise StoppedLate(f"None of {len(records)} came out; {failed[0].item.name}: {failed[0].error}")
    return batch


@dataclass
class _Hand:
    """An item in the hands of a worker."""

    record: Record
    before: tuple[int, int] | None  # stamp of the result that lay there when it was handed out
    since: float = field(default_factory=time.monotonic)
    progress: Progress | None = None


class _Run:
    """One pass over the items of `batch` that wait."""

    def __init__(self, batch: Batch, hire_crew: Callable[[], Crew], config: BatchConfig) -> None:
        self.batch, self.config, self.hire_crew = batch, config, hire_crew
        self.todo = deque(record for record in batch.records if record.status == "waiting")
        self.jobs = config.jobs  # fewer when a worker cannot be started
        self.starting: set[int] = set()
        self.idle: set[int] = set()
        self.hands: dict[int, _Hand] = {}
        self.began = time.monotonic()
        self.first_ready: float | None = None
        self.ended = 0  # items since then
        self.false_starts = 0  # deaths at the start, one after the other
        self.page_written = 0.0
        self.news: list[Progress] = []

    def work(self) -> Generator[Progress, None, None]:
        if not self.todo:
            self.batch.status = "partial" if self.batch.failed else "done"
            self._write(last=True)
            return
        self.crew = self.hire_crew()
        self.batch.status = "cancelled"  # what a closed generator and Ctrl-C leave
        try:
            while self.todo or self.hands:
                self._staff()
                for worker, event in self.crew.events(WAIT):
                    self._hear(worker, event)
                self._end_the_slow()
                yield from self.news
                self.news.clear()
                yield self._progress()
            self.batch.status = "partial" if self.batch.failed else "done"
        except StoppedLate:
            self.batch.status = "stopped"
            raise
        finally:
            self.crew.close()
            for hand in self.hands.values():
                self._settle(hand)
            for record in self.batch.records:
                if record.status in ("waiting", "running"):
                    record.status = "cancelled"
            if self.first_ready is not None:
                self._write(last=True)

    def _staff(self) -> None:
        """As many workers as there is work for; every idle one gets an item."""
        while self.idle and self.todo:
            worker, record = self.idle.pop(), self.todo.popleft()
            record.status, record.attempts = "running", record.attempts + 1
            self.hands[worker] = _Hand(record, _stamp(record.item.out))
            self.crew.give(worker, record.item, record.attempts)
        wanted = min(self.jobs - len(self.hands), len(self.todo))
        for _ in range(wanted - len(self.starting) - len(self.idle)):
            self.starting.add(self.crew.hire())

    def _hear(self, worker: int, event: object) -> None:
        match event:
            case Ready():
                self.starting.discard(worker)
                self.idle.add(worker)
                self.false_starts = 0
                if self.first_ready is None:
                    self.first_ready = time.monotonic()
                    self._write()
            case Step(progress):
                self.hands[worker].progress = progress
            case Made(seconds, memory_mb):
                hand = self.hands.pop(worker)
                hand.record.memory_mb = memory_mb
                self._end(hand, "done", seconds)
                self.idle.add(worker)
            case Failed(sentence, seconds, trace, ends_batch):
                hand = self.hands.pop(worker)
                hand.record.trace = trace
                self._end(hand, "failed", seconds, sentence)
                self.idle.add(worker)
                if ends_batch:
                    raise StoppedLate(sentence)
            case Unfit(error):
                raise error if self.first_ready is None else StoppedLate(str(error))
            case Died(how) if worker in self.hands:
                self._retry(self.hands.pop(worker), how)
            case Died(how) if worker in self.starting:
                self.starting.discard(worker)
                self._false_start(how)
            case Died():
                self.idle.discard(worker)

    def _retry(self, hand: _Hand, how: str) -> None:
        """Give the item of a worker that died to another one, unless it was finished, or has had its attempts."""
        record = hand.record
        if self._settle(hand):
            return
        if record.attempts <= self.config.retries:
            record.status = "waiting"
            self.todo.append(record)
            self.news.append(Progress("notice", 1, 1, f"{record.item.name} is tried again, as its worker {how}."))
            return
        times = "" if record.attempts == 1 else f" at each of {record.attempts} attempts"
        sentence = f"Its worker process {how}{times}; try it alone, with fewer --jobs or a smaller input."
        self._end(hand, "failed", time.monotonic() - hand.since, sentence)

    def _false_start(self, how: str) -> None:
        self.false_starts += 1
        if self.false_starts <= self.config.retries:
            return
        self.false_starts, self.jobs = 0, self.jobs - 1
        if self.jobs == 0:
            raise StoppedLate(f"No worker process can be started: the last one {how}; close other programs and try again.")
        left = "1 worker" if self.jobs == 1 else f"{self.jobs} workers"
        self.news.append(Progress("notice", 1, 1, f"A worker process {how} before it was ready; going on with {left}."))

    def _end_the_slow(self) -> None:
        limit = self.config.item_seconds
        for worker, hand in list(self.hands.items()):
            if limit is not None and time.monotonic() - hand.since > limit:
                self.crew.dismiss(worker)
                del self.hands[worker]
                if not self._settle(hand):
                    self._end(hand, "failed", limit, f"It took longer than {limit:g} s; give more time or a faster preset.")

    def _settle(self, hand: _Hand) -> bool:
        """Whether the item was finished although its worker could not say so any more; then it is done."""
        out = hand.record.item.out
        try:
            check_out(out, resume=True, overwrite=True)  # puts a complete result in place that was about to be
        except (SplatsmithError, OSError):
            pass
        finished = _stamp(out) not in (None, hand.before)
        if finished:
            self._end(hand, "done", time.monotonic() - hand.since)
        return finished

    def _end(self, hand: _Hand, status: Status, seconds: float, error: str | None = None) -> None:
        record = hand.record
        record.status, record.seconds, record.error = status, seconds, error
        self.ended += 1
        if error:
            self.news.append(Progress("notice", 1, 1, f"{record.item.name}: {error}"))
        self._write()

    def _write(self, last: bool = False) -> None:
        """batch.json, and now and then index.html."""
        from app.batch_page import page

        batch = self.batch
        batch.seconds = time.monotonic() - self.began
        if last:
            batch.finished = _now()
        # Until the last writing the file says what is read when this process is killed.
        plain = batch.to_json() if last else batch.to_json() | {"status": "running"}
        write_atomic(batch.out / "batch.json", json.dumps(plain, indent=1).encode())
        if last or time.monotonic() - self.page_written > PAGE_EVERY:
            self.page_written = time.monotonic()
            write_atomic(batch.out / "index.html", page(batch).encode())

    def _progress(self) -> Progress:
        failed, left = len(self.batch.failed), self._seconds_left()
        ended = len(self.batch.records) - len(self.todo) - len(self.hands)
        words = [f"{clock(left)} left"] if left else []
        words += [f"{failed} failed"] if failed else []
        words += ["loading the models"] if self.first_ready is None else []
        words += [_doing(hand) for hand in self.hands.values()]
        values = {"seconds_left": round(left, 1), "failed": failed, "working": len(self.hands)}
        return Progress("batch", ended, len(self.batch.records), ", ".join(words), values=values)

    def _seconds_left(self) -> float:
        if not self.ended:
            return 0.0
        return (time.monotonic() - self.first_ready) / self.ended * (len(self.todo) + len(self.hands) / 2)


def read_batch(out: Path) -> dict[str, Any] | None:
    """What `out`/batch.json holds; None when there is none of this version, or it is damaged."""
    try:
        found = json.loads((out / "batch.json").read_text())
        whole = found["version"] == VERSION and all(row.keys() >= {"out", "status", "seconds"} for row in found["items"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return found if whole and found.get("made_by") == MADE_BY else None


def was_cancelled(out: Path) -> bool:
    """Whether the last batch in `out` was cancelled, or killed, before its end."""
    return (read_batch(out) or {}).get("status") in ("cancelled", "running")


def replaced_so_far(out: Path) -> frozenset[Path]:
    """Complete results that a batch with --overwrite in `out` had put in place before it ended early."""
    found = read_batch(out) or {}
    if found.get("status") in ("done", "partial") or not found.get("options", {}).get("overwrite"):
        return frozenset()
    rows = [row for row in found["items"] if row["status"] in ("done", "skipped")]
    return frozenset(folder for row in rows if is_complete(folder := out / row["out"]))


def _check_folder(out: Path) -> None:
    """Raises `InputError` where a batch must not write."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder as --out.")
    if is_complete(out):
        raise InputError(f"{out} is a result itself; give a folder for the results of this run as --out.")
    present = [name for name in ("batch.json", "index.html") if (out / name).exists()]
    strange = [] if _is_ours(out / "batch.json") else present
    lock = out / "lock"  # ours is empty, and left behind by a killed batch alone
    if lock.exists() and (not lock.is_file() or lock.stat().st_size):
        strange.append("lock")
    if strange:
        raise InputError(f"{out / strange[0]} is not ours, so it is left alone; give another --out.")


def _is_ours(batch_json: Path) -> bool:
    """Of any version, damaged or not."""
    try:
        return f'"made_by": "{MADE_BY}"' in batch_json.read_text(errors="replace")
    except OSError:
        return False


def _remember_skipped(out: Path, records: list[Record]) -> None:
    """Time and attempts of results that are complete already, from the batch.json of the run that made them."""
    earlier = {row["out"]: row for row in (read_batch(out) or {"items": []})["items"]}
    for record in records:
        if record.status == "skipped" and record.item.out.name in earlier:
            record.seconds = earlier[record.item.out.name]["seconds"]


def _row(record: Record) -> dict[str, Any]:
    row = {
        "name": record.item.name,
        "input": record.item.source,
        "out": record.item.out.name,
        "status": record.status,
        "seconds": round(record.seconds, 3),
        "attempts": record.attempts,
        "error": record.error,
        "memory_mb": None if record.memory_mb is None else round(record.memory_mb, 1),
    }
    return row | ({"trace": record.trace} if record.trace else {})


def _stamp(out: Path) -> tuple[int, int] | None:
    """Changes when another result is put at `out`; None when there is no complete one."""
    try:
        found = (out / "report.json").stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _doing(hand: _Hand) -> str:
    event = hand.progress
    name = hand.record.item.name[:24]
    return name if event is None else f"{name} {event.stage} {event.step}/{event.total}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
