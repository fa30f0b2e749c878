"""The web page: laid out from the same options, driven by the same job, tidy when a visitor leaves."""

import subprocess
import sys
from pathlib import Path

import pytest
from page_visit import job_of
from tiny_capture import ROOT

from app import commands
from splat.errors import InputError
from splat.progress import Progress

gr = pytest.importorskip("gradio")
ui = pytest.importorskip("app.ui")


def collect(job, cancelled=lambda: False):
    return list(ui.follow_on_page(job, cancelled))


def test_a_job_shows_progress_then_everything_it_made(result, tmp_path):
    options = commands.Photos(inputs=(tmp_path,), out=tmp_path / "scene-1")
    shown = collect(job_of(result, [])(options))
    assert "20.00 dB" in shown[0]["status"] and shown[0]["preview"].shape == (4, 6, 3)
    last = shown[-1]
    assert set(last) == set(ui.OUTPUTS)
    for name in ("splats", "mesh", "turntable", "sheet"):
        assert Path(last[name]).is_file()
    assert last["splats"] in last["downloads"]  # what is shown can be taken home
    assert {Path(p).name for p in last["downloads"]} >= {"scene.ply", "mesh.glb", "turntable.mp4", "report.json"}


def test_cancelling_closes_the_job(result, tmp_path):
    seen = []
    options = commands.Photos(inputs=(tmp_path,), out=tmp_path / "scene-1")
    shown = collect(job_of(result, seen)(options), lambda: True)
    assert "Cancelled" in shown[-1]["status"] and seen[-1] == "closed"
    assert not options.out.exists()


def test_an_error_is_the_same_sentence():
    def job():
        raise InputError("only 1 photo of the 1 given can be used, 2 are needed.")
        yield

    with pytest.raises(gr.Error, match="2 are needed"):
        collect(job())
    with pytest.raises(gr.Error, match="no photos"):
        ui._require_files([])


def test_text_from_files_is_escaped():
    assert "<script>" not in ui._status(Progress("poses", 1, 2, "<script>alert(1)</script>.jpg"), 0)


def test_a_visit_from_upload_to_leaving(result, capture, tmp_path):
    """In a process of its own: the servers and clients of other packages leave sockets open."""
    script = Path(__file__).with_name("page_visit.py")
    done = subprocess.run(
        [sys.executable, script, result, capture.photos, tmp_path], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
