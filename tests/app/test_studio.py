"""Parts of the page without a browser: who asks, what is refused, what is served, and that words of visitors stay words."""

import asyncio
import dataclasses
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_result import small_result
from tiny_capture import ROOT

from app import commands
from app.job_record import JobRecord
from splat.errors import BackendUnavailable, InputError

pytest.importorskip("gradio")
from starlette.exceptions import HTTPException

from app.studio import html
from app.studio.downloads import FORMATS, export_command, export_folder
from app.studio.files import file_routes
from app.studio.guard import TRIES_A_MINUTE, Guard
from app.studio.visitor import new_secret, secret_of, session_of

HOSTILE = '<img src=x onerror="alert(1)">'


def record(out: Path, **changes) -> JobRecord:
    values = {
        "id": "00112233aabbccdd", "session": "s", "kind": "photos", "title": "toy", "options": {"seed": 0}, "state": "done",
        "position": None, "stage": "", "step": 0, "total": 0, "note": "", "eta_s": None, "submitted": 0.0, "started": 1.0,
        "finished": 9.0, "notices": (), "out": out, "results": (out,) if out.is_dir() else (), "preview": None, "error": None,
        "source": None,
    }  # fmt: skip
    return JobRecord(**values | changes)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Path:
    return small_result(tmp_path_factory.mktemp("job") / "result")


# --- who asks


def asking(cookie: str = "", session_hash: str | None = None):
    return SimpleNamespace(headers={"cookie": cookie} if cookie else {}, session_hash=session_hash)


def test_a_browser_is_its_cookie_and_a_program_its_session_hash():
    secret = new_secret()
    assert session_of(asking(f"a=b; splatsmith={secret}", "x")) == session_of(asking(f"splatsmith={secret}", "y"))
    assert session_of(asking("", "x")) != session_of(asking("", "y"))
    assert session_of(asking(f"splatsmith={secret}")) != session_of(asking("", f"browser {secret}")), "the kinds never meet"
    assert session_of(asking(f"splatsmith={secret}")) != session_of(asking("", secret))
    assert session_of(asking()) != session_of(asking()), "who says nothing shares nothing"


@pytest.mark.parametrize("value", ["", "short", "../../etc", "a" * 44, "ä" * 43, '"' + "a" * 43 + '"x', "a" * 42 + "/"])
def test_a_cookie_of_another_form_is_none(value):
    assert secret_of(f"splatsmith={value}") is None


# --- the guard


def through(guard: Guard, path: str, method: str = "GET", headers: dict | None = None, address: str = "1.2.3.4") -> tuple:
    """(status, headers, body) of a request with nothing behind the guard but "inside"."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"", "scheme": "http", "client": (address, 1),
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
    }  # fmt: skip
    asyncio.run(guard(scope, receive, send))
    found = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent[1:])


async def inside(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


@pytest.fixture
def guard(tmp_path) -> Guard:
    return Guard(inside, tmp_path, 1_000_000)


def test_a_new_browser_gets_a_secret_that_no_script_reads(guard):
    _, headers, _ = through(guard, "/")
    cookie = headers["set-cookie"]
    secret = secret_of(cookie.split(";")[0])
    assert secret and "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie
    _, headers, _ = through(guard, "/", headers={"Cookie": f"splatsmith={secret}"})
    assert secret_of(headers["set-cookie"].split(";")[0]) == secret, "kept, for longer"
    assert "set-cookie" not in through(guard, "/gradio_api/info")[1], "programs are no browsers"
    assert "connect-src 'self'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=https://example.org/x", "/gradio_api/file=HTTP://169.254.169.254/", "/gradio_api/proxy=http://a/b"],
)
def test_nothing_is_fetched_for_visitors(guard, path):
    assert through(guard, path)[0] == 403


def test_sizes_are_judged_before_anything_is_read(guard, tmp_path):
    def sending(length: str | None, path: str = "/gradio_api/upload"):
        status, _, body = through(guard, path, "POST", {"Content-Length": length} if length else {})
        return status, body.decode()

    assert sending("1000") == (200, "inside")
    assert sending("1000001") == (413, "1.0 MB were sent, more than the 1 MB allowed; send less.")
    assert sending(None)[0] == 411 and sending("-5")[0] == 411 and sending("1e3")[0] == 411
    assert sending("1000001", "/gradio_api/queue/join")[0] == 413
    (tmp_path / "waiting").write_bytes(b"x" * 3_500_000)
    assert sending("600000")[0] == 507 and sending("400000")[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7860", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:7860", 200),
        ("[::1]:7860", 200),
        ("192.168.1.7", 200),
        ("studio.example.org", 200),
        ("evil.example.org:7860", 421),
        ("localhost.evil.example.org", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
def test_a_page_for_this_machine_answers_to_no_foreign_name(tmp_path, host, status):
    guard = Guard(inside, tmp_path, 1_000_000, names=frozenset({"localhost", "studio.example.org"}))
    assert through(guard, "/", headers={"Host": host})[0] == status
    assert through(Guard(inside, tmp_path, 1_000_000), "/", headers={"Host": host})[0] == 200


def test_a_real_server_reads_no_more_than_was_stated(tmp_path):
    import uvicorn

    read = []

    async def reader(scope, receive, send):
        more = True
        while more:
            message = await receive()
            read.append(len(message.get("body", b"")))
            more = message.get("more_body", False)
        await inside(scope, receive, send)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        guarded = Guard(reader, tmp_path, 1_000)
        server = uvicorn.Server(uvicorn.Config(guarded, lifespan="off", log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:

            def answer(rest: bytes, method: bytes = b"POST") -> bytes:
                with socket.create_connection(listener.getsockname(), timeout=30) as line:
                    line.sendall(method + b" /gradio_api/upload HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + rest)
                    with line.makefile("rb") as told:
                        return told.readline()

            chunk = b"7d0\r\n" + bytes(2000) + b"\r\n"  # of 2,000 bytes
            chunked = b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"
            for method, stated in ((b"POST", b"Content-Length: 10\r\n"), (b"POST", b""), (b"DELETE", b"")):
                assert b" 411 " in answer(stated + chunked, method) and read == [], method
            assert b" 200 " in answer(b"Content-Length: 10\r\n\r\n" + bytes(2000)) and sum(read) == 10
        finally:
            server.should_exit = True
            thread.join(30)


def test_passwords_are_not_tried_for_ever(guard):
    for _ in range(TRIES_A_MINUTE):
        assert through(guard, "/login", "POST", {"Content-Length": "10"})[0] == 200
    assert through(guard, "/login/", "POST", {"Content-Length": "10"})[0] == 429
    assert through(guard, "/login", "POST", {"Content-Length": "10"}, address="5.6.7.8")[0] == 200


# --- files


def ask(routes, path: str, query: bytes = b"", **request):
    """The answer of the route that `path` meets."""
    from starlette.requests import Request
    from starlette.routing import Match

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query,
        "headers": [(b"cookie", b"splatsmith=" + b"s" * 43)],
    }
    scope |= request
    for route in routes:
        match, child = route.matches(scope)
        if match == Match.FULL:
            return route.endpoint(Request(scope | child))
    raise AssertionError(path)


@pytest.fixture
def zips(tmp_path) -> Path:
    (tmp_path / "zips").mkdir()
    return tmp_path / "zips"


@pytest.fixture
def routes(result, zips):
    def get(id, session):
        if id != "00112233aabbccdd" or session != f"browser {'s' * 43}":
            raise InputError("There is no such job here.")
        return record(result)

    return file_routes(SimpleNamespace(get=get), lambda request: request.scope.get("entered", True), zips)


def test_files_of_a_job_and_no_others(routes, result):
    job = "/studio/jobs/00112233aabbccdd"
    answer = ask(routes, f"{job}/out/scene.ply")
    assert Path(answer.path) == result / "scene.ply" and "inline" in answer.headers["content-disposition"]
    assert "attachment" in ask(routes, f"{job}/out/scene.ply", b"download").headers["content-disposition"]
    (result.parent / "inputs").mkdir(exist_ok=True)
    (result.parent / "inputs" / "photo.png").write_bytes(b"")
    (result / "link.png").unlink(missing_ok=True)
    (result / "link.png").symlink_to(result.parent / "inputs" / "photo.png")
    (result / "page.html").write_text("<script>")
    try:
        assert "attachment" in ask(routes, f"{job}/out/page.html").headers["content-disposition"], "no page but ours is shown"
        for path in (
            "out/../inputs/photo.png",
            "out/link.png",
            "out//etc/passwd",
            "out/no.ply",
            "out/",
            "out/a\0b",
            "exports/x",
        ):
            assert ask(routes, f"{job}/{path}").status_code == 404, path
    finally:
        (result / "link.png").unlink()
        (result / "page.html").unlink()
    assert ask(routes, "/studio/jobs/ffffffffffffffff/out/scene.ply").status_code == 404
    with pytest.raises(HTTPException) as refused:
        ask(routes, f"{job}/out/scene.ply", entered=False)
    assert refused.value.status_code == 401
    picture = ask(routes, f"{job}/thumbs/0.jpg")
    assert Path(picture.path).read_bytes()[:2] == b"\xff\xd8" and ask(routes, f"{job}/thumbs/1.jpg").status_code == 404
    for name in ("viewer.html", "viewer.js"):
        assert len(ask(routes, f"/studio/{name}").body) > 1000


def test_what_may_be_made_again_is_not_kept_by_the_browser(routes, result):
    place = result.parent / "exports" / "scene"
    place.mkdir(parents=True, exist_ok=True)
    (place / "print.stl").write_bytes(b"0.1 m")
    job = "/studio/jobs/00112233aabbccdd"
    assert ask(routes, f"{job}/exports/scene/print.stl").headers["cache-control"] == "no-store"
    assert "max-age" in ask(routes, f"{job}/out/scene.ply").headers["cache-control"]


def test_a_zip_is_packed_once_at_a_time_and_goes_when_it_was_sent(routes, result, zips, monkeypatch):
    path, sent = "/studio/jobs/00112233aabbccdd/all.zip", []
    scope = {"type": "http", "method": "GET", "headers": [], "asgi": {"spec_version": "2.4"}}  # as of today's servers
    answer = ask(routes, path)
    assert Path(answer.path).parent == zips and ask(routes, path).status_code == 429

    async def send(message):
        sent.append(message.get("body", b""))

    async def receive():
        return {"type": "http.disconnect"}

    async def broken(message):
        raise OSError("gone")

    asyncio.run(answer(scope, receive, send))
    names = zipfile.ZipFile(io.BytesIO(b"".join(sent))).namelist()
    assert "result/scene.ply" in names and not list(zips.iterdir())
    with pytest.raises(OSError, match="gone"):
        asyncio.run(ask(routes, path)(scope, receive, broken))
    assert not list(zips.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "write", full)
        for _ in range(2):  # it is not taken for being under way
            refused = ask(routes, path)
            assert refused.status_code == 404 and b"No space left" in refused.body
    assert not list(zips.iterdir()) and ask(routes, path).status_code == 200


def test_a_file_is_lent_at_one_place_that_nobody_guesses(tmp_path, guard):
    from app.studio.studio import Studio

    studio, other = (Studio(None, None, tmp_path, commands.Ui()) for _ in range(2))
    file = tmp_path / "jobs" / "print.stl"
    file.parent.mkdir()
    file.write_bytes(b"a" * 900_000)
    assert len({studio.lend(file) for _ in range(9)}) == 1
    assert studio.lend(file) != other.lend(file)
    file.unlink()
    file.write_bytes(b"made again")
    lent = studio.lend(file)
    assert lent.read_bytes() == b"made again" and lent.name == "print.stl"
    (lent.parent / "large").write_bytes(b"x" * 5_000_000)
    upload = {"Content-Length": "900000"}
    assert through(guard, "/gradio_api/upload", "POST", upload)[0] == 200, "what is lent takes no room from uploads"


# --- words of visitors


def test_words_of_visitors_are_text(result):
    hostile = record(
        result, kind="text", title=HOSTILE, notices=(HOSTILE,), note=HOSTILE, stage=HOSTILE, error=HOSTILE, options={"seed": 0}
    )
    states = ("queued", "running", "done", "failed", "cancelled", "interrupted")
    made = [html.status(dataclasses.replace(hostile, state=state), "") for state in states]
    made += [html.shelf([hostile], "", more=True, manage=True), html.result(hostile, result)]
    for page in made:
        assert "<img src=x" not in page and 'onerror="alert' not in page
    assert "&lt;img src=x" in made[0]


def test_a_batch_with_hostile_names(tmp_path):
    folder = tmp_path / "result"
    folder.mkdir()
    row = {"name": HOSTILE, "input": "", "out": HOSTILE, "status": HOSTILE, "seconds": 1.0, "attempts": 1, "error": HOSTILE}
    batch = {"made_by": "splatsmith", "version": 1, "status": "done", "options": {}, "counts": {}, "items": [row]}
    (folder / "batch.json").write_text(json.dumps(batch))
    assert "<img" not in html.batch_table(record(folder, results=()))


def test_the_doctor_s_verdict_is_drawn(tmp_path):
    from app.studio.doctor_view import verdict

    photos = [
        {"name": f"{HOSTILE}{i}", "notes": ["blurred"] * (i == 1), "links": 2, "coverage": 0.5, "group": int(i == 3)}
        for i in range(4)
    ]
    values = {
        "photos": photos, "links": [[0, 1, 40], [1, 2, 90]], "verdict": "fair", "expected_placed": 3, "problems": [HOSTILE],
        "next_photo": HOSTILE, "notices": [], "skipped": [["x.txt", "no picture"]], "seconds": {"draft": 40.0},
    }  # fmt: skip
    (tmp_path / "verdict.json").write_text(json.dumps(values))
    drawn = verdict(tmp_path)
    assert drawn.count("<line ") == 2 and drawn.count("class='ss-alone'") == 1 and drawn.count("class='ss-weak'") == 1
    assert "<img src=x" not in drawn and "stand alone" in drawn and "draft 40 s" in drawn and "x.txt: no picture" in drawn


# --- downloads


def test_every_format_is_a_command_of_export(tmp_path):
    job = record(tmp_path / "result")
    assert export_folder(job, job.out).name == "scene" and export_folder(job, job.out / "chair-0").name == "chair-0"
    for format in FORMATS.values():
        command = export_command(tmp_path, format, tmp_path / "exports", 0.12)
        assert isinstance(command, commands.Export) and command.to.parent == tmp_path / "exports"
        assert command.real_size == (0.12 if command.purpose == "print" else None)


# --- the server


def test_the_server_s_process_imports_nothing_heavy():
    code = (
        "import sys, app.studio.page\n"
        "import gradio.cli; assert callable(gradio.cli.cli) and callable(gradio.cli.deploy)\n"  # left out only for the moment
        "print(*sorted({'torch', 'open3d', 'cv2', 'pycolmap', 'kornia', 'transformers', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_name_and_password(tmp_path, monkeypatch):
    from app.studio.page import sign_in

    monkeypatch.delenv("SPLATSMITH_AUTH", raising=False)
    assert sign_in(commands.Ui()) is None
    assert sign_in(commands.Ui(auth="anna:a:b")) == ("anna", "a:b")
    (tmp_path / "auth").write_text("bert:secret\n")
    assert sign_in(commands.Ui(auth_file=tmp_path / "auth")) == ("bert", "secret")
    monkeypatch.setenv("SPLATSMITH_AUTH", "carl:hidden")
    assert sign_in(commands.Ui()) == ("carl", "hidden")
    for wrong in ("anna", "anna:", ":secret"):
        with pytest.raises(InputError, match="USER:PASSWORD"):
            sign_in(commands.Ui(auth=wrong))
    with pytest.raises(InputError, match="cannot be read"):
        sign_in(commands.Ui(auth_file=tmp_path / "none"))


def test_a_page_that_is_open_to_all_says_so(monkeypatch):
    from app.studio.page import _open_to_all

    monkeypatch.delenv("SPLATSMITH_AUTH", raising=False)
    assert _open_to_all(commands.Ui()) is None
    assert "Everybody who reaches 0.0.0.0" in _open_to_all(commands.Ui(host="0.0.0.0"))
    assert _open_to_all(commands.Ui(host="0.0.0.0", auth="anna:secret")) is None


def test_it_listens_on_this_machine_alone_and_says_when_it_cannot():
    from app.studio.page import _listen

    assert commands.Ui().host == "127.0.0.1"
    with pytest.raises(InputError, match="no port"):
        _listen(commands.Ui(port=0))
    with pytest.raises(InputError, match="--host"):
        _listen(commands.Ui(host="300.1.1.1"))


def test_an_ipv6_address_where_there_is_none_is_a_sentence(monkeypatch):
    from app.studio import page

    def none(*_):
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(page.socket, "socket", none)
    with pytest.raises(InputError, match="family not supported"):
        page._listen(commands.Ui(host="::1"))


def test_no_url_of_a_visitor_is_followed(monkeypatch):
    import gradio
    from gradio import processing_utils

    from app.studio.page import _fetch_nothing

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", processing_utils.async_ssrf_protected_download)
    _fetch_nothing()
    with pytest.raises(gradio.Error, match="nothing is fetched by URL"):
        asyncio.run(gradio.File().async_move_resource_to_block_cache("https://127.0.0.1:9/a.png"))
    monkeypatch.delattr(processing_utils, "async_ssrf_protected_download")
    with pytest.raises(BackendUnavailable, match="pip install gradio=="):
        _fetch_nothing()


def test_variations_that_meet_a_limit_are_counted(tmp_path):
    from app.studio.image_tab import _submit_all

    seeds = []

    def submit(session, command, title):
        if len(seeds) == 2:
            raise InputError("The queue is full (2 jobs wait); try again later.")
        seeds.append(command.seed)
        return str(len(seeds))

    studio = SimpleNamespace(queue=SimpleNamespace(submit=submit))
    command = commands.Image(inputs=(tmp_path / "a.png",), out=tmp_path, seed=7)
    assert _submit_all(studio, "s", command, 2, "a") == "1" and seeds == [7, 8]
    with pytest.raises(InputError, match=r"^The queue is full"):
        _submit_all(studio, "s", command, 2, "a")
    del seeds[:]
    with pytest.raises(InputError, match=r"^2 of 3 variations were queued\. The queue is full"):
        _submit_all(studio, "s", command, 3, "a")


def test_what_was_chosen_to_be_refined_stays(result):
    from app.studio.refine_tab import refinable

    jobs = [record(result, id="1" * 16), record(result, id="0" * 16)]
    studio = SimpleNamespace(queue=SimpleNamespace(jobs=lambda session: jobs))
    assert refinable(studio, None, asking()).value == f"{'1' * 16}/0", "the newest"
    assert refinable(studio, f"{'0' * 16}/0", asking()).value == f"{'0' * 16}/0"
    assert refinable(studio, "deleted/0", asking()).value == f"{'1' * 16}/0"


# In a process of its own: gradio leaves event loops open where it lays a page out.
DOWNLOAD = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from app import commands
from app.studio.page import build_page
from app.studio.studio import Studio

result, asked = Path(sys.argv[1]), []

def run(command):
    asked.append(command)
    command.to.parent.mkdir(parents=True)
    command.to.write_bytes(b"solid")
    return ()

record = SimpleNamespace(out=result, results=(result,))
queue = SimpleNamespace(get=lambda id, session: record, check_room=lambda session: None)
page = build_page(Studio(queue, SimpleNamespace(run=run), result.parent / "uploads", commands.Ui()))
waiting = [fn for fn in page.fns.values() if fn.concurrency_id == "errand"]
fetch = next(fn.fn for fn in waiting if fn.api_name == "download")
made = fetch("00112233aabbccdd", "print", "0.2", SimpleNamespace(headers={}))
refine = next(fn.inputs[0] for fn in page.fns.values() if fn.api_name == "submit_refine")
size = page.get_api_info()["named_endpoints"]["/download"]["parameters"][-1]
print(json.dumps({
    "waiting": sorted({fn.name for fn in waiting}), "limits": sorted({fn.concurrency_limit for fn in waiting}),
    "made": Path(made).read_text(), "size": asked[0].real_size, "purpose": asked[0].purpose,
    "refined": refine.preprocess("00112233aabbccdd/0"), "parameter": [size["parameter_name"], size["parameter_has_default"]],
}))
"""


def test_who_waits_for_errands_leaves_threads_to_others_and_prints_have_their_size(tmp_path):
    words = [sys.executable, "-c", DOWNLOAD, str(tmp_path / "job" / "result")]
    (tmp_path / "job" / "result").mkdir(parents=True)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["waiting"] == ["compared", "convert", "examine", "fetch"]
    assert told["limits"] == [8], "gradio has 40 threads"
    assert (told["made"], told["purpose"], told["size"]) == ("solid", "print", 0.2)
    assert told["parameter"] == ["real_size", True]
    assert told["refined"] == "00112233aabbccdd/0", "a program may name a result that no page has offered"


def test_usdz_is_offered_where_it_can_be_made():
    code = (
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'pxr' else find(name, *more)\n"
        "from app.studio.downloads import FORMATS\n"
        "print(*FORMATS)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usdz" not in done.stdout.split() and "stl" in done.stdout.split()
    assert ("usdz" in FORMATS) == (importlib.util.find_spec("pxr") is not None)


def test_short_work_is_done_beside_the_queue(tmp_path):
    from studio_server import QuickCheck

    from app.studio.errands import Errands

    errands = Errands(tmp_path, 1, QuickCheck())
    try:
        events = list(errands.run(commands.Check(inputs=(tmp_path / "a.png",), out=tmp_path / "check")))
        assert events[0].stage == "check" or events[0].stage == ""
        assert json.loads((tmp_path / "check" / "verdict.json").read_text())["verdict"] == "good"
        with pytest.raises(InputError, match="converts nothing"):
            list(errands.run(commands.Export(scene=tmp_path, to=tmp_path / "x.spz")))
        os.kill(errands._worker.process.pid, 9)
        began = time.monotonic()
        with pytest.raises(InputError, match="worker process"):
            list(errands.run(commands.Check(inputs=(tmp_path / "a.png",), out=tmp_path / "again")))
        assert time.monotonic() - began < 30
        list(errands.run(commands.Check(inputs=(tmp_path / "a.png",), out=tmp_path / "again")))
    finally:
        errands.close()
