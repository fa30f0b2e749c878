"""A visit to the page over HTTP, as a script: RESULT PHOTOS SESSIONS. A played-back job stands in for the real one."""

import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from app import commands
from app.pipelines import Outcome
from app.report import read_report
from splat.errors import InputError
from splat.progress import Progress


def job_of(result: Path, seen: list, steps: int = 3, pause: float = 0.0):
    """A job that plays back a finished result; `seen` collects its options, and "closed" when it is cancelled."""

    def job(options: commands.Photos):
        seen.append(options)
        try:
            for step in range(steps):
                time.sleep(pause)
                yield Progress("fit", step, steps, preview=torch.rand(4, 6, 3), values={"psnr": 20.0 + step})
        except GeneratorExit:
            seen.append("closed")
            raise
        shutil.copytree(result, options.out)
        return Outcome(options.out, read_report(options.out))

    return job


def visit(result: Path, photo_folder: Path, sessions: Path) -> None:
    import httpx
    from gradio_client import Client, handle_file

    from app import ui

    seen: list = []
    page = ui.build_ui(job_of(result, seen, steps=20, pause=0.1), None, sessions, commands.Ui())
    page.queue(default_concurrency_limit=1)
    _, address, _ = page.launch(
        server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, allowed_paths=[str(sessions)], footer_links=[]
    )
    client = Client(address, verbose=False)
    assert '"analytics_enabled":false' in httpx.get(address).text.replace(" ", "")
    files = sorted(photo_folder.iterdir())
    photos = [handle_file(str(file)) for file in files]
    outputs = client.predict(photos, "draft", 4, False, 7, api_name="/photos")
    options = seen[0]
    assert (options.preset, options.holdout, options.seed, options.masks) == ("draft", 4, 7, None)
    assert [p.name for p in options.inputs] == [file.name for file in files]
    assert options.out.parent == ui._home(sessions, client.session_hash)
    assert "Gaussians" in str(outputs[0])

    running = client.submit(photos, "draft", 0, False, 0, api_name="/photos")
    while len(seen) < 2:
        time.sleep(0.1)
    client.predict(api_name="/cancel")
    running.result(timeout=20)
    assert seen[-1] == "closed"

    # Closing the tab ends the heartbeat; the visitor's folder goes.
    folder = ui._home(sessions, client.session_hash)
    assert folder.is_dir()
    with httpx.stream("GET", f"{address}gradio_api/heartbeat/{client.session_hash}") as beat:
        next(beat.iter_bytes())
    deadline = time.monotonic() + 20
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()
    page.close()


def handlers(page) -> dict:
    """The functions behind the page's events, by name."""
    return {f.fn.__name__: f.fn for f in page.fns.values() if f.fn is not None}


def cancel_in_the_queue(result: Path, sessions: Path) -> None:
    """A visitor who cancels while another one is served is not forgotten."""
    from app import ui

    seen: list = []
    on = handlers(ui.build_ui(job_of(result, seen), None, sessions, commands.Ui()))
    me = SimpleNamespace(session_hash="me")
    asked = on["ask"](["a.jpg"])
    on["stop"](me)
    assert "Cancelled" in str(list(on["make"](["a.jpg"], "draft", 0, False, 0, asked, me)))
    assert not seen and not sessions.exists()
    asked = on["ask"](["a.jpg"])
    assert "Gaussians" in str(list(on["make"](["a.jpg"], "draft", 0, False, 0, asked, me)))
    on["leave"](me)


def visitors_name_no_folders(result: Path, folder: Path) -> None:
    """What a visitor calls itself is no path."""
    from app import ui

    sessions, other = folder / "sessions", folder / "other"
    on = handlers(ui.build_ui(job_of(result, []), None, sessions, commands.Ui()))
    other.mkdir(parents=True)
    for name in ("..", "../other", str(other), "", None):
        visitor = SimpleNamespace(session_hash=name)
        list(on["make"](["a.jpg"], "draft", 0, False, 0, 0, visitor))
        assert len(list(sessions.iterdir())) == 1
        on["leave"](visitor)
        assert not list(sessions.iterdir()) and other.is_dir()


def serve_privately() -> None:
    """`serve` listens on this machine alone unless told otherwise, and removes its folder when it ends."""
    from app import ui

    told = {}

    def launch(self, **options):
        told.update(options)
        assert Path(options["allowed_paths"][0]).is_dir()
        raise KeyboardInterrupt

    ui.gr.Blocks.launch = launch
    try:
        ui.serve(commands.Ui())
    except KeyboardInterrupt:
        pass
    assert told["server_name"] == "127.0.0.1" and not told.get("share")
    assert not Path(told["allowed_paths"][0]).exists()

    def taken(self, **options):
        raise OSError("Cannot find empty port")

    ui.gr.Blocks.launch = taken
    try:
        ui.serve(commands.Ui(port=7999))
    except InputError as error:
        assert "7999" in str(error)
    else:
        raise AssertionError("a taken port went unnoticed")

    def full(self, **options):
        raise OSError(28, "No space left on device")

    ui.gr.Blocks.launch = full
    try:
        ui.serve(commands.Ui())
    except OSError as error:
        assert "No space" in str(error)
    else:
        raise AssertionError("a full disk went unnoticed")


if __name__ == "__main__":
    visit(*map(Path, sys.argv[1:]))
    cancel_in_the_queue(Path(sys.argv[1]), Path(sys.argv[3]) / "queue")
    visitors_name_no_folders(Path(sys.argv[1]), Path(sys.argv[3]) / "names")
    serve_privately()
