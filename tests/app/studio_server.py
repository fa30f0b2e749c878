"""The page with stand-in jobs, as a program: `python studio_server.py ROOT PORT RESULT`. No worker of it imports torch.

A job plays a finished result back, with a live picture at each step. A file or prompt with "slow" in its name waits at the
second step until it is cancelled, one with "bad" is refused. A check finds the photos good.
"""

import json
import shutil
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app import commands
from app.prompts import slug
from app.result_folder import begin, check_out
from splat.errors import InputError
from splat.progress import Progress

STEPS = 4


@dataclass(frozen=True)
class Picture:
    """In place of a preview's tensor."""

    path: Path


@dataclass(frozen=True)
class Playback:
    result: Path

    def __call__(self):
        from app import queue_worker

        queue_worker.write_preview = copy_preview
        return partial(make, self.result)


@dataclass(frozen=True)
class QuickCheck:
    def __call__(self):
        return check


def copy_preview(picture: Picture, path: Path) -> None:
    shutil.copyfile(picture.path, path)


def make(result: Path, command) -> Generator[Progress, None, object]:
    if isinstance(command, commands.Text):
        names = [*command.sentences]
        outs = [command.out / f"{slug(command.sentences[0])}-{command.seed + i}" for i in range(command.variations)]
    else:
        names = [path.name for path in command.inputs]
        single = isinstance(command, commands.Photos)
        outs = [command.out] if single else [command.out / path.stem for path in command.inputs]
    if any("bad" in name for name in names):
        raise InputError("bad.png is no picture that can be read; send another one.")
    yield Progress("estimate", 1, 1, "about 3 s", values={"seconds": 3.0, "memory": 1e8})
    for out in outs:
        if check_out(out, resume=True, overwrite=False):
            continue
        work = begin(out, {"names": names}, resume=command.resume)
        try:
            for step in range(STEPS):
                until = time.monotonic() + (60 if step == 2 and "slow" in names[0] else 0.3)
                while time.monotonic() < until:
                    time.sleep(0.05)
                    yield Progress("fit", step, STEPS, preview=Picture(result / "preview.png"), values={"psnr": 20.0 + step})
            shutil.copytree(result, work.result, dirs_exist_ok=True)
            work.publish(keep_state=True)
        finally:
            work.close()


def check(command) -> Generator[Progress, None, None]:
    yield Progress("check", 0, 1)
    if not isinstance(command, commands.Check):
        raise InputError("This server converts nothing.")
    command.out.mkdir(parents=True)
    names = [path.name for path in command.inputs]
    photos = [{"name": name, "notes": [], "links": 2, "coverage": 0.5, "group": int("alone" in name)} for name in names]
    values = {
        "photos": photos,
        "links": [[i, i + 1, 100 + i] for i in range(len(names) - 1)],
        "verdict": "good",
        "expected_placed": len(names),
        "problems": [],
        "next_photo": "Nothing is missing.",
        "notices": [],
        "skipped": [],
        "seconds": {"draft": 40.0, "standard": 120.0, "quality": 1300.0},
    }
    (command.out / "verdict.json").write_text(json.dumps(values))


if __name__ == "__main__":
    from app.studio.page import serve

    root, port, result, *more = sys.argv[1:]
    options = commands.Ui(root=Path(root), port=int(port), max_upload="2MB", max_files=20, quiet=True, auth=(more or [None])[0])
    serve(options, Playback(Path(result)), QuickCheck())
