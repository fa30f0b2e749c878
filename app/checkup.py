"""The input doctor's verdict in words and as plain values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import commands
from app.estimate import decodable_pixels, estimate_photos, memory_budget
from app.presets import PRESETS
from splat.errors import InputError
from splat.progress import Progress

if TYPE_CHECKING:
    from recon.doctor import Diagnosis
    from recon.photos import PhotoSet

THUMB_SIDE = 160  # px, long side

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
    """Read the photos and examine them; with `options.out`, write verdict.json and thumb_NNN.jpg there.

    `values` has the diagnosis, and for each preset the estimated seconds of the job. Raises `InputError` for input that holds
    no photos and for a folder that exists or cannot be written.
    """
    from recon.doctor import examine
    from recon.photos import PhotoConfig, read_photos
    from splat.io.images import MAX_PIXELS

    budget = memory_budget(options.memory_budget)
    if options.out is not None and options.out.exists():
        raise InputError(f"{options.out} exists already; give a new folder as --out.")
    yield Progress("photos", 0, 1)
    found = read_photos(options.inputs, PhotoConfig(max_pixels=min(MAX_PIXELS, decodable_pixels(budget))))
    yield Progress("photos", 1, 1, f"{len(found.photos)} photos")
    yield Progress("check", 0, 1)
    diagnosis = examine(found)
    yield Progress("check", 1, 1)
    values = dataclasses.asdict(diagnosis) | {"notices": found.notices, "skipped": found.skipped, "seconds": _estimates(found)}
    verdict = Verdict(_told(diagnosis, found.notices), values)
    if options.out is not None:
        _write(verdict, found, options.out)
    return verdict


def _estimates(found: PhotoSet) -> dict[str, float]:
    """Seconds of the photos job by preset, on this machine."""
    from app.machine import pick_place
    from splat.few_photos import FEW_PHOTOS

    place = pick_place("auto", None)
    photos, pixels = len(found.photos), sum(photo.image.numel() // 3 for photo in found.photos)
    largest = max(max(photo.size) for photo in found.photos)
    seconds = {}
    for name, preset in PRESETS.items():
        fit_pixels = pixels * min(1.0, preset.fit_side / largest) ** 2 / photos
        estimate = estimate_photos(
            photos,
            pixels // photos,
            int(fit_pixels),
            preset,
            solve_poses=True,
            renderer=place.renderer,
            threads=place.threads,
            regularised=photos <= FEW_PHOTOS,
        )
        seconds[name] = round(estimate.seconds, 1)
    return seconds


def _write(verdict: Verdict, found: PhotoSet, out: Path) -> None:
    import torch

    from splat.io.images import save_image

    try:
        out.mkdir(parents=True)
        for number, photo in enumerate(found.photos):
            width, height = photo.size
            scale = min(1.0, THUMB_SIDE / max(width, height))
            size = (max(round(height * scale), 1), max(round(width * scale), 1))
            small = torch.nn.functional.interpolate(photo.image.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0)
            save_image(out / f"thumb_{number:03d}.jpg", small, quality=80)
        (out / "verdict.json").write_text(json.dumps(verdict.values, indent=1))
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror or error}); give another --out.") from error


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
