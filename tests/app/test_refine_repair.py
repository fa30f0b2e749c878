"""`refine --with repair` and `photos --repair`: what is kept, what is told of what was invented, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from app import __main__ as entry
from app import commands
from app.refine import refine_result
from app.repairers import ChosenRepairer
from app.report import Licence, read_report
from recon.repair.judge import Scores, helps
from recon.repair.rounds import RepairRoundsConfig
from splat.errors import InputError


def run(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events


def refine(result: Path, out: Path, **more) -> commands.Refine:
    return commands.Refine(
        **{"result": result, "out": out, "way": "repair", "preset": "draft", "steps": 30, "threads": 1} | more
    )


def stand_in(repair):
    """In place of `chosen_repairer`."""
    return lambda *_, **__: ChosenRepairer(repair, "small", (Licence("test", "CC0-1.0"),), "small")


def heavy(steps: int) -> RepairRoundsConfig:
    """Rounds in which the repairer's word counts more than the photos'."""
    return RepairRoundsConfig(steps=max(steps // 3, 1), weight=30.0)


def test_nonsense_leaves_the_result_as_it_is(result, tmp_path, monkeypatch):
    noise = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        "app.refine_repair.chosen_repairer", stand_in(lambda request: torch.rand(request.images.shape, generator=noise))
    )
    monkeypatch.setattr("app.refine_repair.rounds_of", heavy)
    outcome, _ = run(refine_result(refine(result, tmp_path / "out")))
    told, out = outcome.report["refine"], tmp_path / "out"
    assert told["kept"] == "unrefined" and told["judged_by"] == "holdout" and 0 <= told["invented"] <= 1
    assert told["holdout"]["after"]["ssim"] < told["holdout"]["before"]["ssim"]
    control, after = told["holdout"]["control"], told["holdout"]["after"]
    assert control["n"] == after["n"] and control["ssim"] > after["ssim"]
    assert f"SSIM {control['ssim']:.4f} and" in outcome.report["warnings"][-1], "as many steps without it"
    for name in ("scene.ply", "mesh.glb", "preview.png"):
        assert (out / name).read_bytes() == (result / name).read_bytes(), name
    assert not (out / "invented").exists() and "--with repair did not help (SSIM" in outcome.report["warnings"][-1]
    assert {"name": "test", "licence": "CC0-1.0"} not in outcome.report["licences"], "its weights have no part in this result"
    left = {path.name for path in (out / "state").iterdir()}
    assert left <= {path.name for path in (result / "state").iterdir()} and "fit.safetensors" in left


def test_what_helps_is_kept_with_pictures_of_what_was_invented(result, tmp_path, monkeypatch):
    monkeypatch.setattr("app.refine_repair.chosen_repairer", stand_in(lambda request: request.images))
    monkeypatch.setattr("recon.repair.judge.helps", lambda before, after: True)
    job = refine_result(refine(result, tmp_path / "out"))
    while not (tmp_path / "out.partial" / "state" / "repair_1.safetensors").exists():
        next(job)
    job.close()  # cut after the first round
    outcome, events = run(refine_result(refine(result, tmp_path / "out", resume=True)))
    assert any(event.note == "taken from the unfinished run" for event in events)
    told, out = outcome.report["refine"], tmp_path / "out"
    assert told["kept"] == "refined" and told["repairer"] == "small" and told["way"] == "repair"
    shares = json.loads((out / "invented" / "views.json").read_text())
    assert sum(shares.values()) / len(shares) == pytest.approx(told["invented"], abs=1e-3)
    pictures = {path.name for path in (out / "invented").iterdir()} - {"views.json"}
    last = [name for name in shares if name.startswith("round3_")]
    assert last and pictures == {f"{name}{end}" for name in last for end in (".png", "_mask.png")}
    assert "is invented; invented/ shows where" in " ".join(outcome.report["warnings"])
    assert {"name": "test", "licence": "CC0-1.0"} in outcome.report["licences"]
    old = read_report(result)
    assert outcome.report["metrics"]["train"] != old["metrics"]["train"]
    again, _ = run(refine_result(refine(out, tmp_path / "again", way="steps", steps=5)))
    assert again.report["refine"]["of"] == "photos", "a repaired result can be refined in turn"


def test_what_was_invented_stays_with_what_comes_of_it(result, tmp_path, monkeypatch):
    """photos --repair -> steps, not kept -> repair, kept -> steps, kept: every share and every picture is there to the end."""
    first = tmp_path / "first"
    shutil.copytree(result, first, ignore=shutil.ignore_patterns("colmap"))
    report = json.loads((first / "report.json").read_text())
    quality = report["metrics"]["holdout"]
    repair = {"kept": "refined", "judged_by": "holdout", "before": quality, "after": quality, "invented": 0.25}
    (first / "report.json").write_text(json.dumps(report | {"repair": repair}))
    (first / "invented").mkdir()
    (first / "invented" / "views.json").write_text('{"round3_1": 0.25}')
    monkeypatch.setattr("app.refine_repair.chosen_repairer", stand_in(lambda request: request.images))

    def refined(source: Path, name: str, kept: str, **more) -> tuple[dict, Path]:
        monkeypatch.setattr("app.refine.Comparison.kept", property(lambda _: kept))
        outcome, _ = run(refine_result(refine(source, tmp_path / name, **more)))
        assert outcome.report["repair"] == repair, name
        return outcome.report["refine"], outcome.out / "invented"

    told, folder = refined(first, "idle", "unrefined", way="steps", steps=5)
    assert "invented_earlier" not in told and (folder / "views.json").read_text() == '{"round3_1": 0.25}'
    told, folder = refined(tmp_path / "idle", "mended", "refined", steps=6)
    share = told["invented"]
    assert (folder / "earlier" / "views.json").read_text() == '{"round3_1": 0.25}' and len(list(folder.glob("*.png"))) > 0
    pictures = {path.relative_to(folder) for path in folder.rglob("*")}
    for name, kept in (("longer", "refined"), ("same", "unrefined")):
        told, folder = refined(tmp_path / "mended", name, kept, way="steps", steps=5)
        assert told["invented_earlier"] == [share] and "invented" not in told
        assert {path.relative_to(folder) for path in folder.rglob("*")} == pictures
    told, _ = refined(tmp_path / "longer", "last", "refined", way="steps", steps=5)
    assert told["invented_earlier"] == [share]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--with", "repair", "--repairer", "nowhere"], "neither small nor a folder"),
        (["--with", "steps", "--repairer", "nowhere"], "--with steps has none"),
        (["--with", "repair", "--strength", "0.5"], "--with repair has none"),
        (["--with", "repair", "--steps", "0"], "give 1 to"),
    ],
)
def test_what_cannot_be_repaired_with_is_one_sentence(result, tmp_path, capsys, words, sentence):
    out = tmp_path / "out"
    assert entry.main(["refine", str(result), "--out", str(out), *words, "--quiet"]) == 2
    errors = capsys.readouterr().err.strip()
    assert (
        sentence in errors and len(errors.splitlines()) == 1 and not out.exists() and not out.with_name("out.partial").exists()
    )


def test_an_empty_folder_is_no_repairer(result, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        run(refine_result(refine(result, tmp_path / "out", repairer=str(tmp_path / "empty"))))


def test_photos_keeps_repair_only_where_it_helps(capture, tmp_path, monkeypatch):
    """The whole job: judged by held-out photos, tried, told."""
    from app.pipelines import photos_to_scene

    monkeypatch.setattr("app.pipelines.chosen_repairer", stand_in(lambda request: 1 - request.images))
    monkeypatch.setattr("app.repair_splats.rounds_of", heavy)
    command = commands.Photos(
        inputs=(capture.photos,), out=tmp_path / "out", poses=str(capture.poses), holdout=4, preset="draft", steps=40,
        threads=1, repair=True,
    )  # fmt: skip
    outcome, _ = run(photos_to_scene(command))
    told = outcome.report["repair"]
    assert told["kept"] == "unrefined" and told["after"]["ssim"] < told["before"]["ssim"]
    assert told["before"] == pytest.approx(outcome.report["metrics"]["holdout"], abs=1e-6)
    said = [s for s in outcome.report["warnings"] if s.startswith("Repair did not help (SSIM")]
    assert len(said) == 1 and said[0] not in outcome.report["fallbacks"]
    assert all(f"{told[which]['ssim']:.4f}" in said[0] for which in ("before", "control", "after"))
    further = "The further steps alone help" in said[0]
    assert further == helps(*(Scores(told[k]["psnr"], told[k]["ssim"], 2) for k in ("before", "control")))
    assert not (tmp_path / "out" / "invented").exists()
    left = {path.name for path in (tmp_path / "out" / "state").iterdir()}
    assert "fit.safetensors" in left and not any(n.startswith(("repair_", "control_", "left_out", "first_fit")) for n in left)


class Cut(BaseException):
    """The process ends."""


def test_a_run_cut_at_its_end_makes_the_same_scene(capture, tmp_path, monkeypatch):
    """Repaired splats are never taken for those of the first fit, wherever near its end a run is cut."""
    from app import pipelines, result_folder

    monkeypatch.setattr("app.pipelines.chosen_repairer", stand_in(lambda request: request.images))
    monkeypatch.setattr("recon.repair.judge.helps", lambda before, after: True)

    def job(name: str):
        return pipelines.photos_to_scene(
            commands.Photos(
                inputs=(capture.photos,), out=tmp_path / name, poses=str(capture.poses), holdout=4, preset="draft", steps=20,
                max_side=64, threads=1, repair=True, resume=True,
            )
        )  # fmt: skip

    whole, _ = run(job("whole"))
    assert whole.report["repair"]["kept"] == "refined"
    save, publish = pipelines.save_stage, result_folder.WorkFolder.publish

    def cut_after_saving(path, value):
        save(path, value)
        raise Cut

    def cut_instead(self, keep_state):
        raise Cut

    with monkeypatch.context() as m:
        m.setattr(pipelines, "save_stage", cut_after_saving)
        with pytest.raises(Cut):
            run(job("cut"))
    assert (tmp_path / "cut.partial" / "state" / "fit.safetensors").exists()
    with monkeypatch.context() as m:
        m.setattr(result_folder.WorkFolder, "publish", cut_instead)
        with pytest.raises(Cut):
            run(job("cut"))
    assert result_folder.WorkFolder.publish is publish
    again, _ = run(job("cut"))
    assert (tmp_path / "cut" / "scene.ply").read_bytes() == (tmp_path / "whole" / "scene.ply").read_bytes()
    assert again.report["repair"] == whole.report["repair"]
