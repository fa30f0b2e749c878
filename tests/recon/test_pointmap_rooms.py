"""Rooms to learn depth from: everything follows from the seed, depth is exact, cameras photograph."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from recon.pointmap.matches import cell_matches
from recon.pointmap.network import pixel_rays
from recon.pointmap.objective import PairTruth
from recon.pointmap.pair_bank import (
    PairBankConfig,
    build_pair_bank,
    camera_of,
    open_pair_bank,
    pair_of,
    shared_shares,
    stacked,
)
from recon.pointmap.photographic import as_photographed
from recon.pointmap.rooms import RoomConfig, RoomViews, photographed, random_cameras, random_room
from recon.pointmap.textures import SIDE, mip_levels, random_texture
from splat.cameras import Cameras
from splat.errors import InputError
from splat.mesh import Mesh

SMALL = RoomConfig(views=4, width=64)


def pyramid():
    corners = torch.tensor([[-0.5, -0.5, -0.5], [0.5, -0.5, -0.5], [0.5, -0.5, 0.5], [-0.5, -0.5, 0.5], [0, 0.5, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [1, 0, 4], [2, 1, 4], [3, 2, 4], [0, 3, 4]])
    return Mesh(corners, faces, torch.rand(5, 3, generator=torch.Generator().manual_seed(0)))


def views_of(seed, config=SMALL):
    rng = np.random.default_rng(seed)
    room = random_room([pyramid(), pyramid()], rng, config)
    return photographed(room, random_cameras(rng, config, room.middle), config)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "rooms"
    config = PairBankConfig(rooms=3, val_rooms=1, room=RoomConfig(views=4, width=64, portrait=0))
    steps = list(build_pair_bank(lambda split, rng: [pyramid()], folder, config, {"objects": 1}))
    assert steps[-1].step == steps[-1].total == 4
    return folder, config


def test_everything_follows_from_the_seed():
    a, b, c = views_of(3), views_of(3), views_of(4)
    assert np.array_equal(a.images, b.images) and np.array_equal(a.depth, b.depth) and not np.array_equal(a.depth, c.depth)
    assert a.images.shape[1:3] in ((48, 64), (64, 48)) and a.depth.shape[1] * 2 == a.images.shape[1]
    assert 0 <= a.images.min() and a.images.max() <= 1 and a.images.std() > 0.02


def test_depth_is_where_the_walls_are():
    """Inside a room every point lies inside its outermost planes, and on one of its triangles' planes."""
    config = RoomConfig(views=2, width=64, outdoors=0.0)
    rng = np.random.default_rng(0)
    room = random_room([], rng, config)
    views = photographed(room, random_cameras(rng, config, room.middle), config)
    camera = views.cameras[0].resized(views.depth.shape[2], views.depth.shape[1])
    points = camera.unproject(camera.pixel_centers, torch.from_numpy(views.depth[0])).reshape(-1, 3)
    low, high = room.mesh.vertices.amin(0), room.mesh.vertices.amax(0)
    assert (points > low - 1e-3).all() and (points < high + 1e-3).all()
    corners = room.mesh.vertices[room.mesh.faces]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = torch.nn.functional.normalize(normals, dim=-1)
    off = ((points[:, None] - corners[None, :, 0]) * normals).sum(-1).abs().amin(1)
    assert float(off.max()) < 1e-3


def test_patterns_are_about_nothing_and_shrink_to_it():
    texture = random_texture(np.random.default_rng(0))
    assert texture.shape == (SIDE, SIDE, 3) and abs(float(texture.mean())) < 1e-4 and 0.02 < float(texture.std()) < 0.5
    levels = mip_levels(texture)
    assert levels[-1].shape == (1, 1, 3) and np.abs(levels[-1]).max() < 1e-4
    for seed in range(12):  # every kind
        assert np.isfinite(random_texture(np.random.default_rng(seed))).all()


def test_a_camera_changes_a_picture_a_little():
    rng = np.random.default_rng(0)
    image = np.random.default_rng(1).uniform(0.2, 0.8, (12, 16, 3)).repeat(4, 0).repeat(4, 1).astype(np.float32)
    taken = as_photographed(image, rng)
    assert taken.dtype == np.uint8 and taken.shape == image.shape
    assert np.corrcoef(taken.ravel(), image.ravel())[0, 1] > 0.6


def test_shared_shares_of_two_views_of_a_wall():
    """Cameras side by side before a plane, shifted by half of what they see."""
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[1, 0, 3] = -1.0
    K = torch.tensor([[32.0, 0, 32], [0, 32, 24], [0, 0, 1]]).repeat(2, 1, 1)
    cameras = Cameras(pose, K, 64, 48)
    views = RoomViews(np.zeros((2, 48, 64, 3), np.float32), np.full((2, 24, 32), 1.0, np.float32), cameras)
    assert shared_shares(views) == pytest.approx(np.array([[1, 0.5], [0.5, 1]]), abs=0.13)


def test_a_bank_is_drawn_once_and_gives_true_pairs(bank):
    folder, config = bank
    written = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.npz")}
    list(build_pair_bank(lambda split, rng: [pyramid()], folder, config))
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*.npz")} == written
    opened = open_pair_bank(folder)
    generator = torch.Generator().manual_seed(0)
    pair, truth = opened.batch("train", 3, generator)
    assert pair.images.shape == (3, 2, 3, 24, 32) and pair.descriptors.shape == (3, 2, 64, 6, 8)
    assert truth.depth.shape == (3, 2, 24, 32) and set((pair.focal > 0).tolist()) <= {True, False}
    with np.load(next(iter(sorted(folder.glob("train_*.npz"))))) as f:
        room = {name: f[name] for name in f.files}
    _, truth = stacked([pair_of(room, 0, 1)])
    # the motion takes the first picture's points to where the second camera sees them
    points = truth.depth[:, 0, ..., None] * pixel_rays(truth.focal, 24, 32)
    moved = points.reshape(-1, 3) @ truth.second_from_first[0, :3, :3].T + truth.second_from_first[0, :3, 3]
    world = camera_of(room, 0).unproject(camera_of(room, 0).pixel_centers, truth.depth[0, 0]).reshape(-1, 3)
    known = truth.depth[0, 0].reshape(-1) > 0
    _, depth = camera_of(room, 1).project(world)
    torch.testing.assert_close(moved[known, 2], depth[0][known], atol=2e-3, rtol=2e-3)
    assert float((torch.linalg.inv(truth.motions()[:, 0]) - truth.motions()[:, 1]).abs().max()) < 1e-5


def test_an_unfinished_bank_is_refused(tmp_path):
    with pytest.raises(InputError, match="run the step 'views' first"):
        open_pair_bank(tmp_path)
    for text in ("{", "[]", "\0"):
        (tmp_path / "bank.json").write_text(text)
        with pytest.raises(InputError, match="is damaged"):
            open_pair_bank(tmp_path)


@pytest.mark.parametrize("fault", ["cut", "field", "name", "split", "empty", "text", "shape"])
def test_a_file_that_is_no_room_is_a_sentence(bank, tmp_path, fault):
    folder = shutil.copytree(bank[0], tmp_path / "rooms")
    path = folder / "train_00001.npz"
    with np.load(path) as f:
        room = {name: f[name] for name in f.files}
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif fault == "field":
        np.savez(path, **{name: value for name, value in room.items() if name != "depth"})
    elif fault == "name":
        path = path.rename(folder / "a_b.npz")
    elif fault == "split":
        path = path.rename(folder / "test_00001.npz")
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "text":
        path.write_text("a room")
    else:
        np.savez(path, **{**room, "trust": np.zeros(3)})
    with pytest.raises(InputError, match=f"{path.name} is no room .*run the step 'views' again"):
        open_pair_bank(folder)


def test_rooms_that_are_all_upright_are_rooms(bank, tmp_path):
    folder = shutil.copytree(bank[0], tmp_path / "rooms")
    for path in folder.glob("train_*.npz"):
        with np.load(path) as f:
            room = {name: f[name] for name in f.files}
        turned = {"images": (0, 2, 1, 3), "descriptors": (0, 1, 3, 2), "trust": (0, 2, 1), "depth": (0, 2, 1)}
        np.savez(path, **{name: value.transpose(turned[name]) if name in turned else value for name, value in room.items()})
    pair, _ = open_pair_bank(folder).batch("train", 2, torch.Generator().manual_seed(0))
    assert pair.images.shape == (2, 2, 3, 32, 24)
    for path in folder.glob("train_*.npz"):
        path.unlink()
    with pytest.raises(InputError, match="no rooms to learn from"):
        open_pair_bank(folder)


def test_rooms_are_added_only_to_what_was_made_alike(bank, tmp_path):
    folder, config = shutil.copytree(bank[0], tmp_path / "rooms"), bank[1]
    before = sorted(p.name for p in folder.iterdir())

    def build(config, objects=()):
        return list(build_pair_bank(lambda split, rng: [pyramid()], folder, config, objects=objects))

    for changed, objects, sentence in (
        (replace(config, seed=1), (), r"another seed \(0, now 1\); use another work folder"),
        (replace(config, room=replace(config.room, width=80)), (), r"another width \(64, now 80\)"),
        (config, ["own/box"], "another objects"),
    ):
        with pytest.raises(InputError, match=sentence):
            build(changed, objects)
    assert sorted(p.name for p in folder.iterdir()) == before
    assert not [e for e in build(config) if e.stage == "notice"]
    (folder / "made_with.json").unlink()
    (notice,) = [e.note for e in build(config) if e.stage == "notice"]
    assert "holds 4 files and no record" in notice and (folder / "made_with.json").is_file()


def test_cells_find_their_shifted_selves():
    generator = torch.Generator().manual_seed(0)
    first = torch.nn.functional.normalize(torch.randn(1, 64, 6, 8, generator=generator), dim=1)
    forth, back = cell_matches(first, first.roll(2, -1))
    assert forth[0, :, :6, 0].mul(8).round().unique().tolist() == [2] and float(forth[0, :, :6, 2].min()) > 0.5
    assert back[0, :, 2:, 0].mul(8).round().unique().tolist() == [-2]


def test_truth_moves_with_its_device():
    truth = PairTruth(torch.ones(1, 2, 4, 4), torch.eye(4)[None], torch.ones(1)).to("cpu")
    assert truth.motions().shape == (1, 2, 4, 4)
