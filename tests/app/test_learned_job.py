"""`photos --prior`: the licence is said before anything is opened, weights must be on disk, and the report names them."""

import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import get_args

import pytest
import torch
from huggingface_hub import constants

from app import __main__ as entry
from app import commands
from app.pipelines import _fit_config, _reconstruct_config, plan_photos
from recon.priors.learned import LEARNED_PRIORS
from recon.reconstruct import reconstruct

sys.path.insert(0, str(Path(__file__).parents[1] / "recon"))
from learned_stand_ins import as_vggt, finished, tiny_depth_anything
from stereo_scenes import sphere

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def photos(capture, out, *more, poses=None):
    words = ["photos", capture.photos, "--poses", poses or capture.poses, "--out", out, "--threads", "1"]
    return entry.main([*map(str, words), "--preset", "draft", "--max-side", "64", *map(str, more)])


def test_the_options_are_those_of_the_table():
    assert get_args(commands.PriorName) == tuple(LEARNED_PRIORS)


def test_a_run_with_a_network_says_its_licence_first_and_reports_it(capture, tmp_path, capsys, empty_cache):
    tiny_depth_anything(tmp_path / "weights")
    (tmp_path / "weights" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# tiny\n")
    more = ["--steps", "12", "--prior", "depth-anything", "--prior-weights", tmp_path / "weights", "--json"]
    assert photos(capture, tmp_path / "R", *more) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["stage"] == "notice", "before the estimate and before all work"
    assert "licence cc-by-nc-4.0" in events[0]["note"] and "may not be used commercially" in events[0]["note"]
    assert any(e.get("stage") == "prior" and e["note"].startswith("Depth Anything V2: photo_") for e in events)
    report = json.loads((tmp_path / "R" / "report.json").read_text())
    mine = [x for x in report["licences"] if x["name"].startswith("Depth Anything V2")]
    assert mine == [{"name": f"Depth Anything V2 ({tmp_path / 'weights'})", "licence": "cc-by-nc-4.0"}]
    assert any("network's depth of photo_0.png is left out" in w for w in report["warnings"])  # it knows nothing: refused


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--prior", "depth-anything"], "No weights of Depth Anything V2 are in the Hugging Face cache"),
        (["--prior", "depth-anything", "--prior-weights", "no/where"], "no/where is neither a folder nor in the"),
        (["--prior", "depth-anything", "--prior-weights", "a", "b"], "1 --prior and 2 --prior-weights"),
        (["--prior-weights", "a"], "0 --prior and 1 --prior-weights"),
    ],
)
def test_what_is_not_there_is_said_before_work_and_nothing_is_written(capture, tmp_path, capsys, empty_cache, more, word):
    assert photos(capture, tmp_path / "R", *more) == 2
    told = capsys.readouterr().err
    assert word in told and len(told.strip().splitlines()) == 1
    assert not (tmp_path / "R").exists() and not (tmp_path / "R.partial").exists()


def test_cameras_cannot_come_from_a_prior_that_gives_none(capture, tmp_path, capsys, empty_cache):
    tiny_depth_anything(tmp_path / "weights")
    more = ["--prior", "depth-anything", "--prior-weights", tmp_path / "weights"]
    assert photos(capture, tmp_path / "R", *more, poses="prior") == 2
    assert "needs a --prior that gives cameras" in capsys.readouterr().err
    assert photos(capture, tmp_path / "R", poses="prior") == 2
    assert "gives cameras: depth-anything-3, map-anything, vggt, dust3r, mast3r or pointmap." in capsys.readouterr().err


@pytest.mark.skipif(LEARNED_PRIORS["vggt"].installed, reason="the package is here")
def test_a_missing_package_is_named_with_what_to_install(capture, tmp_path, capsys, empty_cache):
    assert photos(capture, tmp_path / "R", "--prior", "vggt") == 2
    assert "VGGT needs the package vggt, which is not here: pip install" in capsys.readouterr().err


def test_info_lists_every_prior_with_licences_and_where_it_looked(capsys, empty_cache):
    folder = empty_cache / "models--depth-anything--Depth-Anything-V2-Small-hf" / "snapshots" / "0123456789"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert entry.main(["info", "--json"]) == 0
    found = {p["name"]: p for p in json.loads(capsys.readouterr().out)["priors"]}
    assert set(found) == set(LEARNED_PRIORS)
    assert found["depth-anything"]["found"][0]["licence"] == "Apache-2.0" and found["depth-anything"]["installed"]
    assert found["vggt"]["found"] == [] and found["vggt"]["looked_in"] == str(empty_cache)
    assert entry.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("prior      depth-anything: depth-anything/Depth-Anything-V2-Small-hf (Apache-2.0)") for line in lines
    )
    assert any(line.startswith("prior      dust3r: no weights in") and "CC-BY-NC-SA-4.0" in line for line in lines)


def test_normals_without_the_fit_that_uses_them_are_refused(capture, tmp_path, capsys, empty_cache):
    (tmp_path / "weights").mkdir()
    more = ["--prior", "marigold-normals", "--prior-weights", tmp_path / "weights", "--regularise", "none"]
    assert photos(capture, tmp_path / "R", *more) == 2
    assert "serves a part of the regularised fit that is left out" in capsys.readouterr().err


def test_a_folder_of_no_network_is_refused_before_work(capture, tmp_path, capsys, empty_cache):
    folder = tmp_path / "weights"
    folder.mkdir()
    more = ["--prior", "depth-anything", "--prior-weights", folder]
    assert photos(capture, tmp_path / "R", *more) == 2
    assert "has no config.json or model_index.json" in capsys.readouterr().err
    (folder / "config.json").write_text("{}")
    assert photos(capture, tmp_path / "R", *more) == 2
    assert "has a config and no weights" in capsys.readouterr().err
    assert not list(tmp_path.glob("R*"))


def test_cameras_by_a_network_from_one_command(capture, tmp_path, monkeypatch, empty_cache):
    """A package named vggt whose network knows the capture: a ball of radius 0.5 at the origin."""

    class Known:
        def to(self, device):
            return self

        def __call__(self, images):
            cameras = capture.cameras.resized(images.shape[4], images.shape[3])
            hits = torch.stack([ball(c) for c in (cameras[i] for i in range(len(cameras)))])
            return as_vggt(cameras, hits, torch.where(hits > 0, 6.0, 1.0))

    def ball(camera):
        origin, towards = camera.centers[0], camera.unproject(camera.pixel_centers, torch.ones(camera.height, camera.width))
        depth = sphere([0.0, 0, 0], 0.5)(origin, towards - origin)
        return torch.where(depth.isfinite(), depth, 3.0)  # what is behind the ball, as networks say

    package = types.ModuleType("vggt.models.vggt")
    package.VGGT = object
    for name in ("vggt", "vggt.models", "vggt.models.vggt"):
        module = package if name == package.__name__ else types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("recon.priors.vggt.load_mixin", lambda kind, folder: Known())
    monkeypatch.setattr("recon.priors.vggt.SIDE", 70)
    (tmp_path / "weights").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "weights" / name).touch()
    options = commands.Photos(
        inputs=(capture.photos,), out=tmp_path / "R", preset="draft", max_side=64, threads=1, holdout=4,
        poses="prior", prior=("vggt",), prior_weights=(str(tmp_path / "weights"),),
    )  # fmt: skip
    plan = plan_photos(options)
    assert plan.learned[0].notice.startswith("VGGT from") and "CC-BY-NC-4.0" in plan.learned[0].notice
    scene, _ = finished(reconstruct(plan.photos, _reconstruct_config(plan)))
    assert scene.reasons == {} and scene.facts["prior_agreement"] > 0.5
    assert [sum(len(v) for v in views) for views in (scene.train, scene.heldout)] == [6, 2]
    assert _fit_config(plan, plan.photos).refine_poses  # a network's cameras move on with the fit
    truth = capture.cameras[[i for i in range(8) if i % 4]].transformed(scene.result_from_input)
    torch.testing.assert_close(scene.train[0].cameras.cam_from_world, truth.cam_from_world, atol=1e-3, rtol=0)
