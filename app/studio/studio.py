"""What the tabs share."""

from __future__ import annotations

import hmac
import secrets
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from app import commands
from app.job_record import JobRecord
from app.queue import JobQueue
from app.studio.errands import Errands
from app.studio.guard import LENT
from app.studio.quick_gradio import gr
from app.studio.visitor import session_of
from splat.errors import InputError, SplatsmithError


@dataclass(frozen=True)
class Studio:
    """The page's server, as the tabs see it."""

    queue: JobQueue
    errands: Errands
    uploads: Path  # folder of what visitors sent and gradio serves
    options: commands.Ui
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    lending: threading.Lock = field(default_factory=threading.Lock)

    def record(self, selected: str, request: gr.Request) -> JobRecord:
        """The job of "ID" or "ID/NUMBER OF RESULT". Raises `InputError` for one that is not this visitor's."""
        return self.queue.get(str(selected).partition("/")[0], session_of(request))

    def records(self, kind: str, request: gr.Request) -> list[JobRecord]:
        """Of this visitor and `kind`, or of all kinds for "library"; newest first."""
        found = self.queue.jobs(session_of(request))
        return [record for record in found if kind in ("library", kind_of(record))]

    def lend(self, file: Path) -> Path:
        """`file` under a path that nobody guesses, the same each time, where gradio may serve it for a while.

        Raises `InputError` where it would have to be copied, to another disk, and that is full.
        """
        folder = self.uploads / LENT / hmac.new(self.secret, str(file.absolute()).encode(), "sha256").hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        lent = folder / file.name
        with self.lending:
            lent.unlink(missing_ok=True)  # it may be an older file; and gradio removes what was linked hours ago
            try:
                lent.hardlink_to(file)
            except OSError:  # another disk
                if shutil.disk_usage(folder).free - file.stat().st_size < self.queue.limits.disk_reserve:
                    raise InputError("The server's disk is full; try again in an hour.") from None
                shutil.copyfile(file, lent)
        return lent

    def common(self, preset: str, seed: float | None) -> dict:
        """Options that every job has. Raises `InputError`."""
        return {
            "out": Path("chosen-by-the-queue"),
            "preset": one_of(PRESETS, preset, "Preset"),
            "seed": whole(seed, "Seed") or 0,
            "device": self.options.device,
        }


# Of the handlers that wait for an errand: together they leave most of gradio's 40 threads to those that answer at once.
ERRAND = {"concurrency_id": "errand", "concurrency_limit": 8}
PRESETS = ("draft", "standard", "quality")


def kind_of(record: JobRecord) -> str:
    """The tab that a job belongs to."""
    many = record.kind == "image" and len(record.options.get("inputs", ())) > 1 and not record.options.get("views")
    return "batch" if many else record.kind


def result_of(record: JobRecord, selected: str) -> Path | None:
    """The result folder that "ID" (the first) or "ID/NUMBER" means; None where there is none."""
    number = str(selected).partition("/")[2] or "0"
    at = int(number) if number.isdecimal() and len(number) < 6 else 0
    return record.results[at] if at < len(record.results) else None


def sentence(error: SplatsmithError) -> gr.Error:
    """The same sentence on the page."""
    return gr.Error(str(error), duration=None, print_exception=False)


def one_of(allowed: tuple[str, ...], value: object, name: str) -> str:
    if value not in allowed:
        raise InputError(f"{name} is one of {', '.join(allowed)}.")
    return str(value)


def whole(value: float | None, name: str) -> int | None:
    """A number field as an integer; None where it is empty."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
        if number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is no whole number.") from None
    return int(number)


def decimal(value: float | None, name: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is no number.") from None
    if number != number or abs(number) == float("inf"):
        raise InputError(f"{name} is no number.")
    return number
