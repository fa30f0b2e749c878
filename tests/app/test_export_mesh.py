"""export of meshes: budgets, textures, game and print presets, bad input."""

import json
import shutil
import struct

import numpy as np
import pytest
import torch

from app import __main__ as entry
from app import commands, textured_mesh
from app.scenes import load_scene, read_cameras
from splat.errors import InputError
from splat.io.images import read_image
from splat.io.meshes import load_mesh, save_mesh
from splat.mesh import Mesh
from splat.raycast import raycast
from splat.render import RenderOptions, render


def splatsmith(*words: object) -> int:
    return entry.main([*map(str, words), "--quiet", "--device", "cpu", "--threads", "1"])


def changed(result, folder, **report):
    """A copy of the result without its state, whose report says something else."""
    shutil.copytree(result, folder, ignore=shutil.ignore_patterns("state"))
    content = json.loads((folder / "report.json").read_text()) | report
    (folder / "report.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def game(result, tmp_path_factory):
    """The result as a small textured mesh, and the events of its export."""
    path = tmp_path_factory.mktemp("game") / "ball.glb"
    options = commands.Export(scene=result, to=path, purpose="game", faces=1500, texture=256, device="cpu", threads=1)
    return path, list(textured_mesh.export_mesh(options))


def test_the_job_tells_its_cost_and_its_stages(game):
    path, events = game
    assert events[0].stage == "estimate" and events[0].values["seconds"] > 1
    assert list(dict.fromkeys(e.stage for e in events)) == ["estimate", "mesh", "decimate", "unwrap", "texture", "files"]
    photos = [e for e in events if e.stage == "texture"]
    assert photos[-1].step == photos[-1].total == 12  # six photos, and the splats through the same cameras
    assert len(load_mesh(path).faces) <= 1500 and load_mesh(path).texture.shape == (256, 256, 3)


def test_the_textured_mesh_lies_over_the_splats(result, game):
    mesh, splats = load_mesh(game[0]), load_scene(result)
    (cameras,) = read_cameras(result / "cameras.json", 64)
    views, _ = raycast(mesh, cameras, threads=1)
    with torch.no_grad():
        drawn = render(splats, cameras, RenderOptions(background=torch.ones(3))).rgb
    covered = views.masks > 0.99
    assert covered.float().mean() > 0.1
    error = (views.images - drawn).square().mean(-1)[covered].mean()
    assert -10 * torch.log10(error) > 18
    coloured, _ = raycast(load_mesh(result / "mesh.glb"), cameras, threads=1)
    both = covered & (coloured.masks > 0.99)
    of_vertices = (coloured.images - drawn).square().mean(-1)[both].mean()
    assert 10 * torch.log10((views.images - drawn).square().mean(-1)[both].mean() / of_vertices) < 1  # dB


def test_a_result_without_state_is_baked_from_its_splats(result, game, tmp_path):
    bare = changed(result, tmp_path / "R")
    assert splatsmith("export", bare, "--to", tmp_path / "a.obj", "--texture", 64, "--faces", 800, "--jpeg") == 0
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["R", "a.mtl", "a.obj", "a_texture.jpg"]
    picture, _, _ = read_image(tmp_path / "a_texture.jpg", max_pixels=10**6)
    assert picture.shape == (64, 64, 3) and len(load_mesh(tmp_path / "a.obj").faces) <= 800


def test_faces_alone_keep_vertex_colours(result, tmp_path):
    assert splatsmith("export", result, "--to", tmp_path / "a.ply", "--faces", 600) == 0
    mesh = load_mesh(tmp_path / "a.ply")
    assert 300 < len(mesh.faces) <= 600 and mesh.colors is not None
    assert splatsmith("export", result, "--to", tmp_path / "b.mesh.ply") == 0
    assert len(load_mesh(tmp_path / "b.mesh.ply").faces) == len(load_mesh(result / "mesh.glb").faces)


def test_a_print_is_closed_in_millimetres_and_upright(result, tmp_path, monkeypatch):
    import trimesh

    monkeypatch.setattr(textured_mesh, "PRINT_VOXELS", 64)
    path = tmp_path / "a.stl"
    assert splatsmith("export", result, "--to", path, "--for", "print", "--real-size", 0.05) == 0
    count = struct.unpack("<I", path.read_bytes()[80:84])[0]
    assert path.stat().st_size == 84 + 50 * count  # binary STL
    shape = trimesh.load_mesh(path)
    assert shape.is_watertight and shape.is_winding_consistent and shape.volume > 0
    assert max(shape.extents) == pytest.approx(50, abs=0.01) and shape.bounds[0][2] == pytest.approx(0, abs=1e-3)
    assert np.allclose(shape.bounds.mean(0)[:2], 0, atol=1e-2)
    ours = load_mesh(result / "mesh.glb").vertices
    size = (ours.amax(0) - ours.amin(0))[[0, 2, 1]].numpy()  # +Y is up in the result, +Z in the print
    assert np.argmax(shape.extents) == np.argmax(size)


def test_a_metric_result_knows_its_size(result, tmp_path, monkeypatch):
    monkeypatch.setattr(textured_mesh, "PRINT_VOXELS", 32)
    metric = changed(result, tmp_path / "R", scale="metric")
    assert splatsmith("export", metric, "--to", tmp_path / "a.stl", "--for", "print") == 0
    longest = (load_mesh(tmp_path / "a.stl").vertices.amax(0) - load_mesh(tmp_path / "a.stl").vertices.amin(0)).max()
    ours = load_mesh(result / "mesh.glb").vertices
    assert longest == pytest.approx(1000 * float((ours.amax(0) - ours.amin(0)).max()), rel=0.1)


def test_a_real_size_is_in_metres_otherwise(result, tmp_path):
    assert splatsmith("export", result, "--to", tmp_path / "a.glb", "--real-size", 0.3) == 0
    vertices = load_mesh(tmp_path / "a.glb").vertices
    assert float((vertices.amax(0) - vertices.amin(0)).max()) == pytest.approx(0.3, rel=1e-4)


def test_a_conversion_does_not_bring_a_deleted_job_back(result, tmp_path):
    from app.studio.downloads import convert

    job = tmp_path / "job"
    options = commands.Export(scene=result, to=job / "exports" / "scene" / "a.stl", device="cpu", threads=1)
    with pytest.raises(InputError, match="has been deleted"):
        list(convert(options))
    assert not job.exists()
    job.mkdir()
    list(convert(options))
    assert [path.name for path in options.to.parent.iterdir()] == ["a.stl"]


def test_usdz_of_a_result(result, tmp_path):
    pytest.importorskip("pxr.Usd", reason="pip install usd-core")
    assert splatsmith("export", result, "--to", tmp_path / "a.usdz") == 0
    assert (tmp_path / "a.usdz").read_bytes()[:2] == b"PK"


def test_a_result_without_a_mesh_gets_one_from_its_splats(result, tmp_path):
    bare = changed(result, tmp_path / "R")
    (bare / "mesh.glb").unlink()
    assert splatsmith("export", bare, "--to", tmp_path / "a.glb") == 0
    ours, theirs = load_mesh(tmp_path / "a.glb").vertices, load_mesh(result / "mesh.glb").vertices
    assert torch.allclose(ours.amax(0), theirs.amax(0), atol=0.1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("{r} --to {t}/x.glb --faces 0", "--faces 0"), ("{r} --to {t}/x.glb --texture 0", "--texture 0"),
        ("{r} --to {t}/x.glb --texture 100000", "--texture 100000"), ("{r} --to {t}/x.stl --texture 512", "holds no texture"),
        ("{r} --to {t}/x.stl --for print", "--real-size"), ("{r} --to {t}/x.glb --for print --real-size 1", "--for print"),
        ("{r} --to {t}/x.stl --for print --real-size 0", "--real-size 0"), ("{r} --to {t}/x.glb --real-size nan", "size nan"),
        ("{r} --to {t}/x.glb --for game --faces 20000", "10000"), ("{r} --to {t}/x.stl --for game", "holds no texture"),
        ("{r} --to {t}/x.ply --for game", "holds no texture"), ("{r} --to {t}/x.glb --jpeg", "--jpeg"),
        ("{r} --to {t}/x.spz --faces 100", "for splats"), ("{r} --to {t}/no/x.glb --faces 100", "does not exist"),
        ("{t}/nothing --to {t}/x.glb", "does not exist"), ("{t} --to {t}/x.glb --for game", "not a result folder"),
        ("{r} --to {t}/x.stl --for print --real-size 1 --convention 3dgs", "upright"),
        ("{r} --to {r}/mesh.glb --faces 100", "belongs to the result"),
        ("{r} --to {t}/x.glb --texture 4096 --memory-budget 2GB", "2.9 GB of memory, more than --memory-budget 2GB"),
        ("{r} --to {t}/x.stl --for print --real-size 1 --memory-budget 900MB", "more than --memory-budget 900MB; give more."),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(result, tmp_path, capsys, words, told):
    assert splatsmith("export", *(w.format(r=result, t=tmp_path) for w in words.split())) == 2
    errors = capsys.readouterr().err.strip()
    assert told in errors and errors.endswith(".") and len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("vertices", "told"),
    [(torch.zeros(3, 3), "no extent"), (torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), "has an area")],
)
def test_a_mesh_without_area_is_one_sentence(result, tmp_path, capsys, vertices, told):
    broken = changed(result, tmp_path / "R")
    save_mesh(Mesh(vertices, torch.tensor([[0, 1, 2]])), broken / "mesh.glb")
    words = ["--faces", 100] if "area" in told else []
    assert splatsmith("export", broken, "--to", tmp_path / "x.glb", *words) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "x.glb").exists()


def test_usdz_without_usd_core_is_found_before_work(result, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(textured_mesh.importlib.util, "find_spec", lambda name: None)
    assert splatsmith("export", result, "--to", tmp_path / "a.usdz", "--for", "game") == 2
    assert "pip install" in capsys.readouterr().err


def test_a_capture_is_looked_at_from_few_cameras_far_apart(monkeypatch):
    from splat.cameras import Cameras

    monkeypatch.setattr(textured_mesh, "MOST_VIEWS", 4)
    batches = [Cameras.orbit(8, 2.0, 0.0, 40.0, 64, 48), Cameras.orbit(1, 2.0, 60.0, 40.0, 48, 64)]
    first, second = textured_mesh._spread_out(batches)
    assert len(first) + len(second) == 4 and 4 in first
