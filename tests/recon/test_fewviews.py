"""The benchmark of few photos on a tiny capture of Blender's form: what it runs, and that it goes on where it was cut."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from recon.poses.from_file import write_transforms
from recon.splits import BLENDER_TRAIN
from splat.cameras import Cameras
from splat.few_photos import PARTS, for_few_photos
from splat.io.images import save_image
from splat.optimise import FitConfig
from splat.regularise import RegulariserConfig
from splat.views import Views


@pytest.fixture
def fewviews(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import fewviews

    return fewviews


@pytest.fixture
def capture(tmp_path):
    """A folder with the frames that the split names, 32 px, of noise that is the same from everywhere."""
    folder = tmp_path / "thing"
    picture = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0))
    for part, numbers in (("train", BLENDER_TRAIN), ("test", (0, 8))):
        (folder / part).mkdir(parents=True)
        names = [f"{part}/r_{i}.png" for i in numbers]
        for k, name in enumerate(names):
            save_image(folder / name, picture.roll(k, 1))
        cameras = Cameras.orbit(len(names), 3.0, 20, 45, 32, 32)
        write_transforms(folder / f"transforms_{part}.json", [cameras], names)
    return folder


def test_every_row_is_a_fit(fewviews):
    camera = Cameras.orbit(8, 3.0, 0, 45, 32, 32)
    views = Views(torch.rand(8, 32, 32, 3), tuple("abcdefgh"), camera, torch.ones(8, 32, 32))
    for posed in (True, False):
        scene = fewviews.Scene("x", [views], [], None, None, [], None, posed, {})
        config = {name: fewviews.config_of(row, scene, steps=7) for name, row in fewviews.ROWS.items()}
        assert all(
            c.steps == 7 and c.regularise.needs_priors <= (fewviews.ROWS[n].start != "random") for n, c in config.items()
        )
        assert config["full"] == for_few_photos(8, poses_given=posed, masked=True, steps=7, exposure=True)
        assert config["dense"] == FitConfig.for_photos(8, steps=7, exposure=True)
        assert config["full"].refine_poses == (not posed) == config["+ poses"].refine_poses
        assert not config["full without poses"].refine_poses and config["full without poses"].regularise.absolute_depth > 0
        assert config["+ depth"].regularise == RegulariserConfig(absolute_depth=config["full"].regularise.absolute_depth)
    assert {f"+ {part}" for part in PARTS} | {f"full without {part}" for part in PARTS} <= set(fewviews.ROWS)


def test_a_cut_run_goes_on(fewviews, capture, tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.json"
    words = (
        f"fewviews {capture} --protocol blender --side 32 --steps 3 --random-count 200 --threads 1 --rows random --json {rows}"
    )
    monkeypatch.setattr(sys, "argv", [*words.split(), "--minutes", "-1"])
    fewviews.main()
    assert not rows.exists()  # no time for a single row
    monkeypatch.setattr(sys, "argv", words.split())
    fewviews.main()
    (row,) = json.loads(rows.read_text())["rows"]
    assert (row["scene"], row["row"], row["seed"], row["steps"]) == ("thing 8", "random", 0, 3)
    assert row["views"] == 8 and row["tests"] == ["r_0.png", "r_8.png"] and 0 < row["psnr"] < 30
    monkeypatch.setattr(fewviews, "measured", lambda *_: pytest.fail("the row was there"))
    fewviews.main()
    assert "mean of   1 random" in capsys.readouterr().out


def test_photos_are_as_large_as_the_protocol_says_unless_told(fewviews, capture):
    protocol = fewviews.PROTOCOLS["blender"]
    photos = fewviews.read([capture / "train" / "r_2.png"])
    args = argparse.Namespace(side=None)
    assert fewviews.side_of(photos, protocol, args) == 16  # half of 32
    assert fewviews.side_of(photos, protocol, argparse.Namespace(side=24)) == 24


def test_metrics_count_the_foreground_where_it_is_given(fewviews):
    scene = fewviews.Scene("x", [], [], None, None, [], None, True, {})
    from scenes import one_splat

    camera = Cameras.orbit(1, 3.0, 0, 45, 32, 32)
    splats = one_splat((0.0, 0, 0), (0.2, 0.4, 0.6), scales=(0.2, 0.2, 0.2))
    from splat.render import RenderOptions, render

    seen = render(splats, camera, RenderOptions(background=torch.ones(3))).rgb
    weights = torch.zeros(1, 32, 32)
    weights[0, 8:24, 8:24] = 1
    wrong_outside = torch.where(weights[..., None] > 0, seen, 0.0)
    args = type("Args", (), {"threads": 1})
    masked = dataclasses.replace(scene, test=[Views(wrong_outside, ("a",), camera)], test_weights=[weights])
    assert fewviews.scores(splats, masked, args)["psnr"] > 60 and fewviews.scores(splats, masked, args)["ssim"] > 0.999
    assert fewviews.scores(splats, dataclasses.replace(masked, test_weights=None), args)["psnr"] < 10
