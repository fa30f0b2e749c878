"""Many pictures, an object of each."""

from __future__ import annotations

from pathlib import Path

from app import commands
from app.studio.job_view import JobView, job_view
from app.studio.photos_tab import PICTURES
from app.studio.quick_gradio import gr
from app.studio.studio import PRESETS, Studio, decimal, sentence, whole
from app.studio.visitor import session_of
from app.tooltips import tooltips
from splat.errors import InputError, SplatsmithError

WELCOME = "Drop many pictures of different objects. Each becomes a result of its own; one that fails does not stop the others."


def batch_tab(studio: Studio) -> JobView:
    tips = tooltips(commands.Image)
    with gr.Row(elem_classes="ss-tab"):
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label="Pictures", file_count="multiple", file_types=PICTURES, height=220, elem_id="batch-files")
            preset = gr.Radio(PRESETS, value="standard", label="Preset", info=tips["preset"])
            with gr.Accordion("More options", open=False):
                elevation = gr.Textbox("", label="Elevation", placeholder="20", info=tips["elevation"])
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", info=tips["seed"])
                seconds = gr.Textbox("", label="Seconds for one", info=tips["item_seconds"])
            make = gr.Button("Make them", variant="primary", elem_id="batch-make")
        with gr.Column(scale=3, min_width=300):
            view = job_view(studio, "batch", WELCOME)

    def submit_batch(files, preset, elevation, seed, seconds, request: gr.Request) -> str:
        """An object of each picture; returns the job's id."""
        try:
            if len(files or []) < 2:
                raise InputError("A batch takes 2 pictures or more; a single one belongs on the tab Image.")
            paths = tuple(Path(file) for file in files)
            command = commands.Image(
                inputs=paths,
                elevation=decimal(elevation, "Elevation"),
                item_seconds=decimal(seconds, "Seconds for one"),
                **studio.common(preset, whole(seed, "Seed")),
            )
            return studio.queue.submit(session_of(request), command, f"{len(paths)} pictures: {paths[0].name} …")
        except SplatsmithError as error:
            raise sentence(error) from error

    inputs = [files, preset, elevation, seed, seconds]
    view.look(make.click(submit_batch, inputs, view.selected, api_name="submit_batch", show_progress="hidden"))
    return view
