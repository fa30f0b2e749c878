"""The jobs of the page and its API: one queue for all visitors, kept on disk, made by few worker processes.

`JobQueue` holds the jobs in memory and in ROOT/jobs.sqlite, and a thread of its own hands them to workers
(`app.queue_worker`). A server that starts again shows what is done and goes on with what was under way. This process never
imports torch. What a job owns lies in ROOT/<SHA-256 of the session>/<job id>: `inputs/`, `result/` (or `result.partial/`
until it is complete), `live.png`.
"""

from __future__ import annotations

import atexit
import collections
import dataclasses
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from app.estimate import parse_bytes, rough_memory
from app.job_intake import room_of, take_in
from app.job_record import JobRecord, LiveJob, record_of
from app.job_store import KINDS, JobStore, State, StoredJob, decode, from_json, to_json
from app.queue_limits import QueueLimits
from app.queue_worker import Ended, Prepare, QueueWorker, Step, Task, prepare_pipelines
from app.result_folder import is_complete, locked
from app.uploads import folder_bytes
from splat.errors import InputError
from splat.progress import Progress

LOG = logging.getLogger(__name__)

MOST_DEATHS = 2  # workers that a job may take with it
MOST_INTERRUPTIONS = 10  # servers that may end during a job before it waits to be resumed by hand
OVER_BUDGET = 1.5  # times its memory budget that a job may really take; estimates are rough
MOST_NOTICES = 100  # of a job
TITLE_LENGTH = 200  # characters
LOOK_EVERY = 0.25  # seconds between looks at the queue and the clocks, when nothing is said
WEIGH_EVERY = 2.0  # seconds between looks at the workers' memory, which go through all processes of the machine
EXPIRE_EVERY = 600.0  # seconds
SESSION = re.compile(r"[0-9a-f]{64}")
JOB = re.compile(r"[0-9a-f]{16}")


class JobQueue:
    """The queue on the folder `root`. All methods may be called from any thread."""

    def __init__(self, root: Path, limits: QueueLimits | None = None, prepare: Prepare = prepare_pipelines) -> None:
        """Opens what `root` holds; jobs begin with `start`. Raises `InputError` where another server works on it."""
        self.root, self.limits, self.prepare = Path(root).absolute(), limits or QueueLimits(), prepare
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_file = _only_server(self.root)
        except OSError as error:
            raise InputError(f"{self.root} cannot be written ({error.strerror}); give another --root.") from error
        try:
            self._store = JobStore(self.root / "jobs.sqlite")
        except BaseException:
            self._lock_file.close()
            raise
        self._lock = threading.RLock()
        self._jobs: dict[str, StoredJob] = {}  # in the order of the queue
        self._live: dict[str, LiveJob] = {}
        self._told: dict[str, JobRecord] = {}  # of jobs that have ended: the page asks for all of them each second
        self._unsaved: set[str] = set()  # changes that the disk refused; written when it takes them again
        self._asked: dict[str, collections.deque[float]] = {}  # when each session submitted within the last minute
        self._workers: list[QueueWorker] = []
        self._thread: threading.Thread | None = None
        self._rest_until = 0.0
        self._closing = False
        self._expired = self._saved = self._weighed = 0.0
        self._open_jobs()

    # Called by the page.

    def submit(self, session: str, command: Any, title: str) -> str:
        """Queue `command` (Photos, Image, Text or Refine) for `session`; returns the job's id.

        Its files are copied, so that they may vanish afterwards, and its --out is chosen here. Raises `InputError` over the
        limits, and for files or options that are not for visitors.
        """
        owner, kind, id = _hash(session), _kind(command), secrets.token_hex(8)
        folder = self.root / owner / id
        with self._lock:
            self._check_limits(owner)
            self._make_folder(folder)
            number = max((job.number for job in self._jobs.values()), default=0) + 1
            job = StoredJob(id, owner, kind, _clean(title), "", number, submitted=time.time())
            self._jobs[id] = job  # counts from now on; its state keeps it from being started
            job.state = "interrupted"
        try:
            command = take_in(command, folder, self.limits)
            with self._lock:
                job.command, job.memory, job.state = to_json(command, self.root), rough_memory(command), "queued"
                self._store.save(job)
        except BaseException as error:
            with self._lock:
                del self._jobs[id]
                shutil.rmtree(folder, ignore_errors=True)
                _remove_empty(folder.parent)
            if isinstance(error, sqlite3.Error):
                raise InputError(f"The job cannot be stored ({error}); make room on the server's disk.") from error
            raise
        return id

    def get(self, id: str, session: str) -> JobRecord:
        """Raises `InputError` for an id that this session has not."""
        with self._lock:
            return self._record(self._job(id, session), self._waiting())

    def jobs(self, session: str) -> list[JobRecord]:
        """Of this session, newest first."""
        owner = _hash(session)
        with self._lock:
            mine = [job for job in reversed(self._jobs.values()) if job.session == owner and job.command]
            waiting = self._waiting()
            return [self._record(job, waiting) for job in mine]

    def cancel(self, id: str, session: str) -> None:
        """At once where it waits; a running job puts its state away first. One that has ended stays as it is."""
        with self._lock:
            job = self._job(id, session)
            if job.state in ("queued", "interrupted"):
                self._end(job, "cancelled")
            elif job.state == "running":
                self._live[id].cancelled = True
                for worker in self._workers:
                    if worker.job == id:
                        worker.stop(self.limits.grace_seconds)

    def resume(self, id: str, session: str) -> None:
        """Queue a cancelled, failed or interrupted job again; it goes on from what it has finished."""
        with self._lock:
            job = self._job(id, session)
            if job.state in ("queued", "running"):
                return
            if job.state == "done":
                raise InputError("The job is done; there is nothing to resume.")
            self._check_limits(job.session, new=False)
            job.number = max(other.number for other in self._jobs.values()) + 1
            self._told.pop(id, None)
            job.state, job.error, job.finished, job.deaths, job.interruptions = "queued", None, None, 0, 0
            self._jobs[id] = self._jobs.pop(id)  # to the end
            self._save(job)

    def delete(self, id: str, session: str) -> None:
        """The job and all its files. Raises `InputError` while it runs, and while its result is being refined."""
        with self._lock:
            job = self._job(id, session)
            if job.state == "running":
                raise InputError("The job is running; cancel it first.")
            if self._read_by(job):
                raise InputError("The job's result is being refined; wait for that job, or cancel it first.")
            self._remove(job)

    def used_bytes(self, session: str) -> int:
        """On disk, of all jobs of the session."""
        return folder_bytes(self.root / _hash(session))

    def check_room(self, session: str) -> None:
        """Raises `InputError` where the session or the disk has no room for another file."""
        room_of(self.root / _hash(session), self.limits)

    def start(self) -> None:
        """Begin to work: first on what an earlier server left."""
        with self._lock:
            for job in self._jobs.values():
                if job.state == "interrupted" and job.command and job.interruptions <= MOST_INTERRUPTIONS:
                    job.state = "queued"
                    self._save(job)
        self._thread = threading.Thread(target=self._work, name="queue", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # before multiprocessing waits for workers that would never end

    def close(self) -> None:
        """End the workers; jobs under way put their state away and go on when the queue starts again."""
        atexit.unregister(self.close)
        if self._closing:
            return
        self._closing = True
        if self._thread:
            self._thread.join()
        for worker in self._workers:
            worker.leave()
        deadline = time.monotonic() + self.limits.grace_seconds
        for worker in self._workers:
            self._hear_out(worker, deadline)
            worker.end(max(deadline - time.monotonic(), 0.0))
        with self._lock:
            self._workers = []
            for job in self._jobs.values():
                if job.state == "running":
                    job.state = "interrupted"
                    self._save(job)
            self._store.close()
        self._lock_file.close()

    # The thread.

    def _work(self) -> None:
        while not self._closing:
            try:
                for worker, word in self._words(LOOK_EVERY):
                    self._hear(worker, word)
                self._look_after_workers()
                self._begin_jobs()
                self._save_again()
                self._expire()
            except Exception:  # one job's trouble must not end the others
                LOG.exception("The queue stumbled and goes on.")
                time.sleep(1.0)

    def _words(self, timeout: float) -> list[tuple[QueueWorker, Any]]:
        """What the workers say, with None for the end of one."""
        by_pipe = {worker.pipe: worker for worker in self._workers}
        if not by_pipe:
            time.sleep(timeout)
            return []
        words = []
        for pipe in wait(list(by_pipe), timeout):
            try:
                words.append((by_pipe[pipe], pipe.recv()))
            except (EOFError, OSError):
                words.append((by_pipe[pipe], None))
        return words

    def _hear(self, worker: QueueWorker, word: Any) -> None:
        with self._lock:
            job = self._jobs.get(worker.job or "")
            if word is None:
                self._workers.remove(worker)
                how = worker.end(1.0)
                if job is not None:
                    self._died(job, how)
            elif isinstance(word, Step) and job is not None and word.id == job.id:
                self._note(job, word.progress)
            elif isinstance(word, Ended) and job is not None and word.id == job.id:
                worker.rest()
                if word.trace:
                    LOG.error("Job %s: %s\n%s", job.id, word.sentence, word.trace)
                self._add_notices(job, word.notices)
                self._end(job, word.state, word.sentence or None)

    def _hear_out(self, worker: QueueWorker, deadline: float) -> None:
        """What a worker still says before it leaves: its job may have been done."""
        try:
            while worker.pipe.poll(max(deadline - time.monotonic(), 0.0)):
                self._hear(worker, worker.pipe.recv())
        except (EOFError, OSError):
            pass

    def _note(self, job: StoredJob, event: Progress) -> None:
        live = self._live[job.id]
        if event.stage == "notice":
            self._add_notices(job, (event.note,))
            self._save(job)
            return
        if event.stage == "estimate":
            live.seconds = event.values.get("seconds", 0.0)
            job.memory = event.values.get("memory", job.memory)
        if event.stage != live.progress.stage:
            live.stage_began = time.monotonic()
        live.progress = event

    def _died(self, job: StoredJob, how: str) -> None:
        job.deaths += 1
        live = self._live.pop(job.id)
        if live.cancelled:
            self._end(job, "cancelled")
        elif _whole(self.root, job):  # it could not say so any more
            self._end(job, "done")
        elif job.deaths < MOST_DEATHS:
            self._add_notices(job, (f"Its worker {how}; the job goes on from what was finished.",))
            job.state = "queued"
            self._save(job)
        else:
            self._end(job, "failed", f"Its worker {how}, {job.deaths} times; use a faster preset or less input.")

    def _look_after_workers(self) -> None:
        now = time.monotonic()
        weigh = now - self._weighed > WEIGH_EVERY
        self._weighed = now if weigh else self._weighed
        with self._lock:
            for worker in list(self._workers):
                job = self._jobs.get(worker.job or "")
                memory = worker.memory() if weigh else 0
                if job is None:
                    worn = now - worker.idle_since > self.limits.idle_seconds or worker.jobs_made >= self.limits.jobs_by_worker
                    if worn or memory > self.limits.idle_memory:
                        self._dismiss(worker)
                elif worker.stop_before is not None and worker.stop_before < now:
                    self._dismiss(worker)
                    self._end(job, "cancelled")
                elif memory > OVER_BUDGET * (budget := self._budget(job)):
                    self._dismiss(worker)
                    self._end(
                        job,
                        "failed",
                        f"The job took {memory / 1e9:.2f} GB of memory, far more than its {budget / 1e9:.2f} GB; "
                        "use a faster preset or less input.",
                    )

    def _dismiss(self, worker: QueueWorker) -> None:
        self._workers.remove(worker)
        worker.end()

    def _begin_jobs(self) -> None:
        with self._lock:
            for job in self._waiting():
                working = [self._jobs[worker.job] for worker in self._workers if worker.job is not None]
                fits = sum(other.memory for other in working) + job.memory <= self.limits.memory_budget
                if self._closing or len(working) >= self.limits.workers or (working and not fits):
                    return  # those behind it wait too, or it might wait for ever
                self._begin(job)

    def _begin(self, job: StoredJob) -> None:
        if time.monotonic() < self._rest_until:
            return
        threads = self._threads()
        try:
            command = from_json(job.kind, job.command, self.root)
        except (TypeError, KeyError, ValueError) as error:
            self._end(job, "failed", f"The job was stored by another version of splatsmith ({error}); ask for it anew.")
            return
        command = dataclasses.replace(command, threads=min(command.threads or threads, threads))
        idle = next((worker for worker in self._workers if worker.job is None), None)
        if idle is None:
            try:
                idle = QueueWorker(self.prepare, threads)
            except OSError as error:  # no memory or no process left
                LOG.warning("No worker could be started (%s); it is tried again.", error)
                self._rest_until = time.monotonic() + 5.0
                return
            self._workers.append(idle)
        now = time.monotonic()
        self._live[job.id] = LiveJob(began=now, stage_began=now)
        job.state, job.started, job.finished, job.error = "running", time.time(), None, None
        self._save(job)
        idle.give(Task(job.id, command, self._folder(job) / "live.png"))

    def _expire(self) -> None:
        """Remove jobs that ended long ago."""
        if not self.limits.expire_days or time.monotonic() - self._expired < EXPIRE_EVERY:
            return
        self._expired = time.monotonic()
        before = time.time() - self.limits.expire_days * 86400
        with self._lock:
            for job in list(self._jobs.values()):
                ended = job.command and job.state not in ("queued", "running")
                if ended and (job.finished or job.submitted) < before and not self._read_by(job):
                    self._remove(job)

    # What both call, under the lock.

    def _job(self, id: str, session: str) -> StoredJob:
        job = self._jobs.get(id)
        if job is None or job.session != _hash(session) or not job.command:
            raise InputError("There is no such job here; it may have expired or been deleted.")
        return job

    def _folder(self, job: StoredJob) -> Path:
        return self.root / job.session / job.id

    def _make_folder(self, folder: Path) -> None:
        """A job's, in the session's, which the owner of the server alone can look into, whatever ROOT allows."""
        try:
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise InputError(f"The job cannot be stored ({error.strerror}); make room on the server's disk.") from error

    def _budget(self, job: StoredJob) -> float:
        asked = json.loads(job.command).get("memory_budget") or self.limits.memory_budget
        return parse_bytes(str(asked))

    def _read_by(self, job: StoredJob) -> bool:
        """Whether a job that waits or runs begins from a result of this one."""
        refining = (j for j in self._jobs.values() if j.kind == "refine" and j.state in ("queued", "running"))
        results = (decode(json.loads(other.command)["result"], self.root) for other in refining)
        return any(result.is_relative_to(self._folder(job)) for result in results)

    def _threads(self) -> int:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(min(self.limits.threads or cores, cores) // self.limits.workers, 1)

    def _end(self, job: StoredJob, state: State, error: str | None = None) -> None:
        job.state, job.error, job.finished = state, error and self._without_folders(job, error), time.time()
        self._live.pop(job.id, None)
        self._save(job)

    def _add_notices(self, job: StoredJob, sentences: Iterable[str]) -> None:
        told = (self._without_folders(job, sentence) for sentence in sentences)
        job.notices = tuple(dict.fromkeys((*job.notices, *told)))[:MOST_NOTICES]

    def _without_folders(self, job: StoredJob, sentence: str) -> str:
        """Where ROOT lies is no visitor's business: what a sentence names is told from the job's folder on."""
        for root in dict.fromkeys((self.root, self.root.resolve())):
            for folder in (root / job.session / job.id, root / job.session, root):
                sentence = sentence.replace(f"{folder}{os.sep}", "").replace(str(folder), "the jobs' folder")
        return sentence

    def _save(self, job: StoredJob) -> None:
        try:
            self._store.save(job)
            self._unsaved.discard(job.id)
        except sqlite3.Error as error:
            if not self._unsaved:
                LOG.warning("Jobs cannot be stored now (%s); it is tried again.", error)
            self._unsaved.add(job.id)

    def _save_again(self) -> None:
        if self._unsaved and time.monotonic() - self._saved > 1.0:
            self._saved = time.monotonic()
            with self._lock:
                for id in list(self._unsaved):
                    if id in self._jobs:
                        self._save(self._jobs[id])
                    else:
                        self._forget(id)

    def _remove(self, job: StoredJob) -> None:
        """The row first: a folder without a row is removed when the queue opens, a row without a folder stays broken."""
        del self._jobs[job.id]
        self._told.pop(job.id, None)
        self._forget(job.id)
        folder = self._folder(job)
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(folder.parent)

    def _forget(self, id: str) -> None:
        try:
            self._store.remove(id)
            self._unsaved.discard(id)
        except sqlite3.Error:
            self._unsaved.add(id)

    def _check_limits(self, owner: str, *, new: bool = True) -> None:
        limits, now = self.limits, time.monotonic()
        for session in [s for s, times in self._asked.items() if now - times[-1] > 60]:
            del self._asked[session]
        asked = self._asked.setdefault(owner, collections.deque(maxlen=limits.per_minute))
        if len(asked) == limits.per_minute and now - asked[0] < 60:
            wait_s = 60 - (now - asked[0])
            raise InputError(
                f"{limits.per_minute} jobs were asked for within a minute, the most there may be; wait {wait_s:.0f} s."
            )
        asked.append(now)
        queued = [job for job in self._jobs.values() if job.state == "queued"]
        if len(queued) >= limits.queued:
            raise InputError(f"The queue is full ({len(queued)} jobs wait); try again later.")
        mine = sum(job.session == owner for job in queued)
        if mine >= limits.queued_by_session:
            raise InputError(f"{mine} of your jobs are waiting, the most there may be; wait for one, or cancel one.")
        kept = sum(job.session == owner for job in self._jobs.values())
        if new and kept >= limits.kept_by_session:
            raise InputError(f"You have {kept} jobs, the most there may be; delete some first.")

    def _waiting(self) -> list[StoredJob]:
        """The jobs that wait, the next one first: sessions take turns, so that nobody waits behind all jobs of another."""
        turns: collections.Counter[str] = collections.Counter()
        served: dict[str, float] = {}  # when a job of the session began last
        for job in self._jobs.values():
            turns[job.session] += job.state == "running"
            served[job.session] = max(served.get(job.session, 0.0), job.started or 0.0)
        order = []
        for job in sorted((job for job in self._jobs.values() if job.state == "queued"), key=lambda job: job.number):
            order.append((turns[job.session], served[job.session], job.number, job))
            turns[job.session] += 1
        return [job for *_, job in sorted(order, key=lambda entry: entry[:3])]

    def _record(self, job: StoredJob, waiting: list[StoredJob]) -> JobRecord:
        if job.state not in ("done", "failed", "cancelled"):
            return self._looked_up(job, waiting)
        if job.id not in self._told:
            self._told[job.id] = self._looked_up(job, waiting)
        return self._told[job.id]

    def _looked_up(self, job: StoredJob, waiting: list[StoredJob]) -> JobRecord:
        position = waiting.index(job) + 1 if job.state == "queued" else None
        return record_of(job, self._live.get(job.id), position, self.root)

    def _open_jobs(self) -> None:
        """What an earlier server left: jobs that ran are interrupted, and folders without a job are removed."""
        for job in self._store.load():
            self._jobs[job.id] = job
            if job.state == "running":
                job.state, job.interruptions = "interrupted", job.interruptions + 1
                self._save(job)
        for home in self.root.iterdir():
            if SESSION.fullmatch(home.name) and home.is_dir():
                home.chmod(0o700)
                for folder in home.iterdir():
                    if JOB.fullmatch(folder.name) and folder.name not in self._jobs:
                        shutil.rmtree(folder, ignore_errors=True)
                _remove_empty(home)


def default_root() -> Path:
    """Where the jobs lie when nobody says otherwise: in the user's data folder, so that they outlive a restart."""
    data = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "splatsmith" / "jobs"


def _only_server(root: Path) -> Any:
    try:
        return locked(root)
    except InputError as error:
        raise InputError(f"Another server is working in {root}; end it or give another --root.") from error


def _hash(session: str) -> str:
    """The session comes from the visitor, who may send any text, so it is no part of a path."""
    return hashlib.sha256(str(session).encode(errors="replace")).hexdigest()


def _kind(command: Any) -> str:
    for kind, type_ in KINDS.items():
        if isinstance(command, type_):
            return kind
    raise AssertionError(type(command))


def _clean(title: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in title).split())[:TITLE_LENGTH]


def _whole(root: Path, job: StoredJob) -> bool:
    """Whether the one result of a job is in place; a job of several says so itself, when it is made again."""
    return job.kind in ("photos", "refine") and is_complete(root / job.session / job.id / "result")


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # not empty, or gone
        pass
