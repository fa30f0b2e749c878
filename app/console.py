"""What a terminal shows of a job: a live line with stage, ETA and PSNR; plain lines without a terminal; JSON; or nothing."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Generator
from typing import Any, Literal, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from app.estimate import clock
from splat.progress import Progress

Talk = Literal["bars", "json", "quiet"]
T = TypeVar("T")


def follow(job: Generator[Progress, None, T], talk: Talk) -> T:
    """Run `job` to its end, showing its events; returns its result. An interrupt closes the job and goes on upwards."""
    if talk == "json":
        return _run(job, _JsonLines())
    if talk == "quiet":
        return _run(job, lambda event: None)
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        return _run(job, _PlainLines())
    bars = Bars(
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[figures]}"),
        console=console,
        speed_estimate_period=60,
    )
    with bars:
        return _run(job, _Live(bars))


def say(text: str, talk: Talk) -> None:
    """A line for people; not printed with --json or --quiet."""
    if talk == "bars":
        print(text, flush=True)


def emit(event: str, talk: Talk, **values: Any) -> None:
    """A line for programs; printed with --json alone."""
    if talk == "json":
        print(json.dumps({"event": event, **values}), flush=True)


def stop_talking() -> None:
    """After the reader of the output has gone: what is still buffered must not fail when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def figures(event: Progress) -> str:
    """The live figures of an event in a few words, or its note."""
    parts = []
    if "psnr" in event.values:
        parts.append(f"{event.values['psnr']:.2f} dB")
    if "gaussians" in event.values:
        parts.append(f"{event.values['gaussians']:,.0f} Gaussians")
    return ", ".join(parts) or event.note


def _run(job: Generator[Progress, None, T], draw: Callable[[Progress], None]) -> T:
    try:
        while True:
            try:
                event = next(job)
            except StopIteration as end:
                return end.value
            try:
                draw(event)
            except BrokenPipeError as error:  # nobody reads any more: as good as an interrupt
                raise KeyboardInterrupt from error
    finally:
        job.close()


class _JsonLines:
    """Every event that tells something new: a stage that waits for another process repeats itself many times a second."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def __call__(self, event: Progress) -> None:
        new = {"stage": event.stage, "step": event.step, "total": event.total, "note": event.note, "values": event.values}
        if new != self.told:
            self.told = new
            emit("progress", "json", **new)


class _Live:
    """One bar a stage."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, event: Progress) -> None:
        if event.stage in ("estimate", "notice"):  # sentences, not work
            self.bars.console.print(event.note)
            return
        if event.stage == "object":  # the next of several: its stages begin anew
            for task in self.tasks.values():
                self.bars.remove_task(task)
            self.tasks.clear()
            self.bars.console.print(f"{event.step} of {event.total}: {event.note}")
            return
        if event.stage not in self.tasks:
            for task in self.tasks.values():
                self.bars.stop_task(task)
            self.tasks[event.stage] = self.bars.add_task(event.stage, total=event.total, figures="")
        self.bars.update(self.tasks[event.stage], completed=event.step, total=max(event.total, 1), figures=figures(event)[:60])


class _PlainLines:
    """One line when a stage begins or ends, and at most one every ten seconds between."""

    def __init__(self) -> None:
        self.stage, self.started, self.printed = "", 0.0, 0.0

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        if event.stage in ("estimate", "notice"):  # sentences, not work
            complain(event.note)
            return
        if event.stage == "object":  # the next of several: its stages begin anew
            self.stage = ""
            complain(f"{event.step} of {event.total}: {event.note}")
            return
        fresh = event.stage != self.stage
        if fresh:
            self.stage, self.started = event.stage, now
        if fresh or event.step >= event.total or now - self.printed > 10:
            self.printed = now
            eta = remaining(now - self.started, event.step, event.total)
            complain(
                f"{event.stage} {event.step}/{event.total} {figures(event)}{f', {clock(eta)} left' if eta else ''}".rstrip()
            )


def remaining(seconds: float, step: int, total: int) -> float:
    """Seconds left of a stage that took `seconds` for `step` of `total` steps; 0 when that says nothing yet."""
    return seconds * (total - step) / step if step and seconds > 2 else 0.0
