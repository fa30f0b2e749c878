"""The bundled photos: what a phone would have written, and true cameras beside them."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from app.demo import example_photos
from splat.cameras import Cameras

EXAMPLE = Path(__file__).parents[1] / "assets" / "example"
TRUTH = json.loads((EXAMPLE / "truth.json").read_text())
PHOTOS = sorted((EXAMPLE / "photos").glob("*.jpg"))


def opened(path: Path) -> Image.Image:
    """Upright, decoded, its file closed."""
    with Image.open(path) as picture:
        return ImageOps.exif_transpose(picture)


def true_camera(frame: dict) -> Cameras:
    K = torch.tensor([[frame["fl_x"], 0, frame["cx"]], [0, frame["fl_y"], frame["cy"]], [0, 0, 1]])
    return Cameras.from_opengl(torch.tensor([frame["transform_matrix"]]), K[None], frame["w"], frame["h"])


def test_the_demo_finds_the_photos():
    assert sorted(p.name for p in example_photos().iterdir()) == [p.name for p in PHOTOS]


def test_photos_are_small_varied_and_say_nothing_of_their_poses():
    assert len(PHOTOS) == 15 == len(TRUTH["frames"])
    assert sum(p.stat().st_size for p in PHOTOS) < 3 * 2**20
    assert not list((EXAMPLE / "photos").glob("*.json"))
    sizes = [opened(p).size for p in PHOTOS]
    assert sizes.count((960, 720)) == 14 and sizes.count((720, 960)) == 1
    brightness = [np.asarray(opened(p).convert("L")).mean() for p in PHOTOS]
    assert 1.05 < max(brightness) / min(brightness) < 2


def test_exif_focal_length_is_the_true_one():
    for path, frame in zip(PHOTOS, TRUTH["frames"], strict=True):
        with Image.open(path) as picture:
            details = picture.getexif().get_ifd(0x8769)
        assert details[0xA405] / 43.27 * math.hypot(frame["w"], frame["h"]) == pytest.approx(frame["fl_x"], rel=1e-3)


def test_true_cameras_go_three_quarters_round():
    eyes = torch.cat([true_camera(f).centers for f in TRUTH["frames"]])
    azimuth = np.unwrap(torch.atan2(eyes[:, 0], eyes[:, 2]).numpy())
    assert 250 < math.degrees(azimuth[-1] - azimuth[0]) < 290
    assert eyes[:, 1].max() / eyes[:, 1].min() > 1.3


@pytest.fixture(scope="module")
def example_script():
    sys.path.insert(0, str(EXAMPLE))
    try:
        spec = importlib.util.spec_from_file_location("make_example", EXAMPLE / "make_example.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["make_example"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(EXAMPLE))


@pytest.mark.parametrize("index", [1, 5])  # the sixth photo is the upright one
def test_photos_show_what_the_true_cameras_see(example_script, index):
    """A small rendering through the true camera, without noise or lens, lines up with the photo."""
    camera = true_camera(TRUTH["frames"][index])
    small = camera.resized(camera.width // 8, camera.height // 8)
    rays = example_script.pixel_rays(small).reshape(-1, 6)
    light = example_script.Stage(example_script.scene()).light(rays, np.random.default_rng(0))
    drawn = example_script.encoded(light).reshape(small.height, small.width, 3)
    photo = opened(PHOTOS[index]).resize((small.width, small.height), Image.BOX)
    taken = np.asarray(photo, dtype=float) / 255

    def agreement(shift: int) -> float:
        return float(np.corrcoef(np.roll(drawn, shift, axis=1).ravel(), taken.ravel())[0, 1])

    assert agreement(0) > 0.85
    assert agreement(0) > agreement(1) and agreement(0) > agreement(-1)
