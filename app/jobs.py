"""What the jobs that make result folders share: their outcome, their clocks, and how late errors are told."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app.machine import is_out_of_memory
from app.notices import Notices
from app.result_folder import WorkFolder, write_atomic
from app.saved_stages import load_stage, save_stage
from app.stopwatch import StageCost, Stopwatch
from diffusion.weights_folder import ABOUT
from splat.errors import BackendUnavailable, InputError, StoppedLate
from splat.progress import Progress

if TYPE_CHECKING:
    from splat.mesh import Mesh

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """A finished result."""

    out: Path
    report: dict[str, Any]  # what report.json holds
    skipped: bool = False  # it was complete already and --resume left it


def meshed(extract: Callable[[], Mesh]) -> Generator[Progress, None, tuple[Mesh | None, tuple[str, ...]]]:
    """The mesh, or the sentence why the splats show no surface: they are a result without it."""
    yield Progress("mesh", 0, 1)
    try:
        mesh, reasons = extract(), ()
    except StoppedLate as error:
        mesh, reasons = None, (f"There is no mesh: {error}",)
    yield Progress("mesh", 1, 1, f"{len(mesh.faces):,} triangles" if mesh else "no surface found")
    return mesh, reasons


def check_disk(out: Path, needed: float) -> None:
    """Raises `InputError` where the disk that will hold `out` has less than `needed` bytes free."""
    folder = next((p for p in out.absolute().parents if p.is_dir()), None)
    if folder is not None and shutil.disk_usage(folder).free < needed:
        free = shutil.disk_usage(folder).free
        raise InputError(
            f"{folder} has {free / 1e6:.0f} MB free and the job needs about {needed / 1e6:.0f} MB; make room first."
        )


def weights_of(path: Path | None) -> list[str] | None:
    """For job.json: weights of the user's, and what changes when they do, so that no run continues with others.

    Ours have a list of their files with hashes, whose own SHA-256 this is; of others it is one of names, sizes and dates.
    """
    if path is None:
        return None
    path = Path(path).absolute()
    try:
        told = (path / ABOUT).read_bytes()
    except OSError:
        files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.is_file())
        told = json.dumps([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]).encode()
    return [str(path), hashlib.sha256(told).hexdigest()]


def costs_so_far(work: WorkFolder) -> list[StageCost]:
    """What an earlier part of the same job has booked."""
    path = work.state / "costs.json"
    try:
        return [StageCost(**cost) for cost in json.loads(path.read_text())] if path.exists() else []
    except (ValueError, TypeError):  # only figures for the report
        return []


def noted(job: Generator[Progress, None, T], watch: Stopwatch, notices: Notices) -> Generator[Progress, None, T]:
    """`job`, with every event shown to the stopwatch, and new notices as events between."""
    try:
        while True:
            try:
                event = next(job)
            except StopIteration as end:
                return end.value
            watch.note(event)
            for sentence in notices.unsaid():
                yield Progress("notice", 1, 1, sentence)
            yield event
    finally:
        job.close()


def saved_stage(
    name: str,
    stage: Generator[Progress, None, T],
    *,
    work: WorkFolder,
    types: tuple[type, ...],
    watch: Stopwatch,
    notices: Notices,
) -> Generator[Progress, None, T]:
    """What `stage` returns, from the file in `work.state` if that is there, else made and saved first.

    The run itself goes on from what is read, so that a resumed run computes with the same bits as an undisturbed one.
    Warnings that the library logged meanwhile are kept with it.
    """
    path = work.state / f"{name}.safetensors"
    if path.exists():
        stage.close()
        yield Progress(name, 1, 1, "taken from the unfinished run")
    else:
        before = len(notices.logged)
        result = yield from stage
        save_stage(path, (result, tuple(notices.logged[before:])))
        watch.split()
        write_atomic(work.state / "costs.json", json.dumps([asdict(cost) for cost in watch.costs.values()]).encode())
    result, logged = load_stage(path, types)
    notices.add(*logged)
    return result


@contextmanager
def late_errors(remedy: str) -> Iterator[None]:
    """Errors after work began: the same sentence, but the state is kept and the status is another.

    `remedy` ends the sentence about a lack of memory: "use ..., or fewer ...".
    """
    try:
        yield
    except (InputError, BackendUnavailable) as error:
        raise StoppedLate(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StoppedLate(f"The machine ran out of memory; {remedy}.") from error
