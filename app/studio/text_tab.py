"""Sentences in, objects out."""

from __future__ import annotations

from app import commands
from app.job_record import JobRecord
from app.studio.job_view import JobView, job_view
from app.studio.quick_gradio import gr
from app.studio.studio import PRESETS, Studio, decimal, sentence, whole
from app.studio.visitor import session_of
from app.tooltips import tooltips
from splat.errors import InputError, SplatsmithError

WELCOME = "Say what to make, in a few words: a thing and its colour. It takes a quarter of a minute."
EXAMPLES = ("a red armchair", "a wooden table", "a small green plant in a pot", "a white lamp", "a blue car")
MOST_VARIATIONS = 8


def text_tab(studio: Studio) -> JobView:
    tips = tooltips(commands.Text)
    with gr.Row(elem_classes="ss-tab"):
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(label="What to make", placeholder=EXAMPLES[0], lines=2, max_length=2000, elem_id="prompt")
            gr.Examples([[example] for example in EXAMPLES], prompt, label="Examples")
            variations = gr.Slider(1, MOST_VARIATIONS, 1, step=1, label="Variations", info=tips["variations"])
            preset = gr.Radio(PRESETS, value="standard", label="Preset", info=tips["preset"])
            with gr.Accordion("More options", open=False):
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", info=tips["seed"])
                candidates = gr.Textbox("", label="Candidates", info=tips["candidates"])
                steps = gr.Textbox("", label="Steps", info=tips["steps"])
                guidance = gr.Textbox("", label="Guidance", info=tips["guidance"])
            make = gr.Button("Make it", variant="primary", elem_id="text-make")
        with gr.Column(scale=3, min_width=300):
            view = job_view(studio, "text", WELCOME, more=lambda record, of, request: _more(studio, record, request))

    def submit_text(prompt, variations, preset, seed, candidates, steps, guidance, request: gr.Request) -> str:
        """A prompt to objects; returns the job's id."""
        try:
            if not str(prompt or "").strip():
                raise InputError("There is no prompt yet; say what to make, such as a red armchair.")
            count = whole(variations, "Variations") or 1
            if not 1 <= count <= MOST_VARIATIONS:
                raise InputError(f"Variations is 1 to {MOST_VARIATIONS}.")
            command = commands.Text(
                sentences=(str(prompt),),
                variations=count,
                candidates=whole(candidates, "Candidates"),
                steps=whole(steps, "Steps"),
                guidance=decimal(guidance, "Guidance"),
                **studio.common(preset, seed),
            )
            return studio.queue.submit(session_of(request), command, str(prompt))
        except SplatsmithError as error:
            raise sentence(error) from error

    inputs = [prompt, variations, preset, seed, candidates, steps, guidance]
    for event in (make.click, prompt.submit):
        name = {"api_name": "submit_text"} if event == make.click else {"api_visibility": "private"}
        view.look(event(submit_text, inputs, view.selected, show_progress="hidden", **name))
    return view


def _more(studio: Studio, record: JobRecord, request: gr.Request) -> str:
    """The same words with further seeds, as many as before."""
    options, session = record.options, session_of(request)
    same = [
        job.options
        for job in studio.queue.jobs(session)
        if job.kind == "text" and job.options["sentences"] == options["sentences"]
    ]
    names = ("preset", "variations", "candidates", "steps", "guidance")
    command = commands.Text(
        sentences=tuple(options["sentences"]),
        seed=max(job["seed"] + job["variations"] for job in same),
        **{name: options[name] for name in names},
        **{name: value for name, value in studio.common("standard", 0).items() if name in ("out", "device")},
    )
    return studio.queue.submit(session, command, record.title)
