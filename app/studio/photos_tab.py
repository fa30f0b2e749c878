"""Photos or a video in: judged first, then made into a scene."""

from __future__ import annotations

import secrets
import shutil
from html import escape
from pathlib import Path

from app import commands
from app.demo import example_photos
from app.studio.doctor_view import verdict
from app.studio.job_view import JobView, job_view
from app.studio.quick_gradio import gr
from app.studio.studio import ERRAND, PRESETS, Studio, decimal, one_of, sentence, whole
from app.studio.visitor import session_of
from app.tooltips import tooltips
from app.uploads import UploadLimits
from splat.errors import InputError, SplatsmithError

WELCOME = "Drop 3 to 40 photos taken from different places around a subject, or one video of a walk around it."
PICTURES = [".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".tif", ".tiff", ".bmp"]  # as splat.io.images.SUFFIXES
VIDEOS = [".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm"]  # as recon.photos.VIDEO_SUFFIXES


def photos_tab(studio: Studio) -> JobView:
    tips = tooltips(commands.Photos)
    with gr.Row(elem_classes="ss-tab"):
        with gr.Column(scale=2, min_width=300):
            files = gr.File(
                label="Photos or a video",
                file_count="multiple",
                file_types=[*PICTURES, *VIDEOS],
                height=200,
                elem_id="photos-files",
            )
            with gr.Row():
                example = gr.Button("Use the example photos", size="sm")
                check = gr.Button("Check again", size="sm")
            judged = gr.HTML(elem_id="photos-verdict")
            preset = gr.Radio(PRESETS, value="standard", label="Preset", info=tips["preset"])
            cut_out = gr.Checkbox(False, label="Cut the subject out of its background", info=tips["masks"])
            with gr.Accordion("More options", open=False):
                real_size = gr.Textbox("", label="Real size", info=tips["real_size"])
                holdout = gr.Number(0, precision=0, minimum=0, label="Holdout", info=tips["holdout"])
                intrinsics = gr.Radio(["shared", "per-photo"], value="shared", label="Intrinsics", info=tips["intrinsics"])
                poses = gr.File(label="Poses: a transforms.json", file_types=[".json"], height=110)
                gr.HTML(f'<p class="ss-faint">{escape(tips["poses"])}</p>')
                max_side = gr.Textbox("", label="Max side", info=tips["max_side"])
                steps = gr.Textbox("", label="Steps", info=tips["steps"])
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", info=tips["seed"])
                colmap_out = gr.Checkbox(False, label="COLMAP model", info=tips["colmap_out"])
                repair = gr.Checkbox(False, label="Repair", info=tips["repair"])
            make = gr.Button("Make the scene", variant="primary", elem_id="photos-make")
        with gr.Column(scale=3, min_width=300):
            view = job_view(studio, "photos", WELCOME)

    def examine(chosen):
        """What the doctor says of the files, before anything is spent on them."""
        if not chosen:
            return gr.HTML("", visible=False)
        folder = studio.errands.folder / f"check-{secrets.token_hex(8)}"
        try:
            _check_count(chosen, studio.queue.limits.uploads)
            command = commands.Check(inputs=_paths(chosen), out=folder, memory_budget=studio.options.memory_budget, quiet=True)
            for _ in studio.errands.run(command):
                pass
            return gr.HTML(verdict(folder), visible=True)
        except SplatsmithError as error:
            raise sentence(error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def submit_photos(
        files,
        preset,
        cut_out,
        real_size,
        holdout,
        intrinsics,
        poses,
        max_side,
        steps,
        seed,
        colmap_out,
        repair,
        request: gr.Request,
    ) -> str:
        """Photos or a video to a scene; returns the job's id."""
        try:
            if not files:
                raise InputError("There are no photos yet; drop some first.")
            command = commands.Photos(
                inputs=_paths(files),
                masks="auto" if cut_out else None,
                real_size=decimal(real_size, "Real size"),
                holdout=whole(holdout, "Holdout") or 0,
                intrinsics=one_of(("shared", "per-photo"), intrinsics, "Intrinsics"),
                poses=str(poses) if poses else "auto",
                max_side=whole(max_side, "Max side"),
                steps=whole(steps, "Steps"),
                colmap_out=bool(colmap_out),
                repair=bool(repair),
                **studio.common(preset, seed),
            )
            names = [path.name for path in _paths(files)]
            title = names[0] if len(names) == 1 else f"{len(names)} photos: {names[0]} …"
            return studio.queue.submit(session_of(request), command, title)
        except SplatsmithError as error:
            raise sentence(error) from error

    def examples():
        return [str(path) for path in sorted(example_photos().iterdir())]

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    look_at = {"api_visibility": "private", "show_progress": "full", "show_progress_on": judged, **ERRAND}
    files.upload(lambda: studio.errands.warm_up(), None, None, queue=False, **quiet)
    files.upload(lambda: gr.HTML(visible=True), None, judged, queue=False, **quiet).then(examine, files, judged, **look_at)
    files.clear(lambda: gr.HTML("", visible=False), None, judged, queue=False, **quiet)
    check.click(examine, files, judged, **look_at)
    example.click(examples, None, files, **quiet).success(lambda: gr.HTML(visible=True), None, judged, **quiet).success(
        examine, files, judged, **look_at
    )
    inputs = [files, preset, cut_out, real_size, holdout, intrinsics, poses, max_side, steps, seed, colmap_out, repair]
    view.look(make.click(submit_photos, inputs, view.selected, api_name="submit_photos", show_progress="hidden"))
    return view


def _paths(chosen: list[str]) -> tuple[Path, ...]:
    return tuple(Path(file) for file in chosen)


def _check_count(chosen: list[str], limits: UploadLimits) -> None:
    if len(chosen) > limits.files:
        raise InputError(f"{len(chosen)} files were sent, more than the {limits.files} that one job may have; send fewer.")
