"""What the data of a work folder are made with, written before the first of them: a later run that differs adds none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from splat.errors import InputError
from splat.io.atomic import atomically

MADE_WITH = "made_with.json"


def digest_of(keys: Iterable[str]) -> str:
    """Of the names of what data are made from, in their order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]


def check_made_with(folder: Path, made: Mapping[str, Any], data: str) -> str | None:
    """Write `made`, anything that JSON holds, into `folder` at its first use; later see that it is the same.

    `data` is the pattern of the files that are kept. Returns a sentence for a folder whose files are older than this record:
    they are taken on trust. Raises `InputError`, one sentence, where `made` differs or the record is damaged.
    """
    made = json.loads(json.dumps(dict(made)))
    path = folder / MADE_WITH
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            differing = sorted(name for name in {*made, *before} if made.get(name) != before.get(name))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} does not say what {folder} was made with ({error}); use another work folder.") from error
        if differing:
            told = ", ".join(f"{name} ({_shown(before.get(name))}, now {_shown(made.get(name))})" for name in differing)
            raise InputError(f"{folder} was made with another {told}; use another work folder.")
        return None
    there = sum(1 for _ in folder.glob(data))
    with atomically(path) as temporary:
        temporary.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if not there:
        return None
    return f"{folder} holds {there} files and no record of what made them; they are kept as if it had been the same."


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
