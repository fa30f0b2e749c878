"""A result made better, and shown beside what it was."""

from __future__ import annotations

import json
from pathlib import Path

from app import commands
from app.studio.job_view import JobView, job_view
from app.studio.quick_gradio import gr
from app.studio.studio import ERRAND, PRESETS, Studio, decimal, one_of, result_of, sentence, whole
from app.studio.visitor import session_of
from app.tooltips import tooltips
from splat.errors import InputError, SplatsmithError

WELCOME = "Choose a result of photos or of a picture, and make it better. Where that does not help, it stays as it was."
SIDE = 640  # px of the pictures compared
WAYS = ("steps", "repair", "multiview", "volume")


def refine_tab(studio: Studio) -> tuple[JobView, gr.Dropdown]:
    """The view, and the field of results, which the page fills when the tab is opened."""
    tips = tooltips(commands.Refine)
    with gr.Row(elem_classes="ss-tab"):
        with gr.Column(scale=2, min_width=300):
            # Custom values, since programs and pages older than the server name results that it has not offered them.
            chosen = gr.Dropdown(
                [], label="Result", info=tips["result"], allow_custom_value=True, elem_id="refine-result-choice"
            )
            way = gr.Radio(WAYS, value="steps", label="With", info=tips["way"])
            preset = gr.Radio(PRESETS, value="standard", label="Preset", info=tips["preset"])
            with gr.Accordion("More options", open=False):
                steps = gr.Textbox("", label="Steps", info=tips["steps"])
                strength = gr.Number(None, minimum=0, maximum=1, label="Strength", info=tips["strength"])
                prompt = gr.Textbox("", label="Prompt", info=tips["prompt"])
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", info=tips["seed"])
            make = gr.Button("Refine", variant="primary", elem_id="refine-make")
            compare = gr.Button("Before and after in one picture", elem_id="refine-compare")
            slider = gr.ImageSlider(
                label="Before and after", type="filepath", visible=False, interactive=False, elem_id="refine-slider"
            )
        with gr.Column(scale=3, min_width=300):
            view = job_view(studio, "refine", WELCOME)

    def submit_refine(chosen, way, preset, steps, seed, strength, prompt, request: gr.Request) -> str:
        """A result, as JOB/NUMBER, made better; returns the job's id."""
        try:
            if not chosen:
                raise InputError("Choose a result first; those of photos and of pictures can be refined.")
            record = studio.record(chosen, request)
            folder = result_of(record, chosen)
            if folder is None:
                raise InputError("There is no such result here; it may have expired or been deleted.")
            command = commands.Refine(
                result=folder,
                way=one_of(WAYS, way, "With"),
                steps=whole(steps, "Steps"),
                strength=decimal(strength, "Strength"),
                prompt=str(prompt or ""),
                **studio.common(preset, seed),
            )
            return studio.queue.submit(session_of(request), command, f"refined: {record.title}")
        except SplatsmithError as error:
            raise sentence(error) from error

    def compared(selected, request: gr.Request):
        """The first view of the result and of what it was made from."""
        try:
            record = studio.record(selected, request)
            folder = result_of(record, selected)
            if folder is None or record.source is None:
                raise InputError("There is nothing to compare yet; refine a result first.")
            if not record.source.is_dir():
                raise InputError("The result that was refined has been deleted; there is nothing to compare with.")
            place = record.out.parent / "compare"
            place.mkdir(exist_ok=True)
            camera = _first_camera(record.source, place)
            pictures = []
            for name, scene in (("before", record.source), ("after", folder)):
                picture = place / f"{name}.png"
                if not picture.is_file():
                    command = commands.Render(scene=scene, to=picture, cameras=camera, side=SIDE, quiet=True)
                    for _ in studio.errands.run(command):
                        pass
                pictures.append(str(studio.lend(picture)))
            return gr.ImageSlider(tuple(pictures), visible=True)
        except SplatsmithError as error:
            raise sentence(error) from error

    inputs = [chosen, way, preset, steps, seed, strength, prompt]
    view.look(make.click(submit_refine, inputs, view.selected, api_name="submit_refine", show_progress="hidden"))
    compare.click(compared, view.selected, slider, api_visibility="private", **ERRAND)
    return view, chosen


def refinable(studio: Studio, chosen: str | None, request: gr.Request) -> gr.Dropdown:
    """This visitor's results that can be refined; what was chosen before stays, else it is the newest."""
    found = [record for record in studio.queue.jobs(session_of(request)) if record.kind in ("photos", "image", "refine")]
    choices = [
        (f"{record.title}{f' ({folder.name})' if len(record.results) > 1 else ''}", f"{record.id}/{number}")
        for record in found
        for number, folder in enumerate(record.results)
    ]
    ids = [id for _, id in choices]
    return gr.Dropdown(choices, value=chosen if chosen in ids else next(iter(ids), None))


def _first_camera(result: Path, place: Path) -> Path:
    """A cameras.json with the first camera of `result` alone."""
    try:
        cameras = json.loads((result / "cameras.json").read_text())
        one = place / "camera.json"
        one.write_text(json.dumps(cameras | {"frames": cameras["frames"][:1]}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("The cameras of the result cannot be read; it may have been deleted.") from error
    return one
