"""A tiny posed capture, cheap enough for whole runs of the job."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from recon.poses.from_file import write_transforms
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.io.images import save_image
from splat.render import RenderOptions, render

ROOT = Path(__file__).parents[2]
QUICK = ["--preset", "draft", "--steps", "60", "--max-side", "64", "--threads", "1"]  # options of a run of a few seconds


@dataclass(frozen=True)
class Capture:
    photos: Path  # folder
    poses: Path  # transforms.json
    cameras: Cameras


@pytest.fixture(scope="session")
def capture(tmp_path_factory) -> Capture:
    """Eight 64 x 48 photos round a ball of coloured blobs."""
    folder = tmp_path_factory.mktemp("capture")
    photos = folder / "photos"
    photos.mkdir()
    g = torch.Generator().manual_seed(3)
    n = 150
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    splats = Splats(
        means=0.5 * directions,
        quats=torch.randn(n, 4, generator=g),
        log_scales=torch.full((n, 3), -2.6),
        opacity_logits=torch.full((n,), 3.0),
        sh=torch.randn(n, 1, 3, generator=g),
    )
    cameras = Cameras.orbit(8, 2.0, 20.0, 45.0, 64, 48)
    with torch.no_grad():
        images = render(splats, cameras, RenderOptions(background=torch.ones(3)), "reference").rgb
    names = [f"photo_{i}.png" for i in range(8)]
    for name, image in zip(names, images):
        save_image(photos / name, image)
    write_transforms(folder / "transforms.json", [cameras], names)
    return Capture(photos, folder / "transforms.json", cameras)


def command(*words: object) -> list[str]:
    """The command line of a real process."""
    return [sys.executable, "-m", "app", *map(str, words)]


def photos_command(capture: Capture, out: Path, *more: object) -> list[str]:
    return command("photos", capture.photos, "--poses", capture.poses, "--out", out, *QUICK, *more)


@pytest.fixture(scope="session")
def result(capture, tmp_path_factory) -> Path:
    """The result of an undisturbed run, with two photos held out."""
    out = tmp_path_factory.mktemp("result") / "scene"
    done = subprocess.run(
        photos_command(capture, out, "--holdout", 4, "--json", "--colmap-out"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (out.parent / "events.jsonl").write_text(done.stdout)
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "done"
    return out
