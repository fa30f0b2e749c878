"""Mesh files: round trips, colour semantics, foreign files, damaged files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splat.errors import InputError, StoppedLate
from splat.io.glb import linear_from_srgb, srgb_from_linear
from splat.io.meshes import load_mesh, save_mesh
from splat.mesh import Mesh


def tetrahedron() -> Mesh:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    colors = torch.tensor([[0.0, 0.02, 0.2], [1, 0.5, 0.25], [0.1, 0.9, 0.7], [0.003, 1, 0.04]])
    return Mesh(vertices, faces, colors)


def textured_square() -> Mesh:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    uv = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    texture = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (6, 4, 3)) / 255).float()
    return Mesh(vertices, faces, uvs=uv[faces], texture=texture)


def corners(mesh: Mesh) -> torch.Tensor:
    """[F, 3, 3], whatever the numbering of the vertices."""
    return mesh.vertices[mesh.faces]


def glb_parts(path: Path) -> tuple[dict, bytes]:
    """Read by hand: the JSON tree and the binary chunk."""
    data = path.read_bytes()
    magic, version, length, json_length, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
    tree = json.loads(data[20 : 20 + json_length])
    size, kind = struct.unpack("<I4s", data[20 + json_length : 28 + json_length])
    assert kind == b"BIN\0" and size == len(data) - 28 - json_length == tree["buffers"][0]["byteLength"]
    return tree, data[28 + json_length :]


@pytest.mark.parametrize(("suffix", "colour_error"), [(".glb", 2e-3), (".obj", 1 / 254), (".ply", 1 / 508)])
def test_round_trip_keeps_shape_and_colours(tmp_path, suffix, colour_error):
    mesh = tetrahedron()
    save_mesh(mesh, tmp_path / f"a{suffix}")
    again = load_mesh(tmp_path / f"a{suffix}")
    assert torch.allclose(corners(again), corners(mesh), atol=1e-6)
    assert (again.colors[again.faces] - mesh.colors[mesh.faces]).abs().max() <= colour_error
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_stl_keeps_the_shape_and_the_winding(tmp_path):
    mesh = tetrahedron()
    save_mesh(mesh, tmp_path / "a.stl")
    again = load_mesh(tmp_path / "a.stl")
    assert torch.allclose(corners(again), corners(mesh), atol=1e-6)
    assert again.colors is None


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_textures_survive_with_their_orientation(tmp_path, suffix):
    mesh = textured_square()
    save_mesh(mesh, tmp_path / f"a{suffix}")
    again = load_mesh(tmp_path / f"a{suffix}")
    assert torch.allclose(corners(again), corners(mesh), atol=1e-6)
    assert torch.allclose(again.uvs, mesh.uvs, atol=1e-6)
    assert torch.allclose(again.texture, mesh.texture, atol=1e-6)


def test_glb_bytes_follow_the_specification(tmp_path):
    mesh = tetrahedron()
    save_mesh(mesh, tmp_path / "a.glb")
    tree, binary = glb_parts(tmp_path / "a.glb")
    primitive = tree["meshes"][0]["primitives"][0]

    def values(index: int, dtype: str, width: int) -> np.ndarray:
        accessor = tree["accessors"][index]
        view = tree["bufferViews"][accessor["bufferView"]]
        raw = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        assert view["byteOffset"] % 4 == 0 and len(raw) == accessor["count"] * width * np.dtype(dtype).itemsize
        return np.frombuffer(raw, dtype).reshape(-1, width)

    positions = values(primitive["attributes"]["POSITION"], "<f4", 3)
    assert np.array_equal(positions, mesh.vertices.numpy())
    accessor = tree["accessors"][primitive["attributes"]["POSITION"]]
    assert accessor["min"] == [0, 0, 0] and accessor["max"] == [1, 1, 1]
    assert np.array_equal(values(primitive["indices"], "<u4", 1).reshape(-1, 3), mesh.faces.numpy())
    colour = values(primitive["attributes"]["COLOR_0"], "<u2", 4) / 65535
    assert tree["accessors"][primitive["attributes"]["COLOR_0"]]["normalized"] is True
    assert colour[1, 1] == pytest.approx(0.2140411, abs=1e-5)  # sRGB 0.5 in linear light, IEC 61966-2-1
    assert (colour[:, 3] == 1).all()
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert tree["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0


def test_glb_texture_coordinates_run_down(tmp_path):
    mesh = textured_square()
    save_mesh(mesh, tmp_path / "a.glb")
    tree, binary = glb_parts(tmp_path / "a.glb")
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    read = {}
    for name, width in [("POSITION", 3), ("TEXCOORD_0", 2)]:
        view = tree["bufferViews"][tree["accessors"][attributes[name]]["bufferView"]]
        part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        read[name] = np.frombuffer(part, "<f4").reshape(-1, width)
    assert np.allclose(read["TEXCOORD_0"][:, 0], read["POSITION"][:, 0])
    assert np.allclose(read["TEXCOORD_0"][:, 1], 1 - read["POSITION"][:, 1])


def test_srgb_curve_and_its_inverse():
    x = np.linspace(0, 1, 101)
    assert np.allclose(srgb_from_linear(linear_from_srgb(x)), x, atol=1e-7)
    assert linear_from_srgb(np.array([0.02, 1.0])) == pytest.approx([0.02 / 12.92, 1.0])


def test_foreign_glb_with_two_moved_parts(tmp_path):
    """Written by trimesh: a node transform, vertex colours in linear light on one part, a material colour on the other."""
    import trimesh

    box, ball = trimesh.creation.box((1, 1, 1)), trimesh.creation.icosphere(1)
    box.visual.vertex_colors = np.tile([55, 128, 255, 255], (len(box.vertices), 1)).astype(np.uint8)
    ball.visual = trimesh.visual.TextureVisuals(
        material=trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 0, 0, 255], metallicFactor=0)
    )
    scene = trimesh.Scene()
    scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([5, 0, 0]))
    scene.add_geometry(ball)
    scene.export(tmp_path / "a.glb")
    mesh = load_mesh(tmp_path / "a.glb")
    assert len(mesh.faces) == 12 + 80
    right = mesh.vertices[:, 0] > 4
    assert torch.allclose(mesh.vertices[right].mean(0), torch.tensor([5.0, 0, 0]), atol=1e-6)
    expected = torch.from_numpy(srgb_from_linear(np.array([55, 128, 255]) / 255)).float()
    assert torch.allclose(mesh.colors[right], expected.expand(int(right.sum()), 3), atol=1e-3)
    assert torch.allclose(mesh.colors[~right], torch.tensor([1.0, 0, 0]).expand(int((~right).sum()), 3))


def test_foreign_ply_and_obj_written_by_hand(tmp_path):
    (tmp_path / "a.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nelement face 1\n"
        "property list uchar int vertex_indices\nend_header\n0 0 0 255 0 0\n1 0 0 0 255 0\n0 2 0 0 0 51\n3 0 1 2\n"
    )
    mesh = load_mesh(tmp_path / "a.ply")
    assert mesh.faces.tolist() == [[0, 1, 2]] and mesh.vertices[2].tolist() == [0, 2, 0]
    assert torch.allclose(mesh.colors, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0.2]]), atol=1e-6)
    (tmp_path / "b.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n")
    assert len(load_mesh(tmp_path / "b.obj").faces) == 2


def test_textured_mesh_as_ply_takes_the_texture_at_its_vertices(tmp_path):
    mesh = textured_square()
    save_mesh(mesh, tmp_path / "a.ply")
    again = load_mesh(tmp_path / "a.ply")
    assert torch.allclose(again.colors[0], mesh.texture[-1, 0], atol=1 / 254)  # uv (0, 0): the lower left texel
    assert torch.allclose(again.colors[2], mesh.texture[0, -1], atol=1 / 254)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_mesh_without_colours(tmp_path, suffix):
    bare = Mesh(tetrahedron().vertices, tetrahedron().faces)
    save_mesh(bare, tmp_path / f"a{suffix}")
    assert torch.allclose(corners(load_mesh(tmp_path / f"a{suffix}")), corners(bare), atol=1e-6)


def with_count(glb: bytes, count: int) -> bytes:
    """The same file with another number of values in its first accessor."""
    json_length = struct.unpack("<I", glb[12:16])[0]
    tree = json.loads(glb[20 : 20 + json_length])
    tree["accessors"][0]["count"] = count
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    rest = glb[20 + json_length :]
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON") + text + rest


def test_damaged_and_wrong_files_are_one_sentence(tmp_path):
    save_mesh(tetrahedron(), tmp_path / "good.glb")
    whole = (tmp_path / "good.glb").read_bytes()
    cases = {
        "empty.glb": b"",
        "cut.glb": whole[: len(whole) // 2],
        "text.glb": b"hello, this is not a mesh at all",
        "header.glb": whole.replace(b'"asset"', b'"as{et'),
        "count.glb": with_count(whole, 10**12),
        "negative.glb": with_count(whole, -1),
        "huge.ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 4000000000\nproperty float x\nend_header\n",
        "points.ply": b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
        b"end_header\n0 0 0\n",
        "empty.obj": b"",
        "empty.stl": b"",
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as caught:
            load_mesh(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value).strip(), (name, str(caught.value))
    with pytest.raises(InputError, match="no mesh file"):
        load_mesh(tmp_path / "absent.obj")
    with pytest.raises(InputError, match="suffix"):
        load_mesh(tmp_path / "a.fbx")
    with pytest.raises(InputError, match="suffix"):
        save_mesh(tetrahedron(), tmp_path / "a.fbx")
    with pytest.raises(InputError, match="does not exist"):
        save_mesh(tetrahedron(), tmp_path / "no" / "a.glb")


def test_nan_vertices_are_refused(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 nan\nv 1 0 0\nv 1 1 0\nf 1 2 3\n")
    with pytest.raises(InputError, match="NaN"):
        load_mesh(tmp_path / "a.obj")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.glb"
    save_mesh(tetrahedron(), path)
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoppedLate, match="No space left"):
        save_mesh(textured_square(), path)
    monkeypatch.undo()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.glb"]


def test_embedded_texture_is_a_png(tmp_path):
    import io

    save_mesh(textured_square(), tmp_path / "a.glb")
    tree, binary = glb_parts(tmp_path / "a.glb")
    view = tree["bufferViews"][tree["images"][0]["bufferView"]]
    picture = Image.open(io.BytesIO(binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]))
    assert (picture.format, picture.size) == ("PNG", (4, 6))
