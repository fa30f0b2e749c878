"""KHR_gaussian_splatting in .glb and .gltf, against a file written by hand with everything that the writer does not do."""

import base64
import json
import math
import struct

import numpy as np
import pytest
import torch
import trimesh
from format_samples import differences, random_splats

from splat import sh as harmonics
from splat.errors import InputError
from splat.io.glb import linear_from_srgb
from splat.io.gltf_splats import load_gltf_splats, save_gltf_splats

K = "KHR_gaussian_splatting"
FLOAT, BYTE, SHORT, UBYTE, USHORT = 5126, 5120, 5122, 5121, 5123


def by_hand():
    """Two Gaussians in interleaved, normalised arrays, under two nodes: moved, turned by 90 degrees about z, doubled."""
    rows = b"".join(
        struct.pack("<3f4hBBxx", *position, *rotation, opacity, 7)
        for position, rotation, opacity in [
            ((1, 2, 3), (0, 0, 0, 32767), 51),
            ((0, 0, 0), (32767, 0, 0, 0), 255),
        ]
    )  # strides of 24
    data = rows + struct.pack("<6B2x", 1, 2, 4, 8, 16, 32) + struct.pack("<6f", 0.5, -1, 0.25, 0, 1, 2)
    attributes = {"POSITION": 0, f"{K}:ROTATION": 1, f"{K}:OPACITY": 2, f"{K}:SCALE": 3, f"{K}:SH_DEGREE_0_COEF_0": 4}
    half = math.sqrt(0.5)
    return {
        "asset": {"version": "2.0"},
        "extensionsUsed": [K],
        "scene": 1,
        "scenes": [{"nodes": []}, {"nodes": [0]}],
        "nodes": [
            {"rotation": [0, 0, half, half], "scale": [2, 2, 2], "children": [1]},
            {"matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 10, 0, 0, 1], "mesh": 0},
        ],
        "meshes": [
            {
                "primitives": [
                    {"attributes": {"POSITION": 0}, "mode": 0},
                    {
                        "attributes": attributes,
                        "mode": 0,
                        "extensions": {K: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
                    },
                ]
            }
        ],
        "accessors": [
            {"bufferView": 0, "componentType": FLOAT, "count": 2, "type": "VEC3"},
            {"bufferView": 0, "byteOffset": 12, "componentType": SHORT, "normalized": True, "count": 2, "type": "VEC4"},
            {"bufferView": 0, "byteOffset": 20, "componentType": UBYTE, "normalized": True, "count": 2, "type": "SCALAR"},
            {"bufferView": 1, "componentType": UBYTE, "count": 2, "type": "VEC3"},
            {"bufferView": 1, "byteOffset": 8, "componentType": FLOAT, "count": 2, "type": "VEC3"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": 48, "byteStride": 24},
            {"buffer": 0, "byteOffset": 48, "byteLength": 32},
        ],
        "buffers": [{"byteLength": 80, "uri": "data:application/octet-stream;base64," + base64.b64encode(data).decode()}],
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scene.gltf"


def loaded(path, tree):
    path.write_text(json.dumps(tree))
    return load_gltf_splats(path)


def test_a_hand_written_file_is_read(path):
    splats = loaded(path, by_hand())
    # (x + 10, y, z), turned to (-y, x, z), doubled.
    torch.testing.assert_close(splats.means, torch.tensor([[-4.0, 22, 6], [0, 20, 0]]))
    torch.testing.assert_close(splats.scales, torch.tensor([[2.0, 4, 8], [16, 32, 64]]))
    torch.testing.assert_close(splats.opacities, torch.tensor([0.2, 1.0]))
    torch.testing.assert_close(splats.sh, torch.tensor([[[0.5, -1, 0.25]], [[0, 1, 2]]]))
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, 0, 0, half], [0, half, half, 0]])  # about z; about x, then z
    assert ((splats.quats * expected).sum(1).abs() - 1).abs().max() < 1e-6


def test_the_buffer_may_lie_beside(path):
    tree = by_hand()
    (path.parent / "a b.bin").write_bytes(base64.b64decode(tree["buffers"][0]["uri"].split(",")[1]))
    tree["buffers"][0]["uri"] = "a%20b.bin"
    assert loaded(path, tree).means[0, 0] == -4


def test_the_sh_turn_with_their_node(tmp_path):
    splats = random_splats(5)
    save_gltf_splats(splats, tmp_path / "s.gltf")
    tree = json.loads((tmp_path / "s.gltf").read_text())
    half = math.sqrt(0.5)
    tree["nodes"][0]["rotation"] = [half, 0, 0, half]  # 90 degrees about x: (x, y, z) -> (x, -z, y)
    moved = loaded(tmp_path / "m.gltf", tree)
    look = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    turned = torch.stack([look[:, 0], -look[:, 2], look[:, 1]], dim=1)
    torch.testing.assert_close(harmonics.colours(moved.sh, turned), harmonics.colours(splats.sh, look), rtol=0, atol=1e-5)


def test_logarithms_of_drafts_are_recognised(path, caplog):
    splats = random_splats(3)
    save_gltf_splats(splats, path)
    tree = json.loads(path.read_text())
    data = bytearray(base64.b64decode(tree["buffers"][0]["uri"].split(",")[1]))
    view = tree["bufferViews"][tree["meshes"][0]["primitives"][0]["attributes"][f"{K}:SCALE"]]
    data[view["byteOffset"] : view["byteOffset"] + view["byteLength"]] = splats.log_scales.numpy().tobytes()
    tree["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    assert (loaded(path, tree).log_scales == splats.log_scales).all() and "logarithms" in caplog.text


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_what_the_specification_asks_of_the_writer(tmp_path, degree):
    splats = random_splats(7, degree)
    save_gltf_splats(splats, tmp_path / "s.glb")
    data = (tmp_path / "s.glb").read_bytes()
    magic, version, length, json_length, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON") and json_length % 4 == 0
    tree, binary = json.loads(data[20 : 20 + json_length]), data[28 + json_length :]
    assert tree["extensionsUsed"] == [K] and tree["buffers"] == [{"byteLength": len(binary)}]
    primitive = tree["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0 and primitive["extensions"][K]["kernel"] == "ellipse"

    def column(name, dtype="<f4"):
        accessor = tree["accessors"][primitive["attributes"][name]]
        view = tree["bufferViews"][accessor["bufferView"]]
        raw = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        return torch.from_numpy(np.frombuffer(raw, dtype).reshape(accessor["count"], -1).copy())

    assert (column("POSITION") == splats.means).all()
    torch.testing.assert_close(column(f"{K}:SCALE"), splats.scales)
    torch.testing.assert_close(column(f"{K}:OPACITY")[:, 0], splats.opacities)
    xyzw = torch.nn.functional.normalize(splats.quats, dim=1)[:, [1, 2, 3, 0]]
    torch.testing.assert_close(column(f"{K}:ROTATION"), xyzw)
    names = [f"{K}:SH_DEGREE_{band}_COEF_{i}" for band in range(degree + 1) for i in range(2 * band + 1)]
    assert sorted(n for n in primitive["attributes"] if "SH_" in n) == sorted(names)
    for i, name in enumerate(names):
        assert (column(name) == splats.sh[:, i]).all()
    light = torch.from_numpy(linear_from_srgb(splats.rgb.numpy()))
    assert (column("COLOR_0", "<u2").double()[:, :3] / 65535 - light).abs().max() < 1e-5
    low = tree["accessors"][primitive["attributes"]["POSITION"]]["min"]
    assert low == splats.means.min(0).values.tolist()


def test_trimesh_sees_the_same_points(tmp_path):
    splats = random_splats()
    save_gltf_splats(splats, tmp_path / "s.glb")
    scene = trimesh.load(tmp_path / "s.glb")
    cloud = next(iter(scene.geometry.values()))
    np.testing.assert_allclose(cloud.vertices, splats.means, atol=1e-6)
    np.testing.assert_allclose(scene.bounds, np.stack([splats.means.min(0).values, splats.means.max(0).values]), atol=1e-6)


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_round_trip_is_exact_but_for_exp_and_sigmoid(tmp_path, suffix):
    splats = random_splats(100)
    save_gltf_splats(splats, tmp_path / f"s{suffix}")
    error = differences(splats, load_gltf_splats(tmp_path / f"s{suffix}"))
    assert error["position"] == error["sh"] == 0
    assert error["log_scale"] < 1e-5 and error["opacity"] < 1e-6 and error["angle_deg"] < 1e-4


def at(tree, *keys, value):
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value


SPLATS = ("meshes", 0, "primitives", 1)
HOSTILE = {
    "not 2.0": (("asset", "version"), "1.0", "no glTF 2.0"),
    "no asset": (("asset",), 7, "no glTF 2.0"),
    "a mesh": ((*SPLATS, "extensions"), {}, "holds no Gaussians"),
    "extensions of another kind": ((*SPLATS, "extensions"), [K], "holds no Gaussians"),
    "nodes in a circle": (("nodes", 1, "children"), [0], "in a circle"),
    "no such node": (("nodes", 0, "children"), [99], "number 99 of its nodes"),
    "node is no number": (("nodes", 0, "children"), [[0]], "of its nodes"),
    "stretched": (("nodes", 0, "scale"), [1, 2, 1], "node that stretches"),
    "mirrored": (("nodes", 0, "scale"), [-1, 1, 1], "node that stretches"),
    "scaled to nothing": (("nodes", 0, "scale"), [0, 0, 0], "node that stretches"),
    "NaN in a node": (("nodes", 0, "translation"), [float("nan"), 0, 0], "node that stretches"),
    "short rotation": (("nodes", 0, "rotation"), [0, 1], "node that stretches"),
    "compressed": ((*SPLATS, "extensions", K, "extensions"), {K + "_compression_spz": {}}, "compressed splats .*_spz"),
    "kernel": ((*SPLATS, "extensions", K, "kernel"), "sphere", "kernel 'sphere'"),
    "linear": ((*SPLATS, "extensions", K, "colorSpace"), "lin_rec709_display", "in 'lin_rec709_display'"),
    "no scale": ((*SPLATS, "attributes"), {"POSITION": 0}, "without .*SCALE"),
    "no attributes": ((*SPLATS, "attributes"), {}, "differ in number"),
    "counts differ": (("accessors", 0, "count"), 1, "differ in number"),
    "count is no number": (("accessors", 0, "count"), [2], "differ in number"),
    "sparse": (("accessors", 1, "sparse"), {}, "not read here"),
    "bytes for positions": (("accessors", 0, "componentType"), BYTE, "not read here"),
    "no buffer view": (("accessors", 0, "bufferView"), None, "number None of its bufferViews"),
    "stride of zero": (("bufferViews", 0, "byteStride"), 0, "cut off"),
    "view beyond": (("bufferViews", 1, "byteLength"), 10**9, "cut off"),
    "offset beyond": (("accessors", 0, "byteOffset"), 20, "cut off"),
    "negative offset": (("accessors", 0, "byteOffset"), -4, "damaged 'byteOffset'"),
    "data URI": (("buffers", 0, "uri"), "data:x;base64,?!", "damaged data URI"),
    "no data": (("buffers", 0, "uri"), None, "buffer without data"),
    "another folder": (("buffers", 0, "uri"), "../x.bin", "outside its own folder"),
    "hidden in per cent": (("buffers", 0, "uri"), "%2e%2e/x.bin", "outside its own folder"),
    "absolute": (("buffers", 0, "uri"), "/etc/passwd", "outside its own folder"),
    "the network": (("buffers", 0, "uri"), "http://localhost/x.bin", "outside its own folder"),
    "missing": (("buffers", 0, "uri"), "x.bin", "needs x.bin beside it"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_one_sentence_says_what_is_wrong(path, case):
    keys, value, message = HOSTILE[case]
    tree = by_hand()
    at(tree, *keys, value=value)
    with pytest.raises(InputError, match=message) as caught:
        loaded(path, tree)
    assert "scene.gltf" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value, message", [(2.0, "opacities outside"), (float("nan"), "opacities outside")])
def test_values_that_are_no_splats(path, value, message):
    save_gltf_splats(random_splats(2), path)
    tree = json.loads(path.read_text())
    data = bytearray(base64.b64decode(tree["buffers"][0]["uri"].split(",")[1]))
    start = tree["bufferViews"][tree["meshes"][0]["primitives"][0]["attributes"][f"{K}:OPACITY"]]["byteOffset"]
    data[start : start + 4] = struct.pack("<f", value)
    tree["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    with pytest.raises(InputError, match=message):
        loaded(path, tree)


def test_huge_counts_are_refused_before_memory_is_taken(path):
    tree = by_hand()
    for accessor in tree["accessors"]:
        accessor["count"] = 2_000_000_000
    with pytest.raises(InputError, match="more than the limit"):
        loaded(path, tree)
    for accessor in tree["accessors"]:
        accessor["count"] = 20_000_000
    with pytest.raises(InputError, match="cut off"):
        loaded(path, tree)


NO_GLTF = ["", "{", "[" * 100_000, "[1]", '{"asset":{"version":"2.0"},"scenes":4}', "[" + "[]," * 2_000_000]


@pytest.mark.parametrize("text", NO_GLTF, ids=range(len(NO_GLTF)))
def test_json_that_is_no_gltf(path, text):
    path.write_text(text)
    with pytest.raises(InputError):
        load_gltf_splats(path)


def test_every_cut_of_a_glb_is_refused(tmp_path):
    save_gltf_splats(random_splats(1, 0), tmp_path / "s.glb")
    data = (tmp_path / "s.glb").read_bytes()
    for end in range(0, len(data), 7):
        (tmp_path / "c.glb").write_bytes(data[:end])
        with pytest.raises(InputError):
            load_gltf_splats(tmp_path / "c.glb")
