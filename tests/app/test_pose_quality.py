"""Errors of solved poses against true ones, from a result folder."""

import json
import math

import pytest
import torch

from app.pose_quality import pose_quality
from recon.poses.from_file import write_transforms
from splat.cameras import Cameras
from splat.rotations import se3_exp


def cameras():
    return Cameras.orbit(5, 3.0, 20, 45, 64, 48)


def turned(batch, row, degrees):
    pose = batch.cam_from_world.clone()
    pose[row] = se3_exp(torch.tensor([0, 0, 0, 0, 0, math.radians(degrees)])) @ pose[row]
    return Cameras(pose, batch.K, batch.width, batch.height)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """(result, truth): five photos of which the last is held out and the fourth was not placed; the second is 8 degrees off."""
    result, truth = tmp_path / "R", tmp_path / "truth.json"
    result.mkdir()
    names = [f"p{i}.png" for i in range(5)]
    write_transforms(truth, [cameras()], names)
    write_transforms(result / "cameras.json", [turned(cameras(), 1, 8.0)[[0, 1, 2]]], names[:3])
    inputs = [{"name": name, "placed": name != "p3.png", "holdout": name == "p4.png"} for name in names]
    monkeypatch.setattr("app.pose_quality.read_report", lambda folder: {"inputs": inputs})
    (result / "config.json").write_text(json.dumps({"reconstruct": {"poses_from": None}}))
    return result, truth


def test_lost_photos_count_and_held_out_ones_do_not(folders):
    quality = pose_quality(*folders)
    assert (quality.photos, quality.placed) == (4, 3)
    # Of six pairs one is right, two are off by 8 degrees or more, three are lost.
    assert quality.auc5 == pytest.approx(1 / 6, abs=1e-3)
    assert 1 / 6 < quality.auc10 < quality.auc20 < 3 / 6
    assert quality.median_deg >= 7.99


def test_given_poses_are_not_judged(folders):
    result, truth = folders
    (result / "config.json").write_text(json.dumps({"reconstruct": {"poses_from": "transforms.json"}}))
    assert pose_quality(result, truth) is None


def test_nothing_to_compare_with(folders):
    result, truth = folders
    content = json.loads(truth.read_text())
    content["frames"] = content["frames"][:1]
    truth.write_text(json.dumps(content))
    assert pose_quality(result, truth) is None
