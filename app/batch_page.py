"""index.html of a batch: one page that opens from the disk, shows every item, and asks nothing of any server."""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from app.estimate import clock

if TYPE_CHECKING:
    from app.batch import Batch, Record

LINKS = {"mesh.glb": "mesh", "scene.ply": "splats", "turntable.mp4": "video", "report.json": "report"}
MAX_SENTENCE = 600  # characters of an error shown
ORDER = ("done", "skipped", "failed", "running", "waiting", "cancelled")
TOLD = {"skipped": "made before", "cancelled": "not made"}  # of a status, where the word itself says too little


def page(batch: Batch) -> str:
    """The page for the folder `batch.out`, with links relative to it; names and sentences cannot become markup."""
    cards = "\n".join(_card(record) for record in batch.records)
    counts = batch.counts
    tally = ", ".join(f"{counts[status]} {TOLD.get(status, status)}" for status in ORDER if counts[status])
    # A template of plain words in braces: text of users is put in last and never read as template again.
    parts = resources.files("app").joinpath("batch_page.html").read_text(encoding="utf-8").split("{{}}")
    title, begun = _text(batch.out.absolute().name), batch.started.replace("T", " ").replace("+00:00", " UTC")
    values = (title, title, _text(f"{tally}; begun {begun}"), cards)
    assert len(parts) == len(values) + 1, len(parts)
    filled = parts[0] + "".join(value + part for value, part in zip(values, parts[1:]))
    return filled.encode("utf-8", "replace").decode()  # file names need not be valid text


def _card(record: Record) -> str:
    item = record.item
    name = _text(item.name)
    told = TOLD.get(record.status, record.status)
    shown = _picture(item.out) if record.status in ("done", "skipped") else f'<div class="none">{told}</div>'
    if record.seconds:
        told += f" in {clock(record.seconds)}"
    lines = [f'<article class="{record.status}">', shown, f'<h2 dir="auto" title="{name}">{name}</h2>']
    lines.append(f'<p class="state" title="{_text(item.source)}">{told}</p>')
    if record.error:
        lines.append(f'<p class="error">{_text(record.error[:MAX_SENTENCE])}</p>')
    links = [f'<a href="{_link(item.out, file)}">{word}</a>' for file, word in LINKS.items() if (item.out / file).is_file()]
    if links and record.status in ("done", "skipped"):
        lines.append(f'<p class="links">{" ".join(links)}</p>')
    return "\n".join([*lines, "</article>"])


def _picture(out: Path) -> str:
    """The turntable, still until it is pointed at; where there is none, the preview."""
    still = _link(out, "preview.png")
    if (out / "turntable.mp4").is_file():
        video = _link(out, "turntable.mp4")
        return (
            f'<a class="shown" href="{still}"><video src="{video}" poster="{still}" preload="none" muted loop playsinline>'
            "</video></a>"
        )
    if (out / "preview.png").is_file():
        return f'<a class="shown" href="{still}"><img src="{still}" alt="" loading="lazy"></a>'
    return '<div class="none">no picture</div>'


def _link(out: Path, file: str) -> str:
    # "./" first: a name with a colon would be read as a scheme. Bytes, as file names need not be valid text.
    return "./" + quote(out.name.encode("utf-8", "surrogateescape")) + "/" + file


def _text(words: str) -> str:
    return escape(words, quote=True)
