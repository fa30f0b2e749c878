"""Other programs read our meshes: the same bounds, the same side outwards, the same colours.

These are trimesh, open3d and usd-core, and with `make test-node` the glTF validator of Khronos.
"""

import dataclasses
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import painted, sphere

from splat import bake_texture
from splat.errors import BackendUnavailable, StoppedLate
from splat.io.meshes import load_mesh, save_mesh
from splat.mesh import Mesh
from splat.open3d_import import open3d
from splat.unwrap import UnwrapConfig, unwrapped

TOOLS = Path(__file__).parents[2] / "build" / "node" / "node_modules"
SIZE = 256


@pytest.fixture(scope="module")
def textured() -> Mesh:
    """An egg off the origin, no two sides alike, whose texture is `painted` at every texel."""
    ball = sphere(3)
    egg = Mesh(ball.vertices * torch.tensor([1.0, 1.5, 0.5]) + torch.tensor([0.2, 0.0, 1.0]), ball.faces)
    mesh = unwrapped(egg, UnwrapConfig(SIZE))
    texels = bake_texture._texels(mesh, SIZE)
    texture = bake_texture._dilated(texels.rows, painted(torch.from_numpy(texels.points)).numpy(), SIZE)
    return dataclasses.replace(mesh, texture=torch.from_numpy(texture))


@pytest.fixture(scope="module")
def coloured(textured) -> Mesh:
    return Mesh(textured.vertices, textured.faces, painted(textured.vertices))


def assert_same(corners: np.ndarray, colours: np.ndarray, mesh: Mesh) -> None:
    """`corners` [F, 3, 3] and the colours [F, 3] in the middle of each triangle, as another program has read them."""
    ours = mesh.vertices.numpy()
    assert np.allclose(corners.reshape(-1, 3).min(0), ours.min(0), atol=1e-4)
    assert np.allclose(corners.reshape(-1, 3).max(0), ours.max(0), atol=1e-4)
    crosses = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.einsum("fd,fd->f", crosses, corners.mean(1) - ours.mean(0)) > 0).all()  # counter-clockwise from outside
    expected = painted(torch.from_numpy(corners.mean(1))).numpy()
    assert np.abs(colours - expected).mean() < 2 / 255


def looked_up(picture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """[F, 3] of a picture [H, W, 3] in 0-255 at uvs [F, 2] whose origin is the lower left corner: the nearest texel."""
    height, width = picture.shape[:2]
    column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    return picture[row, column, :3] / 255


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_trimesh_reads_textures(textured, tmp_path, suffix, kind):
    import trimesh

    save_mesh(textured, tmp_path / f"a{suffix}", kind)
    (part,) = trimesh.load_scene(tmp_path / f"a{suffix}", process=False).geometry.values()
    material = part.visual.material
    picture = getattr(material, "baseColorTexture", None) or material.image
    assert picture.format == kind.upper()
    uv = part.visual.uv[part.faces].mean(1)
    assert_same(part.vertices[part.faces], looked_up(np.asarray(picture.convert("RGB")), uv), textured)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_open3d_reads_textures(textured, tmp_path, suffix, kind):
    save_mesh(textured, tmp_path / f"a{suffix}", kind)
    model = open3d().io.read_triangle_model(str(tmp_path / f"a{suffix}"))
    (part,) = model.meshes
    read, picture = part.mesh, np.asarray(model.materials[part.material_idx].albedo_img)
    uv = np.asarray(read.triangle_uvs).reshape(-1, 3, 2).mean(1)
    assert_same(np.asarray(read.vertices)[np.asarray(read.triangles)], looked_up(picture, uv), textured)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_trimesh_reads_vertex_colours(coloured, tmp_path, suffix):
    import trimesh

    from splat.io.glb import srgb_from_linear

    save_mesh(coloured, tmp_path / f"a{suffix}")
    (part,) = trimesh.load_scene(tmp_path / f"a{suffix}", process=False).geometry.values()
    if suffix == ".glb":
        colours = srgb_from_linear(part.visual.vertex_attributes["color"][:, :3] / 65535)  # linear light in the file
    else:
        colours = part.visual.vertex_colors[:, :3] / 255
    assert_same(part.vertices[part.faces], colours[part.faces].mean(1), coloured)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".stl"])
def test_open3d_reads_shapes_and_vertex_colours(coloured, tmp_path, suffix):
    save_mesh(coloured, tmp_path / f"a{suffix}")
    read = open3d().io.read_triangle_mesh(str(tmp_path / f"a{suffix}"))
    triangles = np.asarray(read.triangles)
    corners = np.asarray(read.vertices)[triangles]
    truth = painted(torch.from_numpy(corners.mean(1))).numpy()
    assert_same(corners, truth if suffix == ".stl" else np.asarray(read.vertex_colors)[triangles].mean(1), coloured)


class TestUsd:
    def opened(self, path: Path):
        usd = pytest.importorskip("pxr.Usd", reason="pip install usd-core")
        return usd.Stage.Open(str(path))

    @pytest.mark.parametrize("kind", ["png", "jpeg"])
    def test_textures(self, textured, tmp_path, kind):
        stage = self.opened_after(textured, tmp_path, kind)
        from pxr import UsdGeom, UsdShade

        assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
        surface = UsdGeom.Mesh(stage.GetPrimAtPath("/Root/Mesh"))
        assert surface.GetOrientationAttr().Get() == "rightHanded" and surface.GetSubdivisionSchemeAttr().Get() == "none"
        points, index = np.array(surface.GetPointsAttr().Get()), np.array(surface.GetFaceVertexIndicesAttr().Get())
        st = UsdGeom.PrimvarsAPI(surface).GetPrimvar("st")
        assert st.GetInterpolation() == "faceVarying"
        material = UsdShade.MaterialBindingAPI(surface).ComputeBoundMaterial()[0]
        colour = UsdShade.Shader(material.ComputeSurfaceSource()[0]).GetInput("diffuseColor")
        texture = UsdShade.Shader(colour.GetConnectedSource()[0].GetPrim())
        name = texture.GetInput("file").Get().path.removeprefix("./")
        with zipfile.ZipFile(tmp_path / "a.usdz") as archive, archive.open(name) as file:
            picture = np.asarray(Image.open(file).convert("RGB"))
        uv = np.array(st.Get()).reshape(-1, 3, 2).mean(1)
        assert_same(points[index].reshape(-1, 3, 3).astype(np.float64), looked_up(picture, uv), textured)

    def test_vertex_colours_are_linear_light(self, coloured, tmp_path):
        stage = self.opened_after(coloured, tmp_path, "png")
        from pxr import UsdGeom

        from splat.io.glb import srgb_from_linear

        surface = UsdGeom.Mesh(stage.GetPrimAtPath("/Root/Mesh"))
        points, index = np.array(surface.GetPointsAttr().Get()), np.array(surface.GetFaceVertexIndicesAttr().Get())
        colours = srgb_from_linear(np.array(surface.GetDisplayColorAttr().Get()))
        at = index.reshape(-1, 3)
        assert_same(points[at].astype(np.float64), colours[at].mean(1), coloured)

    def test_the_package_is_stored_aligned_as_quick_look_asks(self, textured, tmp_path):
        self.opened_after(textured, tmp_path, "png")
        data = (tmp_path / "a.usdz").read_bytes()
        with zipfile.ZipFile(tmp_path / "a.usdz") as archive:
            files = archive.infolist()
            assert files[0].filename == "mesh.usdc" and len(files) == 2
            for file in files:
                start = file.header_offset
                begin = start + 30 + sum(int.from_bytes(data[start + k : start + k + 2], "little") for k in (26, 28))
                assert file.compress_type == zipfile.ZIP_STORED and begin % 64 == 0

    def opened_after(self, mesh: Mesh, folder: Path, kind: str):
        pytest.importorskip("pxr.Usd", reason="pip install usd-core")
        save_mesh(mesh, folder / "a.usdz", kind)
        assert [p.name for p in folder.iterdir()] == ["a.usdz"]
        return self.opened(folder / "a.usdz")


def test_usdz_without_usd_core_is_one_sentence(coloured, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(BackendUnavailable, match="pip install"):
        save_mesh(coloured, tmp_path / "a.usdz")
    assert not list(tmp_path.iterdir())


def test_the_files_of_an_obj_have_names_that_every_reader_finds(textured, tmp_path):
    import trimesh

    save_mesh(textured, tmp_path / "my chair #2 é.obj", "jpeg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my chair #2 é.obj", "my_chair__2__.mtl", "my_chair__2___texture.jpg"]
    (part,) = trimesh.load_scene(tmp_path / "my chair #2 é.obj").geometry.values()
    assert part.visual.material.image.size == (SIZE, SIZE)
    assert torch.allclose(load_mesh(tmp_path / "my chair #2 é.obj").texture, textured.texture, atol=0.2)


def test_an_obj_whose_texture_cannot_be_written_is_none(textured, tmp_path, monkeypatch):
    (tmp_path / "a.obj").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("splat.io.obj.encoded", full)
    with pytest.raises(StoppedLate, match="No space left"):
        save_mesh(textured, tmp_path / "a.obj")
    assert [p.name for p in tmp_path.iterdir()] == ["a.obj"] and (tmp_path / "a.obj").read_text() == "old"


def test_jpeg_is_smaller_and_close(textured, tmp_path):
    save_mesh(textured, tmp_path / "p.glb")
    save_mesh(textured, tmp_path / "j.glb", "jpeg")
    assert (tmp_path / "j.glb").stat().st_size < (tmp_path / "p.glb").stat().st_size
    assert (load_mesh(tmp_path / "j.glb").texture - load_mesh(tmp_path / "p.glb").texture).abs().mean() < 2 / 255


@pytest.mark.node
@pytest.mark.parametrize("name", ["png", "jpeg", "colours"])
def test_the_validator_of_khronos_finds_nothing(textured, coloured, tmp_path, name):
    if not (TOOLS / "gltf-validator").exists():
        pytest.skip("no gltf-validator; run: make test-node")
    path = tmp_path / "a.glb"
    save_mesh(coloured, path) if name == "colours" else save_mesh(textured, path, name)
    script = (
        "const v = require(process.argv[1]), fs = require('fs');"
        "v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2]))).then(r => console.log(JSON.stringify(r)))"
    )
    done = subprocess.run(["node", "-e", script, TOOLS / "gltf-validator", path], capture_output=True, text=True, timeout=60)
    report = json.loads(done.stdout)
    assert not report["issues"]["messages"], report["issues"]["messages"]
    assert report["info"]["totalTriangleCount"] == len(textured.faces)
