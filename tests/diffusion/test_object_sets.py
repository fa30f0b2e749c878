"""Reading objects: the packed format, folders of meshes, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from tiny_objects import box, joined, write_packed

from diffusion.data.captions import plain_caption
from diffusion.data.mesh_folder import FolderConfig, MeshFolder, normalised, words_in
from diffusion.data.nouns import PROTOCOL_NOUNS, common_nouns
from diffusion.data.object_set import open_objects, rows_of
from diffusion.data.packed import read_shard
from diffusion.data.surface import surface_samples
from diffusion.data.words import describe
from splat.errors import InputError
from splat.io.meshes import save_mesh
from splat.mesh import Mesh

TWO = [box(), joined(box((10, 20, 90), (0.5, 1.0, 0.5)), box((255, 255, 255), (0.1, 0.2, 0.9)))]


class TestPacked:
    def test_positions_faces_colours_and_facts_come_back(self, tmp_path):
        row = {
            "id": "p/b",
            "name": "Blue Post",
            "group": "post",
            "style": "low poly",
            "license": "CC0-1.0",
            "author": "A",
            "pack": "p",
        }
        write_packed(tmp_path, TWO, [{}, row | {"split": "val"}])
        objects = open_objects(tmp_path)
        assert len(objects) == 2 and objects.facts[1].name == "blue post" and objects.facts[1].noun == "post"
        assert objects.facts[1].licence_is_confirmed and not objects.facts[0].licence_is_confirmed
        for mesh, read in zip(TWO, (objects[0], objects[1]), strict=True):
            torch.testing.assert_close(read.vertices, mesh.vertices, atol=0.5 / 8190 + 1e-7, rtol=0)
            assert torch.equal(read.faces, mesh.faces)
            torch.testing.assert_close(read.colors, mesh.colors)
        only = objects.chosen(rows_of(objects, lambda f: f.split == "val"))
        assert [f.key for f in only.facts] == ["p/b"] and torch.equal(only[0].vertices, objects[1].vertices)

    @pytest.mark.parametrize(
        "replaced",
        [
            {"color": np.zeros((3, 3), np.uint8)},
            {"color": np.zeros((24, 3), np.float32)},
            {"vert_offset": np.array([0, 24, 8], np.int64)},
            {"vert_offset": np.array([0, 24], np.int64)},
            {"face_offset": np.array([0, 30, 36], np.int64)},  # the first object takes faces of the second
            {"face_delta": np.ones(108, np.uint16)},
            {"vert_delta": np.full((3, 24), 8191, np.uint16)},
            {"vert_delta": np.array([{"a": 1}] * 24, dtype=object)},
        ],
        ids=str,
    )
    def test_a_shard_that_contradicts_itself_is_refused(self, tmp_path, replaced):
        write_packed(tmp_path, TWO, [{}, {}], **replaced)
        with pytest.raises(InputError, match=r"train-00\.npz"):
            open_objects(tmp_path)[0]

    def test_a_header_that_promises_more_than_is_there_is_refused_before_it_is_allocated(self, tmp_path):
        write_packed(tmp_path, TWO, [{}, {}])
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (2**44, 3)})
        with zipfile.ZipFile(tmp_path / "train-00.npz") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()} | {"color.npy": head.getvalue() + bytes(72)}
        with zipfile.ZipFile(tmp_path / "train-00.npz", "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        with pytest.raises(InputError, match=r"color claims \(17592186044416, 3\)"):
            read_shard(tmp_path / "train-00.npz")

    @pytest.mark.parametrize("keep", [0, 10, 500, -30])
    def test_a_cut_shard_is_refused(self, tmp_path, keep):
        write_packed(tmp_path, TWO, [{}, {}])
        path = tmp_path / "train-00.npz"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InputError):
            read_shard(path)

    @pytest.mark.parametrize(
        "row",
        [
            {"shard": "../secret.npz"},
            {"shard": "/etc/x.npz"},
            {"shard": "a\\b.npz"},
            {"i": -1},
            {"i": True},
            {"split": "dev"},
            {"shard": 3},
        ],
        ids=str,
    )
    def test_an_index_that_points_elsewhere_is_refused_with_its_line(self, tmp_path, row):
        write_packed(tmp_path, TWO, [{}, row])
        with pytest.raises(InputError, match="line 2"):
            open_objects(tmp_path)

    @pytest.mark.parametrize(
        "text", ["", "[]\n", "{\n", '{"name": "a"}\n', "[" * 100_000], ids=["empty", "list", "cut", "keys", "deep"]
    )
    def test_a_damaged_index_is_refused(self, tmp_path, text):
        write_packed(tmp_path, TWO, [{}, {}])
        (tmp_path / "index.jsonl").write_text(text)
        with pytest.raises(InputError, match="index"):
            open_objects(tmp_path)

    def test_a_row_beyond_its_shard_is_refused(self, tmp_path):
        write_packed(tmp_path, TWO, [{}, {"i": 7}])
        with pytest.raises(InputError, match="object 7"):
            open_objects(tmp_path)[1]


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        off_centre = box(size=(4.0, 2.0, 1.0), center=(10.0, 3.0, -5.0))
        for name in ("train/RedChair_02.glb", "val/lamp.obj", "train/mug/0123456789abcdef0123.ply"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            save_mesh(off_centre, tmp_path / name)
        return tmp_path

    def test_names_splits_and_the_common_frame(self, folder):
        objects = open_objects(folder)
        assert [(f.name, f.noun, f.split) for f in objects.facts] == [
            ("red chair", "chair", "train"), ("mug", "mug", "train"), ("lamp", "lamp", "val"),
        ]  # fmt: skip
        for row in range(3):
            vertices = objects[row].vertices
            torch.testing.assert_close(vertices.amax(0), torch.tensor([0.5, 0.25, 0.125]))
            torch.testing.assert_close(vertices.amin(0), torch.tensor([-0.5, -0.25, -0.125]))
            rgb = surface_samples(objects[row], 64).colors
            torch.testing.assert_close(rgb.mean(0), torch.tensor([200, 30, 30]) / 255, atol=0.01, rtol=0)

    def test_z_up_files_are_stood_up_with_their_front_towards_plus_z(self, tmp_path):
        tall = joined(box(size=(1, 1, 4)), box((0, 0, 255), size=(0.2, 0.2, 0.2), center=(0, -0.6, 2)))  # a nose at -Y, on top
        save_mesh(tall, tmp_path / "post.obj")
        mesh = MeshFolder.open(tmp_path, FolderConfig(up="z"))[0]
        nose = mesh.vertices[mesh.colors[:, 2] > 0.5].mean(0)
        assert nose[1] > 0.4 and nose[2] > 0.1 and abs(nose[0]) < 1e-6

    def test_what_is_said_beside_the_files_wins(self, folder):
        (folder / "objects.jsonl").write_text(json.dumps({"file": "val/lamp.obj", "name": "desk light", "license": "CC0-1.0"}))
        facts = {f.key: f for f in open_objects(folder).facts}["val/lamp.obj"]
        assert (facts.name, facts.noun, facts.licence) == ("desk light", "light", "CC0-1.0")

    @pytest.mark.parametrize(
        "content", [b"", b"glTF" + bytes(200), b"\x00" * 1000, b"v 1 2\nf 9 9 9\n", b"v nan 0 0\nf 1 1 1\n"]
    )
    @pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
    def test_damaged_files_are_refused_in_one_sentence(self, tmp_path, content, suffix):
        (tmp_path / f"bad{suffix}").write_bytes(content)
        with pytest.raises(InputError, match="bad"):
            open_objects(tmp_path)[0]

    def test_too_many_bytes_or_triangles_are_refused(self, folder):
        with pytest.raises(InputError, match="max_faces=5"):
            MeshFolder.open(folder, FolderConfig(max_faces=5))[0]
        with pytest.raises(InputError, match="max_mb=0"):
            MeshFolder.open(folder, FolderConfig(max_mb=0))[0]

    def test_folders_without_objects_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="holds no"):
            open_objects(tmp_path)
        with pytest.raises(InputError, match="no folder"):
            open_objects(tmp_path / "missing")

    def test_a_point_and_unused_vertices(self):
        with pytest.raises(InputError, match="units long"):
            normalised(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])))
        stray = Mesh(torch.cat([box().vertices, torch.tensor([[99.0, 0, 0]])]), box().faces)
        torch.testing.assert_close(normalised(stray).vertices.amax(0), torch.tensor([0.5, 0.25, 0.125]))

    def test_words_of_file_names(self):
        assert words_in("RedChair_02") == "red chair" and words_in("old-oak.tree") == "old oak tree"


UIDS = [f"{i:032x}" for i in range(4)]


class TestObjaverse:
    """Its own layout: glbs/000-000/UID.glb, with categories, paths and licences in tables beside."""

    @pytest.fixture
    def folder(self, tmp_path):
        for uid in UIDS:
            (tmp_path / "glbs" / "000-000").mkdir(parents=True, exist_ok=True)
            save_mesh(box(), tmp_path / "glbs" / "000-000" / f"{uid}.glb")
        categories = {"teddy_bear": UIDS[:1], "bat_(animal)": [UIDS[1], "f" * 32], "armchair": [UIDS[2]]}
        (tmp_path / "lvis-annotations.json.gz").write_bytes(gzip.compress(json.dumps(categories).encode()))
        (tmp_path / "metadata").mkdir()
        rows = {
            UIDS[0]: {"name": "untitled", "license": "by", "user": {"username": "a", "displayName": "Ann"}},
            UIDS[1]: {"license": "by-nc", "user": None},
        }
        (tmp_path / "metadata" / "000-000.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
        return tmp_path

    def test_objects_are_called_by_their_category_and_keep_their_licence(self, folder):
        objects = open_objects(folder)
        assert [(f.name, f.noun, f.licence, f.author, f.licence_is_confirmed) for f in objects.facts] == [
            ("teddy bear", "teddy bear", "CC-BY-4.0", "Ann", True), ("bat", "bat", "CC-BY-NC-4.0", "", True),
            ("armchair", "armchair", "", "", False),
        ]  # fmt: skip
        assert objects.facts[2].key == f"glbs/000-000/{UIDS[2]}.glb" and len(objects[2].faces) == 12
        assert plain_caption(describe(objects.facts[0], objects[0])) == "a red teddy bear"

    def test_the_other_direction_and_a_table_of_paths(self, folder):
        (folder / "lvis-annotations.json.gz").unlink()
        (folder / "lvis-annotations.json").write_text(json.dumps({UIDS[3]: "lamp", UIDS[2]: "armchair"}))
        paths = {UIDS[3]: f"glbs/000-000/{UIDS[3]}.glb", UIDS[2]: "../outside.glb"}
        (folder / "object-paths.json").write_text(json.dumps(paths))
        assert [f.name for f in open_objects(folder).facts] == ["lamp"]

    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("lvis-annotations.json", b"[1]", "no table"),
            ("lvis-annotations.json", b'{"chair": [3]}', "other than names"),
            ("lvis-annotations.json", b'{"chair": ["not here"]}', "none of their files"),
            ("lvis-annotations.json.gz", b"no gzip", "does not read"),
            ("metadata/000-001.json", b"[]", "no table of objects"),
            ("object-paths.json", b"[]", "no table of paths"),
        ],
    )
    def test_damaged_tables_are_refused_in_one_sentence(self, folder, name, content, sentence):
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=sentence):
            open_objects(folder)


class TestSurface:
    def test_samples_follow_the_area_and_not_the_triangle_count(self):
        two = joined(box((255, 0, 0), (1, 1, 1)), *[box((0, 0, 255), (0.1, 0.1, 0.1))] * 20)  # areas 6 and 20 x 0.06
        colors = surface_samples(two, 4000).colors
        assert float((colors[:, 0] > 0.5).float().mean()) == pytest.approx(6 / 7.2, abs=0.01)

    def test_normals_point_outwards_and_points_lie_on_the_surface(self):
        samples = surface_samples(box(), 500)
        assert (samples.points * samples.normals).sum(-1).min() > 0.1
        distance = (samples.points.abs() - torch.tensor([0.5, 0.25, 0.125])).max(dim=-1).values
        torch.testing.assert_close(distance, torch.zeros(500), atol=1e-6, rtol=0)


def test_the_known_set(shared_data):
    if not (shared_data / "objects").is_dir():
        pytest.skip("no objects beside the photos")
    objects = open_objects(shared_data / "objects")
    assert (len(rows_of(objects, lambda f: f.split == "train")), len(rows_of(objects, lambda f: f.split == "val"))) == (
        2760,
        155,
    )
    assert common_nouns(objects.facts) == PROTOCOL_NOUNS and len(PROTOCOL_NOUNS) == 68
    for row in rows_of(objects, lambda f: f.split == "val"):
        mesh = objects[row]
        side = mesh.vertices.amax(0) - mesh.vertices.amin(0)
        assert float(side.max()) == pytest.approx(1, abs=2e-3) and len(mesh.faces) > 0
