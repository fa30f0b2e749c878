"""The viewer page in real Chromium, opened from the disk: it asks for nothing, shows our render, and turns."""

import io
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.turntable import render_frames
from app.viewer_page import orbit_of, save_view_page
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.sh import C0

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; on Debian: apt-get install chromium")
SOFTWARE = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
READY = "html[data-state=ready][data-still=yes]"
VIEW = Cameras.orbit(1, 2.2, 15.0, 45.0, 320, 240, azimuth_deg=20.0)


def toy() -> Splats:
    """A ball that is red towards +X, green on top and blue in front, and shines by the direction it is seen from."""
    torch.manual_seed(5)
    means = torch.nn.functional.normalize(torch.randn(4000, 3), dim=-1) * 0.6
    sh = torch.randn(4000, 9, 3) * 0.15
    sh[:, 0] = ((means / 1.2 + 0.5) - 0.5) / C0
    return Splats(means, torch.randn(4000, 4), -3.5 + 0.4 * torch.randn(4000, 3), torch.randn(4000) + 1.5, sh)


@pytest.fixture(scope="module")
def launch():
    """A function of Chromium's arguments that gives a browser."""
    with sync_api.sync_playwright() as playwright:
        yield lambda *args: playwright.chromium.launch(executable_path=CHROMIUM, args=[*args, "--no-sandbox"])


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("a folder # with marks") / "view.html"
    save_view_page(toy(), path, VIEW, "</script><b>toy</b> 椅子")
    return path


@pytest.fixture(scope="module")
def visit(launch, file):
    """The page at its first view, the addresses it asked for and what its console said."""
    browser = launch(*SOFTWARE)
    context = browser.new_context(viewport={"width": 320, "height": 240}, has_touch=True)
    page = context.new_page()
    page.asked, page.said = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector(READY, timeout=60_000)
    yield page
    browser.close()


def opened(visit, file: Path, hash: str) -> None:
    visit.goto("about:blank")
    visit.goto(file.as_uri() + hash)
    visit.wait_for_selector(READY, timeout=60_000)


def shown(page) -> np.ndarray:
    """[H, W, 3] of the canvas in [0, 1], with the controls out of the way."""
    page.keyboard.press("h")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.keyboard.press("h")
    return np.asarray(picture).astype(np.float32) / 255


def ours(azimuth: float, elevation: float, grey: float, width: int = 320, height: int = 240) -> np.ndarray:
    orbit = orbit_of(VIEW, toy())
    target, a, e = torch.tensor(orbit["target"]), math.radians(azimuth), math.radians(elevation)
    direction = torch.tensor([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])
    camera = Cameras.look_at(
        (target + orbit["distance"] * direction)[None], target, torch.tensor([0.0, 1, 0]), VIEW.K[0], 320, 240
    )
    (frame,) = render_frames(toy(), camera.resized(width, height), torch.full((3,), grey))
    return frame.numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * math.log10(max(float(((a - b) ** 2).mean()), 1e-12))


def view_of(page) -> dict[str, float]:
    return page.evaluate(
        "() => { const w = new URLSearchParams(location.hash.slice(1));"
        " return Object.fromEntries(['azimuth', 'elevation', 'distance'].map(n => [n, Number(w.get(n))])) }"
    )


def settled(page) -> dict[str, float]:
    """The view in the address, once it has been written there."""
    page.wait_for_selector(READY, timeout=20_000)
    page.wait_for_timeout(600)
    return view_of(page)


def test_it_opens_from_the_disk_and_asks_for_nothing(visit, file):
    assert visit.asked[0].startswith("file:") and all(url.startswith("blob:") for url in visit.asked[1:]), visit.asked
    assert visit.said == []
    assert visit.title() == "</script><b>toy</b> 椅子" == visit.inner_text("h1") and visit.locator("h1 b").count() == 0
    assert not visit.is_visible("#message")


@pytest.mark.parametrize("azimuth, elevation, grey", [(20, 15, 255), (150, -30, 0), (-100, 60, 128)])
def test_its_pixels_are_those_of_our_renders(visit, file, azimuth, elevation, grey):
    opened(visit, file, f"#azimuth={azimuth}&elevation={elevation}&background=%23" + f"{grey:02x}" * 3)
    theirs, mine = shown(visit), ours(azimuth, elevation, grey / 255)
    assert np.abs(theirs.mean((0, 1)) - mine.mean((0, 1))).max() < 1 / 255
    assert psnr(theirs, mine) > 37  # 40.0 to 41.9 dB measured; from the next azimuth 5 degrees on it is below 25 dB
    assert np.abs(theirs[2:8, 2:8] - grey / 255).max() < 1 / 255  # the background itself


def test_the_framed_picture_stays_in_sight_in_a_tall_window(visit, file):
    visit.set_viewport_size({"width": 240, "height": 480})
    try:
        opened(visit, file, "")
        theirs = shown(visit)
        assert psnr(theirs[150:330], ours(20, 15, 1.0, 240, 180)) > 36
        assert theirs[:20].min() > 0.99
    finally:
        visit.set_viewport_size({"width": 320, "height": 240})


def test_mouse_keys_wheel_and_fingers_move_the_camera(visit, file):
    opened(visit, file, "")
    first, still = settled(visit), shown(visit)
    visit.mouse.move(100, 100)
    visit.mouse.down()
    visit.mouse.move(160, 120, steps=3)
    visit.mouse.up()
    dragged = settled(visit)
    assert dragged["azimuth"] < first["azimuth"] - 10 and dragged["elevation"] > first["elevation"] + 4
    assert psnr(shown(visit), still) < 30
    visit.mouse.wheel(0, -300)
    assert settled(visit)["distance"] < 0.8 * first["distance"]
    visit.keyboard.press("ArrowLeft")
    assert settled(visit)["azimuth"] == pytest.approx(dragged["azimuth"] - 5, abs=0.01)
    visit.keyboard.press("0")
    assert settled(visit) == first and psnr(shown(visit), still) > 60
    session = visit.context.new_cdp_session(visit)
    for kind, points in (("Start", [(140, 120), (180, 120)]), ("Move", [(110, 120), (210, 120)]), ("End", [])):
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": [{"x": x, "y": y} for x, y in points]})
    assert settled(visit)["distance"] < 0.8 * first["distance"]


def test_the_turntable_turns_until_it_is_stopped(visit, file):
    opened(visit, file, "")
    still = shown(visit)
    visit.keyboard.press(" ")
    assert visit.get_attribute("#turn", "aria-pressed") == "true"
    deadline = time.monotonic() + 30
    while psnr(shown(visit), still) > 30:  # a busy machine draws a few pictures a second
        assert time.monotonic() < deadline, "it stands still"
    visit.keyboard.press(" ")
    assert visit.get_attribute("#turn", "aria-pressed") == "false"
    stopped = settled(visit)
    assert stopped["azimuth"] > 20.2 and stopped["elevation"] == 15
    assert settled(visit) == stopped


def test_a_browser_without_webgl_shows_the_picture_and_says_why(launch, file):
    browser = launch("--disable-3d-apis")
    page = browser.new_page(viewport={"width": 320, "height": 240})
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-state=failed]", timeout=60_000)
    assert "WebGL 2" in page.inner_text("#message")
    page.evaluate("() => { document.body.classList.add('bare'); document.getElementById('message').hidden = true; }")
    still = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(np.float32) / 255
    assert psnr(still, ours(20, 15, 1.0)) > 30
    browser.close()
