"""The web page: drop photos in, watch the job, look at the splats and the mesh, take the files home.

`build_ui` only lays out widgets; the work is the same generator that the command line runs. The page listens on this machine
alone unless told otherwise, sends nothing anywhere, and removes a visitor's folder when the visitor leaves.
"""

from __future__ import annotations

import errno
import hashlib
import html
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr

from app import commands
from app.console import figures, remaining
from app.estimate import clock
from app.pipelines import Outcome
from app.presets import PRESETS
from app.tooltips import tooltips
from recon.photos import VIDEO_SUFFIXES
from splat.errors import InputError, SplatsmithError
from splat.io.images import SUFFIXES
from splat.progress import Progress

Job = Callable[[commands.Photos], Generator[Progress, None, Outcome]]
Doctor = Callable[[commands.Check], Generator[Progress, None, Any]]

FILE_TYPES = [*SUFFIXES, *VIDEO_SUFFIXES]  # all that the command line takes
PREVIEW_EVERY = 1.0  # seconds between pictures sent to the page
WELCOME = "Drop 3 to 40 photos taken from different places around a subject, or one video."
DOWNLOADS = ("scene.ply", "mesh.glb", "turntable.mp4", "preview.png", "cameras.json", "report.json")


def serve(options: commands.Ui) -> None:
    """Serve the page until interrupted. Visitors' folders live below one temporary folder, removed at the end."""
    from app.checkup import check_photos
    from app.pipelines import photos_to_scene

    if not 1 <= options.port <= 65535:
        raise InputError(f"--port {options.port} is no port; give 1 to 65535.")
    sessions = Path(tempfile.mkdtemp(prefix="splatsmith-"))
    os.environ["GRADIO_TEMP_DIR"] = str(sessions / "uploads")  # uploads go with the rest
    try:
        page = build_ui(photos_to_scene, check_photos, sessions, options)
        page.queue(default_concurrency_limit=1)  # one job at a time: it takes the whole machine
        page.launch(
            server_name=options.host,
            server_port=options.port,
            quiet=options.quiet,
            allowed_paths=[str(sessions)],
            footer_links=[],
        )
    except OSError as error:
        if error.errno != errno.EADDRINUSE and "empty port" not in str(error):  # gradio's word for one that it cannot take
            raise
        raise InputError(f"The page cannot listen on {options.host}:{options.port}; give another --port.") from error
    finally:
        shutil.rmtree(sessions, ignore_errors=True)


def build_ui(job: Job, doctor: Doctor, sessions: Path, options: commands.Ui) -> gr.Blocks:
    """The page. `job` makes a scene, `doctor` judges photos; each visitor works in a folder of their own in `sessions`."""
    tips = tooltips(commands.Photos)
    clicks = itertools.count(1)
    cancelled: dict[str, int] = {}  # by session, its last click on Cancel: jobs asked for before it stop at their next event

    with gr.Blocks(title="splatsmith", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        asked = gr.State(0)  # the click on Start; callers of the API have none
        gr.Markdown("# splatsmith\nA few photos of a scene become Gaussian splats and a mesh.")
        with gr.Tab("Photos"), gr.Row():
            with gr.Column(scale=1, min_width=320):
                files = gr.File(label="Photos or a video", file_count="multiple", file_types=FILE_TYPES, height=170)
                check = gr.Button("Check the photos", size="sm")
                verdict = gr.Markdown()
                preset = gr.Radio(list(PRESETS), value="standard", label="Preset", info=tips["preset"])
                with gr.Accordion("More", open=False):
                    holdout = gr.Number(0, precision=0, minimum=0, label="Holdout", info=tips["holdout"])
                    cut_out = gr.Checkbox(False, label="Cut the subject out of its background")
                    seed = gr.Number(0, precision=0, label="Seed", info=tips["seed"])
                with gr.Row():
                    start = gr.Button("Make the scene", variant="primary")
                    cancel = gr.Button("Cancel")
                status = gr.HTML(f"<p>{WELCOME}</p>")
                preview = gr.Image(label="Live", interactive=False, height=220, buttons=[])
            with gr.Column(scale=2):
                with gr.Row():
                    splats = gr.Model3D(label="Splats", height=380, interactive=False)
                    mesh = gr.Model3D(label="Mesh", height=380, interactive=False)
                with gr.Row():
                    turntable = gr.Video(label="Turntable", autoplay=True, loop=True, interactive=False, height=300)
                    sheet = gr.Image(label="Photos beside renders", interactive=False, height=300, buttons=["fullscreen"])
                downloads = gr.File(label="Downloads", file_count="multiple", interactive=False)
                report = gr.JSON(label="Report")

        def ask(chosen):
            _require_files(chosen)
            return next(clicks)

        def make(chosen, preset, holdout, cut_out, seed, asked, request: gr.Request):
            asked = asked or next(clicks)

            def is_cancelled() -> bool:
                return cancelled.get(request.session_hash, 0) > asked

            if is_cancelled():  # while it waited for another visitor's job
                yield [_CANCELLED.get(name, gr.skip()) for name in OUTPUTS]
                return
            photos = commands.Photos(
                inputs=tuple(Path(f) for f in chosen),
                out=_fresh(_home(sessions, request.session_hash)),
                preset=preset,
                holdout=int(holdout or 0),
                masks="auto" if cut_out else None,
                seed=int(seed or 0),
                device=options.device,
                threads=options.threads,
            )
            for shown in follow_on_page(job(photos), is_cancelled):
                yield [shown.get(name, gr.skip()) for name in OUTPUTS]

        def stop(request: gr.Request):
            cancelled[request.session_hash] = next(clicks)

        def leave(request: gr.Request):
            stop(request)
            shutil.rmtree(_home(sessions, request.session_hash), ignore_errors=True)

        outputs = [status, preview, splats, mesh, turntable, sheet, downloads, report]
        inputs = [files, preset, holdout, cut_out, seed, asked]
        check.click(_require_files, files, api_visibility="private").success(
            lambda chosen: _verdict(doctor, chosen), files, verdict, api_name="check"
        )
        start.click(ask, files, asked, api_visibility="private", queue=False).success(make, inputs, outputs, api_name="photos")
        cancel.click(stop, queue=False, api_name="cancel")
        page.unload(leave)
    return page


_CANCELLED = {"status": "<p>Cancelled.</p>", "preview": None}
OUTPUTS = ("status", "preview", "splats", "mesh", "turntable", "sheet", "downloads", "report")


def follow_on_page(job: Generator[Progress, None, Outcome], is_cancelled: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """What changes on the page, by name of `OUTPUTS`, event by event; errors become `gr.Error` with the same sentence."""
    stage, started, shown = "", time.monotonic(), 0.0
    try:
        while True:
            try:
                event = next(job)
            except StopIteration as end:
                yield _finished(end.value)
                return
            now = time.monotonic()
            if is_cancelled():
                yield _CANCELLED
                return
            if event.stage == "notice":
                gr.Info(event.note)
                continue
            if event.stage != stage:
                stage, started = event.stage, now
            change: dict[str, Any] = {"status": _status(event, remaining(now - started, event.step, event.total))}
            if event.preview is not None and now - shown > PREVIEW_EVERY:
                shown = now
                change["preview"] = event.preview.detach().cpu().clamp(0, 1).numpy()
            yield change
    except SplatsmithError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
    finally:
        job.close()


def _status(event: Progress, eta: float) -> str:
    text = html.escape(figures(event))
    left = f", {clock(eta)} left" if eta else ""
    if event.stage == "estimate":
        return f"<p>{text}</p>"
    return (
        f"<p><b>{html.escape(event.stage)}</b> {event.step} of {event.total}{left}<br>"
        f'<progress value="{event.step}" max="{max(event.total, 1)}" style="width:100%"></progress><br>{text}</p>'
    )


def _finished(outcome: Outcome) -> dict[str, Any]:
    from splat.io import load, save

    report, out = outcome.report, outcome.out
    # The page's viewer assumes the y-down world of 3DGS, so it gets that variant, and so does the visitor.
    turned = out.with_name(f"{out.name}_3dgs.ply")
    save(load(out / "scene.ply"), turned, "3dgs")
    lines = [f"Done: {report['gaussians']:,} Gaussians."]
    for name, quality in report["metrics"].items():
        if quality:
            lines.append(f"{name}: {quality['psnr']:.2f} dB")
    lines += report["warnings"] + report["fallbacks"]
    return {
        "status": "".join(f"<p>{html.escape(line)}</p>" for line in lines),
        "preview": None,
        "splats": str(turned),
        "mesh": str(out / "mesh.glb") if report["mesh_faces"] else None,
        "turntable": str(out / "turntable.mp4"),
        "sheet": str(out / "preview.png"),
        "downloads": [str(out / name) for name in DOWNLOADS if (out / name).exists()] + [str(turned)],
        "report": report,
    }


def _require_files(chosen: list[str] | None) -> None:
    if not chosen:
        raise gr.Error("There are no photos yet; drop some first.", print_exception=False)


def _verdict(doctor: Doctor, chosen: list[str]) -> str:
    examination = doctor(commands.Check(inputs=tuple(Path(f) for f in chosen)))
    try:
        while True:
            try:
                next(examination)
            except StopIteration as end:
                return end.value.text.replace("\n", "  \n")  # two spaces: Markdown keeps the line break
    except SplatsmithError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def _home(sessions: Path, session_hash: str | None) -> Path:
    """A visitor's folder. The hash comes from the visitor, who may send any text, so it is no part of the path."""
    return sessions / hashlib.sha256(str(session_hash).encode(errors="replace")).hexdigest()


def _fresh(folder: Path) -> Path:
    """The first unused result folder of a session."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while any(folder.glob(f"scene-{number}*")):
        number += 1
    return folder / f"scene-{number}"
