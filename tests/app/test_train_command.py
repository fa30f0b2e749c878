"""`splatsmith train` from the command line: what it writes, what it refuses."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "diffusion"))
from tiny_objects import box, write_packed

from app import __main__ as entry
from splat.progress import Progress


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
        (["text-shape", "--minutes", "nan"], "minutes are 0 or more"),
        (["text-shape", "--seed", "-1"], "give 0 to 2147483647"),
        (["text-shape", "--seed", str(2**63)], "give 0 to 2147483647"),
        (["text-shape", "--lr", "0"], "no learning rate"),
        (["text-bank", "--steps", "5"], "trains no network"),
        (["text-pack", "--accumulate", "2"], "trains no network"),
        (["text-shape", "--accumulate", "65"], "give 1 to 64"),
        (["text-shape", "--batch", "0"], "give 1 to 4096"),
        (["text-volumes", "--batch", "2"], "trains no network"),
        (["text-shape", "--size", "gvgen"], "has one size"),
        (["image-denoiser", "--size", "gvgen"], "has one size"),
        (["text-dense-field"], "run the step 'bank' first"),
        (["repair-pairs"], "give their folder"),
        (["repair-pairs", "--steps", "5"], "trains no network"),
        (["repair-network"], "run the step 'pairs' first"),
        (["repair-network", "--text"], "reads no sentences"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_leaves_nothing(words, sentence, tmp_path, capsys):
    work = tmp_path / "work"
    assert entry.main(["train", words[0], str(work), *words[1:], "--quiet"]) == 2
    errors = capsys.readouterr().err.strip()
    assert sentence in errors and len(errors.splitlines()) == 1
    assert not work.exists()


def test_options_reach_the_step_and_a_sitting_that_ends_early_says_so(monkeypatch, tmp_path, capsys):
    seen = {}

    def stand_in(step, work, objects, config):
        seen.update(step=step, config=config, threads=torch.get_num_threads())
        yield Progress("training", 7, 40, values={"loss": 1.0})
        return work / "made"

    monkeypatch.setattr("diffusion.train_text.train_text", stand_in)
    threads = torch.get_num_threads()
    try:
        words = ["--seed", "5", "--threads", "1", "--device", "cpu"]
        own = "--steps 40 --lr 0.002 --accumulate 3".split()
        assert entry.main(["train", "text-shape", str(tmp_path), *words, *own, "--json"]) == 0
        loop = seen["config"].shape.loop
        assert (seen["step"], seen["threads"], loop.seed, loop.steps, loop.lr, loop.accumulate) == ("shape", 1, 5, 40, 0.002, 3)
        notes = [e.get("note", "") for e in map(json.loads, capsys.readouterr().out.splitlines())]
        assert any("7 of 40 steps are trained; run the same command again" in note for note in notes)
        own = "--steps 40 --batch 3 --size gvgen".split()
        for step in ("field", "attributes"):
            assert entry.main(["train", f"text-dense-{step}", str(tmp_path), *words, *own, "--quiet"]) == 0
            dense = getattr(seen["config"], f"dense_{step}")
            assert (dense.loop.steps, dense.batch, dense.unet.channels, seen["step"]) == (40, 3, 224, f"dense-{step}")
        for step in ("volumes", "bank"):
            assert entry.main(["train", f"text-{step}", str(tmp_path), *words, "--quiet"]) == 0
            assert getattr(seen["config"], step).seed == 5
        assert entry.main(["train", "text-pack", str(tmp_path), *words, "--quiet"]) == 0
    finally:
        torch.set_num_threads(threads)
