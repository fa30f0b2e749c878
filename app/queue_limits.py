"""What the job queue takes in, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field

from app import commands
from app.estimate import parse_bytes
from app.uploads import UploadLimits
from splat.errors import InputError


@dataclass(frozen=True)
class QueueLimits:
    """Of `app.queue.JobQueue`."""

    workers: int = 1
    """Jobs at a time, if they fit in the memory together."""
    memory_budget: int = 4_000_000_000
    """Bytes of memory of all jobs together."""
    threads: int | None = None
    """CPU threads of all jobs together; by default all cores."""
    queued: int = 100
    """Most jobs that may wait."""
    queued_by_session: int = 30
    """Most jobs of one session that may wait."""
    per_minute: int = 30
    """Most jobs that one session may ask for in a minute."""
    kept_by_session: int = 300
    """Most jobs of one session, finished ones too."""
    quota: int = 10_000_000_000
    """Bytes on disk of one session."""
    disk_reserve: int = 2_000_000_000
    """Bytes that must stay free on the disk for a job to be taken in."""
    uploads: UploadLimits = field(default_factory=UploadLimits)
    """What one job may bring."""
    expire_days: float = 30.0
    """Days after which a finished job is deleted; 0 keeps it."""
    idle_seconds: float = 600.0
    """A worker without a job is ended after this time, with the models it holds."""
    grace_seconds: float = 10.0
    """A worker that is told to stop is killed after this time."""
    jobs_by_worker: int = 50
    """A worker is replaced after so many jobs."""
    idle_memory: int = 2_500_000_000
    """Bytes; a worker that holds more after a job is replaced."""

    @classmethod
    def of(cls, options: commands.Ui) -> QueueLimits:
        """From the command line. Raises `InputError` for what is no amount or out of range."""
        amounts = {}
        for name in ("memory_budget", "quota", "max_upload"):
            try:
                amounts[name] = parse_bytes(getattr(options, name))
            except ValueError as error:
                raise InputError(f"--{name.replace('_', '-')} {error}") from error
        for name, least in (("workers", 1), ("expire_days", 0), ("max_files", 1), ("max_queued", 1), ("per_minute", 1)):
            if not getattr(options, name) >= least:
                raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)} is too few; give {least} or more.")
        return cls(
            workers=options.workers,
            memory_budget=amounts["memory_budget"],
            threads=options.threads,
            queued=options.max_queued,
            queued_by_session=min(options.max_queued, cls.queued_by_session),
            per_minute=options.per_minute,
            quota=amounts["quota"],
            uploads=UploadLimits(files=options.max_files, bytes=amounts["max_upload"]),
            expire_days=options.expire_days,
        )
