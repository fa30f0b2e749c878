"""What a repair network learns from: renders of our own fits to few photos of known scenes, beside the truth.

The request of each render is made as at run time, by the same function, so that the network meets the same holes, wrong depths
and doubts. Scenes are rooms with painted objects, or one masked object on a plain background.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recon.complete import complete
from recon.fit_priors import fit_priors
from recon.fuse import clean_depths, fuse
from recon.initialise import initial_splats
from recon.priors.plane_sweep import PlaneSweepConfig, estimate_depths
from recon.rendered_scenes import SceneConfig, furnished, hand_held, painted, rng_of
from recon.repair.request import repair_request
from splat.cameras import Cameras, intrinsics
from splat.consensus import cameras_between
from splat.errors import StoppedLate
from splat.mesh import Mesh
from splat.optimise import FitConfig, fit
from splat.points import PointCloud
from splat.progress import Progress, result_of
from splat.raycast import WHITE, raycast
from splat.regularise import RegulariserConfig
from splat.repair_request import RepairRequest
from splat.views import Views

LEAST_POINTS = 300  # fewer points of the stereo prior, and a scene teaches nothing


@dataclass(frozen=True)
class PairConfig:
    """How scenes are made, photographed and fitted. Ranges are drawn from evenly."""

    side: int = 256  # px, long side of photos and renders
    photos: tuple[int, int] = (3, 8)
    alone: float = 0.35  # share of scenes with one masked object in place of a room
    early: int = 100  # steps of the unfinished fit, whose renders are the blurred half of the pairs
    late: tuple[int, int] = (300, 800)  # steps of the finished fit
    regularised: float = 0.3  # share of finished fits with depth and normals as `photos` has them, which cost more
    max_gaussians: int = 20_000
    early_views: int = 3  # renders of the unfinished fit
    late_views: int = 6
    noise: float = 0.008  # standard deviation of the photos' pixels
    threads: int | None = None
    device: str = "cpu"  # of the fits


@dataclass(frozen=True)
class RepairPairs:
    """Renders of one scene with what the photos say about them, and what they should have shown."""

    request: RepairRequest
    truth: Tensor  # [V, H, W, 3]
    masked: bool  # one object on a plain background


@dataclass(frozen=True)
class KnownScene:
    """A mesh with posed photos of it."""

    mesh: Mesh
    photos: Views  # masked where the object stands alone
    background: tuple[float, float, float]


def scene_pairs(objects: Sequence[Mesh], seed: int, config: PairConfig) -> Generator[Progress, None, RepairPairs]:
    """Pairs of one scene, all of which follows from `seed`; `objects` are about 1 long, the first is the main one.

    Yields stage "pairs". Raises `StoppedLate` for a scene in which stereo finds nothing.
    """
    rng = rng_of(seed, 10)
    count = int(rng.integers(config.photos[0], config.photos[1] + 1))
    make = _object_alone if rng.random() < config.alone else _room
    scene = make(objects, count, seed, rng, config)
    views, background = [scene.photos], torch.tensor(scene.background)
    yield Progress("pairs", 0, 3)
    maps = clean_depths(views, result_of(estimate_depths(views, None, PlaneSweepConfig())))
    points = fuse(views, maps)
    if len(points) < LEAST_POINTS:
        raise StoppedLate(f"Stereo found {len(points)} points.")
    initial = initial_splats(PointCloud.cat([points, complete(views, points, maps)]))
    cameras = _unseen(scene.photos, config.early_views + config.late_views, rng)
    late = int(rng.integers(config.late[0], config.late[1] + 1))
    terms = RegulariserConfig()
    if rng.random() < config.regularised:
        terms = RegulariserConfig(absolute_depth=0.1, normals=0.01)
    requests = []
    for steps, chosen in ((config.early, slice(0, config.early_views)), (late, slice(config.early_views, None))):
        settings = FitConfig.for_photos(
            count,
            steps=steps,
            lr_means=float(rng.choice([1.6e-4, 4.8e-4])),
            max_gaussians=config.max_gaussians,
            background=scene.background,
            regularise=terms if steps == late else RegulariserConfig(),
            seed=seed,
            threads=config.threads,
        )
        yield Progress("pairs", 1 + len(requests), 3)
        on = [v.to(config.device) for v in views]
        splats = result_of(fit(on, initial.to(config.device), settings, None, fit_priors(on, maps))).splats
        if len(cameras[chosen]):
            asked = cameras[chosen].to(config.device)
            requests.append(repair_request(splats, on, asked, background.to(config.device), seed, threads=config.threads))
    truth, _ = raycast(scene.mesh, cameras, background=background, threads=config.threads or 0)
    yield Progress("pairs", 3, 3)
    fields = ("images", "alpha", "trust", "warped", "known")
    joined = RepairRequest(*(torch.cat([getattr(r, name).cpu() for r in requests]) for name in fields), seed=seed)
    return RepairPairs(joined, truth.images, scene.photos.masks is not None)


def _room(objects: Sequence[Mesh], count: int, seed: int, rng: np.random.Generator, config: PairConfig) -> KnownScene:
    room = SceneConfig(
        contrast=float(rng.uniform(0.05, 0.45)),
        detail=0.016,
        walls=0.0 if rng.random() < 0.2 else float(rng.uniform(1.4, 2.4)),
        floor=float(rng.uniform(2.8, 3.6)),
        step_deg=float(rng.uniform(12, 32)),
        distance=float(rng.uniform(1.9, 2.6)),
        width=config.side,
        height=3 * config.side // 4,
        focal=float(rng.uniform(0.9, 1.3)),
    )
    mesh = furnished(objects, seed, room)
    azimuth = rng.uniform(0, 360) + room.step_deg * np.arange(count)
    photos, _ = raycast(mesh, hand_held(azimuth, rng, room), threads=config.threads or 0)
    return KnownScene(mesh, dataclasses.replace(photos, images=_noisy(photos.images, rng, config.noise), masks=None), WHITE)


def _object_alone(objects: Sequence[Mesh], count: int, seed: int, rng: np.random.Generator, config: PairConfig) -> KnownScene:
    """Photographed from all over the upper half of a sphere, as the published scenes of single objects are."""
    paint = SceneConfig(contrast=float(rng.choice([0.0, rng.uniform(0.05, 0.4)])), detail=0.02)
    mesh = painted(objects[0], seed, paint)
    background = WHITE if rng.random() < 0.8 else tuple(float(x) for x in rng.uniform(0, 1, 3))
    spread = rng.uniform(120, 360)  # degrees of azimuth that the photos cover
    azimuth = np.radians(rng.uniform(0, 360) + spread / count * (np.arange(count) + rng.uniform(-0.3, 0.3, count)))
    elevation = np.radians(rng.uniform(0, 65, count))
    distance = rng.uniform(1.5, 2.1) * rng.uniform(0.93, 1.07, count)
    level = distance * np.cos(elevation)
    eyes = np.stack([level * np.sin(azimuth), distance * np.sin(elevation), level * np.cos(azimuth)], axis=1)
    targets = torch.from_numpy(rng.normal(0, 0.03, (count, 3)))
    K = intrinsics(float(rng.uniform(1.1, 1.45)) * config.side, config.side, config.side)
    cameras = Cameras.look_at(torch.from_numpy(eyes), targets, torch.tensor([0.0, 1, 0]), K, config.side, config.side)
    photos, _ = raycast(mesh, cameras, background=background, threads=config.threads or 0)
    clean = photos.images
    noisy = torch.where(photos.masks[..., None] > 0, _noisy(clean, rng, config.noise), clean)  # a cut-out's backdrop is clean
    return KnownScene(mesh, dataclasses.replace(photos, images=noisy), background)


def _noisy(images: Tensor, rng: np.random.Generator, deviation: float) -> Tensor:
    noise = torch.from_numpy(rng.standard_normal(images.shape)).float()
    return ((images + deviation * noise).clamp(0, 1) * 255).round() / 255


def _unseen(photos: Views, count: int, rng: np.random.Generator) -> Cameras:
    """`count` cameras on the arcs between neighbouring photos, drawn at random, a little moved and turned."""
    arcs = cameras_between([photos], partners=2, per_pair=3, scale=1.0)
    chosen = [arcs[k] for k in rng.permutation(len(arcs))[:count]] or [photos.cameras[0]]
    while len(chosen) < count:
        chosen.append(arcs[int(rng.integers(len(arcs)))] if arcs else photos.cameras[0])
    cameras = Cameras.cat(chosen)
    eyes = cameras.centers.double()
    reach = (eyes - eyes.mean(0)).norm(dim=-1).mean()
    eyes = eyes + 0.04 * float(reach) * torch.from_numpy(rng.standard_normal(eyes.shape))
    turn = torch.from_numpy(rng.normal(0, np.radians(1.5), (len(cameras), 3)))
    rotation = torch.linalg.matrix_exp(_cross(turn)) @ cameras.cam_from_world[:, :3, :3].double()
    pose = torch.eye(4, dtype=torch.float64).repeat(len(cameras), 1, 1)
    pose[:, :3, :3], pose[:, :3, 3] = rotation, -(rotation @ eyes[:, :, None]).squeeze(-1)
    return dataclasses.replace(cameras, cam_from_world=pose.float())


def _cross(v: Tensor) -> Tensor:
    """[C, 3] -> [C, 3, 3] antisymmetric."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).view(-1, 3, 3)
