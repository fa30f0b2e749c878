"""What programs call, beside the endpoints that the tabs' own buttons have (submit_photos, submit_image and so on).

A `gradio_client.Client` sees the jobs that it submitted itself, and no others.
"""

from __future__ import annotations

from typing import Any

from app.job_record import JobRecord
from app.studio.downloads import FORMATS, export_command, export_folder
from app.studio.quick_gradio import gr
from app.studio.studio import ERRAND, Studio, decimal, result_of, sentence
from app.studio.visitor import session_of
from splat.errors import InputError, SplatsmithError


def api(studio: Studio) -> None:
    """Add the endpoints to the page that is being laid out."""

    def job(id: str, request: gr.Request) -> dict:
        """A job as it stands: state (queued, running, done, failed, cancelled, interrupted), stage, step, total, note, eta_s,
        position in the queue, notices, error, and for each result its name and files."""
        return _asked(lambda: _plain(studio.record(id, request)))

    def jobs(request: gr.Request) -> list:
        """All jobs of this client, newest first."""
        return _asked(lambda: [_plain(record) for record in studio.queue.jobs(session_of(request))])

    def cancel(id: str, request: gr.Request) -> str:
        """Stop a job; what it has finished is kept."""
        return _asked(lambda: studio.queue.cancel(id, session_of(request)) or id)

    def resume(id: str, request: gr.Request) -> str:
        """Queue a cancelled, failed or interrupted job again."""
        return _asked(lambda: studio.queue.resume(id, session_of(request)) or id)

    def delete(id: str, request: gr.Request) -> str:
        """Remove a job with all its files."""
        return _asked(lambda: studio.queue.delete(id, session_of(request)) or id)

    def fetch(id, name, real_size, request: gr.Request) -> str:
        """A file of a result: ID or ID/NUMBER, and its name, or the name of a format to be made from it.
        real_size is the longest side in metres, for the format print; empty where the scene has its real size."""

        def found() -> str:
            record = studio.record(id, request)
            folder = result_of(record, id)
            if folder is None:
                raise InputError("There is no result yet.")
            if name in FORMATS:
                place, size = export_folder(record, folder), decimal(real_size, "real_size")
                studio.queue.check_room(session_of(request))
                for _ in studio.errands.run(export_command(folder, FORMATS[name], place, size)):
                    pass
                return str(studio.lend(place / FORMATS[name].file))
            if name not in _files(folder):
                raise InputError(f"The result has no file of this name; it has {', '.join(_files(folder))}.")
            return str(studio.lend(folder / name))

        return _asked(found)

    for function in (job, jobs, cancel, resume, delete):
        gr.api(function, api_name=function.__name__)
    with gr.Row(visible=False):
        id, name, file = gr.Textbox(label="id"), gr.Textbox(label="name"), gr.File(label="file")
        real_size = gr.Textbox("", label="real_size")
        gr.Button().click(fetch, [id, name, real_size], file, api_name="download", **ERRAND)


def _asked(answer: Any) -> Any:
    try:
        return answer()
    except SplatsmithError as error:
        raise sentence(error) from error


def _plain(record: JobRecord) -> dict[str, Any]:
    """Without paths of the server."""
    names = ("id", "kind", "title", "options", "state", "position", "stage", "step", "total", "note", "eta_s", "submitted",
             "started", "finished", "notices", "error")  # fmt: skip
    plain = {name: getattr(record, name) for name in names}
    results = [{"name": folder.name, "files": _files(folder)} for folder in record.results]
    return plain | {"notices": list(record.notices), "results": results, "formats": list(FORMATS)}


def _files(folder: Any) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink())
