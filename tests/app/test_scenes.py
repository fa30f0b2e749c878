"""What is done with a finished result: export, render, eval."""

import functools
import json
import shutil

import pytest
import torch

from app import __main__ as entry
from app.report import read_report
from app.scenes import _orbit, read_cameras
from splat.extract_mesh import MeshConfig
from splat.gaussians import Splats
from splat.io import HALF_TURN_ABOUT_X, load, save
from splat.io.images import read_image
from splat.io.meshes import load_mesh


def splatsmith(*words: object) -> int:
    return entry.main([*map(str, words), "--quiet"])


def test_export_turns_the_world_for_other_viewers(result, tmp_path):
    assert splatsmith("export", result, "--to", tmp_path / "a.ply") == 0
    assert splatsmith("export", result, "--to", tmp_path / "b.ply", "--convention", "3dgs") == 0
    scene, same, turned = (load(p) for p in (result / "scene.ply", tmp_path / "a.ply", tmp_path / "b.ply"))
    assert torch.equal(same.means, scene.means)
    assert torch.allclose(turned.means, HALF_TURN_ABOUT_X(scene.means), atol=1e-6)


@pytest.mark.parametrize("name", ["scene.ply", "mesh.glb"])
def test_a_results_own_files_are_not_exported_onto(result, capsys, name):
    before = (result / name).read_bytes()
    assert splatsmith("export", result, "--to", result / name, "--convention", "3dgs") == 2
    assert "belongs to the result" in capsys.readouterr().err and (result / name).read_bytes() == before


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".stl"])
def test_export_writes_the_mesh(result, tmp_path, suffix):
    assert splatsmith("export", result, "--to", tmp_path / f"m{suffix}") == 0
    mesh, original = load_mesh(tmp_path / f"m{suffix}"), load_mesh(result / "mesh.glb")
    assert len(mesh.faces) == len(original.faces) == read_report(result)["mesh_faces"] > 100
    assert torch.allclose(mesh.vertices.amax(0), original.vertices.amax(0), atol=1e-4)


@pytest.mark.parametrize("suffix", [".spz", ".splat", ".compressed.ply", ".gs.glb", ".gltf"])
def test_export_writes_the_splats_in_other_formats(result, tmp_path, suffix):
    assert splatsmith("export", result, "--to", tmp_path / f"s{suffix}") == 0
    scene, back = load(result / "scene.ply"), load(tmp_path / f"s{suffix}")
    assert len(back) == len(scene)
    assert torch.allclose(back.means.amax(0), scene.means.amax(0), atol=1e-4)
    assert torch.allclose(back.rgb.clamp(0, 1).mean(0), scene.rgb.clamp(0, 1).mean(0), atol=2 / 255)
    again = tmp_path / "again.ply"
    assert splatsmith("export", tmp_path / f"s{suffix}", "--to", again) == 0 and len(load(again)) == len(scene)


@pytest.mark.parametrize(("opacity", "status"), [(5.0, 0), (-4.0, 4)], ids=["solid", "faint"])
def test_a_bare_scene_file_exports_a_mesh_if_it_shows_a_surface(tmp_path, capsys, monkeypatch, opacity, status):
    monkeypatch.setattr("splat.extract_mesh.MeshConfig", functools.partial(MeshConfig, resolution=64, max_faces=2000))
    g, n = torch.Generator().manual_seed(3), 900
    means = 0.5 * torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    ball = Splats(
        means, torch.ones(n, 4), torch.full((n, 3), -3.0), torch.full((n,), opacity), torch.randn(n, 1, 3, generator=g)
    )
    save(ball, tmp_path / "ball.ply")
    assert splatsmith("export", tmp_path / "ball.ply", "--to", tmp_path / "m.glb") == status
    if status == 0:
        radius = load_mesh(tmp_path / "m.glb").vertices.norm(dim=-1)
        assert 0.45 < radius.min() and radius.max() < 0.65
    else:
        assert "show a surface" in capsys.readouterr().err and not (tmp_path / "m.glb").exists()


def test_render_from_the_stored_cameras_shows_the_photos(result, capture, tmp_path):
    status = splatsmith("render", result, "--to", tmp_path / "v.png", "--cameras", result / "cameras.json")
    assert status == 0
    names = [frame["file_path"] for frame in json.loads((result / "cameras.json").read_text())["frames"]]
    assert len(names) == len(list(tmp_path.glob("v_*.png"))) == 6
    for i, name in enumerate(names):
        drawn, _, _ = read_image(tmp_path / f"v_{i:03d}.png", max_pixels=10**6)
        photo, _, _ = read_image(capture.photos / name, max_pixels=10**6)
        assert (drawn - photo).abs().mean() < 0.08


def test_render_a_video_and_a_still(result, tmp_path):
    assert splatsmith("render", result, "--to", tmp_path / "t.mp4", "--frames", 3, "--side", 64) == 0
    assert splatsmith("render", result / "scene.ply", "--to", tmp_path / "t.png", "--side", 64, "--background", "0,0,255") == 0
    picture, _, _ = read_image(tmp_path / "t.png", max_pixels=10**6)
    assert picture.shape == (64, 64, 3)
    assert (picture[0, 0] - torch.tensor([0.0, 0, 1])).abs().max() < 0.3
    assert (tmp_path / "t.mp4").stat().st_size > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.mp4", "t.png"]


def test_a_disk_that_refuses_is_one_sentence(result, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for command, writer in (("render", "splat.io.images.save_image"), ("export", "splat.io.save")):
        monkeypatch.setattr(writer, full)
        to = tmp_path / ("p.png" if command == "render" else "p.ply")
        assert splatsmith(command, result, "--to", to) == 4
        assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_eval_against_the_given_poses_applies_the_similarity(result, capture, tmp_path, capsys):
    """The held-out photos through their own transforms.json score what the report says."""
    content = json.loads(capture.poses.read_text())
    content["frames"] = [f for f in content["frames"] if f["file_path"] in ("photo_0.png", "photo_4.png")]
    shutil.copytree(capture.photos, tmp_path, dirs_exist_ok=True)
    (tmp_path / "test.json").write_text(json.dumps(content))
    assert entry.main(["eval", str(result), "--against", str(tmp_path / "test.json"), "--json"]) == 0
    quality = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = read_report(result)["metrics"]["holdout"]
    assert quality["psnr"] == pytest.approx(expected["psnr"], abs=0.05)
    assert quality["ssim"] == pytest.approx(expected["ssim"], abs=0.005)
    assert quality["n"] == 2


def test_eval_of_solved_poses_aligns_by_the_photos_in_common(result, capture, tmp_path, capsys):
    """As if the poses had been solved: their world is unknown, and the report's similarity is of another one."""
    solved, against = tmp_path / "solved", tmp_path / "test.json"
    shutil.copytree(result, solved)
    config = json.loads((solved / "config.json").read_text())
    config["reconstruct"]["poses_from"] = None
    (solved / "config.json").write_text(json.dumps(config))
    report = read_report(solved) | {"result_from_input": torch.eye(4).tolist()}
    (solved / "report.json").write_text(json.dumps(report))
    shutil.copytree(capture.photos, tmp_path, dirs_exist_ok=True)
    content = json.loads(capture.poses.read_text())
    against.write_text(json.dumps(content))
    assert entry.main(["eval", str(solved), "--against", str(against), "--json"]) == 0
    *_, poses, quality = map(json.loads, capsys.readouterr().out.splitlines())
    assert poses["event"] == "poses" and poses["auc5"] > 0.99 and poses["placed"] == poses["photos"] == 6
    assert quality["n"] == 8 and quality["psnr"] > read_report(result)["metrics"]["holdout"]["psnr"] - 0.5
    content["frames"] = content["frames"][:2]
    against.write_text(json.dumps(content))
    assert splatsmith("eval", solved, "--against", against) == 2
    assert "share 2 photos" in capsys.readouterr().err


def test_a_damaged_similarity_is_one_sentence(result, capture, tmp_path, capsys):
    shutil.copytree(result, tmp_path / "R")
    report = read_report(result) | {"result_from_input": torch.zeros(4, 4).tolist()}
    (tmp_path / "R" / "report.json").write_text(json.dumps(report))
    assert splatsmith("eval", tmp_path / "R", "--against", capture.poses) == 2
    assert "result_from_input" in capsys.readouterr().err


def test_an_orbit_sees_the_whole_of_a_large_scene():
    g = torch.Generator().manual_seed(0)
    n = 1_000_001
    means = 5 * torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    splats = Splats(means, torch.ones(n, 4), torch.zeros(n, 3), torch.ones(n), torch.zeros(n, 1, 3))
    assert _orbit(splats, 1, 64).centers.norm(dim=-1).item() == pytest.approx(15, rel=0.02)


@pytest.mark.parametrize("size", [(20_000, 64), (64, 900_000), (0.2, 64)])
def test_pictures_of_an_absurd_size_are_refused(result, tmp_path, capsys, size):
    content = json.loads((result / "cameras.json").read_text())
    for frame in content["frames"]:
        frame["w"], frame["h"] = size
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert splatsmith("render", result, "--to", tmp_path / "x.png", "--cameras", tmp_path / "c.json") == 2
    assert "16384" in capsys.readouterr().err


def test_cameras_without_a_size_take_the_given_one(tmp_path):
    frame = {"file_path": "r_0", "transform_matrix": torch.eye(4).tolist()}
    (tmp_path / "t.json").write_text(json.dumps({"camera_angle_x": 0.9, "frames": [frame, frame]}))
    (cameras,) = read_cameras(tmp_path / "t.json", 200)
    assert (cameras.width, cameras.height, len(cameras)) == (200, 200, 2)
    assert float(cameras.K[0, 0, 0]) == pytest.approx(100 / torch.tensor(0.45).tan().item())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("export {r} --to {t}/x.doc", ".doc"), ("export {r} --to {t}/no/x.ply", "does not exist"),
        ("export {t}/nothing --to {t}/x.ply", "does not exist"), ("export {t} --to {t}/x.ply", "not a result folder"),
        ("render {r} --to {t}/x.gif", ".gif"), ("render {r} --to {t}/x.png --frames 0", "--frames 0"),
        ("render {r} --to {t}/x.png --side 20000", "--side 20000"),
        ("render {r} --to {t}/x.png --cameras {t}/no.json", "no.json"), ("eval {t} --against x.json", "not a result folder"),
        ("eval {r} --against {t}/no.json", "no.json"), ("check {t}/nothing", "does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(result, tmp_path, capsys, words, told):
    assert splatsmith(*(w.format(r=result, t=tmp_path) for w in words.split())) == 2
    errors = capsys.readouterr().err.strip()
    assert told in errors and errors.endswith(".") and len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_check_gives_a_verdict_on_every_photo(capture, capsys):
    assert entry.main(["check", str(capture.photos), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert verdict["verdict"] == "poor" and any("burnt out" in problem for problem in verdict["problems"])  # white behind
    assert [p["name"] for p in verdict["photos"]] == [f"photo_{i}.png" for i in range(8)]
    assert verdict["next_photo"].endswith(".")
    assert entry.main(["check", str(capture.photos)]) == 0
    assert "Next: " in capsys.readouterr().out
