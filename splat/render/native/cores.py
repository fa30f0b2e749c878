"""How many processor cores this process may keep busy: its affinity, and the quotas of its control groups."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


@functools.cache
def usable_cores() -> int:
    """At least 1. A quota of 1.5 cores counts as 2: threads that wait for each other's share sleep."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(math.ceil(min(cores, cgroup_quota())), 1)


def cgroup_quota(system: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Cores' worth of time that the control groups of this process grant; infinity without a limit or control groups.

    `own` lists the groups as `number:controllers:path`, version 2 with no controllers. A group's parents limit it as well.
    Inside a container the paths may belong to the host; then the mount's root is this process's own group.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts, read = [system, system / "unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = [system / controllers, system / "cpu"], _quota_v1
        else:
            continue
        for mount in mounts:
            for folder in _with_parents(mount, path):
                quota = min(quota, read(folder))
    return quota


def _with_parents(mount: Path, path: str) -> Iterator[Path]:
    inside = PurePosixPath(path.lstrip("/"))
    if ".." not in inside.parts:
        yield mount / inside
        yield from (mount / parent for parent in inside.parents)


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quota_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())  # -1: no limit
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
