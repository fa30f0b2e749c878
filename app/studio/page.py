"""The page, and the server that it comes from. Neither imports torch: the page is there within seconds."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request

from app import commands
from app.queue import JobQueue, QueueLimits, default_root
from app.queue_worker import Prepare, prepare_pipelines
from app.studio.api import api
from app.studio.batch_tab import batch_tab
from app.studio.errands import Errands, prepare_errands
from app.studio.files import file_routes
from app.studio.guard import Guard
from app.studio.image_tab import image_tab
from app.studio.library_tab import library_tab, space_used
from app.studio.photos_tab import photos_tab
from app.studio.quick_gradio import gr
from app.studio.refine_tab import refinable, refine_tab
from app.studio.studio import Studio
from app.studio.text_tab import text_tab
from splat.errors import BackendUnavailable, InputError

UPLOADS_STAY = 7200  # seconds that a file of a visitor's stays before and after the job was asked for, which has a copy
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # what the visitor's machine has: none is fetched
MONO = ["ui-monospace", "Consolas", "monospace"]


def serve(options: commands.Ui, prepare: Prepare = prepare_pipelines, prepare_short: Prepare = prepare_errands) -> None:
    """Serve the page until interrupted; the two prepare the workers of jobs and of errands.

    Raises `InputError` for options that cannot work and for a port that is taken.
    """
    listener = _listen(options)
    uploads = Path(tempfile.mkdtemp(prefix="splatsmith-"))
    queue = errands = None
    try:
        queue = JobQueue(options.root or default_root(), QueueLimits.of(options), prepare)
        limits = queue.limits
        errands = Errands(uploads, limits.threads or os.cpu_count() or 1, prepare_short, limits.memory_budget)
        app = build_app(Studio(queue, errands, uploads / "uploads", options), sign_in(options))
        queue.start()
        _run(app, listener, options)
    finally:
        if errands:
            errands.close()
        if queue:
            queue.close()
        listener.close()
        shutil.rmtree(uploads, ignore_errors=True)


def build_app(studio: Studio, auth: tuple[str, str] | None = None) -> FastAPI:
    """The whole server as an ASGI application; `auth` is a user name and password."""
    os.environ["GRADIO_TEMP_DIR"] = str(studio.uploads)  # read when components are made
    studio.uploads.mkdir(parents=True, exist_ok=True)
    _fetch_nothing()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = build_page(studio)
    page.queue(default_concurrency_limit=None, max_size=500)  # handlers ask the job queue and are done
    part = resources.files("app.studio")
    app = gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=auth,
        auth_message="This page asks for a name and a password." if auth else None,
        max_file_size=studio.queue.limits.uploads.bytes,
        show_error=False,
        footer_links=["api"],
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        theme=_theme(),
        css=part.joinpath("theme.css").read_text(),
        head=part.joinpath("head.html").read_text(),
    )
    inner = app.routes[-1].app  # gradio's
    app.router.routes[:0] = file_routes(studio.queue, lambda request: _signed_in(inner, request), studio.errands.folder)
    most = studio.queue.limits.uploads.bytes + 1_000_000
    # A password keeps strangers' web sites out as well, and on a network the machine may go by any name.
    names = None if auth or not _is_private(studio.options) else {"localhost", *studio.options.server_name}
    app.add_middleware(Guard, uploads=studio.uploads, upload_bytes=most, names=names and frozenset(n.lower() for n in names))
    return app


def build_page(studio: Studio) -> gr.Blocks:
    with gr.Blocks(title="splatsmith", analytics_enabled=False, delete_cache=(600, UPLOADS_STAY), fill_width=True) as page:
        gr.HTML(resources.files("app.studio").joinpath("header.html").read_text(), elem_id="ss-header")
        with gr.Tabs(elem_id="ss-tabs"):
            with gr.Tab("Photos", id="photos"):
                views = [photos_tab(studio)]
            with gr.Tab("Image", id="image"):
                views.append(image_tab(studio))
            with gr.Tab("Text", id="text"):
                views.append(text_tab(studio))
            with gr.Tab("Refine", id="refine") as refine:
                view, chosen = refine_tab(studio)
                views.append(view)
            with gr.Tab("Batch", id="batch"):
                views.append(batch_tab(studio))
            with gr.Tab("Library", id="library") as library:
                shelf, used = library_tab(studio)
        api(studio)
        quiet = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        for view in (*views, shelf):  # what was under way is found again
            view.look(page.load(lambda: "", None, view.selected, **quiet))

        def fill_refine(before: str | None, request: gr.Request):
            return refinable(studio, before, request)

        def fill_library(request: gr.Request):
            return space_used(studio, request)

        refine.select(fill_refine, chosen, chosen, **quiet)
        shelf.look(library.select(fill_library, None, used, **quiet))
    return page


def sign_in(options: commands.Ui) -> tuple[str, str] | None:
    """USER:PASSWORD of --auth, of the file of --auth-file, or of SPLATSMITH_AUTH. Raises `InputError` for half of one."""
    told = options.auth
    if options.auth_file is not None:
        try:
            told = options.auth_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--auth-file {options.auth_file} cannot be read; give a text file with USER:PASSWORD.") from error
    told = told or os.environ.get("SPLATSMITH_AUTH")
    if told is None or told == "":
        return None
    user, colon, password = told.partition(":")
    if not (user.strip() and colon and password):
        raise InputError("The name and password of the page are written as USER:PASSWORD, and neither may be empty.")
    return user.strip(), password


def _theme() -> gr.themes.Base:
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="gray", font=FONT, font_mono=MONO, radius_size="md")
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#101316",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color_dark="white",
    )


def _fetch_nothing() -> None:
    """Gradio downloads what a visitor gives as URL in place of a file; here nobody's URL is followed.

    Raises `BackendUnavailable` for a gradio that downloads in another way, as it would then follow them unseen.
    """
    from gradio import processing_utils
    from gradio.blocks import Block

    name = "async_ssrf_protected_download"
    if not hasattr(processing_utils, name) or name not in Block.async_move_resource_to_block_cache.__code__.co_names:
        told = f"gradio {gr.__version__} fetches URLs in an unknown way; install another: pip install gradio==6.31.0"
        raise BackendUnavailable(told)

    async def refuse(url: str, cache_dir: str) -> str:
        raise gr.Error("Give the file itself; nothing is fetched by URL.", print_exception=False)

    processing_utils.async_ssrf_protected_download = refuse


def _signed_in(gradio_app: Any, request: Request) -> bool:
    """As gradio judges its own routes."""
    if gradio_app.auth is None:
        return True
    names = (f"access-token-{gradio_app.cookie_id}", f"access-token-unsecure-{gradio_app.cookie_id}")
    return any(request.cookies.get(name) in gradio_app.tokens for name in names)


def _is_private(options: commands.Ui) -> bool:
    """Whether only this machine's programs reach the page."""
    return options.host in ("127.0.0.1", "::1", "localhost")


def _open_to_all(options: commands.Ui) -> str | None:
    """A warning where others than this machine's users reach the page, and nobody is asked who they are."""
    if _is_private(options) or sign_in(options):
        return None
    return f"Everybody who reaches {options.host} may use the page; --auth-file makes it ask for a name and a password."


def _listen(options: commands.Ui) -> socket.socket:
    if not 1 <= options.port <= 65535:
        raise InputError(f"--port {options.port} is no port; give 1 to 65535.")
    listener = None
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(128)
    except OSError as error:
        if listener:
            listener.close()
        where = f"The page cannot listen on {options.host}:{options.port}"
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"{where}, where another program does; give another --port.") from error
        raise InputError(f"{where} ({error.strerror or error}); give another --host or --port.") from error
    return listener


def _run(app: FastAPI, listener: socket.socket, options: commands.Ui) -> None:
    import uvicorn

    host = f"[{options.host}]" if ":" in options.host else options.host
    if not options.quiet:
        print(f"The page is at http://{host}:{options.port} (Ctrl-C ends it).", flush=True)
    if warning := _open_to_all(options):
        print(warning, file=sys.stderr)
    # Uvicorn ends in order and then passes the signal on, which would end this process before the workers are told.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])
