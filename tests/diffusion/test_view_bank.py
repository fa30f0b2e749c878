"""Banks of small pictures of every object."""

import json
import math

import numpy as np
import pytest
import torch

from diffusion.data.object_set import open_objects
from diffusion.view_bank import (
    FAR,
    NEAR,
    ViewBankConfig,
    build_view_bank,
    cameras_at,
    directions_of,
    open_view_bank,
    scaled,
)
from splat.errors import InputError
from tests.diffusion.tiny_objects import box, write_packed

SMALL = ViewBankConfig(size=16, ring=4, extra=2)


def drained(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    meshes = [box((200, 30, 30)), box((30, 200, 30), (0.4, 1.0, 0.4)), box((20, 20, 200), (1, 1, 1))]
    rows = [
        {"key": f"set/{i}", "noun": "box", "license": "CC0-1.0", "split": s} for i, s in enumerate(("train", "train", "val"))
    ]
    write_packed(folder, meshes, rows)
    return open_objects(folder)


@pytest.fixture(scope="module")
def bank(objects, tmp_path_factory):
    return drained(build_view_bank(objects, tmp_path_factory.mktemp("bank"), SMALL))[0]


def test_training_objects_come_in_two_shapes_and_others_in_one(bank):
    owners = sorted(zip(bank.objects.tolist(), bank.shapes.tolist(), strict=True))
    assert owners == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert bank.splits == ("train", "train", "val")
    assert len(bank.examples("train")) == 4


def test_pictures_are_premultiplied_and_depths_are_those_of_the_surface(bank):
    row = next(i for i in range(len(bank.objects)) if (bank.objects[i], bank.shapes[i]) == (2, 0))  # the cube, +-0.5
    front = bank.views[row, 0].astype(np.float64)  # azimuth 0
    colour, coverage, steps = front[..., :3], front[..., 3], front[..., 4]
    assert (colour[coverage == 0] == 0).all()
    inside = coverage == 255
    assert inside.sum() > 20
    np.testing.assert_allclose(colour[inside], [[20, 20, 200]] * inside.sum(), atol=1)
    depth = NEAR + (steps[inside] - 1) / 254 * (FAR - NEAR)
    elevation = math.radians(20)
    assert depth.min() == pytest.approx(1.9 - 0.5 * (math.cos(elevation) + math.sin(elevation)), abs=0.08)  # the upper edge
    assert depth.max() < 1.9


def test_cameras_of_the_angles_see_what_was_drawn(bank, objects):
    from splat.raycast import raycast

    row = next(i for i in range(len(bank.objects)) if (bank.objects[i], bank.shapes[i]) == (1, 0))
    cameras = cameras_at(*torch.from_numpy(np.array(bank.angles[row])).unbind(-1), SMALL.size)
    views, _ = raycast(objects[1], cameras, background=(0.0, 0.0, 0.0))
    np.testing.assert_allclose(views.images.numpy() * 255, bank.views[row, ..., :3], atol=0.51)


def test_directions_are_a_ring_the_same_azimuths_tilted_and_others():
    directions = directions_of("a", SMALL)
    np.testing.assert_allclose(directions[:4, 0], np.arange(4) * math.pi / 2, atol=1e-6)
    np.testing.assert_allclose(directions[:4, 1], math.radians(20), atol=1e-6)
    np.testing.assert_allclose(directions[4:8, 0], directions[:4, 0])
    assert len(directions) == 10
    assert np.abs(directions - directions_of("b", SMALL)).max() > 0.01
    np.testing.assert_array_equal(directions, directions_of("a", SMALL))


def test_a_cut_run_goes_on_and_ends_with_the_same_bank(objects, bank, tmp_path):
    job = build_view_bank(objects, tmp_path, SMALL)
    next(job), next(job)
    job.close()
    with pytest.raises(InputError, match=r"only [23] of 5 examples are drawn"):
        open_view_bank(tmp_path)
    again, events = drained(build_view_bank(objects, tmp_path, SMALL))
    assert len(events) <= 3
    np.testing.assert_array_equal(again.views, bank.views)
    np.testing.assert_array_equal(again.angles, bank.angles)


def test_another_config_starts_anew(objects, tmp_path):
    drained(build_view_bank(objects, tmp_path, SMALL))
    _, events = drained(build_view_bank(objects, tmp_path, ViewBankConfig(size=16, ring=4, extra=1)))
    assert len(events) == 5


def test_scaled_meshes_keep_their_longest_side():
    mesh = scaled(box(size=(1.0, 0.5, 0.25)), [0.5, 1.4, 1.0])
    size = mesh.vertices.amax(0) - mesh.vertices.amin(0)
    torch.testing.assert_close(size, torch.tensor([0.5, 0.7, 0.25]) / 0.7)


@pytest.mark.parametrize("broken", ["nothing", "json", "format", "shape", "owner"])
def test_broken_banks_are_one_sentence(objects, tmp_path, broken):
    drained(build_view_bank(objects, tmp_path, SMALL))
    about = json.loads((tmp_path / "bank.json").read_text())
    if broken == "nothing":
        (tmp_path / "views.npy").unlink()
    elif broken == "shape":
        np.save(tmp_path / "angles.npy", np.zeros((5, 3, 2), np.float32))
    else:
        about["format"] = "other" if broken == "format" else about["format"]
        about["examples"][0][0] = 99 if broken == "owner" else 0
        text = "{" if broken == "json" else json.dumps(about)
        (tmp_path / "bank.json").write_text(text)
    with pytest.raises(InputError, match="holds no view bank"):
        open_view_bank(tmp_path)


@pytest.mark.parametrize("options", [{"ring": 6}, {"size": 4}, {"extra": -1}])
def test_impossible_banks_are_refused(options):
    with pytest.raises(InputError, match="cannot be made"):
        ViewBankConfig(**options)
