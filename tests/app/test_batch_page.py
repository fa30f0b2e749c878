"""index.html of a batch: hostile names stay text, links lead to files, and nothing is asked of any server."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from app.batch import Batch, Record
from app.batch_page import page
from app.workers import Item

HOSTILE = [
    "<script>alert(1)</script>",
    "\"onmouseover=\"alert(1)' x='",
    "line\nbreak {{}} </main>",
    "&lt;b&gt; &amp;amp;",
    "javascript:alert(1)",
    "椅子 🪑 ‮gnp",
    "x" * 300,
    "50% #1? a+b",
    "invalid \udcff bytes",
]


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def links(self) -> list[str]:
        return [a[key] for _, a in self.tags for key in ("href", "src", "poster") if a.get(key)]


def made(out: Path, name: str, *files: str) -> Record:
    folder = out / name.replace("/", "_")[:200]
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).touch()
    return Record(Item(name, folder, f"{name}.png"), "done", seconds=12.0, attempts=1)


ALL = ("preview.png", "turntable.mp4", "mesh.glb", "scene.ply", "report.json")


def test_hostile_names_stay_text(tmp_path):
    records = [made(tmp_path, name, *ALL) for name in HOSTILE]
    records.append(
        Record(Item("bad", tmp_path / "bad", "<img src=x onerror=alert(1)>"), "failed", error="<b onclick='x'>no</b>")
    )
    plain = Reader(
        page(Batch(tmp_path, [made(tmp_path, "plain", *ALL), Record(Item("b", tmp_path / "b", "b"), "failed", error="no")]))
    )
    read = Reader(page(Batch(tmp_path, records)))
    assert {tag for tag, _ in read.tags} == {tag for tag, _ in plain.tags}
    assert {key for _, a in read.tags for key in a} == {key for _, a in plain.tags for key in a}
    assert [tag for tag, _ in read.tags].count("script") == 1 and [tag for tag, _ in read.tags].count("article") == len(records)
    titles = [a["title"] for tag, a in read.tags if tag == "h2"]
    assert titles == [name.replace("\udcff", "?") for name in HOSTILE] + ["bad"]
    assert "<b onclick='x'>no</b>" in read.words


def test_links_lead_to_files(tmp_path):
    records = [made(tmp_path, name, *ALL) for name in HOSTILE]
    links = Reader(page(Batch(tmp_path, records))).links()
    for link in links:
        assert link.startswith("./") and (tmp_path / unquote(link[2:], errors="surrogateescape")).is_file(), link
    assert len(links) == len(HOSTILE) * (3 + 4)


def test_nothing_is_asked_of_a_server(tmp_path):
    text = page(Batch(tmp_path, [made(tmp_path, "a", *ALL)]))
    assert not re.search(r"(https?:)?//\w|@import|fetch\(|url\(", text)
    assert not [tag for tag, a in Reader(text).tags if tag in ("link", "iframe", "object") or (tag == "script" and "src" in a)]


def test_what_is_missing_is_not_linked(tmp_path):
    only_preview, nothing = made(tmp_path, "p", "preview.png"), made(tmp_path, "n")
    read = Reader(page(Batch(tmp_path, [only_preview, nothing])))
    assert read.links() == ["./p/preview.png"] * 2 and "no picture" in read.words
    assert "video" not in {tag for tag, _ in read.tags}


@pytest.mark.parametrize("status, told", [("skipped", "made before"), ("cancelled", "not made"), ("waiting", "waiting")])
def test_every_state_is_told(tmp_path, status, told):
    text = page(Batch(tmp_path, [Record(Item("a", tmp_path / "a", "a.png"), status)]))
    assert told in text and f"1 {told}" in text


def test_the_page_is_whole(tmp_path):
    text = page(Batch(tmp_path, []))
    assert "{{}}" not in text and text.rstrip().endswith("</html>") and tmp_path.name in text
