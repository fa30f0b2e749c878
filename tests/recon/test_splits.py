"""The published lists, frame by frame."""

import pytest

from recon.splits import BLENDER_TRAIN, PROTOCOLS, blender, dtu, every_eighth, llff, tanks
from splat.errors import InputError


def frames(count, form="img_{:04d}.png"):
    return [form.format(i) for i in range(count)]


def indices(chosen, names):
    return [names.index(name) for name in chosen]


# Scene -> (photos in the capture, the three training frames of every paper's 3-view table).
LLFF_THREE = {
    "fern": (20, [1, 10, 19]),
    "flower": (34, [1, 17, 33]),
    "fortress": (42, [1, 21, 41]),
    "horns": (62, [1, 30, 61]),
    "leaves": (26, [1, 12, 25]),
    "orchids": (25, [1, 12, 23]),
    "room": (41, [1, 20, 39]),
    "trex": (55, [1, 28, 54]),
}


@pytest.mark.parametrize("scene", LLFF_THREE)
def test_llff_three_views(scene):
    count, expected = LLFF_THREE[scene]
    names = frames(count)
    split = llff(names[::-1], 3)
    assert indices(split.train, names) == expected
    assert indices(split.test, names) == list(range(0, count, 8))
    assert scene in PROTOCOLS["llff"].scenes


def test_mipnerf360_garden_24_views():
    names = frames(185, "DSC{:05d}.JPG")
    expected = [1, 9, 17, 25, 33, 41, 49, 57, 65, 73, 81, 89, 95, 103, 111, 119, 127, 135, 143, 151, 159, 167, 175, 183]
    assert indices(PROTOCOLS["mipnerf360"].split(names, 24).train, names) == expected


def test_dtu():
    names = frames(49, "rect_{:03d}_3_r5000.png")
    split = dtu(names, 3)
    assert indices(split.train, names) == [25, 22, 28]
    assert indices(dtu(names, 9).train, names) == [25, 22, 28, 40, 44, 48, 0, 8, 13]
    tested = [1, 2, 9, 10, 11, 12, 14, 15, 23, 24, 26, 27, 29, 30, 31, 32, 33, 34, 35, 41, 42, 43, 45, 46, 47]
    assert indices(split.test, names) == tested
    assert split.test == dtu(names, 9).test  # whatever is trained on, the same photos are tested
    assert PROTOCOLS["dtu"].masked and len(PROTOCOLS["dtu"].scenes) == 15
    with pytest.raises(InputError, match="49 photos, not 343"):
        dtu(frames(343), 3)


def test_blender():
    names = [f"{part}/r_{i}.png" for part, count in (("train", 100), ("test", 200)) for i in range(count)]
    split = blender(names)
    assert split.train == tuple(f"train/r_{i}.png" for i in (2, 16, 26, 55, 73, 76, 86, 93)) and len(BLENDER_TRAIN) == 8
    assert split.test == tuple(f"test/r_{i}.png" for i in range(0, 200, 8)) and len(split.test) == 25
    assert blender(names[:50:-1] + names[:51]) == split  # any order of the files
    with pytest.raises(InputError, match="train/r_93"):
        blender([n for n in names if n != "train/r_93.png"])
    with pytest.raises(InputError, match="test photos"):
        blender(names[:100])


def test_tanks():
    names = frames(24)
    split = tanks(names, 3)
    assert indices(split.test, names) == [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]
    assert indices(split.train, names) == [0, 11, 23]
    assert indices(tanks(names, 6).train, names) == [0, 5, 9, 13, 17, 23]
    assert indices(tanks(names, 12).train, names) == [0, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
    with pytest.raises(InputError, match="24 frames, not 25"):
        tanks(frames(25), 3)


def test_our_photos():
    names = frames(20)
    assert indices(every_eighth(names).test, names) == [0, 8, 16]
    assert len(every_eighth(names).train) == 17
    assert indices(every_eighth(names, 3).train, names) == [1, 10, 19]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_nothing_trained_on_is_tested(name):
    protocol = PROTOCOLS[name]
    counts = {"dtu": 49, "tanks": 24}
    names = frames(counts.get(name, 40))
    if name == "blender":
        names = [f"{part}/r_{i}.png" for part, count in (("train", 100), ("test", 200)) for i in range(count)]
    for views in protocol.views:
        split = protocol.split(names, views)
        assert len(split.train) == len(set(split.train)) == views
        assert split.test and not set(split.train) & set(split.test) and {*split.train, *split.test} <= set(names)
    with pytest.raises(InputError, match="views"):
        protocol.split(names, 1000)
