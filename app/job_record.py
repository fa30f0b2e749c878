"""What the page is told of a job at one moment."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.console import figures, remaining
from app.job_store import State, StoredJob, decode
from app.result_folder import is_complete
from splat.progress import Progress


@dataclass(frozen=True)
class JobRecord:
    """A job as it stands at one moment."""

    id: str
    session: str  # SHA-256 of the session
    kind: str  # "photos", "image", "text", "refine"
    title: str
    options: dict[str, Any]  # of the command, in plain values; files by name alone
    state: State
    position: int | None  # in the queue, the next one is 1; None when it does not wait
    stage: str  # of `Progress`, "" before the first
    step: int
    total: int
    note: str
    eta_s: float | None  # seconds left, None when unknown
    submitted: float  # seconds since 1970, as the two below
    started: float | None
    finished: float | None
    notices: tuple[str, ...]
    out: Path  # result folder, or folder of results; complete when the job is done
    results: tuple[Path, ...]  # complete result folders so far: `out` itself, or those in it
    preview: Path | None  # newest live picture, PNG
    error: str | None
    source: Path | None = None  # result folder that a refine job began from


@dataclass
class LiveJob:
    """What is known of a job only while it runs."""

    progress: Progress = field(default_factory=lambda: Progress("", 0, 1))
    stage_began: float = 0.0  # monotonic clock, as `began`
    began: float = 0.0
    seconds: float = 0.0  # estimate of the whole job
    cancelled: bool = False


def record_of(job: StoredJob, live: LiveJob | None, position: int | None, root: Path) -> JobRecord:
    """`job` of the queue on `root`, looked up on the disk; `live` while it runs, `position` while it waits."""
    event = live.progress if live else Progress("", 0, 0)
    folder = root / job.session / job.id
    out, preview = folder / "result", folder / "live.png"
    options = json.loads(job.command)
    return JobRecord(
        id=job.id,
        session=job.session,
        kind=job.kind,
        title=job.title,
        options={name: _told(value) for name, value in options.items()},
        state=job.state,
        position=position,
        stage=event.stage,
        step=event.step,
        total=event.total,
        note="Stopping" if live and live.cancelled else figures(event),
        eta_s=_seconds_left(live) if live else None,
        submitted=job.submitted,
        started=job.started,
        finished=job.finished,
        notices=job.notices,
        out=out,
        results=_results(out),
        preview=preview if preview.is_file() else None,
        error=job.error,
        source=decode(options["result"], root) if "result" in options else None,
    )


def _told(value: Any) -> Any:
    """A stored option without the server's folders."""
    if isinstance(value, list):
        return [_told(part) for part in value]
    return Path(next(iter(value.values()))).name if isinstance(value, dict) else value


def _results(out: Path) -> tuple[Path, ...]:
    if is_complete(out):
        return (out,)
    return tuple(sorted(path.parent for path in out.glob("*/report.json") if not path.parent.name.endswith(".partial")))


def _seconds_left(live: LiveJob) -> float | None:
    now, event = time.monotonic(), live.progress
    stage = remaining(now - live.stage_began, event.step, event.total)
    return max(live.seconds - (now - live.began), stage) or None
