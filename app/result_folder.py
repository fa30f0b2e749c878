"""The result folder: work in OUT.partial, the finished result put in place by renaming, never half a file at OUT.

A killed run leaves the old complete OUT (if there was one) and OUT.partial with what finished; `begin(resume=True)`
continues there. One run at a time works on an OUT, guarded by a lock that ends with the process.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from splat.errors import InputError, StoppedLate

# EFBIG: a file-size limit of the user's session, which to them is the same event.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class WorkFolder:
    """OUT.partial while a job runs: `state/` for --resume, `result/` in which OUT is assembled."""

    out: Path
    partial: Path
    lock: IO[str]

    @property
    def state(self) -> Path:
        return self.partial / "state"

    @property
    def result(self) -> Path:
        return self.partial / "result"

    def publish(self, keep_state: bool) -> None:
        """Make `result/` the folder OUT; the old OUT, if any, stays whole until the new one can take its place."""
        if keep_state:
            os.replace(self.state, self.result / "state")
        old = _old(self.out)
        _remove(old)
        if self.out.exists():
            os.replace(self.out, old)
        os.replace(self.result, self.out)
        _remove(old)
        _remove(self.partial)

    def close(self) -> None:
        self.lock.close()


def check_out(out: Path, *, resume: bool, overwrite: bool) -> bool:
    """True when OUT is complete and `resume` says to leave it; raises `InputError` when OUT must not be touched.

    Writes nothing, except that it puts a complete result back in place that a killed run had moved aside.
    """
    old = _old(out)
    if is_complete(old) and not out.exists():
        os.replace(old, out)
    if is_complete(out):
        if resume:
            return True
        if not overwrite:
            raise InputError(f"{out} holds a complete result; give --overwrite to replace it, or another --out.")
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} exists and is not a result folder, so it is left alone; give another --out.")
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder that does not exist yet as --out.")
    return False


def is_complete(out: Path) -> bool:
    return (out / "report.json").is_file()


def begin(out: Path, job: dict[str, Any], *, resume: bool) -> WorkFolder:
    """Open OUT.partial for `job` (config, seed, hashes of the inputs), empty or, with `resume`, as it was left.

    Raises `InputError` when the folder cannot be written, is in use, or belongs to another job.
    """
    partial = out.with_name(out.name + ".partial")
    if resume and not (partial / "job.json").is_file():
        resume = False  # nothing to continue: an ordinary run
    if resume:
        _check_same_job(partial, job)
    created = not os.path.lexists(partial)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = _locked(partial)
        try:
            _lay_out(partial, job, resume)
        except BaseException:
            lock.close()
            raise
    except OSError as error:
        if created and partial.is_dir():
            _remove(partial)
        raise InputError(f"{out.parent} cannot be written ({error.strerror}); give another --out.") from error
    return WorkFolder(out, partial, lock)


def _lay_out(partial: Path, job: dict[str, Any], resume: bool) -> None:
    state, result = partial / "state", partial / "result"
    if resume:
        if (result / "state").is_dir() and not state.exists():  # killed while the result was put in place
            os.replace(result / "state", state)
        _remove(result)
    else:
        for path in partial.iterdir():
            if path.name != "lock":
                _remove(path)
        write_atomic(partial / "job.json", json.dumps(job, indent=1).encode())
    state.mkdir(exist_ok=True)
    result.mkdir()


def write_atomic(path: Path, data: bytes) -> None:
    """`path` holds either what it held before or all of `data`, whatever happens."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def disk_errors_as_sentences(partial: Path) -> Iterator[None]:
    """Turn a full or failing disk into `StoppedLate`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(partial.parent).free / 1e6
            raise StoppedLate(
                f"The disk is full ({free:.0f} MB free at {partial.parent}); make room and run again with --resume."
            ) from error
        raise StoppedLate(
            f"{error.filename or partial} cannot be written ({error.strerror or error}); mend that and run again with --resume."
        ) from error


def _check_same_job(partial: Path, job: dict[str, Any]) -> None:
    try:
        stored = json.loads((partial / "job.json").read_text())
    except ValueError as error:
        raise InputError(f"{partial / 'job.json'} is damaged; run without --resume to start over.") from error
    plain = json.loads(json.dumps(job))
    different = sorted(key for key in stored.keys() | plain.keys() if stored.get(key) != plain.get(key))
    if different:
        raise InputError(
            f"{partial} belongs to a run with other {', '.join(different)}; "
            "run with the same inputs and options, or without --resume to start over."
        )


def _locked(partial: Path) -> IO[str]:
    lock = open(partial / "lock", "w")  # held as long as the job runs
    try:
        import fcntl
    except ImportError:  # Windows: no such lock
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise InputError(f"Another run is working in {partial}; wait for it or give another --out.") from error
    return lock


def _old(out: Path) -> Path:
    return out.with_name(out.name + ".old")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
