"""The half of a tab that shows jobs: what the one in view is doing, its result, and the others of its kind on a shelf."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.job_record import JobRecord
from app.studio import html
from app.studio.downloads import FORMATS, export_command, export_folder
from app.studio.quick_gradio import gr
from app.studio.studio import ERRAND, Studio, decimal, kind_of, result_of, sentence
from app.studio.visitor import session_of
from splat.errors import InputError, SplatsmithError

SHELF, LIBRARY = 24, 120  # jobs shown on a tab and in the library, the newest
# A click on any button with data-act becomes an event of the component, whatever is drawn in it.
HEAR_BUTTONS = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-act]');
  if (button) trigger('click', {act: button.dataset.act, of: button.dataset.of});
});
"""

More = Callable[[JobRecord, str, gr.Request], str]  # a job, the result of it that is meant, who asks -> id of a new job


@dataclass(frozen=True)
class JobView:
    """Components of the view. Chain `look` after whatever puts a job's id into `selected`."""

    studio: Studio
    kind: str  # of the tab
    welcome: str
    more: More | None
    selected: gr.Textbox  # "ID" or "ID/NUMBER OF RESULT"
    drawn: gr.State  # what is on the page already, so that only changes travel
    status: gr.HTML
    table: gr.HTML
    result: gr.HTML
    taking: gr.Group
    files: gr.HTML
    shelf: gr.HTML
    timer: gr.Timer

    def look(self, event: Any) -> Any:
        """Chain to `event`: draw what has changed."""
        return event.then(
            self._look, self._inputs, self._outputs, api_visibility="private", show_progress="hidden", queue=False
        )

    @property
    def _inputs(self) -> list[Any]:
        return [self.selected, self.drawn]

    @property
    def _outputs(self) -> list[Any]:
        shown = [self.status, self.table, self.result, self.taking, self.files, self.shelf]
        return [self.selected, self.drawn, *shown, self.timer]

    def _look(self, selected: str, drawn: dict[str, int] | None, request: gr.Request) -> list[Any]:
        records = self.studio.records(self.kind, request)
        record = next((r for r in records if r.id == str(selected).partition("/")[0]), None)
        if record is None and records and self.kind != "library":
            record, selected = records[0], records[0].id
        folder = result_of(record, selected) if record else None
        before = self._before(record, records, request) if record and record.kind == "refine" else None
        shown = {
            "status": html.status(record, self.welcome) if record or self.kind != "library" else "",
            "table": html.batch_table(record) if record and kind_of(record) == "batch" else "",
            "result": html.result(record, folder, before) if record and folder else "",
            "taking": str(folder is not None),
            "files": f'<ul class="ss-files">{html.files(record, folder)}</ul>' if record and folder else "",
            "shelf": html.shelf(
                records[: LIBRARY if self.kind == "library" else SHELF],
                str(selected),
                more=self.more is not None,
                manage=self.kind == "library",
            ),
        }
        marks = {name: zlib.crc32(text.encode(errors="replace")) for name, text in shown.items()}
        busy = any(r.state in ("queued", "running") for r in records)
        changes = [
            gr.skip() if (drawn or {}).get(name) == marks[name] else self._update(name, text) for name, text in shown.items()
        ]
        return [selected, marks, *changes, gr.Timer(active=busy)]

    def _update(self, name: str, text: str) -> Any:
        if name == "taking":
            return gr.Group(visible=text == "True")
        return gr.HTML(text, visible=bool(text))

    def _before(self, record: JobRecord, records: list[JobRecord], request: gr.Request) -> tuple[str, Path] | None:
        """URL and path of what `record` refined, while that is still there."""
        if record.source is None:
            return None
        for other in self.studio.records("library", request):
            for folder in other.results:
                if folder == record.source:
                    return html.address(other, folder), folder
        return None

    def act(self, selected: str, event: gr.EventData, request: gr.Request) -> str:
        """A button in the view was pressed; returns what is selected then."""
        data = getattr(event, "_data", None)
        act, of = (str(data.get(name, "")) for name in ("act", "of")) if isinstance(data, dict) else ("", "")
        queue, session, id = self.studio.queue, session_of(request), of.partition("/")[0]
        try:
            match act:
                case "open":
                    queue.get(id, session)
                    return of
                case "cancel":
                    queue.cancel(id, session)
                case "resume":
                    queue.resume(id, session)
                    return id
                case "delete":
                    queue.delete(id, session)
                    return "" if str(selected).partition("/")[0] == id else selected
                case "more" if self.more:
                    return self.more(queue.get(id, session), of, request)
        except SplatsmithError as error:
            raise sentence(error) from error
        return selected

    def convert(self, selected: str, format: str, real_size: float | None, request: gr.Request) -> None:
        """Make one more format of the result in view."""
        try:
            record = self.studio.record(selected, request)
            folder = result_of(record, selected)
            if folder is None:
                raise InputError("There is no result to convert yet.")
            if format not in FORMATS:
                raise InputError("Choose a format first.")
            wanted = FORMATS[format]
            if wanted.needs_mesh and not (folder / "mesh.glb").is_file():
                raise InputError("This result has no mesh: its splats show no closed surface.")
            target = export_folder(record, folder)
            self.studio.queue.check_room(session_of(request))
            for _ in self.studio.errands.run(export_command(folder, wanted, target, decimal(real_size, "The size"))):
                pass
        except SplatsmithError as error:
            raise sentence(error) from error


def job_view(studio: Studio, kind: str, welcome: str, more: More | None = None) -> JobView:
    """Lay the view out in the current place of the page."""
    selected = gr.Textbox("", visible=False, label="job")
    drawn = gr.State({})
    timer = gr.Timer(3.0 if kind == "library" else 1.0, active=False)
    status = gr.HTML(html.status(None, welcome), js_on_load=HEAR_BUTTONS, elem_id=f"{kind}-status")
    table = gr.HTML(visible=False, js_on_load=HEAR_BUTTONS, elem_id=f"{kind}-table")
    result = gr.HTML(visible=False, elem_id=f"{kind}-result")
    with gr.Group(visible=False, elem_id=f"{kind}-taking", elem_classes="ss-taking") as taking:
        gr.HTML("<h4>Downloads</h4>")
        files = gr.HTML(elem_id=f"{kind}-downloads")
        with gr.Row(equal_height=True):
            choices = [(wanted.label, name) for name, wanted in FORMATS.items()]
            format = gr.Dropdown(choices, value="view", label="Another format", min_width=220, scale=4)
            size = gr.Textbox("", label="Longest side in m", placeholder="for prints", min_width=120, scale=2)
            make = gr.Button("Convert", min_width=90, scale=1, elem_id=f"{kind}-convert")
    shelf = gr.HTML(visible=False, js_on_load=HEAR_BUTTONS, elem_id=f"{kind}-shelf")
    view = JobView(studio, kind, welcome, more, selected, drawn, status, table, result, taking, files, shelf, timer)
    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    timer.tick(view._look, view._inputs, view._outputs, queue=False, **quiet)
    for part in (status, table, shelf):
        view.look(part.click(view.act, selected, selected, queue=False, **quiet))
    view.look(
        make.click(
            view.convert,
            [selected, format, size],
            None,
            api_visibility="private",
            show_progress="full",
            show_progress_on=[files],
            **ERRAND,
        )
    )
    return view
