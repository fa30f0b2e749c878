"""The result folder: work in OUT.partial, the finished result put in place by renaming, never half a file at OUT.

A killed run leaves the old complete OUT (if there was one) and OUT.partial with what finished; `begin(resume=True)`
continues there. One run at a time works on an OUT, guarded by a lock that ends with the process. No other name is ever
touched, in OUT.partial neither: what is not ours stays.
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
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# All that OUT.partial holds; `lock` marks it as ours and is the last to go. `complete` says that `result/` shall become OUT,
# `replaced/` is the old OUT until it has.
_OURS = ("result", "replaced", "state", "job.json", "job.json.tmp", "complete", "lock")


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
        """Make `result/` the folder OUT; a kill at any moment leaves the old OUT or is made good by `check_out`."""
        if keep_state:
            os.replace(self.state, self.result / "state")
        (self.partial / "complete").touch()
        _put_in_place(self.out, self.partial)

    def close(self) -> None:
        self.lock.close()


def check_out(out: Path, *, resume: bool, overwrite: bool) -> bool:
    """True when OUT is complete and `resume` says to leave it; raises `InputError` when OUT must not be touched.

    Writes nothing, except that it puts a complete result in place when a run was killed while doing so. With `overwrite`,
    `resume` continues the replacement that OUT.partial holds, and begins one where it holds none.
    """
    if out.name in ("", ".."):
        raise InputError(f"--out {out} names no folder of its own; give the name of a folder that does not exist yet.")
    partial = _partial(out)
    _check_ours(partial)
    put_in_place = False
    if (partial / "complete").exists() and _replaceable(out):
        with locked(partial):
            _put_in_place(out, partial)
        put_in_place = True
    if is_complete(out):
        if resume and (put_in_place or not overwrite):
            return True
        if not overwrite:
            more = f" (with --resume, to continue {partial})" if (partial / "job.json").is_file() else ""
            raise InputError(
                f"{out} holds a complete result; give --resume to leave it as it is, --overwrite to replace it{more}, or "
                "another --out."
            )
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} exists and is not a result folder, so it is left alone; give another --out.")
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder that does not exist yet as --out.")
    return False


def resume_flags(out: Path) -> str:
    """The options that continue an unfinished run on OUT."""
    return "--overwrite --resume" if is_complete(out) else "--resume"


def is_complete(out: Path) -> bool:
    return (out / "report.json").is_file()


def begin(out: Path, job: dict[str, Any], *, resume: bool) -> WorkFolder:
    """Open OUT.partial for `job` (config, seed, hashes of the inputs), empty or, with `resume`, as it was left.

    Raises `InputError` when the folder cannot be written, is in use, or belongs to another job.
    """
    partial = _partial(out)
    _check_ours(partial)
    if resume and not (partial / "job.json").is_file():
        resume = False  # nothing to continue: an ordinary run
    if resume:
        _check_same_job(partial, job)
    created = not os.path.lexists(partial)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = locked(partial)
        try:
            _lay_out(partial, job, resume)
        except BaseException:
            lock.close()
            raise
    except OSError as error:
        if created and partial.is_dir():
            _clear(partial)
        raise InputError(f"{out.parent} cannot be written ({error.strerror}); give another --out.") from error
    return WorkFolder(out, partial, lock)


def _lay_out(partial: Path, job: dict[str, Any], resume: bool) -> None:
    state, result = partial / "state", partial / "result"
    if resume:
        if (result / "state").is_dir() and not state.exists():  # killed while the result was put in place
            os.replace(result / "state", state)
        _remove(result)
        _remove(partial / "complete")
    else:
        for name in _OURS[:-1]:
            _remove(partial / name)
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
def disk_errors_as_sentences(out: Path) -> Iterator[None]:
    """Turn a full or failing disk into `StoppedLate`, which names the options that continue the run."""
    try:
        yield
    except OSError as error:
        again = f"run again with {resume_flags(out)}"
        if error.errno in FULL_DISK:
            free = shutil.disk_usage(out.absolute().parent).free / 1e6
            raise StoppedLate(f"The disk is full ({free:.0f} MB free at {out.parent}); make room and {again}.") from error
        raise StoppedLate(
            f"{error.filename or _partial(out)} cannot be written ({error.strerror or error}); mend that and {again}."
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


def locked(partial: Path) -> IO[str]:
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


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _check_ours(partial: Path) -> None:
    """Raises `InputError` for an OUT.partial that no run of ours made."""
    if not os.path.lexists(partial):
        return
    names = {path.name for path in partial.iterdir()} if partial.is_dir() else {""}
    if names and not ("lock" in names and ("job.json" in names or names <= set(_OURS))):
        raise InputError(
            f"{partial}, where work in progress goes, is not ours, so it is left alone; move it or give another --out."
        )


def _replaceable(out: Path) -> bool:
    return is_complete(out) or not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir()))


def _put_in_place(out: Path, partial: Path) -> None:
    """OUT.partial/result becomes OUT; may be called again after a kill inside it."""
    result, replaced = partial / "result", partial / "replaced"
    if result.is_dir():
        if out.exists():
            _remove(replaced)
            os.replace(out, replaced)
        os.replace(result, out)
    _clear(partial)


def _clear(partial: Path) -> None:
    """Remove what is ours, and the folder if that was all."""
    for name in _OURS:
        _remove(partial / name)
    if partial.is_dir() and not any(partial.iterdir()):
        partial.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
