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
from app.next_photo import check_picture, look
from app.presets import PRESETS
from app.result_folder import write_atomic
from splat.errors import InputError
from splat.progress import Progress

if TYPE_CHECKING:
    from recon.doctor import Diagnosis
    from recon.photos import Photo, PhotoSet

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
    photos: tuple[Photo, ...]  # as they were read
    open_question: bool  # from where to take the next photo: what `where_next` answers


def check_photos(options: commands.Check) -> Generator[Progress, None, Verdict]:
    """Read the photos and examine them; with `options.out`, write verdict.json and thumb_NNN.jpg there.

    `values` has the diagnosis, and for each preset the estimated seconds of the job. Raises `InputError` for input that holds
    no photos, for a folder that exists or cannot be written, and for a picture of photos that nobody can draw.
    """
    from recon.doctor import examine
    from recon.photos import PhotoConfig, read_photos
    from splat.few_photos import FEW_PHOTOS
    from splat.io.images import MAX_PIXELS

    budget = memory_budget(options.memory_budget)
    check_picture(options.picture)
    if options.picture is not None and options.quick:
        raise InputError("--picture shows what --quick leaves out; give one of them.")
    if options.out is not None and options.out.exists():
        raise InputError(f"{options.out} exists already; give a new folder as --out.")
    yield Progress("photos", 0, 1)
    found = read_photos(options.inputs, PhotoConfig(max_pixels=min(MAX_PIXELS, decodable_pixels(budget))))
    yield Progress("photos", 1, 1, f"{len(found.photos)} photos")
    yield Progress("check", 0, 1)
    diagnosis = examine(found)
    yield Progress("check", 1, 1)
    values = dataclasses.asdict(diagnosis) | {"notices": found.notices, "skipped": found.skipped, "seconds": _estimates(found)}
    question = not options.quick and _joined_few(diagnosis)
    if options.picture is not None and not question:
        raise InputError(
            f"--picture is drawn of 2 to {FEW_PHOTOS} photos that fit together, and these {len(found.photos)} are "
            f"{'too many' if len(found.photos) > FEW_PHOTOS else diagnosis.verdict}: {diagnosis.next_photo}"
        )
    verdict = Verdict(_told(diagnosis, found.notices, question), values, found.photos, question)
    if options.out is not None:
        _write(verdict, found, options.out)
    return verdict


def where_next(verdict: Verdict, options: commands.Check) -> Generator[Progress, None, Verdict]:
    """The verdict with `values["next_camera"]`, as `next_photo` of report.json, where it can be said from where the next photo
    helps most; `text` is the answer alone. `options.out` gets it too. Yields the estimate first."""
    from app.machine import pick_place

    text, entry = yield from look(verdict.photos, options.picture, pick_place("auto", None))
    if entry is None:
        text = f"{text}\nNext: {verdict.values['next_photo']}"
    else:
        text = f"Next: {text}"
    if entry is not None and options.picture is not None:
        text += f" {options.picture} shows it."
    answered = dataclasses.replace(verdict, text=text, values=verdict.values | {"next_camera": entry}, open_question=False)
    if options.out is not None:
        write_atomic(options.out / "verdict.json", json.dumps(answered.values, indent=1).encode())
    return answered


def _joined_few(diagnosis: Diagnosis) -> bool:
    """Whether a quick fit can say more than the doctor: the photos are few, and nothing keeps them from being placed."""
    from splat.few_photos import FEW_PHOTOS

    few = len(diagnosis.photos) <= FEW_PHOTOS
    return few and diagnosis.verdict in ("good", "fair") and len(diagnosis.groups) == 1


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


def _told(diagnosis: Diagnosis, notices: tuple[str, ...], question: bool) -> str:
    """`question`: what to photograph next is answered later."""
    count = len(diagnosis.photos)
    lines = [f"{VERDICTS[diagnosis.verdict]} About {diagnosis.expected_placed} of {count} photos will be placed."]
    lines += [f"- {problem}" for problem in (*diagnosis.problems, *notices)]
    lines += [""] if question else [f"Next: {diagnosis.next_photo}", ""]
    width = max(len(photo.name) for photo in diagnosis.photos)
    for photo in diagnosis.photos:
        notes = ", ".join(photo.notes) or "fine"
        seen = f"{photo.links:2d} links, {100 * photo.coverage:3.0f} % shared"
        lines.append(f"{photo.name:<{width}}  {seen}, blur {photo.blur:.2f}, {photo.stops:+.1f} stops: {notes}")
    return "\n".join(lines)
