"""Training examples of image to 3-D, computed once: small pictures of every object from a ring, tilted and from anywhere.

A bank is a folder: `views.npy` [M, C, S, S, 5] uint8 (memory-mapped), `angles.npy` [M, C, 2] and `bank.json`. It holds all that
training needs, so that a machine without the objects can train. The C views of an example:

    ring     azimuth k * 360 / ring, one elevation: what the network predicts, and inputs too
    tilted   the same azimuths, each at its own elevation: inputs
    extra    from anywhere: never seen by the network, only compared with what it made
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.data.object_set import ObjectFacts, ObjectSet
from diffusion.data.object_views import DISTANCE, FOV_DEG
from splat.cameras import Cameras, intrinsics
from splat.errors import InputError
from splat.io.atomic import atomically
from splat.mesh import Mesh
from splat.progress import Progress

FORMAT = "splatsmith view bank 1"
COLUMNS = ("key", "noun", "name", "split", "licence", "author", "source")
FILES = ("views", "angles", "done")
NEAR, FAR = DISTANCE - 0.9, DISTANCE + 0.9  # depths that 1..255 stand for: half the diagonal of a cube of side 1 is 0.87


@dataclass(frozen=True)
class ViewBankConfig:
    """Which pictures a bank holds of each object."""

    size: int = 64  # px, square
    ring: int = 12  # azimuths round the object, a multiple of 4
    ring_elevation_deg: float = 20.0
    tilted_range_deg: tuple[float, float] = (-10.0, 45.0)  # elevations of the inputs beside the ring's
    extra: int = 8  # further views
    extra_range_deg: tuple[float, float] = (-30.0, 75.0)
    stretched: int = 1  # further shapes of every training object, each scaled along its axes
    stretch_range: tuple[float, float] = (0.7, 1.4)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 8 or self.ring < 4 or self.ring % 4 or self.extra < 0 or self.stretched < 0:
            raise InputError(
                f"A bank of {self.ring} ring views and {self.extra} others at {self.size} px cannot be made; "
                "the ring is a multiple of 4, pictures at least 8 px."
            )


@dataclass(frozen=True)
class ViewBank:
    """M examples of `len(keys)` objects."""

    views: np.ndarray  # [M, C, S, S, 5] uint8, mapped: premultiplied sRGB, coverage, depth (0 where nothing is hit)
    angles: np.ndarray  # [M, C, 2] float32 azimuth and elevation in radians
    objects: np.ndarray  # [M] int64 row in `keys`
    shapes: np.ndarray  # [M] int64: 0 the object as it is, others stretched
    keys: tuple[str, ...]
    nouns: tuple[str, ...]  # of each object
    names: tuple[str, ...]
    splits: tuple[str, ...]
    licences: tuple[str, ...]
    authors: tuple[str, ...]
    sources: tuple[str, ...]
    config: ViewBankConfig

    def examples(self, split: str) -> np.ndarray:
        """[K] int64 examples of the objects of `split`."""
        return np.array([i for i, o in enumerate(self.objects) if self.splits[o] == split], dtype=np.int64)


def build_view_bank(
    objects: ObjectSet, folder: Path, config: ViewBankConfig, workers: int = 1, device: str = "cpu"
) -> Generator[Progress, None, ViewBank]:
    """Draw a bank of `objects` into `folder`; a run that was cut goes on with what is missing. Returns the bank.

    `workers` processes draw on the CPU; another `device` draws one object after the other.
    """
    examples = [
        (row, shape)
        for row, facts in enumerate(objects.facts)
        for shape in range(1 + config.stretched * (facts.split == "train"))
    ]
    random.Random(config.seed).shuffle(examples)  # so that the first half of a bank is like the whole
    if not examples:
        raise InputError("There is no object to draw.")
    about = {
        "format": FORMAT, "config": asdict(config), "objects": [{k: getattr(f, k) for k in COLUMNS} for f in objects.facts],
        "examples": examples,
    }  # fmt: skip
    views, angles, done = _open_for_writing(folder, about, config)
    todo = [i for i in range(len(examples)) if not done[i]]
    jobs = ((i, objects.facts[examples[i][0]], objects[examples[i][0]], examples[i][1], config, device) for i in todo)
    for count, (i, pictures, directions) in enumerate(_results(jobs, workers, device), start=1):
        views[i], angles[i] = pictures, directions
        done[i] = True
        yield Progress("views", len(examples) - len(todo) + count, len(examples), objects.facts[examples[i][0]].key)
    for array in (views, angles, done):
        array.flush()
    return open_view_bank(folder)


def open_view_bank(folder: Path) -> ViewBank:
    """Raises InputError when the folder holds no whole bank."""
    try:
        about = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
        views, angles, done = (np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in FILES)
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items()}
        config = ViewBankConfig(**fields)
        column = {k: tuple(o[k] for o in about["objects"]) for k in COLUMNS}
        owners, shapes = np.array(about["examples"], dtype=np.int64).reshape(-1, 2).T
        shape = _shape(len(owners), config)
        if about["format"] != FORMAT or views.shape != shape or angles.shape != (*shape[:2], 2) or done.shape != shape[:1]:
            raise ValueError("its tables do not fit each other")
        if not bool(((owners >= 0) & (owners < len(about["objects"]))).all()):
            raise ValueError("it has examples of objects that it does not name")
        if not bool(done.all()):
            raise ValueError(f"only {int(done.sum())} of {len(done)} examples are drawn")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder} holds no view bank ({error}); draw it again.") from error
    return ViewBank(views, angles, owners, shapes, *(column[k] for k in COLUMNS), config)


def cameras_at(azimuth: Tensor, elevation: Tensor, size: int) -> Cameras:
    """Protocol cameras for directions [C] in radians: looking at the origin from `DISTANCE`."""
    azimuth, elevation = azimuth.double(), elevation.double()
    flat = elevation.cos()
    eyes = DISTANCE * torch.stack([azimuth.sin() * flat, elevation.sin(), azimuth.cos() * flat], dim=-1)
    K = intrinsics(0.5 * size / math.tan(math.radians(FOV_DEG) / 2), size, size)
    return Cameras.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1, 0]), K, size, size)


def directions_of(name: str, config: ViewBankConfig) -> np.ndarray:
    """[C, 2] azimuth and elevation of the views of an example, radians; the same for the same name."""
    rng = random.Random(f"{config.seed}/{name}")
    turn = 2 * math.pi / config.ring
    ring = [(k * turn, math.radians(config.ring_elevation_deg)) for k in range(config.ring)]
    tilted = [(k * turn, math.radians(rng.uniform(*config.tilted_range_deg))) for k in range(config.ring)]
    low, high = (math.sin(math.radians(e)) for e in config.extra_range_deg)
    extra = [(rng.uniform(0, 2 * math.pi), math.asin(rng.uniform(low, high))) for _ in range(config.extra)]
    return np.array([*ring, *tilted, *extra], dtype=np.float32)


def _shape(count: int, config: ViewBankConfig) -> tuple[int, ...]:
    return (count, 2 * config.ring + config.extra, config.size, config.size, 5)


def _open_for_writing(folder: Path, about: dict, config: ViewBankConfig) -> list[np.ndarray]:
    """The arrays, those of a cut run where its bank.json is this one."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "bank.json", json.dumps(about)
    shape = _shape(len(about["examples"]), config)
    shapes = {"views": (shape, np.uint8), "angles": ((*shape[:2], 2), np.float32), "done": (shape[:1], np.bool_)}
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return [np.lib.format.open_memmap(folder / f"{name}.npy", mode="r+") for name in FILES]
    path.unlink(missing_ok=True)
    arrays = [np.lib.format.open_memmap(folder / f"{n}.npy", mode="w+", dtype=d, shape=s) for n, (s, d) in shapes.items()]
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return arrays


def _results(jobs, workers: int, device: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """In the order of `jobs`, with few jobs waiting: each carries a mesh."""
    if device != "cpu":
        yield from (_drawn(*job) for job in jobs)
        return
    waiting = []
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for job in jobs:
            waiting.append(pool.submit(_drawn, *job))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _drawn(
    i: int, facts: ObjectFacts, mesh: Mesh, shape: int, config: ViewBankConfig, device: str
) -> tuple[int, np.ndarray, np.ndarray]:
    from splat.raycast import raycast

    name = f"{facts.key}/{shape}"
    if shape:
        mesh = scaled(mesh, [random.Random(f"{config.seed}/{name}/{axis}").uniform(*config.stretch_range) for axis in "xyz"])
    directions = directions_of(name, config)
    cameras = cameras_at(*torch.from_numpy(directions).unbind(-1), config.size)
    views, depth = raycast(mesh, cameras, background=(0.0, 0.0, 0.0), threads=1, device=device)  # on black: premultiplied
    steps = (1 + 254 * (depth - NEAR) / (FAR - NEAR)).round().clamp(1, 255) * (depth > 0)
    colour = (torch.cat([views.images, views.masks[..., None]], dim=-1).clamp(0, 1) * 255).round()
    return i, torch.cat([colour, steps[..., None]], dim=-1).to(torch.uint8).numpy(), directions


def scaled(mesh: Mesh, factors: list[float]) -> Mesh:
    """`mesh` scaled along x, y and z, centred, its longest side 1 again."""
    vertices = mesh.vertices * torch.tensor(factors)
    low, high = vertices.amin(0), vertices.amax(0)
    return replace(mesh, vertices=(vertices - (low + high) / 2) / (high - low).max().clamp(min=1e-6))
