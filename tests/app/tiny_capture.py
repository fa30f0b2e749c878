"""Eight posed 64 x 48 photos, 15 degrees apart, of a ball of coloured blobs: cheap enough for whole runs of the job."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from recon.poses.from_file import write_transforms
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.io.images import save_image
from splat.render import RenderOptions, render

ROOT = Path(__file__).parents[2]
QUICK = ["--preset", "draft", "--steps", "150", "--max-side", "64", "--threads", "1"]  # options of a run of a few seconds


@dataclass(frozen=True)
class Capture:
    photos: Path  # folder
    poses: Path  # transforms.json
    cameras: Cameras


def make_capture(folder: Path) -> Capture:
    photos = folder / "photos"
    photos.mkdir()
    g = torch.Generator().manual_seed(3)
    n = 900
    splats = Splats(
        means=0.5 * torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1),
        quats=torch.randn(n, 4, generator=g),
        log_scales=torch.full((n, 3), -3.0),
        opacity_logits=torch.full((n,), 5.0),
        sh=torch.randn(n, 1, 3, generator=g),
    )
    cameras = Cameras.cat([Cameras.orbit(1, 2.0, 20.0, 45.0, 64, 48, azimuth_deg=15.0 * i) for i in range(8)])
    with torch.no_grad():
        images = render(splats, cameras, RenderOptions(background=torch.ones(3)), "reference").rgb
    names = [f"photo_{i}.png" for i in range(8)]
    for name, image in zip(names, images):
        save_image(photos / name, image)
    write_transforms(folder / "transforms.json", [cameras], names)
    return Capture(photos, folder / "transforms.json", cameras)


def photos_command(capture: Capture, out: Path, *more: object) -> list[str]:
    """A run on the capture as the words of a real process."""
    words = ["photos", capture.photos, "--poses", capture.poses, "--out", out, *QUICK, *more]
    return [sys.executable, "-m", "app", *map(str, words)]
