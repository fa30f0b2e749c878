"""splatsmith refine: longer fits of finished results, kept only where they help."""

import dataclasses
import json
import shutil
from pathlib import Path

import image_stand_in
import pytest
import torch
from PIL import Image as Pictures
from PIL import ImageDraw

from app import commands
from app.image_pipeline import picture_to_scene
from app.refine import Comparison, refine_result
from app.refine_photos import chained, unexposed
from app.report import Quality, read_report
from splat.cameras import Cameras
from splat.errors import InputError
from splat.io import load
from splat.optimise import fit
from splat.views import Views


def run(job):
    """The result of a job, and its events."""
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events


def refine(result: Path, out: Path, **more) -> commands.Refine:
    return commands.Refine(**{"result": result, "out": out, "preset": "draft", "steps": 60, "threads": 1} | more)


@pytest.fixture(scope="module")
def refined(result, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("refined") / "scene"
    run(refine_result(refine(result, out)))
    return out


def test_a_longer_fit_is_a_result_of_its_own(result, refined):
    old, new = read_report(result), read_report(refined)
    told = new["refine"]
    assert (new["command"], told["of"], told["way"], told["steps"]) == ("refine", "photos", "steps", 60)
    assert told["judged_by"] == "holdout" and told["holdout"]["before"]["n"] == 2
    assert told["holdout"]["before"]["psnr"] == pytest.approx(old["metrics"]["holdout"]["psnr"], abs=1e-3)
    assert told["train"]["before"]["psnr"] == pytest.approx(old["metrics"]["train"]["psnr"], abs=1e-3), (
        "as the first run measured"
    )
    assert told["train"]["after"]["psnr"] > told["train"]["before"]["psnr"] + 0.5
    assert told["kept"] == "refined" and new["metrics"]["holdout"] == told["holdout"]["after"]
    assert new["metrics"]["holdout"]["psnr"] > old["metrics"]["holdout"]["psnr"] + 0.05
    for key in ("inputs", "scale", "result_from_input", "facts", "frame"):
        assert new[key] == old[key], key
    names = {path.name for path in refined.iterdir()}
    assert names == {path.name for path in result.iterdir()} - {"colmap"}
    assert len(load(refined / "scene.ply")) == new["gaussians"]
    assert (refined / "cameras.json").read_bytes() == (result / "cameras.json").read_bytes(), "the same cameras"
    assert (
        json.loads((refined / "config.json").read_text())["photos"]
        == json.loads((result / "config.json").read_text())["photos"]
    )
    assert not refined.with_name("scene.partial").exists()


def test_a_refined_result_can_be_refined_in_turn(refined, tmp_path):
    outcome, events = run(refine_result(refine(refined, tmp_path / "again", steps=30)))
    told = outcome.report["refine"]
    assert told["of"] == "photos" and told["train"]["before"]["psnr"] == pytest.approx(
        read_report(refined)["metrics"]["train"]["psnr"], abs=1e-3
    )
    assert events[0].stage == "estimate" and events[0].values["memory"] > 5e8


def test_what_did_not_help_is_not_kept(result, tmp_path, monkeypatch):
    def spoilt(views, initial, config, state, priors):
        made = yield from fit(views, initial, config, state, priors)
        return dataclasses.replace(made, splats=dataclasses.replace(made.splats, means=made.splats.means + 0.2))

    monkeypatch.setattr("splat.optimise.fit", spoilt)
    outcome, _ = run(refine_result(refine(result, tmp_path / "out", steps=5)))
    told, out = outcome.report["refine"], tmp_path / "out"
    assert told["kept"] == "unrefined" and told["holdout"]["after"]["psnr"] < told["holdout"]["before"]["psnr"]
    assert outcome.report["metrics"]["holdout"] == told["holdout"]["before"]
    for name in ("scene.ply", "mesh.glb", "turntable.mp4", "preview.png", "cameras.json", "cameras_holdout.json"):
        assert (out / name).read_bytes() == (result / name).read_bytes(), name
    assert (out / "state" / "fit.safetensors").read_bytes() == (result / "state" / "fit.safetensors").read_bytes()
    assert "did not help" in outcome.report["warnings"][-1]


def test_a_refinement_that_was_cut_goes_on(result, refined, tmp_path):
    out = tmp_path / "scene"
    job = refine_result(refine(result, out))
    while next(job).stage != "mesh":
        pass
    job.close()
    assert not out.exists() and (tmp_path / "scene.partial" / "state" / "refined.safetensors").exists()
    with pytest.raises(InputError, match="other steps"):
        run(refine_result(refine(result, out, steps=61, resume=True)))
    outcome, events = run(refine_result(refine(result, out, resume=True)))
    assert any(event.note == "taken from the unfinished run" for event in events) and not outcome.skipped
    assert (out / "scene.ply").read_bytes() == (refined / "scene.ply").read_bytes(), "the same as an undisturbed one"
    again, events = run(refine_result(refine(result, out, resume=True)))
    assert again.skipped and "complete already" in events[0].note


def test_bad_input_is_told_in_a_sentence(result, refined, tmp_path):
    def told(wanted: commands.Refine) -> str:
        with pytest.raises(InputError) as error:
            run(refine_result(wanted))
        assert not list(tmp_path.glob("out*"))
        return str(error.value)

    out = tmp_path / "out"
    assert "no readable report.json" in told(refine(tmp_path / "nothing", out))
    assert "--steps 0 is out of range" in told(refine(result, out, steps=0))
    assert "--seed -1 is out of range" in told(refine(result, out, seed=-1))
    assert "--memory-budget 'much' is not an amount" in told(refine(result, out, memory_budget="much"))
    assert "at least" in told(refine(result, out, memory_budget="701MB"))
    assert "holds a complete result" in told(refine(result, refined))
    assert "is the result itself" in told(refine(result, result, overwrite=True))
    for name, damage, sentence in (
        ("state", shutil.rmtree, "has no state/"),
        ("state/fit.safetensors", Path.unlink, "is missing, so there is nothing to fit to"),
        ("state/reconstruction.safetensors", lambda path: path.write_bytes(b"x" * 100), "damaged or was written by another"),
        ("config.json", lambda path: path.write_text("{"), "is missing or damaged"),
        ("config.json", lambda path: path.write_text('{"fit": {}}'), "tells nothing of the fit"),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(result, copy, ignore=shutil.ignore_patterns("colmap", "*.mp4", "mesh.*"))
        damage(copy / name)
        assert sentence in told(refine(copy, out))
        shutil.rmtree(copy)


def test_a_result_made_from_words_has_nothing_to_fit_to(result, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy, ignore=shutil.ignore_patterns("colmap", "state"))
    report = json.loads((copy / "report.json").read_text())
    (copy / "report.json").write_text(json.dumps(report | {"command": "text"}))
    with pytest.raises(InputError, match="was made by the text command"):
        run(refine_result(refine(copy, tmp_path / "out")))


def test_exposures_are_taken_off_and_put_together_again():
    g = torch.Generator().manual_seed(0)
    exposures = torch.stack([torch.ones(3, 3), torch.zeros(3, 3)], 1) + 0.2 * torch.rand(3, 2, 3, generator=g)
    cameras = Cameras.orbit(3, 2.0, 10.0, 45.0, 6, 4)
    truth, masks = torch.rand(3, 4, 6, 3, generator=g), torch.rand(3, 4, 6, generator=g)
    background = torch.tensor([1.0, 0.5, 0.0])
    gain, offset = exposures[:, :, None, None].unbind(1)

    def views(cover: torch.Tensor, masks: torch.Tensor | None) -> tuple[Views, torch.Tensor]:
        plain = truth * cover + (1 - cover) * background  # as the splats would draw it, premultiplied
        seen = truth * cover * gain + offset * cover + (1 - cover) * background  # as `fit` explains a photo
        return Views(seen, ("a", "b", "c"), cameras, masks), plain

    for masked in (None, masks):
        given, plain = views(torch.ones(3, 4, 6, 1) if masked is None else masked[..., None], masked)
        (taken,) = unexposed([given], exposures, background.tolist())
        assert torch.allclose(taken.images, plain, atol=1e-6)
    second = exposures.flip(0)
    both = chained(exposures, second)
    image = torch.rand(3, 5, 3, generator=g)
    one_by_one = (image * second[:, 0, None] + second[:, 1, None]) * exposures[:, 0, None] + exposures[:, 1, None]
    assert torch.allclose(image * both[:, 0, None] + both[:, 1, None], one_by_one, atol=1e-6)


def test_held_out_photos_decide_where_there_are_any():
    def quality(psnr: float) -> Quality:
        return Quality(psnr, 0.9, None, 3)

    better, worse = (quality(20.0), quality(21.0)), (quality(21.0), quality(20.0))
    assert Comparison(better, worse).kept == "unrefined" and Comparison(better, worse).judged_by == "holdout"
    assert Comparison(worse, better).kept == "refined"
    assert Comparison(better, None).kept == "refined" and Comparison(better, None).judged_by == "train"
    assert Comparison((quality(20.0),) * 2, None).kept == "unrefined", "no better is not better"
    assert Comparison((quality(20.0), quality(20.04)), None).kept == "unrefined", "chance is not better"


@pytest.fixture(scope="module")
def object_result(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("picture")
    picture = Pictures.new("RGBA", (96, 96), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((20, 24, 76, 80), fill=(200, 60, 40, 255))
    draw.rectangle((36, 40, 60, 60), fill=(40, 60, 200, 255))
    picture.save(folder / "ball.png")
    options = commands.Image(inputs=(folder / "ball.png",), out=folder / "objects", preset="draft", refine=10, threads=1)
    outcome, _ = run(picture_to_scene(options, image_stand_in.load))
    return outcome.out


def test_an_object_is_fitted_longer_to_its_picture(object_result, tmp_path):
    outcome, _ = run(refine_result(refine(object_result, tmp_path / "out", steps=60)))
    told, old = outcome.report["refine"], read_report(object_result)
    assert (told["of"], told["judged_by"], told["holdout"], told["kept"]) == ("image", "train", None, "refined")
    assert told["train"]["before"]["psnr"] == pytest.approx(old["metrics"]["train"]["psnr"], abs=0.01)
    assert told["train"]["after"]["psnr"] > told["train"]["before"]["psnr"]
    assert outcome.report["image"] == old["image"] and "Nothing was held out" in outcome.report["warnings"][-1]
    assert {path.name for path in outcome.out.iterdir()} == {path.name for path in object_result.iterdir()}
    for name in ("cameras.json", "input.png"):
        assert (outcome.out / name).read_bytes() == (object_result / name).read_bytes()
    again, _ = run(refine_result(refine(outcome.out, tmp_path / "again", steps=5)))
    assert again.report["refine"]["of"] == "image"
    (object_result / "state" / "subjects.safetensors").rename(tmp_path / "subjects")
    with pytest.raises(InputError, match="is missing, so there is nothing to fit to"):
        run(refine_result(refine(object_result, tmp_path / "third", steps=5)))
