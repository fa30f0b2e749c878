"""Jobs in an SQLite file, so that they outlive the server. Commands are stored as JSON, paths below the root as relative."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app import commands
from splat.errors import InputError

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
VERSION = 1
KINDS: dict[str, type] = {
    "photos": commands.Photos,
    "image": commands.Image,
    "text": commands.Text,
    "refine": commands.Refine,
}


@dataclass
class StoredJob:
    """One row. All but `id`, `session`, `kind` and `command` changes."""

    id: str
    session: str  # SHA-256 of what the visitor is known by
    kind: str  # a key of KINDS
    title: str
    command: str  # JSON, see `to_json`
    number: int  # order in the queue
    state: State = "queued"
    submitted: float = 0.0  # seconds since 1970, as the two below
    started: float | None = None
    finished: float | None = None
    notices: tuple[str, ...] = ()
    error: str | None = None
    memory: float = 0.0  # bytes that it is expected to need
    deaths: int = 0  # workers that died at it since it was last asked for
    interruptions: int = 0  # servers that ended during it since it was last asked for


COLUMNS = tuple(f.name for f in dataclasses.fields(StoredJob))


class JobStore:
    """The file. Not locked against threads: the queue is its one user."""

    def __init__(self, path: Path) -> None:
        """Opens or makes it. Raises `InputError` where it is damaged or of another version."""
        try:
            _for_owner_alone(path)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, error) from error
        try:
            self._prepare(path)
        except sqlite3.Error as error:
            self._db.close()
            raise _unusable(path, error) from error
        except InputError:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")  # readers and a killed writer leave it whole
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise InputError(f"{path} was written by another version of splatsmith; give another --root.")
        if not version:
            columns = ", ".join(f"{name} PRIMARY KEY" if name == "id" else name for name in COLUMNS)
            self._db.execute(f"CREATE TABLE IF NOT EXISTS jobs ({columns})")
            self._db.execute(f"PRAGMA user_version={VERSION}")
        self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM jobs LIMIT 1").fetchall()

    def load(self) -> list[StoredJob]:
        """All jobs in the order of the queue."""
        rows = self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM jobs ORDER BY number").fetchall()
        found = [dict(zip(COLUMNS, row)) for row in rows]
        return [StoredJob(**row | {"notices": tuple(json.loads(row["notices"]))}) for row in found]

    def save(self, job: StoredJob) -> None:
        """Insert or replace, whole or not at all. Raises sqlite3.Error, as for a full disk."""
        row = dataclasses.asdict(job) | {"notices": json.dumps(job.notices)}
        marks = ", ".join("?" * len(COLUMNS))
        self._db.execute(
            f"INSERT OR REPLACE INTO jobs ({', '.join(COLUMNS)}) VALUES ({marks})", [row[name] for name in COLUMNS]
        )

    def remove(self, id: str) -> None:
        """Raises sqlite3.Error."""
        self._db.execute("DELETE FROM jobs WHERE id = ?", (id,))

    def close(self) -> None:
        self._db.close()


def _for_owner_alone(path: Path) -> None:
    """The files of SQLite beside it get its mode when they are made; those of a killed server are there already."""
    path.touch(0o600)
    for file in (path, *path.parent.glob(f"{path.name}-*")):
        file.chmod(0o600)


def _unusable(path: Path, error: sqlite3.Error | OSError) -> InputError:
    return InputError(f"{path} cannot be used ({error}); move it away, or give another --root.")


def to_json(command: Any, root: Path) -> str:
    return json.dumps({f.name: _encode(getattr(command, f.name), root) for f in dataclasses.fields(command)})


def from_json(kind: str, text: str, root: Path) -> Any:
    """Raises TypeError, KeyError or ValueError for what another version wrote."""
    return KINDS[kind](**{name: decode(value, root) for name, value in json.loads(text).items()})


def _encode(value: Any, root: Path) -> Any:
    if isinstance(value, Path):
        return {"below": value.relative_to(root).as_posix()} if value.is_relative_to(root) else {"path": str(value)}
    if isinstance(value, str) and Path(value).is_relative_to(root):  # options that are a path or a word
        return {"text_below": Path(value).relative_to(root).as_posix()}
    if isinstance(value, tuple):
        return [_encode(part, root) for part in value]
    assert value is None or isinstance(value, bool | int | float | str), type(value)
    return value


def decode(value: Any, root: Path) -> Any:
    """An option as `to_json` wrote it."""
    if isinstance(value, list):
        return tuple(decode(part, root) for part in value)
    if isinstance(value, dict) and "text_below" in value:
        return str(root / value["text_below"])
    if isinstance(value, dict):
        return root / value["below"] if "below" in value else Path(value["path"])
    return value
