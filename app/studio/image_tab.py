"""A picture, or several of one object, in; the object out, as often as there are seeds."""

from __future__ import annotations

import dataclasses
from html import escape
from pathlib import Path
from urllib.parse import quote

from app import commands
from app.demo import example_photos
from app.job_record import JobRecord
from app.studio.job_view import JobView, job_view
from app.studio.photos_tab import PICTURES
from app.studio.quick_gradio import gr
from app.studio.studio import PRESETS, Studio, decimal, sentence, whole
from app.studio.visitor import session_of
from app.tooltips import tooltips
from splat.errors import InputError, SplatsmithError

WELCOME = "Drop a picture of one object, best on a plain or transparent background. It takes a quarter of a minute."
MOST_VARIATIONS = 4
SHOWN = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")  # what every browser draws


def image_tab(studio: Studio) -> JobView:
    tips = tooltips(commands.Image)
    with gr.Row(elem_classes="ss-tab"):
        with gr.Column(scale=2, min_width=300):
            files = gr.File(
                label="Picture, or several of one object",
                file_count="multiple",
                file_types=PICTURES,
                height=170,
                elem_id="image-files",
            )
            chosen = gr.HTML(visible=False, elem_id="image-chosen")
            example = gr.Button("Use the example picture", size="sm")
            variations = gr.Slider(1, MOST_VARIATIONS, 1, step=1, label="Variations", info="Objects with further seeds.")
            preset = gr.Radio(PRESETS, value="standard", label="Preset", info=tips["preset"])
            with gr.Accordion("More options", open=False):
                mask = gr.File(label="Mask", file_types=PICTURES, height=110)
                gr.HTML(f'<p class="ss-faint">{escape(tips["mask"])}</p>')
                elevation = gr.Textbox("", label="Elevation", placeholder="20", info=tips["elevation"])
                azimuths = gr.Textbox("", label="Azimuths", placeholder="0, 90, 180, 270", info=tips["azimuths"])
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", info=tips["seed"])
                temperature = gr.Textbox("", label="Temperature", placeholder="0.35", info=tips["temperature"])
                guidance = gr.Textbox("", label="Guidance", placeholder="1", info=tips["guidance"])
                steps = gr.Textbox("", label="Steps", info=tips["steps"])
                refine = gr.Textbox("", label="Refine", info=tips["refine"])
                fov = gr.Textbox("", label="Angle of view", info=tips["fov"])
            make = gr.Button("Make it", variant="primary", elem_id="image-make")
        with gr.Column(scale=3, min_width=300):
            view = job_view(studio, "image", WELCOME, more=lambda record, of, request: _more(studio, record, request))

    def submit_image(
        files,
        variations,
        preset,
        mask,
        elevation,
        azimuths,
        seed,
        temperature,
        guidance,
        steps,
        refine,
        fov,
        request: gr.Request,
    ) -> str:
        """One object from a picture, or from several of it; returns the id of the job, of the first where there are several."""
        try:
            if not files:
                raise InputError("There is no picture yet; drop one first.")
            count = whole(variations, "Variations") or 1
            if not 1 <= count <= MOST_VARIATIONS:
                raise InputError(f"Variations is 1 to {MOST_VARIATIONS}.")
            paths, common = tuple(Path(file) for file in files), studio.common(preset, seed)
            command = commands.Image(
                inputs=paths,
                views=len(paths) > 1,
                mask=Path(mask) if mask else None,
                elevation=decimal(elevation, "Elevation"),
                azimuths=_numbers(azimuths),
                temperature=decimal(temperature, "Temperature"),
                guidance=decimal(guidance, "Guidance"),
                steps=whole(steps, "Steps"),
                refine=whole(refine, "Refine"),
                fov=decimal(fov, "Angle of view"),
                **common,
            )
            title = paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more views"
            return _submit_all(studio, session_of(request), command, count, title)
        except SplatsmithError as error:
            raise sentence(error) from error

    def show(files):
        drawn = [file for file in files or [] if Path(file).suffix.lower() in SHOWN][:8]
        pictures = "".join(
            f'<img src="/gradio_api/file={quote(file)}" alt="{escape(Path(file).name, quote=True)}">' for file in drawn
        )
        return gr.HTML(f'<div class="ss-chosen">{pictures}</div>', visible=bool(drawn))

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    files.change(show, files, chosen, queue=False, **quiet)
    example.click(lambda: [str(example_picture())], None, files, **quiet)
    inputs = [files, variations, preset, mask, elevation, azimuths, seed, temperature, guidance, steps, refine, fov]
    view.look(make.click(submit_image, inputs, view.selected, api_name="submit_image", show_progress="hidden"))
    return view


def _submit_all(studio: Studio, session: str, command: commands.Image, count: int, title: str) -> str:
    """`command` with `count` seeds; the id of the first job. Raises `InputError`, which says how many were queued."""
    ids: list[str] = []
    for i in range(count):
        try:
            ids.append(studio.queue.submit(session, dataclasses.replace(command, seed=command.seed + i), title))
        except InputError as error:
            if ids:
                raise InputError(f"{len(ids)} of {count} variations were queued. {error}") from error
            raise
    return ids[0]


def example_picture() -> Path:
    """The bundled toy alone. Raises `InputError` where it is missing."""
    picture = example_photos().parent / "picture.png"
    if not picture.is_file():
        raise InputError(f"The example picture is missing ({picture}); reinstall splatsmith.")
    return picture


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(decimal(part.strip(), "An azimuth") or 0.0 for part in str(text or "").split(",") if part.strip())


def _more(studio: Studio, record: JobRecord, request: gr.Request) -> str:
    """The same pictures with the next seed that has not been tried."""
    options, session, home = record.options, session_of(request), record.out.parent
    seeds = [job.options["seed"] for job in studio.queue.jobs(session) if job.kind == "image" and job.title == record.title]
    names = ("views", "preset", "elevation", "guidance", "temperature", "steps", "refine", "fov")
    command = commands.Image(
        inputs=tuple(home / "inputs" / name for name in options["inputs"]),
        mask=home / "mask" / options["mask"] if options["mask"] else None,
        azimuths=tuple(options["azimuths"]),
        seed=max(seeds) + 1,
        out=Path("chosen-by-the-queue"),
        device=studio.options.device,
        **{name: options[name] for name in names},
    )
    return studio.queue.submit(session, command, record.title)
