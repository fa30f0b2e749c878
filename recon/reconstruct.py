"""Photos to posed views and first Gaussians, top to bottom: split, place, straighten, align, look for depth, initialise."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from recon.align import align_world
from recon.complete import CompleteConfig, complete
from recon.fit_priors import fit_priors
from recon.fuse import FuseConfig, clean_depths, fuse
from recon.initialise import (
    InitialConfig,
    choose_points,
    initial_splats,
    nearest_spacing,
    random_splats,
    viewing_bound,
)
from recon.learned_geometry import learned_geometry
from recon.localise import localise
from recon.photos import Photo, composited
from recon.poses import PoseConfig, Poses, solve_poses, undistort
from recon.poses.from_file import load_poses
from recon.priors import DepthMap, posed_prior
from recon.priors.learned import PriorWeights
from recon.priors.plane_sweep import PlaneSweepConfig
from splat.cameras import Cameras
from splat.errors import StoppedLate
from splat.gaussians import Splats
from splat.points import PointCloud
from splat.progress import Progress
from splat.regularise import Priors, VirtualView
from splat.similarity import Similarity
from splat.views import Views

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReconstructConfig:
    """How photos become posed views and first Gaussians."""

    poses_from: Path | None = None  # transforms.json or COLMAP folder; None solves the poses from the photos
    poses: PoseConfig = field(default_factory=PoseConfig)
    prior_method: str = "plane_sweep"  # a key of recon.priors.POSED_PRIORS
    prior: PlaneSweepConfig = field(default_factory=PlaneSweepConfig)  # that prior's config
    learned: tuple[PriorWeights, ...] = ()  # networks that fill what the stereo prior leaves open (recon/priors/learned.py)
    fuse: FuseConfig = field(default_factory=FuseConfig)
    initialise: InitialConfig = field(default_factory=InitialConfig)
    complete: CompleteConfig = field(default_factory=CompleteConfig)
    priors: bool = False  # keep what the stereo prior says of every pixel, for the regularised fit of few photos
    min_points: int = 500  # fewer starting points than this, and random Gaussians join them
    random_points: int = 20_000  # of those
    holdout: int = 0  # every n-th photo in name order is kept out of poses and fit; 0 keeps none out
    fit_side: int = 480  # pixels, long side of the views that the fit sees
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # sRGB behind masked subjects
    real_size: float | None = None  # metres, longest side of the subject; None leaves the scale arbitrary


@dataclass(frozen=True)
class Reconstruction:
    """What the fit starts from; everything in the result's frame (+Y up, the subject's front towards +Z)."""

    train: list[Views]  # posed, pinhole, at the fit's size
    heldout: list[Views]  # posed likewise, never seen by poses (unless given) or fit; may be empty
    sparse: PointCloud  # the pose solver's points; empty for given poses without points
    dense: PointCloud  # the stereo prior's points
    initial: Splats
    initialised_from: str  # "dense", "sparse", "union" or "random"
    result_from_input: Similarity  # from the given poses' (or the solver's) world
    scale: str  # "metric" or "arbitrary"
    heldout_posed: bool  # held-out cameras were given, not found from the splats
    reasons: dict[str, str]  # photo -> why it has no camera
    warnings: tuple[str, ...]
    fallbacks: tuple[str, ...]
    facts: dict[str, float]  # of the pose solver
    priors: Priors | None = None  # of `train`, in the same world, on its pixels; None where nobody asked for them


# All that a stored `Reconstruction` is made of.
RECONSTRUCTION_TYPES = (Reconstruction, Views, Cameras, PointCloud, Splats, Similarity, Priors, VirtualView)


def reconstruct(photos: Sequence[Photo], config: ReconstructConfig) -> Generator[Progress, None, Reconstruction]:
    """See `Reconstruction`. Photos in name order. Yields stages "poses", "prior", "initialise".

    Raises `InputError` for photos or given poses that cannot work, `StoppedLate` for fewer than two placed photos or
    poses that contradict the photos. Photos that cannot be placed are reported in `reasons` and the job goes on.
    """
    kept_out = held_out(len(photos), config.holdout)
    seen = [i for i in range(len(photos)) if i not in kept_out]
    train, heldout = [photos[i] for i in seen], [photos[i] for i in kept_out]
    warnings: list[str] = []
    if config.holdout > 0 and not kept_out:
        warnings.append(f"No photo is held out: of {len(photos)}, fewer than 2 would be left to fit.")

    every = None  # poses of all photos, held-out ones too, where they come together
    if config.poses_from is not None:
        every = load_poses(config.poses_from, photos)
        yield Progress("poses", 1, 1, f"{len(every.placed)} of {len(photos)} photos have given poses")
    elif config.poses.method == "prior":
        every = yield from solve_poses(photos, config.poses)
    else:
        try:
            poses = yield from solve_poses(train, config.poses)
            heldout_poses = _localised(heldout, train, poses, config)
        except StoppedLate as stopped:
            every = yield from _placed_by_network(photos, config, stopped)
    if every is not None:
        poses, heldout_poses = _chosen(every, seen), _chosen(every, kept_out)
    if len(poses.placed) < 2:
        raise StoppedLate(
            f"Only {len(poses.placed)} of {len(train)} photos could be placed; take photos that overlap by two thirds, "
            "moving sideways between them."
        )

    poses, heldout_poses = _alike(train, poses, warnings), _alike(heldout, heldout_poses, warnings)
    backdrop = config.background
    views = [v.limited(config.fit_side) for v in undistort([composited(p, backdrop) for p in train], poses)]
    heldout_views = [v.limited(config.fit_side) for v in undistort([composited(p, backdrop) for p in heldout], heldout_poses)]
    similarity = align_world([v.cameras for v in views], poses.points)
    views, heldout_views = _moved(views, similarity), _moved(heldout_views, similarity)
    sparse = poses.points.transformed(similarity)

    prior = posed_prior(config.prior_method)
    depths = yield from prior(views, sparse if len(sparse) else None, config.prior, config.poses.device)
    depths = [DepthMap(d.name, d.depth.cpu(), d.confidence.cpu()) for d in depths]
    depths = clean_depths(views, depths, config.fuse)
    learned = yield from learned_geometry(
        views, depths, sparse, config.learned, poses, similarity, config.poses.device, config.initialise.seed
    )
    depths = learned.depth_maps
    warnings += learned.warnings
    dense = fuse(views, depths, config.fuse)
    fallbacks: list[str] = []
    priors = fit_priors(views, depths, learned.normals) if config.priors else None
    initial, source = _first_splats(views, depths, dense, sparse, config, fallbacks)
    yield Progress("initialise", 1, 1, f"{len(initial)} first Gaussians from {source} points")

    if config.real_size is not None:
        factor = config.real_size / _longest_side(dense if len(dense) else sparse, views)
        if any(v.masks is None for v in views):
            warnings.append(
                "--real-size is the size of all that is near the middle of the scene; --masks would single the subject out."
            )
        metric = Similarity(torch.eye(3), torch.zeros(3), factor)
        views, heldout_views = _moved(views, metric), _moved(heldout_views, metric)
        sparse, dense, initial = sparse.transformed(metric), dense.transformed(metric), initial.transformed(metric)
        priors = None if priors is None else priors.scaled(factor)
        similarity = metric @ similarity
    reasons = {p.name: r for p, r in zip(train, poses.reasons) if r} | {
        p.name: r for p, r in zip(heldout, heldout_poses.reasons) if r
    }
    for message in fallbacks:
        log.warning(message)
    return Reconstruction(
        train=views,
        heldout=heldout_views,
        sparse=sparse,
        dense=dense,
        initial=initial,
        initialised_from=source,
        result_from_input=similarity,
        scale="metric" if config.real_size is not None else "arbitrary",
        heldout_posed=config.poses_from is not None,
        reasons=reasons,
        warnings=(*poses.warnings, *warnings),
        fallbacks=tuple(fallbacks),
        facts=poses.facts,
        priors=priors,
    )


def held_out(count: int, every: int) -> list[int]:
    """Rows of the photos in name order that are kept out of the fit: every n-th, none where fewer than 2 would be left."""
    rows = list(range(0, count, every)) if every > 0 else []
    return rows if count - len(rows) >= 2 else []


def _placed_by_network(
    photos: Sequence[Photo], config: ReconstructConfig, stopped: StoppedLate
) -> Generator[Progress, None, Poses]:
    """Poses of a learned prior that gives them, for photos that the solver stopped at; without one, it stays stopped."""
    able = next((weights for weights in config.learned if weights.family.gives_cameras), None)
    if able is None:
        raise stopped
    log.warning("The cameras are those of %s, because solving them from the photos stopped: %s", able.family.title, stopped)
    return (yield from solve_poses(photos, dataclasses.replace(config.poses, method="prior", prior=able)))


def _alike(photos: Sequence[Photo], poses: Poses, warnings: list[str]) -> Poses:
    """Among cut-out photos, one that could not be cut out would contradict the rest: it helped to find the poses, no more."""
    placed = [i for i in poses.placed if photos[i].mask is not None]
    whole = [i for i in poses.placed if photos[i].mask is None]
    if len(placed) < 2 or not whole:
        return poses
    names = ", ".join(photos[i].name for i in whole[:3])
    warnings.append(f"{len(whole)} of {len(photos)} photos have no mask and are not fitted ({names}); give masks for them too.")
    cameras = tuple(None if i in whole else c for i, c in enumerate(poses.cameras))
    reasons = tuple("it has no mask and the others have" if i in whole else r for i, r in enumerate(poses.reasons))
    return dataclasses.replace(poses, cameras=cameras, reasons=reasons)


def _first_splats(
    views: list[Views],
    depths: list[DepthMap],
    dense: PointCloud,
    sparse: PointCloud,
    config: ReconstructConfig,
    fallbacks: list[str],
) -> tuple[Splats, str]:
    """Splats from the configured points; where these are few, random ones fill the space that the cameras look at."""
    known = len(dense) + len(sparse)
    if known >= config.min_points:
        source = config.initialise.source
        if len({"dense": dense, "sparse": sparse}.get(source, dense)) < config.min_points:
            source = "union"  # the configured points are too few: all there are
        points = choose_points(dense, sparse, source)
        if points.radius is None:
            points = dataclasses.replace(points, radius=nearest_spacing(points.xyz))
        points = PointCloud.cat([points, complete(views, points, depths, config.complete)])
        return initial_splats(points, config.initialise), source
    fallbacks.append(
        f"The photos gave only {known} points in space; the fit starts from {config.random_points} random Gaussians."
    )
    centre, radius = viewing_bound([v.cameras for v in views], sparse if len(sparse) >= 10 else None)
    parts = [random_splats(config.random_points, centre, radius, config.initialise)]
    if known:
        parts.append(initial_splats(choose_points(dense, sparse, "union"), config.initialise))
    return Splats.cat(parts), "random"


def _localised(heldout: Sequence[Photo], train: Sequence[Photo], poses: Poses, config: ReconstructConfig) -> Poses:
    """Held-out photos placed against the solved ones; they had no part in solving."""
    cameras: list[Cameras | None] = []
    k1: list[float] = []
    for photo in heldout:
        camera, distortion = localise(photo, train, poses, config.poses)
        cameras.append(camera)
        k1.append(distortion)
    reasons = tuple(None if c is not None else "held out, and not found from the other photos" for c in cameras)
    return Poses(tuple(cameras), tuple(k1), reasons, poses.points)


def _chosen(poses: Poses, rows: list[int]) -> Poses:
    return dataclasses.replace(
        poses,
        cameras=tuple(poses.cameras[i] for i in rows),
        k1=tuple(poses.k1[i] for i in rows),
        reasons=tuple(poses.reasons[i] for i in rows),
        observations=tuple(poses.observations[i] for i in rows) if poses.observations else (),
        depths=tuple(poses.depths[i] for i in rows) if poses.depths else (),
    )


def _moved(views: list[Views], similarity: Similarity) -> list[Views]:
    return [dataclasses.replace(v, cameras=v.cameras.transformed(similarity)) for v in views]


def _longest_side(points: PointCloud, views: list[Views]) -> float:
    """World units: the box of the middle 96 % of the subject's points along each axis.

    Masked photos give points of the subject alone; else those nearer to the middle than half the nearest camera count.
    """
    xyz = points.xyz
    if any(v.masks is None for v in views):
        reach = 0.5 * float(torch.cat([v.cameras.centers for v in views]).norm(dim=1).min())
        xyz = xyz[xyz.norm(dim=1) < reach]
    if len(xyz) == 0:
        raise StoppedLate("--real-size needs points of the subject, and the photos gave none; leave it out.")
    low, high = torch.quantile(_sampled(xyz), torch.tensor([0.02, 0.98]), dim=0)
    return float((high - low).max())


def _sampled(xyz: Tensor, limit: int = 100_000) -> Tensor:
    """At most `limit` rows, evenly: torch.quantile refuses millions."""
    return xyz[:: max(1, len(xyz) // limit)]
