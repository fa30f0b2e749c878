"""The text command around stand-in networks: what it writes, refuses, repeats, continues and says."""

import io
import json
import resource
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from text_stand_in import StandIn
from tiny_capture import ROOT

from app import __main__ as entry
from app import commands, text_pipeline
from app.presets import TEXT_PRESETS, TextPreset
from app.report import read_report
from app.scenes import load_scene, read_cameras
from app.text_pipeline import candidate_seeds, plan_text, text_to_scenes
from splat.errors import InputError, StoppedLate
from splat.io.images import read_image
from splat.io.meshes import load_mesh

TINY = TextPreset(
    candidates=3,
    steps=2,
    mesh_views=16,
    mesh_side=64,
    mesh_resolution=32,
    mesh_faces=2000,
    turntable_side=48,
    turntable_frames=4,
)
FILES = {"scene.ply", "mesh.glb", "turntable.mp4", "preview.png", "cameras.json", "report.json", "config.json", "state"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(TEXT_PRESETS, "draft", TINY)


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    generator = StandIn()
    monkeypatch.setattr(text_pipeline, "load_generator", lambda folder, device: generator)
    return generator


def splatsmith(*words: object) -> int:
    return entry.main(["text", *map(str, words), "--preset", "draft", "--threads", "1"])


def options(*sentences: str, **more) -> commands.Text:
    return commands.Text(sentences=sentences, preset="draft", threads=1, **more)


def process_words(out: Path) -> list[str]:
    """Two objects, as the words of a real process."""
    words = [sys.executable, Path(__file__).with_name("text_stand_in.py"), "text", "a red table", "a blue table", "--out", out]
    return [*map(str, words), "--preset", "draft", "--threads", "1"]


def finished(job, until: str = ""):
    """Run `job` to its end, or to the first event of the stage `until`, and close it there; returns its result."""
    try:
        while True:
            if next(job).stage == until:
                job.close()
                return None
    except StopIteration as end:
        return end.value


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, StandIn, list[dict]]:
    """Two variations of one prompt, made once: the folder, the generator and the events."""
    out, generator, heard = tmp_path_factory.mktemp("text") / "R", StandIn(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(heard):
        patch.setitem(TEXT_PRESETS, "draft", TINY)
        patch.setattr(text_pipeline, "load_generator", lambda folder, device: generator)
        assert splatsmith("a red table", "--out", out, "--variations", 2, "--json") == 0
    return out, generator, [json.loads(line) for line in heard.getvalue().splitlines()]


def test_a_result_folder_for_each_seed_and_nothing_else(made):
    out, _, _ = made
    assert {p.name for p in out.iterdir()} == {"a-red-table-0", "a-red-table-1"}
    for folder in out.iterdir():
        assert {p.name for p in folder.iterdir()} == FILES
        report = read_report(folder)
        assert report["command"] == "text" and report["status"] == "done" and report["scale"] == "arbitrary"
        assert report["seed"] == int(folder.name[-1]) and report["inputs"][0]["name"] == "a red table"
        assert [(w["name"], w["licence"]) for w in report["licences"]] == [
            ("Stand-in", "CC0-1.0"),
            ("all-MiniLM-L6-v2 text encoder", "Apache-2.0"),
        ]
        assert report["gaussians"] == len(load_scene(folder)) and report["mesh_faces"] == len(
            load_mesh(folder / "mesh.glb").faces
        )
        assert {"rank", "mesh", "turntable", "files"} <= {s["name"] for s in report["stages"]}
        assert report["warnings"] == []
        config = json.loads((folder / "config.json").read_text())
        assert config["text"]["prompt"] == "a red table" and config["sample"]["steps"] == 2


def test_the_best_candidate_is_kept(made):
    out, generator, _ = made
    text = read_report(out / "a-red-table-0")["text"]
    assert [c["seed"] for c in text["candidates"]] == [seed for _, seed in generator.made[:3]] == list(candidate_seeds(0, 3))
    totals = [c["total"] for c in text["candidates"]]
    assert text["kept"] == totals.index(max(totals)) and len(set(totals)) == 3


def test_gaussians_are_as_wide_as_training_drew_them(made, stand_in, tmp_path):
    out, _, _ = made
    stand_in.blur = 0.02
    assert splatsmith("a red table", "--out", tmp_path / "R") == 0
    plain, wide = (load_scene(path / "a-red-table-0") for path in (out, tmp_path / "R"))
    torch.testing.assert_close(wide.scales, (plain.scales**2 + 0.02**2).sqrt(), rtol=1e-4, atol=1e-6)


def test_neighbouring_seeds_share_no_candidate():
    seeds = [candidate_seeds(seed, 16) for seed in range(100)]
    assert len({s for row in seeds for s in row}) == 1600
    assert all(row[0] == i for i, row in enumerate(seeds))
    assert candidate_seeds(7, 4) == candidate_seeds(7, 16)[:4]
    assert all(0 <= s < 2**31 for s in candidate_seeds(2**31 - 1, 256))


def test_the_pictures_show_the_object_and_the_mesh_agrees_with_the_splats(made):
    folder = made[0] / "a-red-table-0"
    image, _, _ = read_image(folder / "preview.png", max_pixels=10**7)
    red = (image[..., 0] > 0.6) & (image[..., 1] < 0.4)
    rows = red.any(1).nonzero().squeeze(1)
    assert (rows.diff() > 20).sum() >= 1  # two rows of pictures: splats above, mesh below
    mesh, splats = load_mesh(folder / "mesh.glb"), load_scene(folder)
    assert torch.allclose(mesh.vertices.amin(0), splats.means.amin(0), atol=0.1)  # some pixels of the pictures of 64
    assert torch.allclose(mesh.vertices.amax(0), splats.means.amax(0), atol=0.1)
    colour = mesh.colors.median(0).values
    assert colour[0] > 0.6 and colour[1] < 0.3


def test_the_cameras_look_at_the_object(made):
    (cameras,) = read_cameras(made[0] / "a-red-table-0" / "cameras.json", 64)
    pixels, depth = cameras.project(torch.zeros(1, 3))
    assert len(cameras) == 14 and bool((depth > 1).all())
    assert torch.allclose(pixels, torch.full_like(pixels, TINY.turntable_side / 2), atol=0.1)


def test_the_other_commands_take_the_result(made, tmp_path):
    folder = made[0] / "a-red-table-0"
    for words in (
        ["render", folder, "--to", tmp_path / "x.png", "--side", "64"],
        ["export", folder, "--to", tmp_path / "x.obj"],
    ):
        assert entry.main([*map(str, words), "--quiet"]) == 0
    image, _, _ = read_image(tmp_path / "x.png", max_pixels=10**6)
    assert 0.02 < float(((image[..., 0] > 0.6) & (image[..., 1] < 0.4)).float().mean()) < 0.8
    assert len(load_mesh(tmp_path / "x.obj").faces) == read_report(folder)["mesh_faces"]


def test_the_events_tell_the_estimate_first_and_every_stage(made):
    _, _, events = made
    progress = [e for e in events if e["event"] == "progress"]
    assert progress[0]["stage"] == "estimate" and progress[0]["values"]["seconds"] > 0
    assert "2 objects" in progress[0]["note"]
    stages = list(dict.fromkeys(e["stage"] for e in progress))
    assert stages == ["estimate", "model", "object", "shape", "rank", "mesh", "turntable", "files"]
    end = events[-1]
    assert end["event"] == "done" and [r["skipped"] for r in end["results"]] == [False, False] and end["failed"] == []
    assert end["results"][1]["report"]["seed"] == 1


def test_previews_come_with_the_stages(stand_in, tmp_path):
    shown = {e.stage for e in text_to_scenes(options("a red table", out=tmp_path / "R")) if e.preview is not None}
    assert {"shape", "rank", "turntable"} <= shown


def test_same_prompt_and_seed_same_bytes_alone_or_among_others(made, stand_in, tmp_path):
    out, _, _ = made
    assert splatsmith("a blue table", "a red table", "--seed", 1, "--out", tmp_path / "R") == 0
    assert (tmp_path / "R" / "a-red-table-1" / "scene.ply").read_bytes() == (out / "a-red-table-1" / "scene.ply").read_bytes()
    assert (tmp_path / "R" / "a-blue-table-1" / "scene.ply").read_bytes() != (out / "a-red-table-1" / "scene.ply").read_bytes()
    assert (out / "a-red-table-0" / "scene.ply").read_bytes() != (out / "a-red-table-1" / "scene.ply").read_bytes()


def test_options_reach_the_generator(stand_in, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(text_pipeline, "load_generator", lambda folder, device: asked.append((folder, device)) or stand_in)
    words = ["--candidates", 1, "--steps", 5, "--guidance", 3.5, "--weights", "some/folder", "--seed", 9, "--device", "cpu"]
    assert splatsmith("a table", "--out", tmp_path / "R", *words) == 0
    assert asked == [(Path("some/folder"), "cpu")] and stand_in.made == [("a table", 9)]
    (config,) = stand_in.configs
    assert (config.steps, config.guidance, config.threads) == (5, 3.5, 1)


def test_a_complete_result_is_refused_skipped_or_replaced(stand_in, tmp_path, capsys):
    out = tmp_path / "R"
    assert splatsmith("a red table", "--out", out) == 0
    stamp = (out / "a-red-table-0" / "report.json").stat().st_mtime_ns
    capsys.readouterr()
    assert splatsmith("a blue table", "a red table", "--out", out) == 2
    assert "--overwrite" in capsys.readouterr().err and len(list(out.iterdir())) == 1
    assert splatsmith("a blue table", "a red table", "--out", out, "--resume") == 0
    assert "1 result of 2 complete already" in capsys.readouterr().err
    assert {p.name for p in out.iterdir()} == {"a-red-table-0", "a-blue-table-0"}
    assert (out / "a-red-table-0" / "report.json").stat().st_mtime_ns == stamp
    asked = len(stand_in.made)
    assert splatsmith("a red table", "--out", out, "--resume") == 0 and len(stand_in.made) == asked
    assert splatsmith("a red table", "--out", out, "--overwrite", "--compact") == 0
    assert (out / "a-red-table-0" / "report.json").stat().st_mtime_ns != stamp
    assert not (out / "a-red-table-0" / "state").exists()


@pytest.mark.parametrize("stage", ["shape", "rank", "mesh", "turntable", "files"])
def test_stopped_at_any_stage_and_continued_gives_the_same_bytes(made, stand_in, tmp_path, stage):
    out = tmp_path / "R"
    finished(text_to_scenes(options("a red table", out=out)), until=stage)
    assert {p.name for p in out.iterdir()} == {"a-red-table-0.partial"}
    made_before = len(stand_in.made)
    batch = finished(text_to_scenes(options("a red table", out=out, resume=True)))
    assert (len(stand_in.made) == made_before) == (stage not in ("shape", "rank"))  # the volume was kept
    assert [o.skipped for o in batch.outcomes] == [False]
    assert {p.name for p in out.iterdir()} == {"a-red-table-0"}
    assert (out / "a-red-table-0" / "scene.ply").read_bytes() == (made[0] / "a-red-table-0" / "scene.ply").read_bytes()


def test_continuing_another_job_is_refused(stand_in, tmp_path):
    finished(text_to_scenes(options("a red table", out=tmp_path / "R")), until="mesh")
    with pytest.raises(InputError, match="other steps"):
        finished(text_to_scenes(options("a red table", out=tmp_path / "R", steps=7, resume=True)))


def test_an_object_is_not_continued_with_weights_that_were_trained_further(stand_in, tmp_path):
    weights, out = tmp_path / "w", tmp_path / "R"
    weights.mkdir()
    (weights / "weights.json").write_text('{"files": {"a": "1"}}')
    finished(text_to_scenes(options("a red table", out=out, weights=weights)), until="mesh")
    (weights / "weights.json").write_text('{"files": {"a": "2"}}')
    with pytest.raises(InputError, match="belongs to a run with other weights; run with the same"):
        finished(text_to_scenes(options("a red table", out=out, weights=weights, resume=True)))
    (weights / "weights.json").write_text('{"files": {"a": "1"}}')
    job = text_to_scenes(options("a red table", out=out, weights=weights, resume=True))
    finished(job, until="mesh")
    assert len(stand_in.made) == TINY.candidates  # those of the first run: it went on


def test_an_object_that_fails_does_not_stop_the_others(stand_in, tmp_path, capsys):
    out = tmp_path / "R"
    assert splatsmith("a red table", "nothing", "it fails", "a blue table", "--out", out, "--json") == 3
    told = capsys.readouterr()
    assert {p.name for p in out.iterdir()} == {"a-red-table-0", "a-blue-table-0", "nothing-0.partial", "it-fails-0.partial"}
    assert (
        "nothing-0 is missing: Nothing that can be seen" in told.err
        and "it-fails-0 is missing: The machine ran out" in told.err
    )
    end = json.loads(told.out.splitlines()[-1])
    assert [Path(f["out"]).name for f in end["failed"]] == ["nothing-0", "it-fails-0"] and len(end["results"]) == 2
    assert splatsmith("nothing", "--out", tmp_path / "S") == 4
    assert "other words" in capsys.readouterr().err
    with pytest.raises(StoppedLate, match="None of 2 objects"):
        finished(text_to_scenes(options("nothing", "it fails", out=tmp_path / "T")))


def test_a_full_disk_stops_everything(stand_in, tmp_path, monkeypatch, capsys):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(text_pipeline, "write_atomic", full)
    assert splatsmith("a red table", "a blue table", "--out", tmp_path / "R") == 4
    assert "disk is full" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "R").iterdir()] == ["a-red-table-0.partial"]


def test_a_disk_that_fills_up_in_a_process_is_one_sentence(tmp_path):
    """A limit on the size of files stands in for a full disk; the volume is the first file that is larger."""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [*process_words(tmp_path / "R"), "--quiet"], cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files
    )
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    assert "volume.safetensors" in done.stderr.strip().splitlines()[-1]
    assert [p.name for p in (tmp_path / "R").iterdir()] == ["a-red-table-0.partial"]


def test_prompts_from_a_file_and_prompts_given_twice(stand_in, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("# two\na red table\n\na blue table\n")
    out = tmp_path / "R"
    assert splatsmith("A red table", "--prompts", file, "--candidates", 1, "--out", out) == 0
    assert stand_in.made == [("A red table", 0), ("a blue table", 0)]
    assert "more than once" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["🪑", "红色的椅子", "una mesa roja", "../../escape", "word " * 2000, "a red dragon"])
def test_prompts_out_of_the_ordinary_are_made_with_a_warning(stand_in, tmp_path, prompt):
    """Warned of: what names no thing, what is too long, what is unknown. Never a path."""
    batch = finished(text_to_scenes(options(prompt, out=tmp_path / "R", candidates=1)))
    (outcome,) = batch.outcomes
    assert outcome.out.parent == tmp_path / "R" and [p.name for p in tmp_path.iterdir()] == ["R"]
    expected = {"🪑": "names no thing", "word " * 2000: "2002 tokens", "a red dragon": "not trained on anything like"}
    warnings = outcome.report["warnings"]
    assert len(warnings) == (prompt in expected) and expected.get(prompt, "") in "".join(warnings)


def test_a_warning_is_said_once_for_all_variations(stand_in, tmp_path, capsys):
    assert splatsmith("a red dragon", "--variations", 2, "--candidates", 1, "--out", tmp_path / "R") == 0
    assert capsys.readouterr().err.count("not trained on anything like") == 1
    for seed in range(2):
        assert len(read_report(tmp_path / "R" / f"a-red-dragon-{seed}")["warnings"]) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no prompt"), ([""], "is empty"), (["a \x07 table"], "U+0007"), (["x" * 30_000], "30,000 characters"),
        (["x", "--variations", "0"], "--variations 0"), (["x", "--candidates", "0"], "--candidates 0"),
        (["x", "--candidates", "1000"], "1 to 256"), (["x", "--steps", "0"], "--steps 0"),
        (["x", "--guidance", "nan"], "--guidance nan"), (["x", "--guidance", "-1"], "--guidance -1"),
        (["x", "--seed", "-1"], "--seed -1"), (["x", "--seed", "2147483647", "--variations", "2"], "0 to 2147483646"),
        (["x", "--memory-budget", "lots"], "'lots'"), (["x", "--memory-budget", "800MB"], "800MB"),
        (["x", "--background", "pink"], "pink"), (["x", "--threads", "0"], "--threads 0"),
        (["x", "--prompts", "missing.txt"], "missing.txt"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_is_one_sentence_and_nothing_is_written(stand_in, tmp_path, capsys, words, told):
    assert entry.main(["text", *words, "--out", str(tmp_path / "deep" / "R"), "--quiet"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and told in errors[0] and errors[0].endswith(".")
    assert not list(tmp_path.iterdir()) and not stand_in.made


def test_weights_that_do_not_load_are_one_sentence_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    def refuses(folder, device):
        raise InputError(f"{folder} holds no whole weights.")

    monkeypatch.setattr(text_pipeline, "load_generator", refuses)
    assert splatsmith("a chair", "--weights", tmp_path / "w", "--out", tmp_path / "R") == 2
    assert "holds no whole weights." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_out_that_is_a_result_or_a_file_is_refused(made, stand_in, tmp_path, capsys):
    folder = made[0] / "a-red-table-0"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert splatsmith("a chair", "--out", folder, "--overwrite") == 2
    assert "is a result itself" in capsys.readouterr().err
    assert splatsmith("a chair", "--out", folder / "scene.ply") == 2
    assert "is a file" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_the_estimate_grows_with_the_work(tmp_path):
    def estimate(*sentences: str, **more):
        return plan_text(commands.Text(sentences=sentences, out=tmp_path / "R", threads=1, **more)).estimate

    one = estimate("a")
    assert estimate("a", "b").seconds > 1.5 * one.seconds - 10 and estimate("a", "b").memory == one.memory
    (tmp_path / "own" / "denoiser").mkdir(parents=True)
    (tmp_path / "own" / "denoiser" / "weights.safetensors").write_bytes(bytes(10**6))
    assert estimate("a", weights=tmp_path / "own").memory == one.memory + 2 * 10**6
    assert estimate("a", candidates=16).seconds > one.seconds and estimate("a", candidates=16).memory > one.memory
    assert estimate("a", preset="draft").seconds < one.seconds < estimate("a", preset="quality").seconds


@pytest.mark.timeout(900)
def test_a_process_that_is_killed_leaves_nothing_half_written(tmp_path):
    """SIGKILL during the turntable of the second object; then the rest is made, and the first left alone."""
    out = tmp_path / "R"
    words = [*process_words(out), "--json"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        second = False
        for line in process.stdout:
            event = json.loads(line)
            second = second or (event.get("stage") == "object" and event["step"] == 2)
            if second and event.get("stage") == "turntable":
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert {p.name for p in out.iterdir()} == {"a-red-table-0", "a-blue-table-0.partial"}
    assert read_report(out / "a-red-table-0")["status"] == "done"
    done = subprocess.run([*words, "--resume"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [r["skipped"] for r in json.loads(done.stdout.splitlines()[-1])["results"]] == [True, False]
    assert {p.name for p in out.iterdir()} == {"a-red-table-0", "a-blue-table-0"}


def test_an_interrupt_says_how_to_continue(stand_in, tmp_path, capsys, monkeypatch):
    def interrupted(*words, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(text_pipeline, "write_pictures", interrupted)
    assert splatsmith("a red table", "--out", tmp_path / "R") == 130
    assert "run again with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(text_pipeline, "load_generator", interrupted)
    assert splatsmith("a red table", "--out", tmp_path / "S") == 130
    assert capsys.readouterr().err.strip().endswith("Cancelled.")
