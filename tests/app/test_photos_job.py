"""The photos job as a real process on a tiny capture: what it leaves behind, and that killing it changes nothing."""

import json
import random
import resource
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_capture import QUICK, ROOT, photos_command

from app import __main__ as entry
from app.report import read_report
from recon.poses.from_file import load_poses
from splat.errors import StoppedLate
from splat.io import load
from splat.io.images import save_image
from splat.optimise import FitConfig

SET_BY_THE_JOB = (
    "steps", "checkpoint_every", "sh_degree", "max_gaussians", "memory_budget", "background", "seed", "backend", "threads",
    "exposure",
)  # fmt: skip

pytestmark = pytest.mark.timeout(900)  # whole processes, on machines that may be busy


def run(words: list[str], **more) -> subprocess.CompletedProcess:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280, **more)


def test_the_result_folder_is_complete(result):
    names = {path.name for path in result.iterdir()}
    assert names == {
        "scene.ply", "mesh.glb", "turntable.mp4", "preview.png", "cameras.json", "cameras_holdout.json", "report.json",
        "config.json", "state", "colmap", "next_photo.png",
    }  # fmt: skip
    assert [p.name for p in result.parent.iterdir() if p.name.startswith("scene")] == ["scene"]  # no sibling is left
    report = read_report(result)
    assert [i["holdout"] for i in report["inputs"]] == [i % 4 == 0 for i in range(8)]
    assert all(i["placed"] for i in report["inputs"])
    assert report["metrics"]["train"]["n"] == 6 and report["metrics"]["holdout"]["n"] == 2
    assert report["gaussians"] == len(load(result / "scene.ply"))
    assert {"prior", "fit", "mesh", "turntable"} <= {s["name"] for s in report["stages"]}
    fit = json.loads((result / "config.json").read_text())["fit"]
    assert fit["steps"] == 150
    assert fit["lr_means"] == 4.8e-4 and not fit["refine_poses"], "few photos, whose poses were given"


def test_the_fit_is_plain_where_that_is_asked_for_and_photos_are_few_only_without_those_held_out(capture, tmp_path):
    from app import commands
    from app.pipelines import _fit_config, plan_photos

    def planned(**more):
        options = commands.Photos(
            inputs=(capture.photos,), poses=str(capture.poses), out=tmp_path / "R", preset="draft", threads=1, **more
        )
        plan = plan_photos(options)
        return plan.regularised, _fit_config(plan, plan.photos)

    regularised, config = planned()
    assert regularised and not config.regularise.active, "terms of geometry are for masked photos"
    masked = planned(masks=str(capture_masks(capture, tmp_path)))[1]
    assert masked.regularise.absolute_depth > 0 and masked.regularise.normals > 0
    assert planned(without=("rates",))[1] == replace(
        config, lr_means=FitConfig().lr_means, lr_means_final=FitConfig().lr_means_final
    )
    regularised, config = planned(regularise="none")
    assert not regularised and config == FitConfig.for_photos(8, **{name: getattr(config, name) for name in SET_BY_THE_JOB})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.pipelines.FEW_PHOTOS", 6)
        assert [planned(holdout=n)[0] for n in (0, 4, 8)] == [False, True, False]
        assert planned(regularise="full")[0]


def test_options_that_change_nothing_are_named(capture, tmp_path):
    from app import commands
    from app.pipelines import plan_photos

    def told(without):
        options = commands.Photos(inputs=(capture.photos,), poses=str(capture.poses), out=tmp_path / "R", without=without)
        return [sentence for sentence in plan_photos(options).notices if "changes nothing" in sentence]

    assert told(()) == told(("rates",)) == []
    (sentence,) = told(("depth", "rates", "poses"))
    assert sentence.startswith("--without depth poses changes nothing")


def test_a_scene_is_complete_without_word_of_the_next_photo(capture, tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise StoppedLate("Gaussians are not finite.")
        yield

    monkeypatch.setattr("recon.next_photo.next_photo", stopped)
    out = tmp_path / "R"
    assert entry.main([str(w) for w in photos_command(capture, out, "--steps", "20")[3:]]) == 0
    report = read_report(out)
    assert report["status"] == "done" and report.get("next_photo") is None
    assert any("not known: Gaussians are not finite." in sentence for sentence in report["fallbacks"])


def capture_masks(capture, folder: Path) -> Path:
    """A folder of masks for the photos, white in the middle."""
    masks = folder / "masks"
    masks.mkdir()
    white = torch.zeros(48, 64, 3)
    white[8:40, 12:52] = 1
    for photo in sorted(capture.photos.iterdir()):
        save_image(masks / photo.name, white)
    return masks


def test_the_events_tell_estimate_progress_and_end(result):
    events = [json.loads(line) for line in (result.parent / "events.jsonl").read_text().splitlines()]
    assert next(e["stage"] for e in events if e["event"] == "progress") in ("estimate", "notice")
    estimate = next(e for e in events if e.get("stage") == "estimate")
    assert estimate["values"]["seconds"] > 0 and estimate["values"]["memory"] > 1e8
    fit = [e for e in events if e.get("stage") == "fit"]
    assert fit[-1]["step"] == fit[-1]["total"] == 150 and fit[-1]["values"]["psnr"] > 5
    assert events[-1]["report"]["status"] == "done"


def test_cameras_lie_where_the_given_poses_say_after_the_similarity(result, capture):
    from app.scenes import read_cameras
    from splat.similarity import Similarity

    report = read_report(result)
    similarity = Similarity.from_matrix(torch.tensor(report["result_from_input"], dtype=torch.float64))
    expected = capture.cameras[[1, 2, 3, 5, 6, 7]].transformed(similarity)
    (found,) = read_cameras(result / "cameras.json", 64)
    assert torch.allclose(found.cam_from_world, expected.cam_from_world, atol=1e-3)


def test_the_colmap_model_reads_back_as_poses(result):
    from recon.photos import PhotoConfig, read_photos

    photos = read_photos([result / "colmap" / "images"], PhotoConfig()).photos
    poses = load_poses(result / "colmap", photos)
    assert len(poses.placed) == 6


def test_same_inputs_same_bytes_and_a_kill_at_any_moment_changes_nothing(result, capture, tmp_path):
    _kill_and_resume(result, capture, tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_change_nothing(result, capture, tmp_path):
    _kill_and_resume(result, capture, tmp_path, kills=20, seed=2)


def _kill_and_resume(result: Path, capture, folder: Path, kills: int, seed: int) -> None:
    """Kill runs at random moments, resume each until it is complete; the scene is that of the undisturbed run."""
    dice = random.Random(seed)
    report = read_report(result)
    whole = sum(stage["seconds"] for stage in report["stages"]) + 4.0  # imports and reading
    out, killed = folder / "scene", 0
    words = photos_command(capture, out, "--holdout", 4, "--quiet", "--resume")
    while killed < kills:
        process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            process.wait(timeout=dice.uniform(0.3, whole))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        assert process.wait() in (0, -signal.SIGKILL), process.communicate()[1]
        process.communicate()
        if out.exists():
            assert read_report(out)["status"] == "done"  # complete or not there
            _same_scene(out, result)
            for path in sorted(out.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            out.rmdir()
    done = run(words)
    assert done.returncode == 0, done.stderr
    _same_scene(out, result)


def _same_scene(out: Path, result: Path) -> None:
    assert (out / "scene.ply").read_bytes() == (result / "scene.ply").read_bytes()


def test_an_interrupt_leaves_a_resumable_state_and_130(capture, tmp_path, capsys):
    out = tmp_path / "scene"
    words = photos_command(capture, out, "--json")
    # A suite started in the background ignores Ctrl-C, and its children would inherit that; a handler is not inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        for line in process.stdout:
            if json.loads(line).get("stage") == "fit":
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "Cancelled; run again with --resume to continue."
    assert not out.exists() and (tmp_path / "scene.partial" / "state" / "reconstruction.safetensors").is_file()
    words = [*words[words.index("photos") :], "--resume"]
    assert entry.main([*words, "--seed", "5"]) == 2
    assert "other seed" in capsys.readouterr().err
    assert entry.main(words) == 0
    assert "taken from the unfinished run" in capsys.readouterr().out
    assert not (tmp_path / "scene.partial").exists()


def test_a_full_disk_is_one_sentence_with_status_4(capture, tmp_path):
    """A limit on the size of files stands in for a full disk: writing fails in the middle of the job."""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    out = tmp_path / "scene"
    done = run(photos_command(capture, out), preexec_fn=small_files)
    assert done.returncode == 4, done.stderr
    assert "--resume" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not out.exists() and (tmp_path / "scene.partial").is_dir()


def test_a_disk_that_is_nearly_full_is_found_before_work(capture, tmp_path, monkeypatch, capsys):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("app.jobs.shutil.disk_usage", lambda path: usage._replace(free=1_000_000))
    status = entry.main(["photos", str(capture.photos), "--poses", str(capture.poses), "--out", str(tmp_path / "R"), *QUICK])
    assert status == 2 and "1 MB free" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_complete_result_is_refused_or_skipped(result, capture, capsys):
    before = (result / "report.json").stat().st_mtime_ns
    words = ["photos", str(capture.photos), "--poses", str(capture.poses), "--out", str(result), *QUICK, "--holdout", "4"]
    assert entry.main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert entry.main([*words, "--resume"]) == 0
    assert (result / "report.json").stat().st_mtime_ns == before
