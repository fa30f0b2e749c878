"""Seconds, CPU-seconds and peak memory of each stage, from the events of a job."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

import psutil

from splat.progress import Progress


@dataclass(frozen=True)
class StageCost:
    name: str
    seconds: float  # by the clock
    cpu_seconds: float  # of all threads and finished child processes: comparable between busy machines
    peak_mb: float  # resident memory of the process, highest while the stage ran


class Stopwatch:
    """`note` every event. Time up to an event belongs to its stage, except that an event at step 0 opens its stage."""

    def __init__(self, first: str = "photos") -> None:
        self.costs: dict[str, StageCost] = {}
        self._stage = first
        self._process = psutil.Process()
        self._since, self._cpu_since = time.monotonic(), self._cpu_seconds()
        self._peak = 0.0
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def go_on_from(self, costs: list[StageCost]) -> None:
        """Add to `costs`, of an earlier part of the same job, what was booked since the start."""
        self.split()
        booked, self.costs = self.costs.values(), {cost.name: cost for cost in costs}
        for cost in booked:
            old = self.costs.get(cost.name, StageCost(cost.name, 0.0, 0.0, 0.0))
            self.costs[cost.name] = StageCost(
                cost.name,
                old.seconds + cost.seconds,
                old.cpu_seconds + cost.cpu_seconds,
                max(old.peak_mb, cost.peak_mb),
            )

    def note(self, event: Progress) -> None:
        self.split(self._stage if event.step == 0 else event.stage)
        self._stage = event.stage

    def split(self, stage: str | None = None) -> None:
        """Book the time since the last event to `stage`, by default the one that is running."""
        stage = stage or self._stage
        now, cpu = time.monotonic(), self._cpu_seconds()
        old = self.costs.get(stage, StageCost(stage, 0.0, 0.0, 0.0))
        self.costs[stage] = replace(
            old,
            seconds=old.seconds + now - self._since,
            cpu_seconds=old.cpu_seconds + cpu - self._cpu_since,
            peak_mb=max(old.peak_mb, self._peak, self._resident_mb()),
        )
        self._since, self._cpu_since, self._peak = now, cpu, 0.0

    def stop(self) -> None:
        self._done.set()
        self._sampler.join()

    def _resident_mb(self) -> float:
        return self._process.memory_info().rss / 1e6

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system + times.children_user + times.children_system

    def _sample(self) -> None:
        while not self._done.wait(0.1):
            self._peak = max(self._peak, self._resident_mb())
