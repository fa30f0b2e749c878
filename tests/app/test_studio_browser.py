"""The page in a real browser against the real server, with stand-in jobs; the slow test makes the demo."""

import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_result import small_result
from tiny_capture import ROOT

HERE = Path(__file__).parent
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
# WebGL without a GPU, and no sandbox, which the root user of a container may not have.
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
# What can be reached by keyboard and has no name that a screen reader could say.
NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, select, [tabindex="0"]')]
    .filter(e => e.offsetParent && !e.innerText && !e.placeholder)
    .filter(e => !(e.ariaLabel || e.title || e.labels?.length || e.ariaLabelledByElements?.length))
    .map(e => e.outerHTML.slice(0, 200))"""
PATIENCE = 60_000  # ms; machines that run tests are busy

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'splatsmith[test]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine: apt-get install chromium")


@dataclass(frozen=True)
class Server:
    address: str
    root: Path  # of the jobs
    log: Path

    def stumbles(self) -> list[str]:
        """What the server's tracebacks say that end in our own code; gradio writes some of its own for what it refuses."""
        traces = self.log.read_text().split("Traceback")[1:]
        places = [re.findall(r'^[\s|]*File "(.+?)"', trace, re.MULTILINE) for trace in traces]
        return [trace for trace, files in zip(traces, places, strict=True) if files and files[-1].startswith(str(ROOT / "app"))]


@contextmanager
def serving(words: list[object], folder: Path, port: int) -> Iterator[Server]:
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "TMPDIR": str(folder)}
    log = folder / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, env=env, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 150
        while True:
            try:
                urllib.request.urlopen(address, timeout=30).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield Server(address, folder / "root", log)
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def stand_ins(folder: Path, result: Path, *more: str, port: int | None = None):
    port = port or free_port()
    return serving([HERE / "studio_server.py", folder / "root", port, result, *more], folder, port)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Path:
    return small_result(tmp_path_factory.mktemp("made") / "result")


@pytest.fixture(scope="module")
def server(tmp_path_factory, result) -> Iterator[Server]:
    with stand_ins(tmp_path_factory.mktemp("studio"), result) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Pages of visitors who have nothing to do with each other; nothing may go wrong in them unseen."""
    contexts, troubles = [], []

    def arrive(address: str, **options):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}, **options))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: None if is_ours(request.url, address) else troubles.append(f"asks {request.url}"))
        page.goto(address)
        page.locator("#photos-make").wait_for()
        return page

    yield arrive
    for context in contexts:
        context.close()
    assert not troubles


def is_ours(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:", "about:"))


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    return [picture(tmp_path / f"photo_{i}.png", i) for i in range(3)]


def picture(path: Path, seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(path)
    return path


def go_to(page, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()


def upload(page, field: str, files: list[Path]) -> None:
    page.locator(f"#{field} input[type=file]").first.set_input_files([str(file) for file in files])
    page.locator(f"#{field}").get_by_text(files[-1].stem).first.wait_for()


def wait_for(page, kind: str, *states: str) -> str:
    """The id of the job in view, when it has come to one of `states`."""
    found = page.locator(", ".join(f"#{kind}-status [data-state={state}]" for state in states))
    found.wait_for()
    return found.get_attribute("data-job")


def folder_of(page, server: Server, job: str) -> Path:
    secret = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "splatsmith")
    return server.root / hashlib.sha256(f"browser {secret}".encode()).hexdigest() / job


def viewer(page, kind: str):
    frame = page.locator(f"#{kind}-result iframe").content_frame
    frame.locator("body[data-ready=yes]").wait_for()
    return frame


def centroids(pixels: np.ndarray) -> dict[str, tuple[float, float]]:
    """(x, y) in [0, 1] of what is mostly red, green and blue; y downwards."""
    found = {}
    for k, name in enumerate(("red", "green", "blue")):
        others = np.delete(pixels, k, axis=2).max(-1)
        y, x = np.nonzero((pixels[..., k] > 90) & (pixels[..., k].astype(int) > 1.8 * others))
        if len(x):
            found[name] = ((x.mean() + 0.5) / pixels.shape[1], (y.mean() + 0.5) / pixels.shape[0])
    return found


def seen(frame) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the left and of the right half of the viewer, without its labels."""
    pixels = np.asarray(Image.open(io.BytesIO(frame.locator("canvas").screenshot())).convert("RGB"))
    return pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]


def test_photos_to_progress_to_viewer_to_download(server, visit, photos, result):
    page = visit(server.address)
    upload(page, "photos-files", photos)
    verdict = page.locator(".ss-verdict")
    verdict.wait_for()
    assert "This will work." in verdict.inner_text() and verdict.locator("svg line").count() == 2
    served = []
    page.on("response", lambda answer: served.append(answer) if answer.url.endswith("scene.ply") else None)
    page.locator("#photos-make").click()
    wait_for(page, "photos", "running")
    live = page.locator("#photos-status img.ss-live")
    live.wait_for()
    assert live.evaluate("image => image.decode().then(() => image.naturalWidth)") == 48
    assert "Fitting" in page.locator("#photos-status").inner_text()
    job = wait_for(page, "photos", "done")

    frame = viewer(page, "photos")
    for half in seen(frame):  # the splats, and the mesh in the same pose
        at = centroids(half)
        assert at["red"][0] > 0.55 and abs(at["red"][1] - 0.5) < 0.05, at
        assert at["green"][1] < 0.4 and abs(at["green"][0] - 0.5) < 0.05, at
        assert abs(at["blue"][0] - 0.5) < 0.05 and abs(at["blue"][1] - 0.5) < 0.06, at
    assert "3 Gaussians" in frame.locator(".label").first.inner_text()
    assert "21.50 dB" in page.locator("#photos-result").inner_text()
    assert "One word was not known." in page.locator("#photos-result").inner_text()

    with page.expect_download() as download:
        page.locator("#photos-downloads a", has_text="scene.ply").click()
    home = folder_of(page, server, job)
    downloaded = Path(download.value.path()).read_bytes()
    assert downloaded == (home / "result" / "scene.ply").read_bytes() == (result / "scene.ply").read_bytes()
    assert served[0].body() == downloaded, "what is shown is what is downloaded"
    assert sorted(file.name for file in (home / "inputs").iterdir()) == [file.name for file in photos]


def test_the_view_turns_by_keys_and_stays_in_its_frame(server, visit, photos):
    page = visit(server.address)
    upload(page, "photos-files", photos)
    page.locator("#photos-make").click()
    wait_for(page, "photos", "done")
    frame = viewer(page, "photos")
    before = centroids(seen(frame)[0])
    frame.locator("canvas").focus()
    for _ in range(26):  # about half a turn to the right: red comes to the left, blue before the others
        page.keyboard.press("ArrowRight")
    deadline = time.monotonic() + 30
    while centroids(seen(frame)[0]).get("red", before["red"])[0] > 0.45:
        assert time.monotonic() < deadline
    page.keyboard.press("Home")
    deadline = time.monotonic() + 30
    while np.abs(np.subtract(centroids(seen(frame)[0]).get("red", (0, 0)), before["red"])).max() > 0.02:
        assert time.monotonic() < deadline
    box = page.locator("#photos-result iframe").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 3000, box["y"] - 3000, steps=3)
    page.mouse.up()
    for half in seen(frame):
        assert half.shape[0] <= box["height"] + 1 and centroids(half), "however far it is turned, the scene stays in sight"


def test_cancel_resume_and_delete(server, visit, tmp_path):
    page = visit(server.address)
    upload(page, "photos-files", [picture(tmp_path / "slow.png")])
    page.locator("#photos-make").click()
    wait_for(page, "photos", "running")
    page.locator("#photos-status").get_by_role("button", name="Cancel").click()
    job = wait_for(page, "photos", "cancelled")
    home = folder_of(page, server, job)
    assert not (home / "result").exists() and (home / "result.partial").is_dir()
    page.locator("#photos-status").get_by_role("button", name="Resume").click()
    assert wait_for(page, "photos", "running") == job
    page.locator("#photos-status").get_by_role("button", name="Cancel").click()
    wait_for(page, "photos", "cancelled")
    page.locator("#photos-status").get_by_role("button", name="Delete").click()
    page.locator("#photos-status .ss-empty").wait_for()
    assert not home.exists()


def test_a_reload_in_mid_job_finds_it_again(server, visit, tmp_path):
    page = visit(server.address)
    upload(page, "photos-files", [picture(tmp_path / "slow.png")])
    page.locator("#photos-make").click()
    job = wait_for(page, "photos", "running")
    page.reload()
    assert wait_for(page, "photos", "running") == job
    go_to(page, "Library")
    page.locator(f"#library-shelf [data-job='{job}'] button", has_text="Cancel").click()
    page.locator(f"#library-shelf [data-job='{job}'][data-state=cancelled]").wait_for()


def test_two_visitors_see_nothing_of_each_other(server, visit, photos):
    mine, other = visit(server.address), visit(server.address)
    upload(mine, "photos-files", photos)
    mine.locator("#photos-make").click()
    job = wait_for(mine, "photos", "done")
    go_to(other, "Library")
    other.locator("#library-used").get_by_text("Nothing here yet").wait_for()
    assert other.locator("#library-shelf .ss-card").count() == 0
    path = f"{server.address}/studio/jobs/{job}"
    for place in ("out/scene.ply", "out/report.json", "live.png", "all.zip"):
        assert mine.request.get(f"{path}/{place}").status == 200, place
        answer = other.request.get(f"{path}/{place}")
        assert answer.status == 404 and "no such job" in answer.text()
        with pytest.raises(urllib.error.HTTPError, match="404"):  # nor does one without a cookie
            urllib.request.urlopen(f"{path}/{place}", timeout=30)
    home = folder_of(mine, server, job)
    for inside in ("out/../inputs/photo_0.png", "out/%2e%2e/inputs/photo_0.png", "out//etc/passwd"):
        assert mine.request.get(f"{path}/{inside}").status == 404
    for file in (
        home / "result" / "scene.ply",
        server.root / "jobs.sqlite",
        home / "inputs" / "photo_0.png",
        Path("/etc/passwd"),
    ):
        for page in (mine, other):
            assert page.request.get(f"{server.address}/gradio_api/file={file}").status == 403
    assert "splatsmith" not in mine.evaluate("document.cookie"), "no script reads the secret"


def test_a_link_on_another_site_leads_to_the_same_visitor(server, visit, photos, tmp_path):
    page = visit(server.address)
    upload(page, "photos-files", photos)
    page.locator("#photos-make").click()
    job = wait_for(page, "photos", "done")
    (tmp_path / "index.html").write_text(f'<a href="{server.address}">results</a>')
    port = free_port()
    words = ["-m", "http.server", port, "--bind", "127.0.0.1", "--directory", tmp_path]
    with serving(words, tmp_path, port):
        other = page.context.new_page()
        other.goto(f"http://localhost:{port}/index.html")  # not the same site as 127.0.0.1
        other.get_by_text("results").click()
        assert wait_for(other, "photos", "done") == job


def test_bad_input_gives_the_sentence(server, visit, tmp_path):
    page = visit(server.address)
    page.locator("#photos-make").click()
    page.get_by_text("There are no photos yet; drop some first.").wait_for()
    upload(page, "photos-files", [picture(tmp_path / "bad.png")])
    page.locator("#photos-make").click()
    wait_for(page, "photos", "failed")
    assert "bad.png is no picture that can be read; send another one." in page.locator("#photos-status").inner_text()
    go_to(page, "Batch")
    large = [tmp_path / f"large_{i}.png" for i in range(4)]
    for i, file in enumerate(large):
        file.write_bytes(os.urandom(3_500_000 if i == 0 else 1_500_000))
    field = page.locator("#batch-files input[type=file]").first
    field.set_input_files(str(large[0]))
    page.get_by_text("exceed the maximum allowed size").wait_for()
    page.locator("#batch-files").get_by_label("Clear").click()
    field.set_input_files([str(file) for file in large[1:]])
    page.get_by_text("4.5 MB were sent, more than the 3 MB allowed").wait_for()
    go_to(page, "Text")
    page.locator("#text-make").click()
    page.get_by_text("There is no prompt yet").wait_for()
    assert "Traceback" not in page.content() and not server.stumbles()


def test_what_was_not_uploaded_is_refused(server, visit, tmp_path):
    page = visit(server.address)
    upload(page, "photos-files", [picture(tmp_path / "mine.png")])

    def answer(path: str) -> str:
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = f"{server.address}/gradio_api/call/submit_photos"
        asked = page.request.post(call, data={"data": [[file], "draft", False, "", 0, "shared", None, "", "", 0, False, False]})
        return page.request.get(f"{call}/{asked.json()['event_id']}").text()

    for path in ("/etc/passwd", str(server.root / "jobs.sqlite"), "../../../etc/passwd"):
        told = answer(path)
        assert "event: error" in told and "root:" not in told and "Traceback" not in told, told
    for url in ("https://example.org/a.png", "http://169.254.169.254/latest"):
        assert "nothing is fetched by URL" in answer(url)
        assert page.request.get(f"{server.address}/gradio_api/file={url}").status == 403
    go_to(page, "Library")
    page.locator("#library-used").get_by_text("Nothing here yet").wait_for()


def test_variations_and_more_like_this(server, visit):
    page = visit(server.address)
    go_to(page, "Text")
    page.get_by_label("What to make").fill("<b>a red chair</b>")
    page.get_by_label("number input for Variations").fill("2")
    page.locator("#text-make").click()
    wait_for(page, "text", "done")
    cards = page.locator("#text-shelf .ss-card")
    assert cards.count() == 2 and "<b>a red chair</b>" in cards.first.inner_text(), "words of visitors are text"
    assert page.locator("#text-shelf .ss-on").count() == 1
    poster = page.request.get(server.address + cards.first.locator("video").get_attribute("poster"))
    assert poster.ok and poster.body()[:2] == b"\xff\xd8"
    assert ["seed 0" in cards.nth(0).inner_text(), "seed 1" in cards.nth(1).inner_text()] == [True, True]
    cards.nth(1).locator(".ss-pick").click()
    page.locator("#text-shelf .ss-card:nth-child(2).ss-on").wait_for()
    cards.nth(1).get_by_role("button", name="More like").click()
    page.locator("#text-shelf .ss-card", has_text="seed 3").wait_for()
    assert page.locator("#text-shelf .ss-card").count() == 4


def test_a_batch_is_a_table(server, visit, tmp_path):
    page = visit(server.address)
    go_to(page, "Batch")
    upload(page, "batch-files", [picture(tmp_path / "one.png"), picture(tmp_path / "two.png", 1)])
    page.locator("#batch-make").click()
    job = wait_for(page, "batch", "done")
    names = page.locator("#batch-shelf .ss-card").all_inner_texts()
    assert len(names) == 2 and "one" in names[0] and "two" in names[1]
    zipped = page.request.get(f"{server.address}/studio/jobs/{job}/all.zip").body()
    inside = zipfile.ZipFile(io.BytesIO(zipped)).namelist()
    assert {"one/scene.ply", "two/scene.ply", "one/mesh.glb"} <= set(inside)


def test_on_a_phone_and_by_keyboard(server, visit):
    page = visit(server.address)
    page.set_viewport_size({"width": 390, "height": 844})
    for tab in ("Photos", "Text"):
        go_to(page, tab)
        page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
    page.set_viewport_size({"width": 1280, "height": 900})
    for tab in ("Photos", "Image", "Text", "Refine", "Batch", "Library"):
        go_to(page, tab)
        page.wait_for_timeout(300)
        assert page.evaluate(NAMELESS) == [], tab
    go_to(page, "Text")
    page.get_by_label("What to make").focus()
    page.keyboard.type("a blue car")
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    assert "text-make" in reached


def test_a_restarted_server_shows_what_is_done(result, visit, tmp_path, photos):
    port = free_port()
    with stand_ins(tmp_path, result, port=port) as first:
        page = visit(first.address)
        upload(page, "photos-files", photos)
        page.locator("#photos-make").click()
        job = wait_for(page, "photos", "done")
    with stand_ins(tmp_path, result, "anna:a good secret", port=port) as second:
        assert page.request.get(f"{second.address}/studio/jobs/{job}/out/scene.ply").status == 401, (
            "with --auth nothing is open"
        )
        page.goto(second.address)
        page.get_by_label("Username").fill("anna")
        page.get_by_label("Password").fill("a good secret")
        page.get_by_role("button", name="Login").click()
        assert wait_for(page, "photos", "done") == job
        assert page.request.get(f"{second.address}/studio/jobs/{job}/out/scene.ply").status == 200


@pytest.mark.slow
def test_the_demo_from_photos_to_another_format(visit, tmp_path):
    port = free_port()
    words = ["-m", "app", "ui", "--port", port, "--root", tmp_path / "root"]
    with serving(words, tmp_path, port) as real:
        page = visit(real.address)
        page.context.set_default_timeout(900_000)
        page.get_by_role("button", name="Use the example photos").click()
        page.locator(".ss-verdict").wait_for()
        assert "15 of 15 photos" in page.locator(".ss-verdict").inner_text()
        page.get_by_label("draft").check()
        page.locator("#photos-make").click()
        job = wait_for(page, "photos", "done")
        splats, mesh = seen(viewer(page, "photos"))
        assert splats.std() > 20 and mesh.std() > 20, "both halves show something"
        for name, suffix in (("Splats: SPZ, small", "scene.spz"), ("Mesh: STL", "mesh.stl")):
            page.get_by_label("Another format").click()
            page.get_by_role("option", name=name).click()
            page.locator("#photos-convert").click()
            with page.expect_download() as download:
                page.locator("#photos-downloads a", has_text=suffix).click()
            assert Path(download.value.path()).stat().st_size > 10_000
        assert (folder_of(page, real, job) / "exports" / "scene" / "scene.spz").is_file()
