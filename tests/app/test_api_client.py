"""The page's API with the real client, gradio_client, against the real server; the jobs are toys, or tiny in the slow test."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_capture import ROOT, Capture

HERE = Path(__file__).parent
ENDED = ("done", "failed", "cancelled")

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the client leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def serving(words: list[object], folder: Path) -> Iterator[str]:
    """The address of a server, which ends when the generator is closed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "TMPDIR": str(folder)}
    process = subprocess.Popen([sys.executable, *map(str, words), str(port)], cwd=ROOT, env=env, stdin=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(address, timeout=30).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    yield from serving([HERE / "toy_jobs.py", folder / "root", folder / "diary", "page"], folder)


@pytest.fixture
def connect(tmp_path):
    from gradio_client import Client

    clients = []

    def client(address: str) -> Client:
        clients.append(Client(address, verbose=False, download_files=tmp_path / f"downloads-{len(clients)}"))
        return clients[-1]

    yield client
    for client in clients:
        client.close()


def toy(folder: Path, words: str) -> object:
    from gradio_client import handle_file

    file = folder / f"{words or 'plain'}.png"
    file.write_text(words)
    return handle_file(file)


def submit(client, photos: list, **options) -> str:
    return client.predict(photos, api_name="/submit_photos", **({"poses": None} | options))


def wait_for(client, id: str, *states: str) -> dict:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        job = client.predict(id, api_name="/job")
        if job["state"] in (states or ENDED):
            return job
        time.sleep(0.1)
    raise AssertionError(job)


def refused(call) -> str:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as error:
        call()
    assert "Traceback" not in str(error.value)
    return str(error.value)


def test_submit_poll_and_download(toys, connect, tmp_path):
    client = connect(toys)
    photos = submit(client, [toy(tmp_path, "notice"), toy(tmp_path, "second")])
    words = client.predict("a red chair", api_name="/submit_text")
    job = wait_for(client, photos)
    assert (job["state"], job["kind"], job["notices"], job["error"]) == ("done", "photos", ["Something is odd."], None)
    assert job["options"]["preset"] == "standard" and job["started"] <= job["finished"]
    assert job["results"] == [{"name": "result", "files": ["report.json", "scene.ply"]}]
    assert str(tmp_path) not in str(job), "no path of the server is told"
    file = Path(client.predict(photos, "scene.ply", api_name="/download"))
    assert file.read_text() == "a toy of notice" and file.name == "scene.ply" and file.is_relative_to(tmp_path)
    assert wait_for(client, words)["state"] == "done"
    assert Path(client.predict(words, "scene.ply", api_name="/download")).read_text() == "a toy of a red chair"
    assert [job["id"] for job in client.predict(api_name="/jobs")] == [words, photos], "newest first"


def test_cancel_resume_and_delete(toys, connect, tmp_path):
    client = connect(toys)
    id = submit(client, [toy(tmp_path, "waits")])
    behind = submit(client, [toy(tmp_path, "")])
    wait_for(client, id, "running")
    waiting = client.predict(behind, api_name="/job")
    assert (waiting["state"], waiting["position"], waiting["results"]) == ("queued", 1, [])
    assert "There is no result yet" in refused(lambda: client.predict(behind, "scene.ply", api_name="/download"))
    assert "cancel it first" in refused(lambda: client.predict(id, api_name="/delete"))
    for each in (behind, id):
        client.predict(each, api_name="/cancel")
        assert wait_for(client, each)["state"] == "cancelled"
    client.predict(behind, api_name="/resume")
    assert wait_for(client, behind)["state"] == "done"
    client.predict(id, api_name="/delete")
    assert "no such job" in refused(lambda: client.predict(id, api_name="/job"))


def test_clients_see_their_own_jobs_alone(toys, connect, tmp_path):
    mine, other = connect(toys), connect(toys)
    id = submit(mine, [toy(tmp_path, "")])
    wait_for(mine, id)
    assert other.predict(api_name="/jobs") == []
    for call in ("/job", "/cancel", "/resume", "/delete"):
        assert "no such job" in refused(lambda call=call: other.predict(id, api_name=call))
    assert "no such job" in refused(lambda: other.predict(id, "scene.ply", api_name="/download"))
    other.session_hash = mine.session_hash  # as docs/api.md has it, to come back later
    assert [job["id"] for job in other.predict(api_name="/jobs")] == [id]


def test_bad_input_is_a_sentence(toys, connect, tmp_path):
    from gradio_client import handle_file

    client = connect(toys)
    assert "There are no photos yet" in refused(lambda: submit(client, []))
    assert "There is no prompt yet" in refused(lambda: client.predict(" ", api_name="/submit_text"))
    (tmp_path / "large.png").write_bytes(b"x" * 1_500_000)
    with pytest.raises(Exception, match=r"413|larger than|maximum|1 MB|too large"):
        submit(client, [handle_file(tmp_path / "large.png")])
    id = submit(client, [toy(tmp_path, "corrupt")])
    assert wait_for(client, id)["error"] == "This is no toy; give another."
    done = submit(client, [toy(tmp_path, "")])
    wait_for(client, done)
    for name in ("../../jobs.sqlite", "../inputs/plain.png", "state/0", "/etc/passwd", ""):
        assert "has no file of this name" in refused(lambda name=name: client.predict(done, name, api_name="/download"))
    for _ in range(12):
        try:
            client.predict("a chair", api_name="/submit_text")
        except Exception as error:
            assert "12 jobs were asked for within a minute" in str(error)
            break
    else:
        raise AssertionError("nobody said that this is too much")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_photos_become_a_scene(capture: Capture, connect, tmp_path):
    """As docs/api.md has it, with real photos and the real pipeline."""
    from gradio_client import handle_file

    server = serving(["-m", "app", "ui", "--quiet", "--threads", "1", "--root", tmp_path / "root", "--port"], tmp_path)
    client = connect(next(server))
    photos = [handle_file(file) for file in sorted(capture.photos.iterdir())]
    id = client.predict(
        photos,
        preset="draft",
        poses=handle_file(capture.poses),
        max_side="64",
        steps="60",
        holdout=4,
        api_name="/submit_photos",
    )
    stages = set()
    while (job := client.predict(id, api_name="/job"))["state"] not in ENDED:
        stages.add(job["stage"])
        time.sleep(0.2)
    assert job["state"] == "done", job["error"]
    assert len(stages) > 2
    (result,) = (tmp_path / "root").glob("*/*/result")
    for name in ("scene.ply", "mesh.glb", "report.json"):
        assert Path(client.predict(id, name, api_name="/download")).read_bytes() == (result / name).read_bytes()
    server.close()
