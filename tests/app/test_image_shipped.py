"""The image command with the network that ships with the package, and with folders that hold none."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from app import __main__ as entry
from app.report import read_report
from app.scenes import load_scene
from diffusion.data.object_views import input_camera, object_views, protocol_cameras
from diffusion.weights_folder import shipped
from splat.errors import InputError
from splat.io.images import save_image
from splat.render import RenderOptions, render
from tests.diffusion.tiny_objects import box, joined


@pytest.fixture(scope="module")
def weights() -> Path:
    try:
        return shipped("image", "image to 3-D")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A picture of a table on white."""
    legs = [box((90, 60, 30), (0.08, 0.5, 0.08), (x, -0.05, z)) for x in (-0.4, 0.4) for z in (-0.25, 0.25)]
    mesh = joined(box((160, 90, 40), (1.0, 0.08, 0.65), (0, 0.24, 0)), *legs)
    path = tmp_path_factory.mktemp("pictures") / "table.png"
    save_image(path, torch.from_numpy(object_views(mesh, input_camera(160)).images[0]).float() / 255)
    return path


def splatsmith(*words: object) -> int:
    return entry.main(["image", *map(str, words), "--preset", "draft", "--threads", "1", "--device", "cpu"])


def test_the_same_picture_and_seed_give_the_same_bytes(weights, table, tmp_path):
    for out in ("one", "two"):
        assert splatsmith(table, "--seed", 3, "--out", tmp_path / out) == 0
    assert splatsmith(table, "--seed", 4, "--out", tmp_path / "other") == 0
    one, two, other = (tmp_path / out / "table" for out in ("one", "two", "other"))
    assert (one / "scene.ply").read_bytes() == (two / "scene.ply").read_bytes()
    assert (one / "scene.ply").read_bytes() != (other / "scene.ply").read_bytes()
    report = read_report(one)
    assert report["mesh_faces"] > 100 and report["licences"]


def test_the_object_is_there_from_every_side_and_nowhere_else(weights, table, tmp_path):
    """A table top is brown from all 14 views of the protocol, and the corners of the pictures are empty."""
    assert splatsmith(table, "--out", tmp_path / "R") == 0
    out = render(load_scene(tmp_path / "R" / "table"), protocol_cameras(64), RenderOptions(background=torch.zeros(3)))
    height, width = out.alpha.shape[1:]
    assert float(out.alpha[:, height // 3 : 2 * height // 3, width // 3 : 2 * width // 3].amax((1, 2)).min()) > 0.8
    assert float(out.alpha[:, : height // 10].mean()) < 0.02
    covered = out.alpha > 0.8
    red, green, blue = (out.rgb[covered] / out.alpha[covered][:, None]).mean(0).tolist()
    assert red > green > blue and red > 0.3


def test_a_folder_without_weights_is_one_sentence_and_nothing_is_written(table, tmp_path, capsys):
    (tmp_path / "w").mkdir()
    for folder in (tmp_path / "w", tmp_path / "missing"):
        assert splatsmith(table, "--weights", folder, "--out", tmp_path / "R") == 2
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(folder) in sentence and sentence.endswith("--weights.")
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_damaged_weights_are_one_sentence_and_nothing_is_written(weights, table, tmp_path, capsys):
    copy = tmp_path / "w"
    shutil.copytree(weights, copy)
    network = copy / "denoiser" / "diffusion_pytorch_model.safetensors"
    network.write_bytes(network.read_bytes()[:-100])
    assert splatsmith(table, "--weights", copy, "--out", tmp_path / "R") == 2
    assert "diffusion_pytorch_model.safetensors is not the file that was written" in capsys.readouterr().err
    assert not (tmp_path / "R").exists()


def test_what_ships_is_small_and_says_whose_objects_it_learnt_from(weights):
    every = [path.stat().st_size for path in weights.parent.rglob("*") if path.is_file()]
    assert max(every) <= 16 * 2**20 and sum(every) <= 48 * 2**20
    licences = json.loads((weights / "weights.json").read_text(encoding="utf-8"))["licences"]
    assert licences and not any("presumed" in licence for licence in licences)
    stated = (weights / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(name in stated for line in licences for name in line.partition(": ")[2].split(", "))
