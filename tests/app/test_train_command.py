"""`splatsmith train` from the command line: what it writes, what it refuses."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "diffusion"))
from tiny_objects import box, write_packed

from app import __main__ as entry


@pytest.fixture
def objects(tmp_path):
    rows = [
        {"id": "own/red box", "name": "red box", "group": "box", "license": "CC0-1.0"},
        {"id": "own/lent box", "name": "lent box", "group": "box", "license": "CC0-1.0 (presumed)"},
    ]
    write_packed(tmp_path / "objects", [box(), box((30, 60, 200))], rows)
    return tmp_path / "objects"


def test_volumes_of_objects_with_confirmed_licences(objects, tmp_path, capsys):
    words = ["train", "text-volumes", str(tmp_path / "work"), "--objects", str(objects)]
    assert entry.main([*words, "--json"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done == {"event": "done", "out": str(tmp_path / "work" / "volumes")}
    assert [p.name for p in (tmp_path / "work" / "volumes").rglob("*.safetensors")] == ["red box.safetensors"]
    assert entry.main([*words, "--quiet", "--presumed-licences"]) == 0
    assert len(list((tmp_path / "work" / "volumes").rglob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["text-bank"], "give their folder"),
        (["text-shape"], "run the step 'bank' first"),
        (["text-pack", "--minutes", "-1"], "minutes are 0 or more"),
        (["text-volumes", "--objects", "nowhere"], "There is no folder nowhere"),
        (["text-shape", "--threads", "0"], "give 1 or more"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_leaves_nothing(words, sentence, tmp_path, capsys):
    work = tmp_path / "work"
    assert entry.main(["train", words[0], str(work), *words[1:], "--quiet"]) == 2
    errors = capsys.readouterr().err.strip()
    assert sentence in errors and len(errors.splitlines()) == 1
    assert not work.exists()
