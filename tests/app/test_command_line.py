"""Parsing, help and exit statuses of the command line, without running a job."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import tyro
from tiny_capture import ROOT, photos_command

from app import __main__ as entry
from app import commands
from app.console import follow
from app.tooltips import tooltips
from splat.progress import Progress


def parsed(*words: str):
    return tyro.cli(commands.Command, args=list(words), config=(tyro.conf.FlagCreatePairsOff,))


def cpu_seconds_of_children() -> float:
    """By the clock, a busy machine would decide."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import sys\n"
        "from app.__main__ import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'cv2', 'pycolmap', 'open3d', 'gradio', 'kornia', 'av'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    times = []
    for _ in range(2):  # the second run has compiled modules
        before = cpu_seconds_of_children()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        times.append(cpu_seconds_of_children() - before)
        assert done.returncode == 0, done.stderr
    assert min(times) < 1.5
    for name in ("photos", "text", "demo", "export", "render", "check", "eval", "info", "ui"):
        assert name in done.stdout


def test_photos_takes_the_documented_options():
    options = parsed(
        *"photos a b.jpg --out R --poses t.json --holdout 8 --masks auto --max-side 300 --real-size 0.2 --colmap-out".split(),
        *"--preset draft --device cpu --threads 2 --seed 7 --memory-budget 2GB --resume --overwrite --quiet --json".split(),
        *"--background black --compact --intrinsics per-photo --regularise full --without normals poses".split(),
    )
    assert options == commands.Photos(
        inputs=(Path("a"), Path("b.jpg")), out=Path("R"), poses="t.json", holdout=8, masks="auto", max_side=300, real_size=0.2,
        colmap_out=True, preset="draft", device="cpu", threads=2, seed=7, memory_budget="2GB", resume=True, overwrite=True,
        quiet=True, json=True, background="black", compact=True, intrinsics="per-photo", regularise="full",
        without=("normals", "poses"),
    )  # fmt: skip


def test_the_parts_of_the_fit_are_those_that_it_has():
    from splat.few_photos import PARTS

    assert get_args(commands.FitPart) == PARTS


def test_text_takes_the_documented_options():
    options = parsed(
        "text", "a red chair", "🪑", *"--out R --prompts p.txt --variations 3 --candidates 5 --steps 12 --guidance 2.5".split(),
        *"--weights w --preset draft --device cpu --threads 2 --seed 7 --memory-budget 2GB --resume --overwrite".split(),
        *"--quiet --json --background black --compact".split(),
    )  # fmt: skip
    assert options == commands.Text(
        sentences=("a red chair", "🪑"), out=Path("R"), prompts=Path("p.txt"), variations=3, candidates=5, steps=12,
        guidance=2.5, weights=Path("w"), preset="draft", device="cpu", threads=2, seed=7, memory_budget="2GB",
        resume=True, overwrite=True, quiet=True, json=True, background="black", compact=True,
    )  # fmt: skip
    assert parsed("text", "--prompts", "p.txt", "--out", "R").sentences == ()


@pytest.mark.parametrize(
    "words",
    [
        "text a", "text a --out R --variations many", "photos a",
        "photos a --out R --preset best", "photos a --out R --nonsense", "paint a", "", "render a", "eval a",
        "photos a --out R --seed one",
    ],
)  # fmt: skip
def test_a_command_that_does_not_parse_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        entry.main(words.split())
    assert end.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--holdout 1", "--holdout 1"), ("--holdout -2", "--holdout -2"), ("--max-side 3", "--max-side 3"),
        ("--real-size 0", "--real-size"), ("--real-size inf", "--real-size"), ("--seed -1", "--seed -1"),
        ("--seed 2147483648", "--seed 2147"), ("--real-size nan", "--real-size"), ("--memory-budget lots", "'lots'"),
        ("--memory-budget 0GB", "0GB"), ("--background pink", "pink"), ("--background 1,2,300", "1,2,300"),
        ("--poses nowhere.json", "nowhere.json"), ("--threads 0", "--threads 0"), ("--steps 0", "--steps 0"),
        ("--masks nowhere", "nowhere"), ("--regularise none --without depth", "give one of them"),
    ],
)  # fmt: skip
def test_an_impossible_option_is_one_sentence_and_nothing_is_written(option, told, capture, tmp_path, capsys):
    status = entry.main(["photos", str(capture.photos), "--out", str(tmp_path / "R"), *option.split()])
    errors = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert told in errors[-1] and errors[-1].endswith(".")
    assert not list(tmp_path.iterdir())


def test_an_error_is_also_an_event(tmp_path, capsys):
    status = entry.main(["photos", str(tmp_path), "--out", str(tmp_path / "R"), "--json"])
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (status, event["event"], event["status"]) == (2, "error", 2)
    assert event["message"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_one_sentence(monkeypatch, capsys, tmp_path, error):
    def starved(options):
        raise error
        yield

    monkeypatch.setattr("app.pipelines.photos_to_scene", starved)
    assert entry.main(["photos", "x", "--out", str(tmp_path / "R")]) == 4
    assert "out of memory" in capsys.readouterr().err


def test_an_interrupt_exits_with_130(monkeypatch, capsys, tmp_path):
    def interrupted(options):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("app.pipelines.photos_to_scene", interrupted)
    (tmp_path / "R.partial").mkdir()
    assert entry.main(["photos", "x", "--out", str(tmp_path / "R")]) == 130
    assert "--resume" in capsys.readouterr().err


def test_a_reader_that_goes_away_cancels_the_job(capture, tmp_path):
    words = photos_command(capture, tmp_path / "R", "--json")
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in errors and "--resume" in errors.splitlines()[-1]
    assert not (tmp_path / "R").exists()


def test_only_news_is_an_event(capsys):
    def job():
        for note in ("matching", "matching", "mapping", "mapping", "matching"):
            yield Progress("poses", 1, 3, note)
        return 7

    assert follow(job(), "json") == 7
    assert [json.loads(line)["note"] for line in capsys.readouterr().out.splitlines()] == ["matching", "mapping", "matching"]


def test_info_tells_device_weights_and_licences(capsys):
    assert entry.main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["event"] == "info"
    assert told["renderer"] in told["renderers"]
    assert {"XFeat features", "LighterGlue matcher"} <= {w["name"] for w in told["weights"]}
    assert all(w["licence"] and Path(w["path"]).is_file() for w in told["weights"])
    assert entry.main(["info"]) == 0
    assert "Apache-2.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [commands.Photos, commands.Text, commands.Render, commands.Eval, commands.Export, commands.Check]
)
def test_every_option_has_a_help_text(command):
    texts = tooltips(command)
    assert {f.name for f in dataclasses.fields(command)} <= set(texts)
    assert all(text.endswith(".") for text in texts.values())
