"""Pictures of an object for training and scoring: the protocol's cameras and random ones, ray cast and kept as bytes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from diffusion.data.object_set import ObjectSet
from splat.cameras import Cameras, intrinsics
from splat.errors import InputError
from splat.io.atomic import atomically
from splat.mesh import Mesh
from splat.progress import Progress
from splat.render import RenderOptions
from splat.views import Views

FOV_DEG = 49.1  # of the protocol's cameras
DISTANCE = 1.9  # from the origin, object of longest side 1
DEPTH_STEP = 2.0**-14  # world units of one step of the stored depth: uint16 reaches 4


@dataclass(frozen=True)
class ViewConfig:
    """Which pictures are made of every object."""

    size: int = 128  # px, square
    protocol: bool = True  # the 14 scored views
    random: int = 12  # further views from random directions, different for every object
    elevation_range_deg: tuple[float, float] = (-30.0, 75.0)  # of the random ones
    supersample: int = 2  # samples a pixel along each axis
    seed: int = 0  # of the random directions


@dataclass(frozen=True)
class ObjectViews:
    """Pictures of one object as bytes: a quarter of what floats take. C views of H x W pixels."""

    images: np.ndarray  # [C, H, W, 3] uint8 sRGB on white
    masks: np.ndarray  # [C, H, W] uint8 covered fraction of 255
    depth: np.ndarray  # [C, H, W] uint16 in steps of DEPTH_STEP at pixel centres, 0 where nothing is hit
    cameras: Cameras

    def views(self) -> Views:
        """As floats in [0, 1]."""
        names = tuple(f"view_{i:03d}" for i in range(len(self.images)))
        return Views(
            torch.from_numpy(self.images).float() / 255, names, self.cameras, torch.from_numpy(self.masks).float() / 255
        )

    def depths(self) -> torch.Tensor:
        """[C, H, W] z in the camera frame, world units, 0 where nothing is hit."""
        return torch.from_numpy(self.depth.astype(np.float32) * DEPTH_STEP)


def renderers_blur(side: int) -> float:
    """Standard deviation, in world units at an object's middle, of what renderers blur pictures of `side` px by."""
    focal = 0.5 * side / math.tan(math.radians(FOV_DEG) / 2)
    return math.sqrt(RenderOptions().low_pass) * DISTANCE / focal


def input_camera(size: int) -> Cameras:
    """The one view an image-to-object method is given: azimuth 30, elevation 20 degrees."""
    return Cameras.orbit(1, DISTANCE, 20, FOV_DEG, size, size, azimuth_deg=30)


def protocol_cameras(size: int) -> Cameras:
    """The 14 scored views: azimuth 0..315 step 45 at elevation 10, then 0..300 step 60 at elevation 35 degrees."""
    return Cameras.cat(
        [Cameras.orbit(8, DISTANCE, 10, FOV_DEG, size, size), Cameras.orbit(6, DISTANCE, 35, FOV_DEG, size, size)]
    )


def random_cameras(count: int, size: int, generator: torch.Generator, elevation_range_deg=(-30.0, 75.0)) -> Cameras:
    """`count` cameras at the protocol's distance, even over the part of the sphere between the two elevations."""
    turns, heights = torch.rand(2, count, generator=generator, dtype=torch.float64)
    low, high = (math.sin(math.radians(e)) for e in elevation_range_deg)
    y = low + (high - low) * heights
    flat = (1 - y**2).sqrt()
    azimuth = 2 * math.pi * turns
    eyes = DISTANCE * torch.stack([azimuth.sin() * flat, y, azimuth.cos() * flat], dim=-1)
    K = intrinsics(0.5 * size / math.tan(math.radians(FOV_DEG) / 2), size, size)
    return Cameras.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1, 0]), K, size, size)


def cameras_of(key: str, config: ViewConfig) -> Cameras:
    """The protocol's cameras, if wanted, then the object's own random ones."""
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}/{key}".encode()).digest()[:7], "big")
    parts = [protocol_cameras(config.size)] if config.protocol else []
    if config.random:
        generator = torch.Generator().manual_seed(seed)
        parts.append(random_cameras(config.random, config.size, generator, config.elevation_range_deg))
    if not parts:
        raise InputError("No view is asked for; set protocol or random above 0.")
    return Cameras.cat(parts)


def object_views(
    mesh: Mesh, cameras: Cameras, supersample: int = 2, threads: int = 1, device: torch.device | str = "cpu"
) -> ObjectViews:
    """Draw `mesh` unlit on white through `cameras`, casting rays on `device`. The same bytes on every run."""
    from splat.raycast import raycast

    views, depth = raycast(mesh, cameras, supersample=supersample, threads=threads, device=device)
    steps = (depth / DEPTH_STEP).round().clamp(0, 65535)
    return ObjectViews(_bytes(views.images), _bytes(views.masks), steps.to(torch.int32).numpy().astype(np.uint16), cameras)


def render_objects(
    objects: ObjectSet, folder: Path, config: ViewConfig, threads: int = 1, device: torch.device | str = "cpu"
) -> Generator[Progress, None, tuple[Path, ...]]:
    """Views of every object into `folder`, one compressed .npz each; those already there for this config are kept.

    Returns the files in the order of `objects`. Stopping it loses at most the object in work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(folder / views_name(facts.key, config) for facts in objects.facts)
    for row, (facts, file) in enumerate(zip(objects.facts, files, strict=True)):
        if not file.is_file():
            save_views(object_views(objects[row], cameras_of(facts.key, config), config.supersample, threads, device), file)
        yield Progress("views", row + 1, len(files), facts.name)
    return files


def views_name(key: str, config: ViewConfig) -> str:
    """File name of an object's views: changes with the object's key and with every field of the config."""
    return hashlib.sha256(f"{key} {sorted(asdict(config).items())}".encode()).hexdigest()[:24] + ".npz"


def save_views(views: ObjectViews, path: Path) -> None:
    """Whole or not at all."""
    arrays = {"images": views.images, "masks": views.masks, "depth": views.depth}
    cameras = {"cam_from_world": views.cameras.cam_from_world.numpy(), "K": views.cameras.K.numpy()}
    with atomically(path) as temporary:
        np.savez_compressed(temporary, **arrays, **cameras)


def load_views(path: Path) -> ObjectViews:
    """Raises `InputError` when the file is missing, damaged or holds something else."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images, masks, depth = (archive[name] for name in ("images", "masks", "depth"))
            pose, K = archive["cam_from_world"], archive["K"]
    except Exception as error:  # zip, zlib, header and key errors have no common base
        raise InputError(f"{path} holds no views ({error or type(error).__name__}); delete it and it is drawn anew.") from error
    count, height, width = images.shape[:3] if images.ndim == 4 else (0, 0, 0)
    shapes = {"masks": (masks, (count, height, width), np.uint8), "depth": (depth, (count, height, width), np.uint16),
              "images": (images, (count, height, width, 3), np.uint8), "cam_from_world": (pose, (count, 4, 4), np.float32),
              "K": (K, (count, 3, 3), np.float32)}  # fmt: skip
    for name, (array, shape, dtype) in shapes.items():
        if array.shape != shape or array.dtype != dtype or not count:
            raise InputError(f"{path} has {name} {array.shape} {array.dtype}; delete it and it is drawn anew.")
    return ObjectViews(images, masks, depth, Cameras(torch.from_numpy(pose), torch.from_numpy(K), width, height))


def _bytes(x: torch.Tensor) -> np.ndarray:
    return (x.clamp(0, 1) * 255).round().byte().numpy()
