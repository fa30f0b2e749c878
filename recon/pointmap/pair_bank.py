"""Pictures of made-up rooms on disk, and pairs of them to learn from.

train_00012.npz    one room: small pictures, XFeat's cells, depth, cameras, and how much of a picture another one sees
val_00003.npz      rooms furnished with objects of the validation split
bank.json          written last: how it was made, and of what
made_with.json     written first: what rooms that are added later must share
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recon.pointmap.matches import described
from recon.pointmap.network import PairInput
from recon.pointmap.objective import PairTruth
from recon.pointmap.photographic import as_photographed
from recon.pointmap.rooms import RoomConfig, RoomViews, photographed, random_cameras, random_room
from splat.cameras import Cameras
from splat.errors import InputError
from splat.io.atomic import atomically
from splat.made_with import check_made_with, digest_of
from splat.mesh import Mesh
from splat.progress import Progress

ABOUT = "bank.json"
ROOM = re.compile(r"(train|val)_\d{5,}\.npz")
FIELDS = ("images", "descriptors", "trust", "depth", "cam_from_world", "focal", "shared")
TOLD = 0.4  # share of the pairs with which the network is told the focal length


@dataclass(frozen=True)
class PairBankConfig:
    """How much is drawn."""

    rooms: int = 2000  # to learn from
    val_rooms: int = 24
    room: RoomConfig = field(default_factory=RoomConfig)
    seed: int = 0


Furniture = Callable[[str, np.random.Generator], list[Mesh]]  # (split, random) -> objects of one room


def build_pair_bank(
    furniture: Furniture,
    folder: Path,
    config: PairBankConfig,
    facts: dict | None = None,
    workers: int = 1,
    objects: Sequence[str] = (),
) -> Generator[Progress, None, Path]:
    """Draw what is not there yet; every room follows from the seed and its number. `facts` go into bank.json.

    `objects` are the names of all that `furniture` chooses from. Raises `InputError` where rooms of another seed, of other
    objects or of another config are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {"seed": config.seed, "objects": digest_of(objects)} | asdict(config.room)
    notice = check_made_with(folder, made, "*_*.npz")
    if notice:
        yield Progress("notice", 1, 1, notice)
    names = [("train", k) for k in range(config.rooms)] + [("val", k) for k in range(config.val_rooms)]
    missing = [(split, k) for split, k in names if not _path(folder, split, k).exists()]
    done = len(names) - len(missing)

    def jobs():
        for split, k in missing:
            rng = np.random.default_rng([config.seed, split == "val", k])
            yield furniture(split, rng), _path(folder, split, k), [config.seed, split == "val", k, 1], config.room

    if workers == 1:
        for number, job in enumerate(jobs(), 1):
            draw_room(*job)
            yield Progress("rooms", done + number, len(names))
    else:
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            for number, _ in enumerate(pool.map(draw_room, *zip(*jobs())) if missing else (), 1):
                yield Progress("rooms", done + number, len(names))
    with atomically(folder / ABOUT) as temporary:
        Path(temporary).write_text(json.dumps({"config": asdict(config), **(facts or {})}, indent=1), encoding="utf-8")
    return folder


def _path(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}_{number:05d}.npz"


def draw_room(objects: Sequence[Mesh], path: Path, seed: Sequence[int], config: RoomConfig) -> None:
    """One room with its pictures, written to `path` whole or not at all."""
    rng = np.random.default_rng(list(seed))
    room = random_room(objects, rng, config)
    views = _near_removed(photographed(room, random_cameras(rng, config, room.middle), config), config.nearest)
    for _ in range(20):
        if len(views.images) >= 3:
            break
        views = _near_removed(photographed(room, random_cameras(rng, config, room.middle), config), config.nearest)
    if len(views.images) < 2:
        room = random_room(objects[:0], rng, config)  # a place without furniture is never in the way
        views = photographed(room, random_cameras(rng, config, 0.4), config)
    stored = np.stack([as_photographed(image, rng) for image in views.images])
    pictures = torch.from_numpy(stored).permute(0, 3, 1, 2).float() / 255
    descriptors, trust = described(pictures)
    small = torch.nn.functional.interpolate(pictures, scale_factor=0.5, mode="area")
    with atomically(path) as temporary:
        np.savez(
            temporary,
            images=(small.permute(0, 2, 3, 1) * 255).round().byte().numpy(),
            descriptors=(descriptors * 127).round().to(torch.int8).numpy(),
            trust=(trust.clamp(0, 1) * 255).round().byte().numpy(),
            depth=views.depth.astype(np.float16),
            cam_from_world=views.cameras.cam_from_world.numpy(),
            focal=np.float32(views.cameras.K[0, 0, 0] / max(views.cameras.width, views.cameras.height)),
            shared=shared_shares(views),
        )


def _near_removed(views: RoomViews, nearest: float) -> RoomViews:
    """Without the pictures that have something right before the lens, or mostly sky."""
    depth = np.where(views.depth > 0, views.depth, np.inf).reshape(len(views.depth), -1)
    good = np.flatnonzero((depth.min(1) > nearest) & ((views.depth > 0).reshape(len(depth), -1).mean(1) > 0.4))
    return RoomViews(views.images[good], views.depth[good], views.cameras[good.tolist()])


def shared_shares(views: RoomViews) -> np.ndarray:
    """[V, V] the share of picture i's known pixels whose surface picture j sees too."""
    count = len(views.images)
    height, width = views.depth.shape[1:]
    cameras = views.cameras.resized(width, height)
    out = np.eye(count, dtype=np.float32)
    pixels = cameras.pixel_centers[::4, ::4]
    for i in range(count):
        depth = torch.from_numpy(views.depth[i, ::4, ::4])
        known = depth > 0
        points = cameras[i].unproject(pixels, depth)[known]
        at, z = cameras.project(points)  # [V, N, 2], [V, N]
        x, y = at.floor().long().unbind(-1)
        inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        rows = torch.arange(count)[:, None].expand_as(x)
        there = torch.from_numpy(views.depth)[rows, y.clamp(0, height - 1), x.clamp(0, width - 1)]
        same = inside & ((there - z).abs() < 0.05 * z)
        out[i] = same.float().mean(1).numpy() if len(points) else 0
    return out


@dataclass(frozen=True)
class PairBank:
    """Rooms on disk, read when they are wanted."""

    folder: Path
    rooms: dict[str, tuple[Path, ...]]  # per split and orientation: "train upright", "train wide", "val ..."

    def batch(self, split: str, count: int, generator: torch.Generator) -> tuple[PairInput, PairTruth]:
        """`count` random pairs of one orientation that share at least a fifth of their pixels, each of a room of its own."""
        wide, upright = self.rooms[f"{split} wide"], self.rooms[f"{split} upright"]
        pick = int(torch.randint(len(wide) + len(upright), (1,), generator=generator))
        paths = wide if pick < len(wide) else upright
        chosen = torch.randint(len(paths), (count,), generator=generator).tolist()
        pairs = [random_pair(paths[k], generator) for k in chosen]
        return stacked(pairs, torch.rand(count, generator=generator) < TOLD)


def bank_facts(folder: Path) -> dict:
    """bank.json. Raises `InputError` where there is none, or none that can be read."""
    if not (folder / ABOUT).is_file():
        raise InputError(f"{folder} holds no rooms, or not all yet; run the step 'views' first.")
    try:
        facts = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("it holds no fields")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / ABOUT} is damaged ({error}); remove it and run the step 'views' again.") from error
    return facts


def open_pair_bank(folder: Path) -> PairBank:
    """Raises `InputError` where `folder` holds no finished bank, or a file that is no room."""
    bank_facts(folder)
    rooms: dict[str, list[Path]] = {f"{s} {o}": [] for s in ("train", "val") for o in ("wide", "upright")}
    for path in sorted(folder.glob("*_*.npz")):
        try:
            split = ROOM.fullmatch(path.name)
            if split is None:
                raise ValueError("its name is not that of one")
            with path.open("rb") as stream, np.load(stream) as f:
                missing = {*FIELDS} - {*f.files}
                if missing:
                    raise ValueError(f"no {', '.join(sorted(missing))}")
                _, height, width = f["trust"].shape
        except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is no room ({error}); remove it and run the step 'views' again.") from error
        rooms[f"{split[1]} {'wide' if width >= height else 'upright'}"].append(path)
    if not rooms["train wide"] and not rooms["train upright"]:
        raise InputError(f"{folder} holds no rooms to learn from; run the step 'views' again.")
    return PairBank(folder, {name: tuple(paths) for name, paths in rooms.items()})


def random_pair(path: Path, generator: torch.Generator) -> dict[str, Tensor]:
    """The arrays of two of a room's pictures."""
    with np.load(path) as f:
        room = {name: f[name] for name in f.files}
    shared = np.minimum(room["shared"], room["shared"].T)
    np.fill_diagonal(shared, 0)
    good = np.argwhere(shared >= min(0.2, shared.max()))
    i, j = good[int(torch.randint(len(good), (1,), generator=generator))]
    return pair_of(room, int(i), int(j))


def pair_of(room: dict[str, np.ndarray], i: int, j: int) -> dict[str, Tensor]:
    """Pictures i and j of a room's arrays as tensors."""
    two = {name: torch.from_numpy(room[name][[i, j]].copy()) for name in ("images", "descriptors", "trust", "depth")}
    poses = torch.from_numpy(room["cam_from_world"][[i, j]]).double()
    return {
        "images": two["images"].permute(0, 3, 1, 2).float() / 255,
        "descriptors": torch.nn.functional.normalize(two["descriptors"].float(), dim=1),
        "trust": two["trust"].float() / 255,
        "depth": two["depth"].float(),
        "motion": (poses[1] @ torch.linalg.inv(poses[0])).float(),
        "focal": torch.tensor(float(room["focal"])),
    }


def stacked(pairs: Sequence[dict[str, Tensor]], known_focal: Tensor | None = None) -> tuple[PairInput, PairTruth]:
    """One batch; `known_focal` [B] bool says of which pairs the network is told the focal length, by default of none."""
    one = {name: torch.stack([pair[name] for pair in pairs]) for name in pairs[0]}
    told = torch.zeros_like(one["focal"]) if known_focal is None else torch.where(known_focal, one["focal"], 0)
    return (
        PairInput(one["images"], one["descriptors"], one["trust"], told),
        PairTruth(one["depth"], one["motion"], one["focal"]),
    )  # fmt: skip


def camera_of(room: dict[str, np.ndarray], i: int) -> Cameras:
    """The camera of picture i in its pixels."""
    from splat.cameras import intrinsics

    height, width = room["depth"].shape[1:]
    K = intrinsics(float(room["focal"]) * max(height, width), width, height)
    return Cameras(torch.from_numpy(room["cam_from_world"][i : i + 1]), K[None], width, height)
