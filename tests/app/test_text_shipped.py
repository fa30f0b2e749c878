"""The text command with the networks that ship with the package, and with folders that hold none."""

import json
import shutil
from pathlib import Path

import pytest

from app import __main__ as entry
from app.report import read_report
from diffusion.text_to_volume import shipped_weights
from splat.errors import InputError


@pytest.fixture(scope="module")
def weights() -> Path:
    try:
        return shipped_weights()
    except InputError as error:
        pytest.skip(str(error))


def splatsmith(*words: object) -> int:
    return entry.main(["text", *map(str, words), "--preset", "draft", "--threads", "1", "--device", "cpu"])


def test_a_folder_without_weights_is_one_sentence_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "w").mkdir()
    for folder in (tmp_path / "w", tmp_path / "missing"):
        assert splatsmith("a chair", "--weights", folder, "--out", tmp_path / "R") == 2
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(folder) in sentence and sentence.endswith("--weights.")
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_same_prompt_and_seed_same_bytes(weights, tmp_path):
    for out, prompts in (("one", ["a red chair"]), ("two", ["a blue boat", "a red chair"])):
        assert splatsmith(*prompts, "--seed", 3, "--candidates", 2, "--out", tmp_path / out) == 0
    scenes = [(tmp_path / out / "a-red-chair-3" / "scene.ply").read_bytes() for out in ("one", "two")]
    assert scenes[0] == scenes[1] and len(scenes[0]) > 10_000
    assert scenes[0] != (tmp_path / "two" / "a-blue-boat-3" / "scene.ply").read_bytes()
    report = read_report(tmp_path / "one" / "a-red-chair-3")
    assert report["warnings"] == [] and report["mesh_faces"] > 100
    assert len(report["text"]["candidates"]) == 2 and len(report["licences"]) >= 2
    assert {"shape", "detail", "attributes"} <= {stage["name"] for stage in report["stages"]}


def test_what_it_was_not_trained_on_is_warned_of(weights, tmp_path, capsys):
    assert splatsmith("a tax return", "--candidates", 1, "--out", tmp_path / "R") == 0
    (warning,) = read_report(tmp_path / "R" / "a-tax-return-0")["warnings"]
    assert "not trained on anything like" in warning and warning in capsys.readouterr().err


def test_damaged_weights_are_one_sentence_and_nothing_is_written(weights, tmp_path, capsys):
    copy = tmp_path / "w"
    shutil.copytree(weights, copy)
    tables = copy / "tables.safetensors"
    tables.write_bytes(tables.read_bytes()[:-100])
    assert splatsmith("a chair", "--weights", copy, "--out", tmp_path / "R") == 2
    assert "tables.safetensors is not the file that was written" in capsys.readouterr().err
    assert not (tmp_path / "R").exists()


def test_what_ships_is_small_and_says_whose_objects_it_learnt_from(weights):
    sizes = [path.stat().st_size for path in weights.rglob("*") if path.is_file()]
    assert max(sizes) <= 16 * 2**20 and sum(sizes) <= 32 * 2**20
    licences = set(json.loads((weights / "weights.json").read_text(encoding="utf-8"))["licences"])
    assert licences and not any("presumed" in licence for licence in licences)
    stated = (weights / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(licence in stated for licence in licences)
