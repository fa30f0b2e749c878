"""What jobs made, served to the visitor whose they are: by cookie, under the job's folder, and nothing else."""

from __future__ import annotations

import collections
import io
import os
import tempfile
import threading
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.job_record import JobRecord
from app.queue import JobQueue
from app.result_folder import write_atomic
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
THUMB_SIDE = 256  # px, long side
FOREVER = {"Cache-Control": "private, max-age=86400"}  # results never change; the browser asks again after a day
NEVER = {"Cache-Control": "no-store"}  # exports are made again, with another size, under the same address


def file_routes(queue: JobQueue, may_enter: Callable[[Request], bool], folder: Path) -> list[Route]:
    """Routes below /studio. `may_enter` tells whether a request comes from somebody who has signed in; zips are packed in
    `folder`, which the server removes when it ends."""
    packing: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)  # by session

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
        out, path = record(request).out, request.path_params["path"]
        changes = path in ("index.html", "batch.json")  # while the batch runs
        return _file(out, path, "download" in request.query_params, NEVER if changes else FOREVER)

    def export(request: Request) -> Response:
        return _file(record(request).out.parent / "exports", request.path_params["path"], True, NEVER)

    def thumb(request: Request) -> Response:
        job, number = record(request), request.path_params["number"]
        if not 0 <= number < len(job.results):
            raise InputError("There is no such result here; it may have expired or been deleted.")
        place = job.out.parent / "thumbs" / f"{number}.jpg"
        if not place.is_file():
            _draw_thumb(job.results[number] / "turntable.mp4", place)
        return FileResponse(place, media_type="image/jpeg", headers=FOREVER)

    def everything(request: Request) -> Response:
        found = record(request)
        turn = packing[found.session]
        if not turn.acquire(blocking=False):
            return PlainTextResponse("A zip of yours is on its way already; wait until it has arrived.", 429)
        try:
            return _zip(found, folder, turn.release)
        except BaseException:
            turn.release()
            raise

    routes = {
        **{f"/studio/{name}": own for name in OWN},
        "/studio/jobs/{job:str}/live.png": live,
        "/studio/jobs/{job:str}/out/{path:path}": result,
        "/studio/jobs/{job:str}/exports/{path:path}": export,
        "/studio/jobs/{job:str}/thumbs/{number:int}.jpg": thumb,
        "/studio/jobs/{job:str}/all.zip": everything,
    }
    return [Route(path, guarded(answer)) for path, answer in routes.items()]


def _file(folder: Path, path: str, download: bool, caching: dict[str, str]) -> Response:
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
        headers=caching,
    )


class _Once(FileResponse):
    """A file that is removed when it has been sent, or could not be."""

    def __init__(self, path: Path, ended: Callable[[], None], **options: Any) -> None:
        super().__init__(path, **options)
        self.ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            Path(self.path).unlink(missing_ok=True)
            self.ended()


def _draw_thumb(video: Path, place: Path) -> None:
    """The first picture of a turntable, small. Raises `InputError` where there is none."""
    import av

    try:
        with av.open(str(video)) as container:
            picture = next(container.decode(video=0)).to_image()
        picture.thumbnail((THUMB_SIDE, THUMB_SIDE))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85)
        place.parent.mkdir(exist_ok=True)
        write_atomic(place, data.getvalue())
    except (OSError, StopIteration, av.FFmpegError) as error:
        raise InputError("There is no picture of this result.") from error


def _zip(record: JobRecord, folder: Path, ended: Callable[[], None]) -> Response:
    """All results of a job, without what --resume needs, packed in `folder`; `ended` is called when they have been sent."""
    if not record.results:
        raise InputError("There are no results to download yet.")
    handle, name = tempfile.mkstemp(".zip", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # packed already
            for result in record.results:
                inside = result.relative_to(record.out.parent) if result == record.out else result.relative_to(record.out)
                for path in sorted(result.iterdir()):
                    if path.is_file() and not path.is_symlink():
                        archive.write(path, inside / path.name)
            for extra in ("index.html", "batch.json"):
                if (record.out / extra).is_file():
                    archive.write(record.out / extra, extra)
    except BaseException as error:
        Path(name).unlink()
        if isinstance(error, OSError):
            raise InputError(
                f"The zip cannot be packed now ({error.strerror or error}); fetch the files one by one."
            ) from error
        raise
    told = f"splatsmith-{record.id}.zip"
    return _Once(Path(name), ended, media_type="application/zip", filename=told, headers=NEVER)
