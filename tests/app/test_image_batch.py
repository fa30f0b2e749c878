"""The image job in a batch: a stand-in network in worker processes, bad pictures among good ones, shares of the machine."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import image_stand_in
import psutil
import pytest
import torch

from app import commands
from app.batch import read_batch
from app.cli import BAD_INPUT, CANCELLED, DONE, PARTIAL, run
from app.image_batch import MakeImages, _estimated, _on_machine, image_batch, makes_batch
from app.image_pipeline import plan_images
from app.presets import IMAGE_PRESETS, ImagePreset
from app.result_folder import is_complete
from splat.errors import InputError
from splat.io.images import save_image

ROOT = Path(__file__).parents[2]
TINY = ImagePreset(
    steps=2,
    refine_steps=5,
    refine_side=32,
    max_gaussians=1000,
    mesh_resolution=16,
    mesh_faces=500,
    turntable_side=32,
    turntable_frames=3,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(IMAGE_PRESETS, "draft", TINY)
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "none"))


def write_pictures(folder: Path, count: int, bad: tuple[int, ...] = ()) -> Path:
    """Discs of different colours; those in `bad` are cut off in the middle of the file, or no pictures at all."""
    folder.mkdir()
    rows, columns = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(40) - 19.5, indexing="ij")
    disc = (rows**2 + columns**2 < 15**2).float()[..., None]
    for i in range(count):
        colour = torch.rand(3, generator=torch.Generator().manual_seed(i)) * 0.6 + 0.2
        save_image(folder / f"p{i:03}.png", torch.cat([colour.expand(40, 40, 3), disc], dim=-1))
    for i in bad:
        data = (folder / f"p{i:03}.png").read_bytes()
        (folder / f"p{i:03}.png").write_bytes(data[: len(data) // 2] if i % 2 else b"no picture")
    return folder


def options(*inputs: Path, **more) -> commands.Image:
    return commands.Image(**{"inputs": inputs, "preset": "draft", "threads": 1, **more})


def finished(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def test_a_folder_with_a_bad_picture_gives_the_rest(tmp_path, monkeypatch, capsys):
    folder, out = write_pictures(tmp_path / "in", 3, bad=(1,)), tmp_path / "R"
    monkeypatch.setattr("app.image_pipeline.load_generator", image_stand_in.load)
    assert run(options(folder, out=out, quiet=True)) == PARTIAL
    assert capsys.readouterr().err.startswith("p001 is missing: p001.png")
    assert {path.name for path in out.iterdir()} == {"p000", "p002", "batch.json", "index.html"}
    assert is_complete(out / "p000") and is_complete(out / "p002")
    written = read_batch(out)
    assert [row["status"] for row in written["items"]] == ["done", "failed", "done"]
    assert written["options"]["preset"] == "draft" and written["options"]["jobs"] == 1 == written["options"]["threads_each"]
    page = (out / "index.html").read_text()
    links = re.findall(r'(?:href|src|poster)="([^"]+)"', page)
    assert len(links) == 2 * 7 and all((out / unquote(link)).is_file() for link in links)

    good = (folder / "p000.png", folder / "p002.png")
    assert run(options(*good, out=out, quiet=True)) == BAD_INPUT and "--resume" in capsys.readouterr().err
    assert run(options(*good, out=out, resume=True)) == DONE and "0 of 2 made, 2 made before" in capsys.readouterr().out
    assert read_batch(out)["status"] == "done" and all(row["seconds"] > 0 for row in read_batch(out)["items"])


def test_when_a_batch_is_made(tmp_path):
    folder = write_pictures(tmp_path / "in", 2)
    one = folder / "p000.png"
    assert makes_batch(options(folder, out=tmp_path / "R")) and makes_batch(options(one, out=tmp_path / "R", jobs=2))
    assert makes_batch(options(one, out=tmp_path / "R", cluster="auto"))
    assert not makes_batch(options(one, out=tmp_path / "R")) and not makes_batch(
        options(folder, out=tmp_path / "R", views=True)
    )


def test_workers_share_threads_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("app.machine.usable_cores", lambda: 7)
    asked = options(write_pictures(tmp_path / "in", 5), out=tmp_path / "R", jobs=3, threads=None, memory_budget="9GB")
    jobs, share, crew = _on_machine(asked, plan_images(asked), image_stand_in.load)
    assert (jobs, share.place.threads, share.sample.threads, crew().threads) == (3, 2, 2, 2)
    assert share.options.memory_budget == "3000MB" and share.items == () and share.options.inputs == ()
    assert crew().prepare == MakeImages(share, image_stand_in.load)
    few = options(tmp_path / "in" / "p000.png", out=tmp_path / "R", jobs=3)
    assert _on_machine(few, plan_images(few), image_stand_in.load)[0] == 1, "no more workers than objects"


@pytest.mark.parametrize(
    "more, told",
    [
        ({"jobs": 0}, "--jobs 0 is out of range"),
        ({"jobs": 4}, r"4 jobs need about 1\.\d GB of memory each.* at most --jobs 2"),
        ({"item_seconds": 0.0}, "--item-seconds 0 is no time"),
    ],
)
def test_bad_options(tmp_path, more, told):
    folder = write_pictures(tmp_path / "in", 4)
    with pytest.raises(InputError, match=told):
        finished(image_batch(options(folder, out=tmp_path / "R", **more), image_stand_in.load))
    assert not (tmp_path / "R").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_100_pictures_with_5_bad_a_killed_worker_and_a_restart(tmp_path):
    """95 results, each made once, and memory flat."""
    bad = (3, 14, 15, 65, 92)
    folder, out = write_pictures(tmp_path / "in", 100, bad), tmp_path / "R"
    job, killed = image_batch(options(folder, out=out, jobs=2), image_stand_in.load), False
    for event in job:
        if event.stage == "batch" and event.step >= 20 and not killed:
            worker = next(p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline()))
            worker.send_signal(signal.SIGKILL)
            killed = True
        if event.stage == "batch" and event.step >= 50:
            break
    job.close()
    made = {path.name: os.stat(path / "report.json").st_mtime_ns for path in out.iterdir() if is_complete(path)}
    first = read_batch(out)
    assert killed and first["status"] == "cancelled" and 40 <= len(made) <= 50

    before = psutil.Process().memory_info().rss / 1e6
    batch = finished(image_batch(options(folder, out=out, jobs=2, resume=True), image_stand_in.load))
    assert psutil.Process().memory_info().rss / 1e6 - before < 20
    assert batch.counts == {"done": 95 - len(made), "skipped": len(made), "failed": 5}
    assert {record.item.name for record in batch.failed} == {f"p{i:03}" for i in bad}
    assert sum(is_complete(path) for path in out.iterdir()) == 95 and not list(out.glob("*.partial"))
    assert all(os.stat(out / name / "report.json").st_mtime_ns == stamp for name, stamp in made.items()), "made twice"
    held = [row["memory_mb"] for row in read_batch(out)["items"] if row["memory_mb"]]
    print("MB of the workers, item by item:", held)
    settled, last = max(held[4:14]), max(held[-10:])
    assert last < 1.1 * settled + 20


@pytest.mark.slow
def test_ctrl_c_and_going_on_from_the_command_line(tmp_path):
    """Networks load in worker processes of the command itself; the terminal's signal reaches all of them."""
    folder, out = write_pictures(tmp_path / "in", 4), tmp_path / "R"
    words = [sys.executable, image_stand_in.__file__, "image", folder, "--out", out, "--preset", "draft", "--jobs", "2"]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell may have it ignored
    )
    try:
        while not any(is_complete(path) for path in out.glob("*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == CANCELLED and told.endswith("Cancelled; run again with --resume to continue.\n"), told
    assert "Traceback" not in told and "about" in told.splitlines()[0]
    counts = read_batch(out)["counts"]
    assert counts["done"] >= 1 and counts["done"] + counts["cancelled"] == 4
    done = subprocess.run(
        [*words, "--resume"], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == DONE, done.stderr
    assert read_batch(out)["counts"] == {"total": 4, "done": 4 - counts["done"], "skipped": counts["done"]}


def test_workers_of_a_cluster_are_machines_of_their_own(tmp_path):
    """Twice the workers there take half of the time; those of one machine share its cores, and all need their memory."""
    plan = plan_images(options(write_pictures(tmp_path / "in", 8), out=tmp_path / "R"))
    told = {(n, far): _estimated(plan, n, far).values for n in (1, 4) for far in (False, True)}
    assert told[4, True]["seconds"] == pytest.approx(told[1, True]["seconds"] / 4)
    assert told[4, False]["seconds"] == told[1, False]["seconds"]
    assert told[4, True]["memory"] == told[4, False]["memory"] == 4 * told[1, False]["memory"]
