"""splatsmith render --enhance, and which repairer is chosen: small random checkpoints, and folders that will not do."""

import dataclasses
import functools
import shutil

import pytest
import torch
from tiny_stable_diffusion import save_tiny_stable_diffusion, save_tiny_video_network

from app import __main__ as entry
from app.enhance import photos_of
from app.repairers import check_lora, chosen_repairer, cost_of, with_scene_lora
from app.report import read_report
from splat.errors import InputError
from splat.repair_request import RepairRequest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_stable_diffusion(tmp_path_factory.mktemp("checkpoints") / "sd15")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return save_tiny_video_network(tmp_path_factory.mktemp("checkpoints") / "zeroscope")


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """These networks need no pictures of 512 px."""
    import diffusion.sd_repair
    import diffusion.video_repair

    for module, name in ((diffusion.sd_repair, "SdRepairConfig"), (diffusion.video_repair, "VideoRepairConfig")):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), least_side=16))


def render(scene, to, *more):
    return entry.main(["render", *map(str, (scene, "--to", to, "--side", 48, "--frames", 4, "--threads", 1, *more))])


def frames_of(path):
    import av

    with av.open(str(path)) as container:
        return [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_a_video_is_enhanced_by_stable_diffusion(result, checkpoint, tmp_path, capsys):
    assert render(result, tmp_path / "plain.mp4", "--quiet") == 0
    assert render(result, tmp_path / "new.mp4", "--enhance", "--repairer", checkpoint, "--prompt", "a chair") == 0
    said = capsys.readouterr()
    told = said.out + said.err
    assert "creativeml-openrail-m" in told and "Repair of 4 frames: about" in told and "Flicker along surfaces" in told
    plain, new = frames_of(tmp_path / "plain.mp4"), frames_of(tmp_path / "new.mp4")
    assert len(new) == len(plain) == 4 and new[0].shape == plain[0].shape
    assert float((new[0].float() - plain[0].float()).abs().mean()) > 0.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.mp4", "plain.mp4"]


def test_a_video_network_is_told_by_its_unet(result, video, tmp_path, capsys):
    assert render(result / "scene.ply", tmp_path / "new.mp4", "--enhance", "--repairer", video) == 0
    assert "CC BY-NC 4.0" in "".join(capsys.readouterr()) and len(frames_of(tmp_path / "new.mp4")) == 4
    with pytest.raises(InputError, match="use it with render --enhance"):
        chosen_repairer(str(video))


def test_photos_are_at_hand_while_the_result_has_its_state(result, tmp_path):
    views = photos_of(result)
    placed = sum(row["placed"] for row in read_report(result)["inputs"])
    assert 0 < sum(len(v) for v in views) <= placed and all(v.cameras is not None for v in views)
    compact = shutil.copytree(result, tmp_path / "compact", ignore=shutil.ignore_patterns("state"))
    assert photos_of(compact) == [] and photos_of(result / "scene.ply") == []


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["new.png", "--enhance"], "render to an .mp4"),
        (["new.mp4", "--repairer", "small"], "give --enhance"),
        (["new.mp4", "--prompt", "a chair"], "give --enhance"),
        (["new.mp4", "--enhance", "--repairer", "nowhere"], "neither small nor a folder"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(result, tmp_path, capsys, words, sentence):
    assert render(result, tmp_path / words[0], *words[1:]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and "\n" not in said
    assert not list(tmp_path.iterdir())


def no_pickles(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (no_pickles, "no .safetensors"),
        (lambda f: shutil.rmtree(f / "controlnet"), "lacks controlnet"),
        (lambda f: (f / "unet" / "config.json").write_text('{"_class_name": "VQModel"}'), "holds a VQModel"),
        (lambda f: (f / "weights.json").write_text("{}"), "weights"),
    ],
    ids=["pickle", "no ControlNet", "another class", "broken weights of ours"],
)
def test_folders_that_will_not_do_are_refused_before_a_frame_is_drawn(result, checkpoint, tmp_path, capsys, spoil, sentence):
    folder = shutil.copytree(checkpoint, tmp_path / "sd")
    spoil(folder)
    assert render(result, tmp_path / "new.mp4", "--enhance", "--repairer", folder) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and "\n" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["sd"]


def test_a_scenes_lora_is_trained_once_and_kept(checkpoint, tmp_path):
    chosen = chosen_repairer(str(checkpoint))
    photos = [torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    renders = [0.5 * p for p in photos]

    def tuned():
        job, events = with_scene_lora(chosen, renders, photos, 2, 0, tmp_path / "lora.safetensors"), []
        while True:
            try:
                events.append(next(job))
            except StopIteration as end:
                return end.value, events

    first, events = tuned()
    assert [e.stage for e in events] == ["lora"] * 3 and (tmp_path / "lora.safetensors").is_file()
    again, events = tuned()
    assert not events
    rows = torch.zeros(1, 0, 16, 16)
    flat = torch.ones(1, 16, 16)
    request = RepairRequest(photos[0][None], flat, 0 * flat, torch.zeros(1, 0, 16, 16, 3), rows)
    assert torch.equal(first.repair(request), again.repair(request))
    assert not torch.equal(first.repair(request), chosen.repair(request))


def test_a_lora_needs_stable_diffusion_and_photos_that_it_did_not_learn(checkpoint):
    chosen = chosen_repairer(str(checkpoint))
    check_lora(chosen, 600, heldout=True)
    check_lora(chosen, 0, heldout=False)
    ours = dataclasses.replace(chosen, kind="small", name="small")
    for repairer, steps, heldout, words in (
        (chosen, 600, False, "only held-out ones"),
        (chosen, -1, True, "out of range"),
        (ours, 600, True, "needs a checkpoint of Stable Diffusion"),
    ):
        with pytest.raises(InputError, match=words):
            check_lora(repairer, steps, heldout)
    cheap, dear = cost_of(chosen, 10, (640, 480)), cost_of(chosen, 10, (640, 480), lora_steps=600)
    assert dear.seconds > cheap.seconds and dear.memory > cheap.memory


@pytest.mark.slow
def test_a_result_is_refined_by_stable_diffusion_with_a_lora(result, checkpoint, tmp_path, capsys):
    words = ("--with", "repair", "--repairer", checkpoint, "--lora-steps", 3, "--prompt", "a chair")
    common = ("--preset", "draft", "--steps", 6, "--threads", 1, "--quiet", "--memory-budget")
    assert entry.main(["refine", *map(str, (result, "--out", tmp_path / "better", *words, *common, "2GB"))]) == 2
    assert "too small for sd15 and the photos" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert entry.main(["refine", *map(str, (result, "--out", tmp_path / "better", *words, *common, "8GB"))]) == 0
    report = read_report(tmp_path / "better")
    told = report["refine"]
    assert (told["way"], told["judged_by"], told["repairer"]) == ("repair", "holdout", str(checkpoint))
    assert told["kept"] == "unrefined", "a random network mends nothing"
    assert (tmp_path / "better" / "scene.ply").read_bytes() == (result / "scene.ply").read_bytes()
    assert (tmp_path / "better" / "state" / "lora.safetensors").is_file()
