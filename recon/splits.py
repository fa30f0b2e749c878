"""Which photos the published few-view evaluations train on and test on, by data set. Names in, names out.

Numbers of different protocols cannot be compared, so a table names the one it used. Each function takes the names of a scene's
photos, as its capture has them, and gives the published choice; sizes and metrics that belong to it are in `PROTOCOLS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from splat.errors import InputError


@dataclass(frozen=True)
class Split:
    """Photos by name; the rest of the scene is neither trained nor tested on."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Protocol:
    """One published way to evaluate few views."""

    split: Callable[[Sequence[str], int], Split]  # (names of all photos of a scene, training views) -> Split
    views: tuple[int, ...]  # published numbers of training views
    scenes: tuple[str, ...]
    shrink: int  # the photos are this many times smaller than the originals
    posed: bool  # test cameras are given; else they are moved until the frozen splats match
    masked: bool = False  # metrics count the foreground alone
    background: str = "none"  # behind transparent photos
    source: str = ""


def llff(names: Sequence[str], views: int) -> Split:
    """Every 8th photo in name order is tested; the training views are evenly spread over the others.

    The code of RegNeRF, FSGS, CoR-GS, DNGaussian and DropGaussian, for LLFF and MipNeRF 360.
    """
    ordered = sorted(names)
    test = ordered[::8]
    pool = [name for i, name in enumerate(ordered) if i % 8]
    _require(views, len(pool), "photos that are not tested")
    return Split(tuple(pool[k] for k in _spread(len(pool), views)), tuple(test))


def _spread(count: int, views: int) -> list[int]:
    return [round(float(x)) for x in np.linspace(0, count - 1, views)]  # halves to even, as NumPy's round


DTU_TRAIN = (25, 22, 28, 40, 44, 48, 0, 8, 13)
DTU_LEFT_OUT = (*range(3, 8), *range(16, 22), *range(36, 40))
DTU_PHOTOS = 49


def dtu(names: Sequence[str], views: int) -> Split:
    """RegNeRF's fixed choice among the 49 photos of one light, in name order; those with wrong exposure are left out."""
    ordered = sorted(names)
    if len(ordered) != DTU_PHOTOS:
        raise InputError(f"A DTU scan of one light has {DTU_PHOTOS} photos, not {len(ordered)}; give *_3_r5000 alone.")
    _require(views, len(DTU_TRAIN), "published training views")
    test = [i for i in range(DTU_PHOTOS) if i not in DTU_TRAIN and i not in DTU_LEFT_OUT]
    return Split(tuple(ordered[i] for i in DTU_TRAIN[:views]), tuple(ordered[i] for i in test))


BLENDER_TRAIN = (2, 16, 26, 55, 73, 76, 86, 93)
BLENDER_TEST_EVERY = 8


def blender(names: Sequence[str], views: int = 8) -> Split:
    """DNGaussian's 8 of the 100 training photos, every 8th of the 200 test photos.

    `names` are paths such as train/r_2 and test/r_0, suffix optional. Others publish 75 for 76: name the list beside numbers.
    """
    _require(views, len(BLENDER_TRAIN), "published training views")
    train = [_numbered(names, "train", i) for i in BLENDER_TRAIN[:views]]
    tests = sorted((n for n in names if n.startswith("test/")), key=_number)
    tests = [name for name in tests if _number(name) % BLENDER_TEST_EVERY == 0]
    if not tests:
        raise InputError("There are no photos test/r_0, test/r_8, ...; give the test photos of the scene too.")
    return Split(tuple(train), tuple(tests))


def _number(name: str) -> int:
    digits = name.rsplit("/", 1)[-1].removeprefix("r_").split(".")[0]
    return int(digits) if digits.isdigit() else -1


def _numbered(names: Sequence[str], part: str, number: int) -> str:
    for name in names:
        if name.startswith(f"{part}/") and _number(name) == number:
            return name
    raise InputError(f"The scene has no photo {part}/r_{number}, which the published split trains on.")


TANKS_FRAMES = 24
TANKS_TEST = tuple(int(x) for x in np.linspace(1, 22, 12))


def tanks(names: Sequence[str], views: int) -> Split:
    """InstantSplat's 24 frames a scene, 12 of them tested; also for its MVImgNet scenes."""
    ordered = sorted(names)
    if len(ordered) != TANKS_FRAMES:
        raise InputError(f"A scene of this split has {TANKS_FRAMES} frames, not {len(ordered)}; give InstantSplat's choice.")
    pool = [i for i in range(TANKS_FRAMES) if i not in TANKS_TEST]
    _require(views, len(pool), "frames that are not tested")
    train = [pool[int(x)] for x in np.linspace(0, len(pool) - 1, views)]
    return Split(tuple(ordered[i] for i in train), tuple(ordered[i] for i in TANKS_TEST))


def every_eighth(names: Sequence[str], views: int = 0) -> Split:
    """Our own photo protocol: every 8th photo in name order is held out of poses and fit, all others are trained on.

    With `views`, so many of the others, evenly spread.
    """
    ordered = sorted(names)
    pool = [name for i, name in enumerate(ordered) if i % 8]
    if views:
        _require(views, len(pool), "photos that are not tested")
        pool = [pool[k] for k in _spread(len(pool), views)]
    return Split(tuple(pool), tuple(ordered[::8]))


def _require(views: int, most: int, what: str) -> None:
    if not 1 <= views <= most:
        raise InputError(f"{views} training views of {most} {what} is no choice; give 1 to {most}.")


LLFF_SCENES = ("fern", "flower", "fortress", "horns", "leaves", "orchids", "room", "trex")
MIPNERF360_SCENES = ("bicycle", "bonsai", "counter", "garden", "kitchen", "room", "stump")
DTU_SCENES = tuple(f"scan{k}" for k in (8, 21, 30, 31, 34, 38, 40, 41, 45, 55, 63, 82, 103, 110, 114))
BLENDER_SCENES = ("chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship")
TANKS_SCENES = ("Ballroom", "Barn", "Church", "Family", "Francis", "Horse", "Ignatius", "Museum")
REGNERF_FAMILY = "RegNeRF, FSGS, CoR-GS, DNGaussian, DropGaussian"

PROTOCOLS: dict[str, Protocol] = {
    "llff": Protocol(llff, (3, 6, 9), LLFF_SCENES, shrink=8, posed=True, source=REGNERF_FAMILY),
    "mipnerf360": Protocol(llff, (12, 24), MIPNERF360_SCENES, shrink=8, posed=True, source="FSGS, CoR-GS, DropGaussian"),
    "dtu": Protocol(dtu, (3, 6, 9), DTU_SCENES, shrink=4, posed=True, masked=True, source="RegNeRF"),
    "blender": Protocol(blender, (8,), BLENDER_SCENES, shrink=2, posed=True, background="white", source="DNGaussian"),
    "tanks": Protocol(tanks, (3, 6, 12), TANKS_SCENES, shrink=1, posed=False, source="InstantSplat"),
    "photos": Protocol(every_eighth, (3, 6, 9, 12), (), shrink=1, posed=False, source="ours"),
}
