"""A visitor's command made into a job's: its files copied, its output chosen, nothing of the server's within its reach."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from app import commands
from app.estimate import parse_bytes
from app.queue_limits import QueueLimits
from app.result_folder import is_complete
from app.uploads import admit_files, folder_bytes
from splat.errors import InputError

# Options that name what lies on the server, and that visitors leave as they are.
SERVER_ONLY = ("weights", "matting", "cluster", "prompts", "prior", "prior_weights", "repairer", "lora_steps")


def take_in(command: Any, folder: Path, limits: QueueLimits) -> Any:
    """`command` with its files copied into `folder`, a job's own in the session's, and its output there.

    Raises `InputError` for options that are not for visitors, and over the limits.
    """
    for field in dataclasses.fields(command):
        if field.name in SERVER_ONLY and getattr(command, field.name) != field.default:
            raise InputError(f"The option {field.name} names something on the server, and is for the command line alone.")
    home = folder.parent
    room, free = room_of(home, limits)
    changes: dict[str, Any] = {"out": folder / "result", "resume": True, "overwrite": False, "quiet": True, "json": False}
    changes["memory_budget"] = _least(command.memory_budget, limits.memory_budget)
    if isinstance(command, commands.Refine):
        result = Path(command.result).absolute()
        if not (result.resolve().is_relative_to(home.resolve()) and is_complete(result)):
            raise InputError("There is no such result here; it may have expired or been deleted.")
        changes["result"] = result
    for name in ("inputs", "mask", "masks", "poses"):
        value = getattr(command, name, None)
        if value is None or value in ("auto", ""):
            continue
        given = value if isinstance(value, tuple) else (Path(value),)
        admitted = admit_files(given, folder / name, limits.uploads, min(room, free))
        taken = sum(file.stat().st_size for file in admitted)
        room, free = room - taken, free - taken
        whole = folder / name if Path(given[0]).is_dir() else next(iter(admitted), folder / name)
        changes[name] = admitted if isinstance(value, tuple) else type(value)(whole)
    folder.mkdir(parents=True, exist_ok=True)
    return dataclasses.replace(command, **changes)


def room_of(home: Path, limits: QueueLimits) -> tuple[int, int]:
    """Bytes that a session may still store in its folder `home`, and bytes free on the disk. Raises `InputError` for none."""
    free = shutil.disk_usage(home.parent).free - limits.disk_reserve
    if free <= 0:
        left = (free + limits.disk_reserve) / 1e6
        raise InputError(f"The server's disk is nearly full ({left:.0f} MB free); delete jobs, or try again later.")
    room = limits.quota - folder_bytes(home)
    if room <= 0:
        raise InputError(f"Your jobs fill the {limits.quota / 1e9:.1f} GB that they may have; delete some first.")
    return room, free


def _least(asked: str, most: int) -> str:
    try:
        return f"{min(parse_bytes(asked), most) / 1e6:.0f}MB"
    except ValueError as error:
        raise InputError(f"memory_budget {error}") from error
