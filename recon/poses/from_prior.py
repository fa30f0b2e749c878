"""Cameras (and depth) from a learned prior that looks at all photos: in one pass, or in pairs that are then aligned.

A network always answers, and nothing but itself holds together what it says: look at the warnings.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recon.align_pairs import AlignPairsConfig, PairPrediction, Window, align_pairs
from recon.consistency import Posed, agreement
from recon.pair_depths import own_depth
from recon.poses import PoseConfig, Poses, Solver
from recon.priors import DepthMap
from recon.priors.learned import PriorWeights
from recon.priors.scene_prediction import checked, framed
from recon.scene_graph import scene_graph
from splat.cameras import Cameras
from splat.errors import InputError
from splat.points import PointCloud
from splat.progress import Progress

if TYPE_CHECKING:
    from recon.photos import Photo

POINTS = 3000  # of each photo, at most
SURE = 0.3  # confidence from which a pixel becomes a point
AGREE = 0.05  # relative difference of two depths that are the same
SAME_LENS = 0.03  # focal lengths that differ by less are those of one lens: files round them, focusing moves them
LEAST_AGREEING = 0.2  # share of the sure pixels that another photo must see at the same depth

Placed = tuple[Cameras, DepthMap]


def solve(photos: Sequence[Photo], config: PoseConfig) -> Solver:
    """`Poses` with depth maps, from the network whose weights `config.prior` names; world and scale are its own.

    Raises `InputError` for fewer than two photos and for weights that do not load, `StoppedLate` for an answer that is no
    geometry.
    """
    assert config.prior is not None, "the back-end prior needs weights"
    if len(photos) < 2:
        raise InputError(f"cameras need at least 2 photos, got {len(photos)}; add photos of the same subject.")
    names = [photo.name for photo in photos]
    images, focals = [photo.image for photo in photos], [photo.focal_px for photo in photos]
    placed, reasons = yield from cameras_and_depths(images, names, config.prior, config.device, focals)
    cameras = tuple(None if p is None else p[0] for p in placed)
    depths = tuple(None if p is None else p[1] for p in placed)
    share = _agreement([p for p in placed if p is not None])
    warnings = ()
    if share < LEAST_AGREEING:
        warnings = (
            f"Only {share:.0%} of what {config.prior.family.title} surely sees in one photo lies where another photo sees it; "
            "its cameras may be wrong: look at the result, or leave --poses prior out.",
        )
    points = [_points(p, photo.image) for p, photo in zip(placed, photos) if p is not None]
    yield Progress("poses", 1, 1, f"{len(points)} of {len(photos)} photos placed by {config.prior.family.title}")
    return Poses(
        cameras=cameras,
        k1=(0.0,) * len(photos),
        reasons=tuple(reasons),
        points=PointCloud.cat(points) if points else PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0)),
        warnings=warnings,
        facts={"prior_agreement": share},
        depths=depths,
    )


def cameras_and_depths(
    images: Sequence[Tensor],
    names: Sequence[str],
    weights: PriorWeights,
    device: str,
    focals: Sequence[float | None] = (),
) -> Generator[Progress, None, tuple[list[Placed | None], list[str | None]]]:
    """For each picture [H, W, 3] its camera in its own pixels and its depth, in one world of any scale; or None and a reason.

    `focals` are known focal lengths in pixels, for networks that cannot tell them well; those of pairs take them where all
    pictures have the same in shares of the long side.
    """
    if weights.family.gives == "pairs":
        return (yield from _from_pairs(images, names, weights, device, focals))
    assert weights.family.gives == "cameras", weights.family.gives
    module = importlib.import_module(weights.family.module)
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    batch, boxes = framed(images, module.SIDE, module.MULTIPLE)
    yield Progress("poses", 0, 1, f"{weights.family.title} looks at {len(images)} photos")
    prediction = checked(module.predict_scene(batch, weights, device), names, weights)
    return prediction.of_photos(boxes, sizes, names), [None] * len(images)


def pairs_of(images: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Which of the pictures [H, W, 3] are looked at together, in both orders: all of few, else those that look alike."""
    near = scene_graph(images)
    return sorted(near + [(j, i) for i, j in near])


def depths_alone(
    images: Sequence[Tensor],
    names: Sequence[str],
    weights: PriorWeights,
    device: str,
    focals: Sequence[float | None] = (),
) -> Generator[Progress, None, list[DepthMap]]:
    """Depth of each picture, each at a scale of its own, from a prior whose cameras are not asked for.

    Of a pair prior, each picture's own pointmaps are brought together, whatever it says of the motion between two.
    """
    if weights.family.gives != "pairs":
        placed, _ = yield from cameras_and_depths(images, names, weights, device, focals)
        return [p[1] for p in placed if p is not None]
    found, windows, _ = yield from _asked(images, weights, device, focals)
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    config = AlignPairsConfig()
    return [
        own_depth(name, size, window, [p.prediction for p in found if p.first == k], config.min_confidence, config.tolerance)
        for k, (name, size, window) in enumerate(zip(names, sizes, windows))
    ]


def _from_pairs(images, names, weights, device, focals):
    found, windows, focal = yield from _asked(images, weights, device, focals)
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    aligned = yield from align_pairs(sizes, found, AlignPairsConfig(focal=focal, refine_focal=focal is None), windows)
    placed: list[Placed | None] = []
    for camera, depth, name in zip(aligned.cameras, aligned.depths, names):
        placed.append(None if camera is None or depth is None else (camera, replace(depth, name=name)))
    reasons = [None if p is not None else (r or "no depth was found for it") for p, r in zip(placed, aligned.reasons)]
    return placed, reasons


def _asked(images, weights: PriorWeights, device: str, focals):
    """(predictions of pairs, the part of each picture that they cover, focal length in long sides where all have the same)."""
    module = importlib.import_module(weights.family.module)
    batch, boxes = framed(images, module.SIDE, module.MULTIPLE)
    yield Progress("poses", 0, 1, f"{weights.family.title} looks at {len(images)} photos")
    pairs = pairs_of(list(batch.permute(0, 2, 3, 1)))
    known = [f / max(image.shape[:2]) for f, image in zip(focals, images) if f is not None]
    focal = _one_lens(known) if len(known) == len(images) else None
    told = {"focal": focal} if getattr(module, "TAKES_FOCAL", False) else {}
    predictions = yield from module.predict_pairs(batch, pairs, weights, device, **told)
    height, width = batch.shape[2:]
    windows = []
    for box, image in zip(boxes, images):
        x, y = image.shape[1] / box.width, image.shape[0] / box.height  # photo pixels per pixel of the grid
        windows.append(Window(-box.left * x, -box.top * y, width * x, height * y))
    return [PairPrediction(i, j, prediction) for (i, j), prediction in zip(pairs, predictions)], windows, focal


def _one_lens(focals: Sequence[float]) -> float | None:
    """The median; None where they differ too much to be one lens at one zoom, which is all that the alignment knows."""
    return sorted(focals)[len(focals) // 2] if max(focals) <= (1 + SAME_LENS) * min(focals) else None


def _points(placed: Placed, image: Tensor) -> PointCloud:
    """Evenly picked sure pixels of one photo, or the surer half of all where none is sure."""
    camera, depth = placed
    height, width = depth.depth.shape
    grid = camera.resized(width, height)
    known = depth.depth > 0
    sure = known & (depth.confidence >= SURE)
    if not sure.any() and known.any():
        sure = known & (depth.confidence >= depth.confidence[known].median())
    row, column = sure.nonzero().unbind(-1)
    step = max(1, -(-len(row) // POINTS))
    row, column = row[::step], column[::step]
    z = depth.depth[row, column]
    rgb = image[row * image.shape[0] // height, column * image.shape[1] // width]
    xyz = grid.unproject(grid.pixel_centers[row, column], z)[0]
    return PointCloud(xyz, rgb, depth.confidence[row, column], z / grid.K[0, 0, 0])


def _agreement(placed: Sequence[Placed]) -> float:
    """Share of the sure pixels that another photo sees at the same depth; median over the photos."""
    posed = [Posed(d, c.resized(d.depth.shape[1], d.depth.shape[0])) for c, d in placed]
    if len(posed) < 2:
        return 0.0
    shares = []
    for i, own in enumerate(posed):
        sure = (own.map.depth > 0) & (own.map.confidence >= SURE)
        shares.append(float((agreement(i, posed, AGREE).support[sure] > 0).float().mean()) if sure.any() else 0.0)
    return sorted(shares)[len(shares) // 2]
