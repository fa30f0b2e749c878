"""A toy for batches: text files become result folders, and words in them make things go wrong. Imports no torch."""

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.result_folder import begin, check_out
from app.workers import Item, LocalCrew
from splat.errors import InputError
from splat.progress import Progress

HELD = 20_000_000  # bytes in use while an item is made


@dataclass(frozen=True)
class Toys:
    """Prepares the maker. Writes what is done to files that outlive a killed process: a line for each event."""

    diary: Path
    pause: float = 0.0  # seconds an item takes
    fault: str = ""  # of the preparation: "bad input", "dies", "dies once"

    def __call__(self):
        self.note("prepared", os.getpid())
        if self.fault == "bad input":
            raise InputError("The weights are missing; train some.")
        if self.fault == "dies" or (self.fault == "dies once" and self.count("prepared") == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return partial(make, self)

    def note(self, *words) -> None:
        with open(self.diary, "a") as diary:  # one small write: lines of several processes do not mix
            diary.write(" ".join(map(str, words)) + "\n")

    def lines(self, word: str) -> list[list[str]]:
        written = self.diary.read_text().splitlines() if self.diary.exists() else []
        return [line.split()[1:] for line in written if line.split()[0] == word]

    def count(self, word: str) -> int:
        return len(self.lines(word))


def make(toys: Toys, item: Item, attempt: int):
    toys.note("began", item.name, attempt, os.getpid())
    words = Path(item.task).read_text().split()
    if attempt > 1 and check_out(item.out, resume=True, overwrite=False):
        return
    held = bytearray(os.urandom(1) * HELD)
    yield Progress("toy", 0, 2)
    if "corrupt" in words:
        raise InputError(f"{item.source} is no toy; give another.")
    if "fault" in words:
        raise ZeroDivisionError("division by zero\nsecond line")
    work = begin(item.out, {"file": str(item.task)}, resume=attempt > 1)
    try:
        (work.state / f"attempt-{attempt}").touch()
        if "always-dies" in words or ("dies" in words and attempt == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if "gone" in words:  # the whole batch, without a word
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        deadline = time.monotonic() + (600 if "hangs" in words else toys.pause)
        while time.monotonic() < deadline:
            time.sleep(0.01)
            if "deaf" not in words:
                yield Progress("toy", 1, 2, values={"held": float(len(held))})
        (work.result / "report.json").write_text("{}")
        work.publish(keep_state=True)
        toys.note("made", item.name, attempt)
        if "dies-late" in words and attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    finally:
        work.close()
    yield Progress("toy", 2, 2)


def items_of(folder: Path, out: Path) -> list[Item]:
    return [Item(file.stem, out / file.stem, file.name, file) for file in sorted(folder.iterdir())]


def write_toys(folder: Path, **words: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in words.items():
        (folder / f"{name.replace('_', '-')}.toy").write_text(text)
    return folder


def crew(toys: Toys) -> LocalCrew:
    return LocalCrew(toys, threads=1)
