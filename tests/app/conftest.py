"""Fixtures of the app's tests: a tiny posed capture and the result of one undisturbed run on it."""

import json
import subprocess
from pathlib import Path

import pytest
from tiny_capture import ROOT, Capture, make_capture, photos_command


@pytest.fixture(scope="session")
def capture(tmp_path_factory) -> Capture:
    return make_capture(tmp_path_factory.mktemp("capture"))


@pytest.fixture(scope="session")
def result(capture, tmp_path_factory) -> Path:
    """The result of an undisturbed run, with two photos held out."""
    out = tmp_path_factory.mktemp("result") / "scene"
    words = photos_command(capture, out, "--holdout", 4, "--json", "--colmap-out")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (out.parent / "events.jsonl").write_text(done.stdout)
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "done"
    return out
