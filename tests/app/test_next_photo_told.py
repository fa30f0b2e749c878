"""How the next photo is told: the report's entry, the page, the check's answer and what it refuses."""

import dataclasses
import json

import jsonschema
import pytest
import torch
from test_report_schema import report

from app import __main__ as command_line
from app import checkup
from app.commands import Check
from app.next_photo import entry, sheet
from app.report import read_report, write_report
from recon.next_photo import NextPhoto
from splat.cameras import Cameras
from splat.errors import StoppedLate
from splat.gaussians import Splats
from splat.views import Views


def at(azimuth_deg: float) -> Cameras:
    return Cameras.orbit(1, 2.0, 20.0, 50.0, 64, 48, azimuth_deg=azimuth_deg)


def suggestion() -> NextPhoto:
    g = torch.Generator().manual_seed(0)
    picture = torch.rand(48, 64, 3, generator=g)
    known = torch.cat([torch.zeros(48, 32), torch.ones(48, 32)], dim=1)
    return NextPhoto(at(40), "1.jpg", None, 20.0, 0.0, 1.0, 0.3, 0.7, 12, torch.zeros(3).double(), picture, known)


def test_the_report_takes_the_entry_and_refuses_half_of_it(tmp_path):
    told = entry(suggestion())
    write_report(report(next_photo=told), tmp_path / "report.json")
    back = read_report(tmp_path)["next_photo"]
    assert back == told and back["text"].startswith("Take one more photo from the right of 1.jpg, about 20°")
    assert torch.allclose(torch.tensor(back["camera"]["transform_matrix"]), suggestion().camera.to_opengl()[0].float())
    del told["camera"]["fl_x"]
    with pytest.raises(jsonschema.ValidationError):
        write_report(report(next_photo=told), tmp_path / "report.json")


def test_the_page_shows_what_is_not_known_in_orange():
    views = [Views(torch.rand(2, 48, 64, 3), ("0.jpg", "1.jpg"), Cameras.cat([at(0), at(20)]))]
    dots = Splats(
        torch.rand(50, 3) - 0.5, torch.ones(50, 4), torch.full((50, 3), -3.0), torch.full((50,), 4.0), torch.rand(50, 1, 3)
    )
    page = sheet(suggestion(), views, dots)
    assert page.ndim == 3 and page.shape[2] == 3 and 0 <= page.min() and page.max() <= 1
    height, width = page.shape[:2]
    left = page[height // 2 - 40 : height // 2 + 40, 28 : 28 + width // 6].mean((0, 1))
    right = page[height // 2 - 40 : height // 2 + 40, width // 4 : width // 3].mean((0, 1))
    assert right[0] - right[2] > 0.4 > left[0] - left[2]


@pytest.mark.parametrize(
    "more, told",
    [
        (["--picture", "{t}/next.gif"], "no suffix of a picture"),
        (["--picture", "{t}/none/next.png"], "no folder"),
        (["--picture", "{t}/next.png", "--quick"], "--quick"),
        (["--picture", "{t}/next.png"], "these 8 are poor"),
    ],
)
def test_a_picture_that_cannot_be_is_refused(capture, tmp_path, capsys, more, told):
    words = ["check", str(capture.photos), *(word.format(t=tmp_path) for word in more)]
    assert command_line.main(words) == 2
    errors = capsys.readouterr().err
    assert told in errors and not list(tmp_path.iterdir())


def hopeful(capture, monkeypatch):
    """The doctor finds that all photos fit together."""
    from recon import doctor

    plain = doctor.examine
    together = {"verdict": "good", "groups": (tuple(range(8)),)}
    monkeypatch.setattr(doctor, "examine", lambda found: dataclasses.replace(plain(found), **together))


def test_check_asks_where_the_next_photo_helps(capture, tmp_path, monkeypatch, capsys):
    hopeful(capture, monkeypatch)

    def look(photos, picture, place):
        yield from ()
        return "Take one more photo from the left of photo_1.png.", {"text": "…"}

    monkeypatch.setattr(checkup, "look", look)
    assert command_line.main(["check", str(capture.photos), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Next: ") == 1 and "left of photo_1.png" in shown
    assert json.loads((tmp_path / "out" / "verdict.json").read_text())["next_camera"] == {"text": "…"}
    assert command_line.main(["check", str(capture.photos), "--quick"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Next: ") == 1 and "left of photo_1.png" not in shown


def test_photos_that_cannot_be_placed_leave_the_doctors_word(capture, monkeypatch, capsys):
    hopeful(capture, monkeypatch)

    def hopeless(photos, config):
        yield from ()
        raise StoppedLate("Only 1 of 8 photos could be placed.")

    monkeypatch.setattr("recon.reconstruct.reconstruct", hopeless)
    assert command_line.main(["check", str(capture.photos)]) == 0
    shown = capsys.readouterr()
    assert "cannot be told: Only 1 of 8" in shown.out and "Next: " in shown.out
    assert "--quick leaves this out" in shown.err


def test_the_studio_shows_it(tmp_path):
    from types import SimpleNamespace

    from app.studio import html

    job = SimpleNamespace(id="0123", out=tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({"next_photo": {"text": "Take one more photo <i>left</i>."}}))
    assert "Next photo" not in html.result(job, tmp_path)
    (tmp_path / "next_photo.png").write_bytes(b"")
    shown = html.result(job, tmp_path)
    assert "Next photo: Take one more photo &lt;i&gt;left&lt;/i&gt;." in shown and "<i>" not in shown
    assert '<img src="/studio/jobs/0123/out/next_photo.png"' in shown


def test_check_of_options():
    assert Check(inputs=()).picture is None and not Check(inputs=()).quick
