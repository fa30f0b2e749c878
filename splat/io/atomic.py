"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from splat.errors import InputError, StoppedLate


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, same suffix; renamed to `path` when the block ends well, removed otherwise.

    A missing folder is an `InputError`; what the disk refuses (full, read-only) becomes `StoppedLate`.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist; create it or choose another place for {path.name}.")
    temporary = path.with_name(f".{path.stem}-{uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoppedLate(f"Could not write {path}: {reason}; free some space or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)
