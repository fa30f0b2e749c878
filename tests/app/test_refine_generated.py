"""splatsmith refine --with multiview|volume: other sides from a generator, kept only where photos that it never saw agree."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from app import commands, refine_generated, refine_multiview, refine_volume
from app.machine import pick_place
from app.pipelines import photos_to_scene
from app.refine import plan_refine, refine_result
from app.refine_generated import Generated, Generator3D
from app.refine_photos import LR_MEANS
from app.report import Licence, read_report
from diffusion.object_frame import object_frame
from recon.poses.from_file import write_transforms
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.io.images import save_image
from splat.optimise import FitResult, fit
from splat.progress import Progress
from splat.render import RenderOptions, backend, render
from splat.similarity import Similarity

AZIMUTHS = (0.0, 30.0, 60.0, 200.0)  # the photo from behind is the one held out


def truth() -> Splats:
    """A ball of blobs, light before and dark behind."""
    g = torch.Generator().manual_seed(3)
    means = 0.45 * torch.nn.functional.normalize(torch.randn(1200, 3, generator=g), dim=-1)
    shade = torch.where(means[:, 2] > -0.1, 1.0, -1.2)[:, None, None] + 0.3 * torch.randn(1200, 1, 3, generator=g)
    return Splats(
        means, torch.tensor([1.0, 0, 0, 0]).repeat(1200, 1), torch.full((1200, 3), -3.0), torch.full((1200,), 5.0), shade
    )


def run(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events


def made_from_photos(folder: Path, count: int, holdout: int, masked: bool = True) -> Path:
    cameras = Cameras.cat([Cameras.orbit(1, 2.0, 15.0, 45.0, 64, 64, azimuth_deg=a) for a in AZIMUTHS[-count:]])
    drawn = render(truth(), cameras, RenderOptions(background=torch.ones(3)))
    names = [f"photo_{(i + 1) % count}.png" for i in range(count)]  # the last of AZIMUTHS is the first in the order of names
    for name, image, alpha in zip(names, drawn.rgb.clamp(0, 1), drawn.alpha, strict=True):
        (folder / "photos").mkdir(parents=True, exist_ok=True)
        (folder / "masks").mkdir(exist_ok=True)
        save_image(folder / "photos" / name, image)
        save_image(folder / "masks" / name, alpha[..., None].expand(-1, -1, 3))
    write_transforms(folder / "poses.json", [cameras], names)
    options = commands.Photos(
        inputs=(folder / "photos",), out=folder / "scene", poses=str(folder / "poses.json"), holdout=holdout, steps=60,
        max_side=64, preset="draft", threads=1, masks=str(folder / "masks") if masked else None,
    )  # fmt: skip
    return run(photos_to_scene(options))[0].out


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    """Three photos from the front, one held out that shows the back."""
    return made_from_photos(tmp_path_factory.mktemp("held"), 4, 4)


@pytest.fixture(scope="module")
def none_held_out(tmp_path_factory) -> Path:
    return made_from_photos(tmp_path_factory.mktemp("none"), 4, 0)


def refine(result: Path, out: Path, **more) -> commands.Refine:
    defaults = {"result": result, "out": out, "way": "multiview", "preset": "draft", "steps": 30, "threads": 1}
    return commands.Refine(**defaults | more)


def oracle(splats_of):
    """A generator that makes `splats_of()` of whatever it sees, and counts how often it was asked."""
    asked = []

    def load(plan):
        def generate(splats, views):
            asked.append(views)
            yield Progress("views", 1, 1)
            world = torch.tensor(plan.report["result_from_input"], dtype=torch.float64)
            frame = object_frame(views, splats.means.median(0).values)
            return Generated(splats_of().transformed(Similarity.from_matrix(world)), frame)

        return Generator3D(generate, [Licence("Oracle", "CC0-1.0")])

    load.asked = asked
    return load


def test_sides_that_photos_do_not_show_come_from_the_generator(held_out, tmp_path, monkeypatch):
    load = oracle(truth)
    monkeypatch.setattr(refine_multiview, "load", load)
    outcome, events = run(refine_result(refine(held_out, tmp_path / "out", strength=0.7)))
    told, old = outcome.report["refine"], read_report(held_out)
    assert (told["way"], told["strength"], told["judged_by"], told["kept"]) == ("multiview", 0.7, "holdout", "refined")
    psnr = {name: quality["psnr"] for name, quality in told["holdout"].items()}
    assert psnr["after"] > max(psnr["before"], psnr["control"]) + 1
    assert len(load.asked) == 1 and sum(len(v) for v in load.asked[0]) == 3, "the photos of the fit, once"
    assert outcome.report["licences"] == [*old["licences"], {"name": "Oracle", "licence": "CC0-1.0"}]
    assert {e.stage for e in events} >= {"estimate", "views", "fit", "measure", "mesh", "turntable", "files"}
    assert {p.name for p in outcome.out.iterdir()} == {p.name for p in held_out.iterdir()}
    assert {p.stem for p in (outcome.out / "state").glob("*.safetensors")} >= {"reconstruction", "fit"}
    assert not {"generated", "control", "control_checkpoint"} & {p.stem for p in (outcome.out / "state").iterdir()}
    again, _ = run(refine_result(refine(outcome.out, tmp_path / "again", way="steps", steps=10)))
    assert again.report["refine"]["of"] == "photos"


def test_what_the_held_out_photos_do_not_confirm_is_not_kept(held_out, tmp_path, monkeypatch):
    monkeypatch.setattr(refine_multiview, "load", oracle(wrong))
    outcome, _ = run(refine_result(refine(held_out, tmp_path / "out")))
    told = outcome.report["refine"]
    assert told["kept"] == "unrefined" and told["strength"] == refine_multiview.STRENGTH
    assert (outcome.out / "scene.ply").read_bytes() == (held_out / "scene.ply").read_bytes()
    assert "--with multiview did not help" in outcome.report["warnings"][-1]
    assert outcome.report["licences"] == read_report(held_out)["licences"]


def wrong() -> Splats:
    return dataclasses.replace(truth(), sh=2 - truth().sh)


def faded() -> Splats:
    """Better than what the photos tell of the back, and worse than the truth."""
    return dataclasses.replace(truth(), sh=0.6 * truth().sh)


def longer_fit(monkeypatch, made):
    """Further fits on photos alone, which are slower than first ones, come to `made(initial)`."""

    def stand_in(views, initial, config, state=None, priors=None):
        if config.lr_means != LR_MEANS:
            return (yield from fit(views, initial, config, state, priors))
        yield Progress("fit", 1, 1)
        count = sum(len(v) for v in views)
        exposures = torch.tensor([1.0, 0.0]).view(1, 2, 1).repeat(count, 1, 3)
        return FitResult(made(initial), [v.cameras for v in views], exposures, 0.0, config.steps)

    monkeypatch.setattr("splat.optimise.fit", stand_in)


def truth_of(result: Path) -> Splats:
    world = torch.tensor(read_report(result)["result_from_input"], dtype=torch.float64)
    return truth().transformed(Similarity.from_matrix(world))


@pytest.mark.parametrize(
    ("generator", "further_steps", "kept", "word"),
    [
        (truth, "idle", "refined", "helped"),
        (faded, "right", "unrefined", "--with steps would do more."),
        (wrong, "right", "unrefined", "--with steps would do more."),
        (wrong, "idle", "unrefined", "the unrefined ones."),
    ],
)
@pytest.mark.parametrize("judge", ["holdout", "left_out"])
def test_a_generator_must_beat_further_steps_alone(
    held_out, none_held_out, tmp_path, monkeypatch, judge, generator, further_steps, kept, word
):
    result = held_out if judge == "holdout" else none_held_out
    monkeypatch.setattr(refine_generated, "JUDGING_STEPS", 30)
    monkeypatch.setattr(refine_multiview, "load", oracle(generator))
    longer_fit(monkeypatch, {"idle": lambda initial: initial, "right": lambda initial: truth_of(result)}[further_steps])
    outcome, _ = run(refine_result(refine(result, tmp_path / "out", steps=4)))
    told = outcome.report["refine"]
    psnr = {name: quality["psnr"] for name, quality in told[judge].items()}
    assert (told["judged_by"], told["kept"]) == (judge, kept), psnr
    assert list(psnr) == ["before", "control", "after"]
    assert (psnr["control"] > psnr["before"] + 1) == (further_steps == "right"), psnr
    assert outcome.report["warnings"][-1].endswith(word) or word == "helped", outcome.report["warnings"]
    said = f"{psnr['before']:.2f} dB before, {psnr['control']:.2f} dB after as many further steps without it, "
    assert f"{said}{psnr['after']:.2f} dB after" in outcome.report["warnings"][-1]


def test_the_renderer_is_that_of_the_tensors(held_out, tmp_path, monkeypatch):
    """With a GPU the job's renderer is gsplat, which draws no splats of main memory."""
    drawn = []

    def asked(name):
        drawn.append(name)
        return backend(name)

    found = pick_place("cpu", 1)
    place = dataclasses.replace(found, device="cuda", renderer="gsplat")
    ready = plan_refine(refine(held_out, tmp_path / "out"))
    plan = dataclasses.replace(ready, place=place, steps=5)
    config = refine_generated.graft_config(plan, 1000, 0.5)
    views = refine_generated._on_white(plan, plan.ready.fitted)
    made = Generated(truth_of(held_out), object_frame(views, plan.ready.fitted.splats.means.median(0).values))
    monkeypatch.setattr("splat.render.backend", asked)
    grafted, _ = run(refine_generated._grafted(plan.ready.fitted, made, views, config, None))
    assert grafted.splats.means.device.type == "cpu" and drawn and set(drawn) == {found.renderer}


def test_a_strength_of_nothing_changes_nothing(held_out, tmp_path, monkeypatch):
    def never(plan):
        raise AssertionError("no generator is needed")

    monkeypatch.setattr(refine_volume, "load", never)
    outcome, _ = run(refine_result(refine(held_out, tmp_path / "out", way="volume", strength=0.0)))
    assert outcome.report["refine"]["kept"] == "unrefined"
    assert (outcome.out / "scene.ply").read_bytes() == (held_out / "scene.ply").read_bytes()


def test_without_held_out_photos_each_is_left_out_in_turn_and_a_cut_run_goes_on(none_held_out, tmp_path, monkeypatch):
    result = none_held_out
    monkeypatch.setattr(refine_generated, "JUDGING_STEPS", 40)
    load = oracle(truth)
    monkeypatch.setattr(refine_multiview, "load", load)
    job = refine_result(refine(result, tmp_path / "out"))
    while next(job).stage != "mesh":
        pass
    job.close()
    assert [sum(len(v) for v in views) for views in load.asked] == [3, 3, 3, 4], "three judges, then the real one"
    names = {name for views in load.asked[:3] for v in views for name in v.names}
    assert len({frozenset(n for v in views for n in v.names) for views in load.asked[:3]}) == 3 and len(names) == 4
    outcome, events = run(refine_result(refine(result, tmp_path / "out", resume=True)))
    assert len(load.asked) == 4 and any(e.note == "taken from the unfinished run" for e in events)
    told = outcome.report["refine"]
    assert told["judged_by"] == "left_out" and told["left_out"]["before"]["n"] == 3 and told["holdout"] is None
    psnr = {name: quality["psnr"] for name, quality in told["left_out"].items()}
    assert told["kept"] == ("refined" if psnr["after"] - max(psnr["before"], psnr["control"]) >= 0.05 else "unrefined")
    assert not any("Nothing was held out" in w for w in outcome.report["warnings"])


def test_bad_input_is_told_in_a_sentence(held_out, tmp_path):
    def told(wanted: commands.Refine) -> str:
        with pytest.raises(InputError) as error:
            run(refine_result(wanted))
        assert not list(tmp_path.glob("out*"))
        return str(error.value)

    out = tmp_path / "out"
    for strength in (math.nan, math.inf, -0.1, 1.1):
        assert "--strength" in told(refine(held_out, out, strength=strength))
    assert "--with steps has none" in told(refine(held_out, out, way="steps", strength=0.5))
    assert "--with multiview takes none" in told(refine(held_out, out, prompt="a ball"))
    assert "control character" in told(refine(held_out, out, way="volume", prompt="a\x07ball"))
    assert "a whole scene, and generators know single objects alone" in told(
        refine(made_from_photos(tmp_path / "whole", 4, 4, masked=False), out)
    )
    assert "2 photos, too few to judge" in told(refine(made_from_photos(tmp_path / "two", 2, 0), out))
    report = json.loads((held_out / "report.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "report.json").write_text(json.dumps(report | {"command": "image"}))
    (copy / "config.json").write_text("{}")
    (copy / "state").mkdir()
    for way in ("multiview", "volume"):
        assert "nothing would tell whether" in told(refine(copy, out, way=way))
    (copy / "report.json").write_text(json.dumps(report | {"command": "text"}))
    assert "was made by the text command" in told(refine(copy, out))
