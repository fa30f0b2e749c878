"""The page that shows splats: what is in the file, hostile titles, sizes, and `export --to view.html`."""

import base64
import gzip
import hashlib
import json
import logging
import math
import re
from html.parser import HTMLParser

import pytest
import torch

from app import __main__ as entry
from app import viewer_page
from app.viewer_page import orbit_of, save_view_page
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.io import load

HOSTILE = '</title><script>alert(1)</script> {{}} "onload="x" </script><!-- é 椅子 \udcff'


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.setdefault(self.tags[-1][0] if self.tags else "", []).append(data)

    def meta(self, name: str) -> str:
        return next(a["content"] for tag, a in self.tags if tag == "meta" and name in (a.get("name"), a.get("http-equiv")))


def ball(count: int = 400, degree: int = 1) -> Splats:
    torch.manual_seed(3)
    return Splats(
        means=torch.nn.functional.normalize(torch.randn(count, 3), dim=-1) * 0.5,
        quats=torch.randn(count, 4),
        log_scales=torch.full((count, 3), -3.0),
        opacity_logits=torch.full((count,), 2.0),
        sh=torch.randn(count, (degree + 1) ** 2, 3) * 0.4,
    )


VIEW = Cameras.orbit(1, 2.0, 20.0, 45.0, 96, 64, azimuth_deg=30.0)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "view.html"
    save_view_page(ball(), path, VIEW, HOSTILE)
    return path.read_text(encoding="utf-8")


def blocks(page: str) -> bytes:
    parts = re.findall(r'<script type="application/octet-stream" class="part">([^<]*)</script>', page)
    return gzip.decompress(b"".join(map(base64.b64decode, parts)))


def test_hostile_titles_stay_text(page):
    read = Reader(page)
    shown = HOSTILE.replace("\udcff", "?")
    assert "".join(read.words["title"]).strip() == shown == "".join(read.words["h1"])
    kinds = [a.get("type") for tag, a in read.tags if tag == "script"]
    assert kinds == ["application/json", "application/octet-stream", None]
    assert not [key for _, a in read.tags for key in a if key.startswith("on")]


def test_the_policy_names_the_pages_own_script_and_style_and_no_network(page):
    policy = dict(part.split(" ", 1) for part in Reader(page).meta("Content-Security-Policy").split("; "))
    assert policy["default-src"] == policy["connect-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for kind, opening in (("script", "<script>"), ("style", "<style>")):
        text = page.split(opening, 1)[1].split(f"</{kind}>", 1)[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert policy["worker-src"] == "blob:" and policy["img-src"] == "data:"


def test_nothing_in_the_page_names_a_server(page):
    read = Reader(page)
    assert not re.search(r"(https?|wss?)://|importScripts|@import", page)
    assert "url(" not in page.split("<style>")[1].split("</style>")[0]
    assert not [a for tag, a in read.tags if tag in ("link", "iframe", "object") or (tag == "script" and "src" in a)]
    assert all(a["src"].startswith("data:image/jpeg;base64,") for tag, a in read.tags if tag == "img")


def test_the_embedded_splats_are_the_scene(page, tmp_path):
    (tmp_path / "s.compressed.ply").write_bytes(blocks(page))
    back, scene = load(tmp_path / "s.compressed.ply"), ball()
    assert len(back) == len(scene) and back.sh_degree == 1
    assert torch.allclose(back.means.amax(0), scene.means.amax(0), atol=1e-3)
    assert torch.allclose(back.sh.mean(0), scene.sh.mean(0), atol=5e-3)


def test_the_page_opens_at_the_view(page):
    facts = json.loads(page.split('id="scene">', 1)[1].split("</script>", 1)[0])
    assert facts["azimuth"] == pytest.approx(30, abs=1e-3) and facts["elevation"] == pytest.approx(20, abs=1e-3)
    assert facts["fov"] == pytest.approx(2 * math.degrees(math.atan(math.tan(math.radians(22.5)) * 64 / 96)), abs=1e-4)
    assert facts["aspect"] == 1.5 and facts["count"] == 400 and facts["background"] == "#ffffff"
    eye = torch.tensor(facts["target"]) + facts["distance"] * -VIEW.forward[0]
    assert torch.allclose(eye, VIEW.centers[0], atol=1e-5)


@pytest.mark.parametrize("elevation", [-90.0, 90.0])
def test_a_view_straight_down_or_up_is_an_orbit_too(elevation):
    orbit = orbit_of(Cameras.orbit(1, 2.0, elevation, 45.0, 64, 64), ball())
    assert orbit["elevation"] == pytest.approx(elevation, abs=0.1) and orbit["distance"] == pytest.approx(2, abs=0.6)


def test_same_splats_same_bytes(page, tmp_path):
    save_view_page(ball(), tmp_path / "again.html", VIEW, HOSTILE)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_large_scenes_come_in_blocks_with_a_warning_and_a_remedy(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(viewer_page, "PART", 3000)
    monkeypatch.setattr(viewer_page, "LARGE", 10_000)
    with caplog.at_level(logging.WARNING):
        save_view_page(ball(), tmp_path / "a.html", VIEW, "a")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert text.count('class="part"') > 2 and blocks(text).startswith(b"ply\n")
    assert "a.html is" in caplog.text and "--sh-degree 0" in caplog.text
    monkeypatch.setattr(viewer_page, "LARGEST", 1000)
    with pytest.raises(InputError, match=r"more than browsers read; export with --sh-degree 0"):
        save_view_page(ball(), tmp_path / "b.html", VIEW, "b")
    with pytest.raises(InputError, match="fit with --preset draft"):
        save_view_page(ball(degree=0), tmp_path / "b.html", VIEW, "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_export_writes_the_page_of_a_result_or_a_scene_file(result, tmp_path):
    for scene, name in ((result, result.name), (result / "scene.ply", "scene")):
        assert entry.main(["export", str(scene), "--to", str(tmp_path / "v.html"), "--quiet"]) == 0
        text = (tmp_path / "v.html").read_text(encoding="utf-8")
        assert "".join(Reader(text).words["title"]).strip() == name
        (tmp_path / "s.compressed.ply").write_bytes(blocks(text))
        assert len(load(tmp_path / "s.compressed.ply")) == len(load(result / "scene.ply"))


def test_export_can_leave_view_dependent_colour_out(result, tmp_path):
    assert entry.main(["export", str(result), "--to", str(tmp_path / "a.ply"), "--sh-degree", "0", "--quiet"]) == 0
    assert load(tmp_path / "a.ply").sh_degree == 0 < load(result / "scene.ply").sh_degree


@pytest.mark.parametrize(
    "words, told",
    [
        (("--to", "v.html", "--convention", "3dgs"), "shows the scene upright"),
        (("--to", "v.html", "--sh-degree", "7"), "--sh-degree 7"),
        (("--to", "none/v.html"), "does not exist"),
        (("--to", "v.htm"), ".html"),
    ],
)
def test_what_makes_no_page_is_said_in_a_sentence(result, tmp_path, capsys, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    assert entry.main(["export", str(result.absolute()), *words]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())
