"""The input doctor's verdict in words and as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app import commands
from app.estimate import decodable_pixels, memory_budget
from splat.progress import Progress

if TYPE_CHECKING:
    from recon.doctor import Diagnosis

VERDICTS = {
    "good": "This will work.",
    "fair": "This will work, with weak spots.",
    "poor": "This may fail or give only a part.",
    "impossible": "This cannot work.",
}


@dataclass(frozen=True)
class Verdict:
    text: str  # for people
    values: dict[str, Any]  # for programs


def check_photos(options: commands.Check) -> Generator[Progress, None, Verdict]:
    """Read the photos and examine them. Raises `InputError` for input that holds no photos."""
    from recon.doctor import examine
    from recon.photos import PhotoConfig, read_photos
    from splat.io.images import MAX_PIXELS

    budget = memory_budget(options.memory_budget)
    yield Progress("photos", 0, 1)
    found = read_photos(options.inputs, PhotoConfig(max_pixels=min(MAX_PIXELS, decodable_pixels(budget))))
    yield Progress("photos", 1, 1, f"{len(found.photos)} photos")
    yield Progress("check", 0, 1)
    diagnosis = examine(found)
    yield Progress("check", 1, 1)
    values = dataclasses.asdict(diagnosis) | {"notices": found.notices, "skipped": found.skipped}
    return Verdict(_told(diagnosis, found.notices), values)


def _told(diagnosis: Diagnosis, notices: tuple[str, ...]) -> str:
    count = len(diagnosis.photos)
    lines = [f"{VERDICTS[diagnosis.verdict]} About {diagnosis.expected_placed} of {count} photos will be placed."]
    lines += [f"- {problem}" for problem in (*diagnosis.problems, *notices)]
    lines += [f"Next: {diagnosis.next_photo}", ""]
    width = max(len(photo.name) for photo in diagnosis.photos)
    for photo in diagnosis.photos:
        notes = ", ".join(photo.notes) or "fine"
        seen = f"{photo.links:2d} links, {100 * photo.coverage:3.0f} % shared"
        lines.append(f"{photo.name:<{width}}  {seen}, blur {photo.blur:.2f}, {photo.stops:+.1f} stops: {notes}")
    return "\n".join(lines)
