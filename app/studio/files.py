"""What jobs made, served to the visitor whose they are: by cookie, under the job's folder, and nothing else."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from app.queue import JobQueue, JobRecord
from app.studio.visitor import session_of
from splat.errors import InputError

# Shown in the browser; everything else is only downloaded.
SHOWN = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".mp4": "video/mp4",
    ".json": "application/json",
    ".ply": "application/octet-stream",
    ".glb": "model/gltf-binary",
}
OWN = {"viewer.html": "text/html; charset=utf-8", "viewer.js": "text/javascript; charset=utf-8"}
FOREVER = {"Cache-Control": "private, max-age=86400"}  # results never change; the browser asks again after a day
NEVER = {"Cache-Control": "no-store"}


def file_routes(queue: JobQueue, may_enter: Callable[[Request], bool]) -> list[Route]:
    """Routes below /studio. `may_enter` tells whether a request comes from somebody who has signed in."""

    def guarded(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:
            if not may_enter(request):
                raise HTTPException(401, "Sign in first.")
            try:
                return answer(request)
            except InputError as error:
                return PlainTextResponse(str(error), 404)

        return endpoint

    def record(request: Request) -> JobRecord:
        return queue.get(request.path_params["job"], session_of(request))

    def own(request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        data = resources.files("app.studio").joinpath(name).read_bytes()
        return Response(data, media_type=OWN[name], headers={"Cache-Control": "no-cache"})

    def live(request: Request) -> Response:
        picture = record(request).preview
        if picture is None:
            raise InputError("There is no picture yet.")
        return Response(picture.read_bytes(), media_type="image/png", headers=NEVER)

    def result(request: Request) -> Response:
        return _file(record(request).out, request.path_params["path"], "download" in request.query_params)

    def export(request: Request) -> Response:
        return _file(record(request).out.parent / "exports", request.path_params["path"], True)

    def everything(request: Request) -> Response:
        return _zip(record(request))

    routes = {
        **{f"/studio/{name}": own for name in OWN},
        "/studio/jobs/{job:str}/live.png": live,
        "/studio/jobs/{job:str}/out/{path:path}": result,
        "/studio/jobs/{job:str}/exports/{path:path}": export,
        "/studio/jobs/{job:str}/all.zip": everything,
    }
    return [Route(path, guarded(answer)) for path, answer in routes.items()]


def _file(folder: Path, path: str, download: bool) -> Response:
    """`path` below `folder`, where nothing leads out of it. Raises `InputError`."""
    gone = InputError("There is no such file here; it may have expired or been deleted.")
    try:
        found = (folder / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise gone from None
    if not found.is_relative_to(folder.resolve()) or not found.is_file():
        raise gone
    # The page of a batch is ours, and opens from the disk as well; any other HTML is not shown.
    is_index = found == folder.resolve() / "index.html"
    kind = "text/html; charset=utf-8" if is_index else SHOWN.get(found.suffix.lower())
    shown = kind is not None and not download
    return FileResponse(
        found,
        media_type=kind or "application/octet-stream",
        filename=found.name,
        content_disposition_type="inline" if shown else "attachment",
        headers=NEVER if is_index or found.name == "batch.json" else FOREVER,
    )


def _zip(record: JobRecord) -> Response:
    """All results of a job, without what --resume needs."""
    if not record.results:
        raise InputError("There are no results to download yet.")
    with tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # what is in it is packed already
            for result in record.results:
                inside = result.relative_to(record.out.parent) if result == record.out else result.relative_to(record.out)
                for path in sorted(result.iterdir()):
                    if path.is_file() and not path.is_symlink():
                        archive.write(path, inside / path.name)
            for name in ("index.html", "batch.json"):
                if (record.out / name).is_file():
                    archive.write(record.out / name, name)
    name = f"splatsmith-{record.id}.zip"
    task = BackgroundTask(Path(file.name).unlink, missing_ok=True)
    return FileResponse(file.name, media_type="application/zip", filename=name, headers=NEVER, background=task)
