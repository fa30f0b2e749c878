"""Pairwise pointmaps to cameras: poses, pair scales and one focal length that explain all predictions together.

DUSt3R's global alignment (Wang et al., CVPR 2024, section 3.4) as a small robust least-squares problem instead of gradient
descent over every pixel: each prediction says where a photo's pixels lie, so a pair is tied to its photos by reprojection
and by the logarithm of depth, which all pairs of one photo must agree on.

Memory: a few hundred pixels of every pair, and one photo's maps at a time.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from recon.pair_depths import photo_depth
from recon.pair_refine import Fit, State, refine
from recon.pair_samples import (
    PairSamples,
    first_focal,
    first_motion,
    sampled_pixels,
    samples_of,
    weighted_median,
)
from recon.pair_tree import first_poses, largest_group
from recon.priors import DepthMap, StereoPrediction
from splat.cameras import Cameras
from splat.errors import InputError, StoppedLate
from splat.progress import Progress


@dataclass(frozen=True)
class PairPrediction:
    """What a pair prior said about photos `first` and `second`; its points lie in the camera frame of `first`.

    Confidence is in [0, 1]: 0 is not used at all. Predictions of both orders of a pair are two predictions.
    """

    first: int
    second: int
    prediction: StereoPrediction


@dataclass(frozen=True)
class Window:
    """The part of a photo that a prediction's pixel grid covers, in pixels of the photo; may reach outside (letterbox)."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class AlignPairsConfig:
    """How pairwise predictions are brought together."""

    samples: int = 600  # pixels of each photo that poses are refined with: memory grows with pairs times samples
    focal: float | None = None  # in long sides, where it is known; None estimates it from the pointmaps
    refine_focal: bool = True  # with the poses; False keeps a known one
    iterations: int = 40  # of the refinement, at most
    min_confidence: float = 0.05  # pixels below are not used
    min_trust: float = 0.3  # of a pair after the refinement; below, it had no part in depth and counts as dropped
    tolerance: float = 0.05  # two depths agree when they differ by less than this share


@dataclass(frozen=True)
class AlignedPairs:
    """Cameras in one world (that of a central photo's camera, median depth 1) and what is known of each photo's depth.

    A photo that no trusted pair ties to the largest group has None and a reason.
    """

    cameras: tuple[Cameras | None, ...]  # batches of one, pinhole, in the pixels of the photos
    reasons: tuple[str | None, ...]
    depths: tuple[DepthMap | None, ...]  # of the whole photo at about the predictions' size; `name` is its number as text
    focal: float  # in long sides, shared by all
    scales: tuple[float, ...]  # world units per unit of each prediction; 0 where it was not believed
    error: float  # median reprojection error, pixels of the photos
    facts: dict[str, float] = field(default_factory=dict)


def align_pairs(
    photo_sizes: Sequence[tuple[int, int]],
    pairs: Sequence[PairPrediction],
    config: AlignPairsConfig | None = None,
    windows: Sequence[Window] | None = None,
) -> Generator[Progress, None, AlignedPairs]:
    """Cameras and depth maps of photos of `photo_sizes` (width, height) from predictions of some of their pairs.

    All predictions have one pixel grid, which covers each photo's window (None: the whole photo). Principal points are the
    photos' middles. Raises `InputError` for predictions that cannot work, `StoppedLate` when fewer than two photos are tied
    together. Deterministic; not differentiable; float64 inside.
    """
    config = config or AlignPairsConfig()
    windows = windows or [Window(0, 0, width, height) for width, height in photo_sizes]
    height, width = _checked(photo_sizes, pairs, windows)
    pixels = sampled_pixels(height, width, config.samples)
    shown = [_places(size, window, pixels, height, width) for size, window in zip(photo_sizes, windows)]
    places, inside = np.stack([p for p, _ in shown]), [i for _, i in shown]

    numbers, samples = [], []
    for number, pair in enumerate(pairs):
        ends = (inside[pair.first], inside[pair.second])
        chosen = samples_of(pair.first, pair.second, pair.prediction, pixels, ends, config.min_confidence)
        if chosen is not None:
            numbers.append(number)
            samples.append(chosen)
    focal = config.focal or _shared_focal(samples, places)
    motions = []
    for number, pair in enumerate(samples):
        motions.append(first_motion(pair, places[pair.second], focal))
        yield Progress("poses", number + 1, len(samples), f"photos {pair.first + 1} and {pair.second + 1}")
    good = [k for k, motion in enumerate(motions) if motion is not None]
    numbers, samples, motions = ([x[k] for k in good] for x in (numbers, samples, motions))
    if not samples:
        raise StoppedLate(
            f"None of the {len(pairs)} pairwise predictions ties two of the {len(photo_sizes)} photos together; take photos "
            "that overlap by two thirds."
        )

    start = first_poses(len(photo_sizes), samples, motions)
    used = np.flatnonzero(start.used)
    numbers, samples = [numbers[k] for k in used], [samples[k] for k in used]
    state = State(start.poses, start.log_scales[used], float(np.log(focal)))
    move_focal = config.refine_focal or config.focal is None
    steps = refine(state, start.root, samples, places, config.iterations, move_focal)
    state, fit = yield from _told(steps, config.iterations)
    aligned = _assembled(photo_sizes, pairs, windows, numbers, samples, start.root, state, fit, config)
    placed = sum(camera is not None for camera in aligned.cameras)
    yield Progress("poses", 1, 1, f"{placed} of {len(photo_sizes)} photos from {aligned.facts['pairs_used']:.0f} pairs")
    return aligned


def _told(steps, total: int):
    """The refinement's iterations as progress."""
    while True:
        try:
            iteration, error = next(steps)
        except StopIteration as end:
            return end.value
        yield Progress("poses", iteration + 1, total, "all pairs together", values={"error": error})


def _checked(
    photo_sizes: Sequence[tuple[int, int]], pairs: Sequence[PairPrediction], windows: Sequence[Window]
) -> tuple[int, int]:
    """(height, width) of the predictions. Raises `InputError` for what cannot be aligned."""
    if len(photo_sizes) < 2:
        raise InputError(f"Alignment needs at least 2 photos, got {len(photo_sizes)}; add photos of the same subject.")
    if not pairs:
        raise InputError(f"There is no prediction for any pair of the {len(photo_sizes)} photos; predict some.")
    assert len(windows) == len(photo_sizes), (len(windows), len(photo_sizes))
    if min(min(size) for size in photo_sizes) < 1 or not all(w.width > 0 and w.height > 0 for w in windows):
        raise InputError("A photo or the part of it that is predicted has no pixels; leave that photo out.")
    for pair in pairs:
        if pair.first == pair.second or not all(0 <= k < len(photo_sizes) for k in (pair.first, pair.second)):
            raise InputError(
                f"A prediction is for photos {pair.first} and {pair.second} of {len(photo_sizes)}; give two different ones."
            )
    grids = {tuple(pair.prediction.confidence.shape[1:]) for pair in pairs}
    if len(grids) > 1:
        raise InputError(f"The predictions have {len(grids)} pixel grids; predict all pairs at one size.")
    height, width = grids.pop()
    if height * width < 64:
        raise InputError(f"The predictions have {width} x {height} pixels, which is too few; predict at least 8 x 8.")
    return height, width


def _places(
    size: tuple[int, int], window: Window, pixels: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Grid pixels in the photo: [S, 2] in long sides from its middle, [S] whether they show it at all."""
    x = window.left + (pixels % width + 0.5) * window.width / width
    y = window.top + (pixels // width + 0.5) * window.height / height
    inside = (x > 0) & (x < size[0]) & (y > 0) & (y < size[1])
    return np.stack([x - size[0] / 2, y - size[1] / 2], axis=-1) / max(size), inside


def _shared_focal(samples: Sequence[PairSamples], places: np.ndarray) -> float:
    """The median of the pairs' own, by trust. Raises `StoppedLate` where no pair has a plausible one."""
    found = [(first_focal(pair, places[pair.first]), pair.own_trust.mean()) for pair in samples]
    known = [(focal, trust) for focal, trust in found if focal is not None]
    if not known:
        raise StoppedLate(
            f"None of {len(samples)} usable pairwise predictions looks like what a camera sees; take photos that overlap more, "
            "or give the poses."
        )
    focals, trusts = np.array(known).T
    return weighted_median(focals, trusts)


def _assembled(
    photo_sizes: Sequence[tuple[int, int]],
    pairs: Sequence[PairPrediction],
    windows: Sequence[Window],
    numbers: Sequence[int],
    samples: Sequence[PairSamples],
    root: int,
    state: State,
    fit: Fit,
    config: AlignPairsConfig,
) -> AlignedPairs:
    """The result in its world, that of `root`'s camera where it is placed: median depth 1."""
    trusted = np.flatnonzero(fit.pair_trust >= config.min_trust)
    group = largest_group(len(photo_sizes), samples, trusted)
    if len(group) < 2:
        raise StoppedLate(
            f"None of the {len(pairs)} pairwise predictions could be believed beside the others; take photos that overlap by "
            "two thirds."
        )
    kept = np.array([k for k in trusted if samples[k].first in group])
    known = fit.weight[kept] > 0
    unit = float(np.exp(np.median(fit.depth[kept][known]))) if known.any() else 1.0
    focal = float(np.exp(state.log_focal))
    scales = np.zeros(len(pairs))
    for k in kept:
        scales[numbers[k]] = np.exp(state.log_scales[k]) / samples[k].unit / unit
    world = np.eye(4)
    if root not in group:
        root = max(sorted(group), key=lambda photo: sum(photo in (samples[k].first, samples[k].second) for k in kept))
        world = np.linalg.inv(state.poses[root])
    poses = {photo: pose @ world for photo, pose in state.poses.items() if photo in group}
    for pose in poses.values():
        pose[:3, 3] /= unit
    cameras, reasons, depths = [], [], []
    for photo, ((width, height), window) in enumerate(zip(photo_sizes, windows)):
        if photo not in poses:
            cameras.append(None)
            depths.append(None)
            reasons.append("no pairwise prediction that could be believed ties it to the other photos")
            continue
        f = focal * max(width, height)
        K = torch.tensor([[[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]]], dtype=torch.float32)
        cameras.append(Cameras(torch.from_numpy(poses[photo]).float()[None], K, width, height))
        reasons.append(None)
        seen = [(pairs[n].prediction, scales[n], *_ends(pairs[n], photo, poses)) for n in range(len(pairs)) if scales[n] > 0
                and photo in (pairs[n].first, pairs[n].second)]  # fmt: skip
        depths.append(photo_depth(str(photo), (width, height), window, seen, config.min_confidence, config.tolerance))
    off = np.linalg.norm(fit.place[kept, 1], axis=-1)[fit.weight[kept, 1] > 0]
    side = max(max(size) for size in photo_sizes)
    facts = {
        "pairs": float(len(pairs)), "pairs_used": float(len(kept)), "focal": focal,
        "reprojection_px": float(np.median(off)) * side if len(off) else 0.0, "depth_noise": fit.noise[1],
    }  # fmt: skip
    return AlignedPairs(
        tuple(cameras), tuple(reasons), tuple(depths), focal, tuple(scales.tolist()), facts["reprojection_px"], facts
    )


def _ends(pair: PairPrediction, photo: int, poses: dict[int, np.ndarray]) -> tuple[int, np.ndarray]:
    """Which of the pair's maps shows the photo, and the motion [4, 4] from the pair's frame to the photo's camera."""
    if photo == pair.first:
        return 0, np.eye(4)
    return 1, poses[pair.second] @ np.linalg.inv(poses[pair.first])
