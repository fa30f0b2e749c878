"""Jobs and results as HTML: plain functions from records to text. Whatever comes from visitors is escaped here."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from app.batch import read_batch
from app.estimate import clock
from app.job_record import JobRecord
from app.studio.downloads import FILES, export_folder

STAGES = {
    "waiting": "Waiting", "estimate": "Estimating", "photos": "Reading the photos", "poses": "Finding the cameras",
    "prior": "Measuring depth", "initialise": "Placing Gaussians", "fit": "Fitting", "mesh": "Mesh",
    "measure": "Measuring quality",
    "turntable": "Turntable", "files": "Writing the files", "model": "Loading the network",
    "picture": "Cutting out the subject", "views": "Making the object", "fields": "Making the shape", "codec": "Adding detail",
    "shape": "Making the shape", "coarse": "Making the shape", "detail": "Adding detail", "rank": "Choosing the best",
    "denoise": "Making the object", "refine": "Refining", "batch": "Working through the pictures", "object": "Next object",
}  # fmt: skip
# Three Gaussians, for where there is nothing yet.
LOGO = (
    '<svg viewBox="0 0 32 32" width="72" height="72" aria-hidden="true"><g fill="none" stroke="currentColor" opacity=".45">'
    '<ellipse cx="12" cy="19" rx="9" ry="6" transform="rotate(-28 12 19)"/>'
    '<ellipse cx="20" cy="13" rx="8" ry="4.5" transform="rotate(24 20 13)"/><ellipse cx="17" cy="21" rx="4" ry="3"/></g></svg>'
)
STATES = {
    "queued": "waiting", "running": "running", "done": "done", "failed": "failed", "cancelled": "cancelled",
    "interrupted": "interrupted",
}  # fmt: skip
KINDS = {"photos": "photos", "image": "image", "text": "text", "refine": "refined", "batch": "batch"}
MOST_SENTENCES = 12


def status(record: JobRecord | None, welcome: str) -> str:
    """What a job is doing, with the buttons that make sense now; `welcome` where there is none."""
    if record is None:
        return f'<div class="ss-status ss-empty">{LOGO}<p>{escape(welcome)}</p></div>'
    parts = [f'<div class="ss-status ss-{record.state}" data-state="{record.state}" data-job="{record.id}">']
    parts.append(f'<div class="ss-head"><h3 dir="auto" title="{_text(record.title)}">{_text(record.title)}</h3>')
    parts.append(f'<span class="ss-chip ss-{record.state}">{STATES[record.state]}</span></div>')
    parts += {"queued": _queued, "running": _running}.get(record.state, _ended)(record)
    told = {sentence for folder in record.results for sentence in _warnings(_report(folder))}  # beside the result already
    parts.append(sentences([sentence for sentence in record.notices if sentence not in told]))
    return "".join([*parts, "</div>"])


def _queued(record: JobRecord) -> list[str]:
    before = (record.position or 1) - 1
    told = "It is the next." if not before else f"{before} {'job' if before == 1 else 'jobs'} before it."
    return [f"<p>Waiting for its turn. {told}</p>", _buttons(record, "cancel")]


def _running(record: JobRecord) -> list[str]:
    share = record.step / record.total if record.total else 0
    left = f"{clock(record.eta_s)} left" if record.eta_s else ""
    words = " · ".join(filter(None, [left, escape(record.note)]))
    stage = STAGES.get(record.stage, record.stage.capitalize()) or "Starting"
    count = f"{record.step} of {record.total}" if record.total > 1 else ""
    bar = f'<progress value="{share:.3f}" max="1" aria-label="{_text(stage)}"></progress>'
    parts = [f'<p class="ss-stage"><b>{_text(stage)}</b> <span>{count}</span></p>{bar}<p class="ss-faint">{words}&nbsp;</p>']
    if record.preview:
        try:
            stamp = record.preview.stat().st_mtime_ns
        except OSError:
            stamp = 0
        url = f"/studio/jobs/{record.id}/live.png?{stamp}"
        parts.append(f'<img class="ss-live" src="{url}" alt="The job so far">')
    return [*parts, _buttons(record, "cancel")]


def _ended(record: JobRecord) -> list[str]:
    took = record.finished - record.started if record.finished and record.started else None
    if record.state == "done":
        return [f'<p class="ss-faint">Made in {clock(took)}.</p>' if took else ""]
    words = {"failed": record.error or "It failed.", "cancelled": "Cancelled; what was finished is kept.",
             "interrupted": record.error or "The server ended during this job; what was finished is kept."}  # fmt: skip
    return [f'<p class="ss-error" role="alert">{escape(words[record.state])}</p>', _buttons(record, "resume", "delete")]


def _buttons(record: JobRecord, *acts: str) -> str:
    words = {"cancel": "Cancel", "resume": "Resume", "delete": "Delete", "open": "Open"}
    made = (button(words[act], act, record.id, quiet=act != "resume") for act in acts)
    return f'<p class="ss-acts">{"".join(made)}</p>'


def button(words: str, act: str, of: str, *, quiet: bool = True, label: str = "") -> str:
    """A button whose click the page hears, as {act, of}."""
    more = f' aria-label="{_text(label)}"' if label else ""
    kind = "ss-button ss-quiet" if quiet else "ss-button"
    return f'<button type="button" class="{kind}" data-act="{act}" data-of="{_text(of)}"{more}>{escape(words)}</button>'


def sentences(words: Sequence[str]) -> str:
    if not words:
        return ""
    shown = "".join(f'<li dir="auto">{escape(word)}</li>' for word in words[:MOST_SENTENCES])
    more = f"<li>and {len(words) - MOST_SENTENCES} more, in report.json</li>" if len(words) > MOST_SENTENCES else ""
    return f'<ul class="ss-notes">{shown}{more}</ul>'


def result(record: JobRecord, folder: Path, before: tuple[str, Path] | None = None) -> str:
    """The viewer, the turntable, the figures and the files of the result `folder` of `record`.

    `before` is what was refined, as URL of its folder and path: the viewer then shows it beside the result.
    """
    base = address(record, folder)
    report = _report(folder)
    return "".join(
        [
            '<div class="ss-result">',
            _viewer(base, folder, before),
            '<div class="ss-beside">',
            _video(base, folder),
            _figures(report),
            "</div>",
            sentences(_warnings(report)),
            _next_photo(base, folder, report),
            _sheet(base, folder),
            "</div>",
        ]
    )


def address(record: JobRecord, folder: Path) -> str:
    """URL of a result folder."""
    inside = "" if folder == record.out else f"/{quote(folder.name)}"
    return f"/studio/jobs/{record.id}/out{inside}"


def _viewer(base: str, folder: Path, before: tuple[str, Path] | None) -> str:
    panes = [("pane", f"Before|{before[0]}/scene.ply")] if before else []
    panes.append(("pane", f"{'After' if before else 'Splats'}|{base}/scene.ply"))
    if (folder / "mesh.glb").is_file() and not before:
        panes.append(("pane", f"Mesh|{base}/mesh.glb"))
    query = urlencode([*panes, ("cameras", f"{base}/cameras.json")])
    told = "The splats before and after, turned together" if before else "The splats and the mesh, turned together"
    return f'<iframe class="ss-viewer" src="/studio/viewer.html?{_text(query)}" title="{told}" loading="lazy"></iframe>'


def _video(base: str, folder: Path) -> str:
    if not (folder / "turntable.mp4").is_file():
        return ""
    return (
        f'<video class="ss-turntable" src="{base}/turntable.mp4" autoplay muted loop playsinline controls '
        'aria-label="Turntable"></video>'
    )


def _figures(report: dict[str, Any]) -> str:
    rows = [("Gaussians", f"{report.get('gaussians', 0):,}"), ("Triangles", f"{report.get('mesh_faces', 0):,}")]
    words = {"train": "Seen photos" if report.get("command") == "photos" else "Front view", "holdout": "Held-out photos"}
    for name, quality in report.get("metrics", {}).items():
        if quality:
            rows.append((words.get(name, name), f"{quality['psnr']:.2f} dB, SSIM {quality['ssim']:.3f}"))
    inputs = report.get("inputs", [])
    if report.get("command") == "photos" and inputs:
        rows.append(("Photos placed", f"{sum(bool(i['placed']) for i in inputs)} of {len(inputs)}"))
    if report.get("stages"):
        rows.append(("Time", clock(sum(stage["seconds"] for stage in report["stages"]))))
    rows.append(("Seed", str(report.get("seed", 0))))
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    unplaced = [f"{i['name']}: {i['reason']}" for i in inputs if not i["placed"] and i.get("reason")]
    return f'<div><table class="ss-figures">{body}</table>{sentences(unplaced)}</div>'


def files(record: JobRecord, folder: Path) -> str:
    """Links to what lies in the result, and to what was made from it on demand."""
    base = address(record, folder)
    found = [(f"{base}/{name}?download", name, told, folder / name) for name, told in FILES.items()]
    made = export_folder(record, folder)
    if made.is_dir():
        for path in sorted(made.iterdir()):
            if path.is_file() and not path.name.endswith((".partial", ".tmp")):
                found.append((f"/studio/jobs/{record.id}/exports/{quote(made.name)}/{quote(path.name)}", path.name, "", path))
    items = []
    for url, name, told, path in found:
        if path.is_file():
            size = _size(path.stat().st_size)
            items.append(
                f'<li><a href="{url}" download="{_text(name)}">{_text(name)}</a> <span>{_text(told)} {size}</span></li>'
            )
    return "".join(items)


def _sheet(base: str, folder: Path) -> str:
    if not (folder / "preview.png").is_file():
        return ""
    picture = f'<img src="{base}/preview.png" alt="Renders of the result" loading="lazy">'
    return f'<details class="ss-sheet"><summary>Contact sheet</summary>{picture}</details>'


def _next_photo(base: str, folder: Path, report: dict[str, Any]) -> str:
    """Of few photos: where one more would help most."""
    if not (folder / "next_photo.png").is_file():
        return ""
    told = _text(report.get("next_photo", {}).get("text", "Where one more photo would help most"))
    picture = f'<img src="{base}/next_photo.png" alt="{told}" loading="lazy">'
    return f'<details class="ss-sheet"><summary>Next photo: {told}</summary>{picture}</details>'


def shelf(records: Sequence[JobRecord], selected: str, *, more: bool, manage: bool = False) -> str:
    """Cards of jobs and their results; `more` offers further seeds, `manage` what the library can do."""
    cards = [card for record in records for card in _cards(record, selected, more, manage)]
    return f'<div class="ss-shelf" role="list">{"".join(cards)}</div>' if cards else ""


def _cards(record: JobRecord, selected: str, more: bool, manage: bool) -> list[str]:
    if not record.results:
        return [_card(record, None, record.id, selected, more, manage)]
    return [
        _card(record, folder, f"{record.id}/{number}", selected, more, manage) for number, folder in enumerate(record.results)
    ]


def _card(record: JobRecord, folder: Path | None, of: str, selected: str, more: bool, manage: bool) -> str:
    on = selected == of or (selected == record.id and of == f"{record.id}/0")
    seed = _seed(record, folder)
    name = record.title if folder is None or len(record.results) == 1 else f"{record.title} ({folder.name})"
    shown = _thumb(record, folder)
    acts = []
    if more and folder is not None:
        acts.append(button("More like this", "more", of, label=f"More like {name}, seed {seed}"))
    if manage:
        acts += [] if record.state not in ("failed", "cancelled", "interrupted") else [button("Resume", "resume", record.id)]
        acts += [button("Cancel", "cancel", record.id)] if record.state in ("queued", "running") else []
        acts += [button("Delete", "delete", record.id, label=f"Delete {name}")] if record.state != "running" else []
    told = STATES[record.state] if folder is None else f"seed {seed}"
    if manage:
        told = (
            f"{KINDS.get(record.kind, record.kind)} · {told} · {time.strftime('%d %b %H:%M', time.localtime(record.submitted))}"
        )
    return (
        f'<div role="listitem" class="ss-card{" ss-on" if on else ""}" data-job="{record.id}" data-state="{record.state}">'
        f'<button type="button" class="ss-pick" data-act="open" data-of="{_text(of)}" aria-pressed="{str(on).lower()}">'
        f'{shown}<span class="ss-name" dir="auto">{_text(name)}</span><span class="ss-faint">{_text(told)}</span></button>'
        f"{''.join(acts)}</div>"
    )


def _thumb(record: JobRecord, folder: Path | None) -> str:
    if folder is not None and (folder / "turntable.mp4").is_file():
        still = f"/studio/jobs/{record.id}/thumbs/{record.results.index(folder)}.jpg"
        video = f"{address(record, folder)}/turntable.mp4"  # asked for when it is pointed at
        how = 'preload="none" muted loop playsinline tabindex="-1"'
        return f'<video class="ss-thumb" src="{video}" poster="{still}" {how}></video>'
    if record.state == "running":
        share = record.step / record.total if record.total else 0
        return f'<span class="ss-thumb ss-none"><progress value="{share:.3f}" max="1" aria-label="progress"></progress></span>'
    return f'<span class="ss-thumb ss-none">{STATES[record.state]}</span>'


def _seed(record: JobRecord, folder: Path | None) -> int:
    if folder is not None and record.kind == "text":
        tail = folder.name.rpartition("-")[2]
        if tail.isdecimal():
            return int(tail)
    return record.options.get("seed", 0)


def batch_table(record: JobRecord) -> str:
    """A row for every picture of a batch, as batch.json has it."""
    found = read_batch(record.out)
    if not found:
        return ""
    numbers = {folder.name: number for number, folder in enumerate(record.results)}
    rows = []
    for item in found["items"]:
        name, state = str(item["out"]), str(item["status"])
        took = clock(item["seconds"]) if item["seconds"] else ""
        act = button("Open", "open", f"{record.id}/{numbers[name]}", label=f"Open {name}") if name in numbers else ""
        error = f'<div class="ss-error">{escape(str(item.get("error") or ""))}</div>' if item.get("error") else ""
        chip = f'<span class="ss-chip ss-{_text(state)}">{escape(state)}</span>'
        rows.append(f"<tr><td dir='auto'>{escape(name)}{error}</td><td>{chip}</td><td>{took}</td><td>{act}</td></tr>")
    links = f'<a href="/studio/jobs/{record.id}/out/index.html" target="_blank">index.html</a>'
    if record.results:
        links += f' · <a href="/studio/jobs/{record.id}/all.zip" download>all results, zipped</a>'
    head = "<tr><th>Picture</th><th>State</th><th>Time</th><th></th></tr>"
    return f'<div class="ss-batch"><p>{links}</p><div class="ss-scroll"><table>{head}{"".join(rows)}</table></div></div>'


def _warnings(report: dict[str, Any]) -> list[str]:
    return [str(sentence) for sentence in (*report.get("warnings", ()), *report.get("fallbacks", ()))]


def _report(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "report.json").read_text())
    except (OSError, ValueError):
        return {}


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{max(count / 1e3, 0.1):.1f} kB"


def _text(words: str) -> str:
    return escape(str(words), quote=True)
