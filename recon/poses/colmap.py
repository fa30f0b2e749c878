"""Camera poses from photos alone: features, matches, then COLMAP's incremental and global mapper, then the plausibility gate.

Both mappers run at once, each in a process of its own (`mapper.py`); the better model by photos placed, then reprojection
error, is judged by `plausibility.py` before anything is returned.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recon import features as feature_matching
from recon.features import FeatureConfig, Features, Kind
from recon.poses import Observations, PoseConfig, Poses, Solver
from recon.poses.likeness import only_alike, pictures
from recon.poses.plausibility import FEW_KEYPOINTS, Judgement, check_motion, check_texture, judge
from recon.poses.solution import NOMINAL_SIDE, Problem, Solution, Verified
from splat.cameras import Cameras, intrinsics
from splat.errors import InputError, StoppedLate
from splat.points import PointCloud
from splat.progress import Progress

if TYPE_CHECKING:
    from recon.photos import Photo

log = logging.getLogger(__name__)

UNKNOWN_FOCAL = 1.2  # x long side: between a phone's main lens (0.75) and a portrait lens, and COLMAP's own guess
WEAKEST = 15  # verified matches that a pair needs to count
CLEAR = 0.92  # share of the matches that a solution explains when there is nothing to doubt; right ones explain 0.97 and more
PATIENCE = 10.0  # wall seconds granted per CPU-second of the limit: only a step that hangs meets this end
HOPELESS = 0.03  # share of mutual nearest neighbours under which LighterGlue found nothing in 25 of 25 pairs
AGREE = 8.0  # degrees between the turns that two solutions give a pair of photos; half of what would be called wrong
WELL_ANCHORED = 40  # points seen by three photos that leave no doubt where a photo stood


@dataclass(frozen=True)
class Attempt:
    """One solution of one problem, judged. `kinds` are the features, concatenated in this order in the problem."""

    kinds: tuple[Kind, ...]
    features: dict[Kind, tuple[Features, ...]]
    problem: Problem
    verified: Verified
    solution: Solution
    judgement: Judgement

    @property
    def rank(self) -> tuple[int, float]:
        """Larger is better: photos believed, then the share of the matches explained."""
        return len(self.judgement.kept), self.judgement.explained

    @property
    def clear(self) -> bool:
        return is_clear(self.judgement, len(self.problem.keypoints))

    @property
    def undoubted(self) -> bool:
        """At least three photos are believed, and nothing speaks against them."""
        return len(self.judgement.kept) >= 3 and not self.judgement.warnings and self.judgement.explained >= CLEAR

    @property
    def can_grow(self) -> bool:
        """Photos are left out, and those that are placed are a sound start for placing them."""
        return self.undoubted and len(self.judgement.kept) < len(self.problem.keypoints)


def best_of(attempts: Sequence[Attempt]) -> Attempt | None:
    return max(attempts, key=lambda attempt: attempt.rank, default=None)


def agree(core: Attempt, wider: Attempt) -> bool:
    """Does `wider` add to the photos of `core`, turned to each other as there? A photo added wrongly bends the others."""
    common = sorted(core.judgement.kept)
    if not set(common) < set(wider.judgement.kept):  # with the same photos, the exacter keypoints of `core` are better
        return False
    turns = [a.solution.pose[np.searchsorted(a.solution.photos, common), :, :3] for a in (core, wider)]  # [K, 3, 3]
    first, second = (np.einsum("iab,jcb->ijac", t, t) for t in turns)  # from photo j to photo i
    cosine = 0.5 * (np.einsum("ijab,ijab->ij", first, second) - 1)
    return bool(np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < AGREE)


def wide_pairs(core: Attempt, neighbours: int) -> set[tuple[int, int]]:
    """Pairs to match with affine views: each left-out photo with its likeliest partners, and these with their surest ones.

    The latter give places of the partners that only affine views find a position in space, so that new photos can hang on them.
    """
    pairs, verified = core.problem.pairs, core.verified.counts
    matched = np.array([len(rows) for rows in core.problem.matches])
    left_out = set(range(len(core.problem.keypoints))) - set(core.judgement.kept)
    chosen: set[int] = set()
    for photo in sorted(left_out):
        mine = np.flatnonzero((pairs == photo).any(axis=1))
        chosen.update(mine[np.argsort(-matched[mine], kind="stable")][:neighbours].tolist())
        chosen.update(mine[np.abs(pairs[mine, 0] - pairs[mine, 1]) == 1].tolist())
    for photo in sorted(set(pairs[sorted(chosen)].ravel().tolist()) - left_out):
        mine = np.flatnonzero((pairs == photo).any(axis=1) & (verified > 0))
        chosen.update(mine[np.argsort(-verified[mine], kind="stable")][:2].tolist())
    return {(int(i), int(j)) for i, j in pairs[sorted(chosen)]}


def is_clear(judgement: Judgement, count: int) -> bool:
    """Every photo placed, well anchored and believed, and nothing speaks against it."""
    believed = len(judgement.kept) == count and (count == 2 or judgement.anchors >= WELL_ANCHORED)
    return believed and not judgement.warnings and judgement.explained >= CLEAR


def solve(photos: Sequence[Photo], config: PoseConfig) -> Solver:
    """The back-end `colmap` of `recon.poses.solve_poses`, which states the contract.

    SIFT first: its keypoints are exact to 0.2-0.5 px, XFeat's to 1 px, and it needs no network. Where it leaves a photo out or
    a doubt, XFeat's matches, which bridge wider baselines, join in, and the better solution counts. Where that still leaves a
    photo out, and nothing speaks against the photos that are placed, these are the core of a third round with affine views.
    A solution that nothing speaks against is kept, with a warning, when a later round runs out of time.
    """
    if len(photos) < 2:
        raise InputError(f"{len(photos)} photo given; depth needs at least 2 photos from different places, better 8 or more.")
    started = time.monotonic()
    names = [photo.name for photo in photos]
    rounds: dict[str, list[tuple[Kind, ...]]] = {
        "auto": [("sift",), ("sift", "xfeat"), ("sift", "xfeat", "affine")],
        "both": [("sift", "xfeat")],
        "sift": [("sift",)],
        "xfeat": [("xfeat",)],
    }
    features: dict[Kind, tuple[Features, ...]] = {}
    matches: dict[Kind, tuple[np.ndarray, ...]] = {}
    attempts: list[Attempt] = []
    pairs: list[tuple[int, int]] = []
    greys: list[np.ndarray] = []
    repeats: tuple[np.ndarray, ...] | None = None
    notes: tuple[str, ...] = ()
    for kinds in rounds[config.features]:
        core = best_of(attempts) if "affine" in kinds else None
        if "affine" in kinds and (core is None or not core.can_grow):
            break
        wanted = None if core is None else wide_pairs(core, config.neighbours)
        for kind in kinds:
            if kind not in features:
                features[kind] = yield from extract_all(photos, kind, config, wanted)
                pairs = pairs or choose_pairs(features[kind], config)
                matches[kind] = yield from match_all(features[kind], pairs, wanted)
        problem = pose_problem(photos, [features[k] for k in kinds], pairs, [matches[k] for k in kinds], config)
        problem = replace(problem, exact=kinds == ("sift",))
        greys = greys or pictures(photos, problem)
        try:
            verified, solutions = yield from map_problem(problem, names, greys, repeats, config)
        except (InputError, StoppedLate) as stopped:
            sound = best_of(attempts)
            judged_anew = core is None and isinstance(stopped, InputError)  # more matches show that there is no depth
            if sound is None or not sound.undoubted or judged_anew:
                raise
            notes = (f"The {len(sound.judgement.kept)} photos placed at first are kept; a wider search ended early: {stopped}",)
            log.warning("%s", notes[0])
            break
        repeats = verified.second
        found = [Attempt(kinds, dict(features), problem, verified, s, judge(problem, verified, s, names)) for s in solutions]
        attempts += [attempt for attempt in found if core is None or (attempt.undoubted and agree(core, attempt))]
        if any(attempt.clear for attempt in attempts):
            break
    if not attempts:
        check_texture(names, problem)
        raise StoppedLate(
            f"None of the {len(photos)} photos could be placed; take more photos that overlap by two thirds, "
            "of something with texture, moving the camera between them."
        )
    best = best_of(attempts)
    if best.judgement.refusal:
        raise StoppedLate(best.judgement.refusal)
    return as_poses(photos, best, time.monotonic() - started, notes)


def extract_all(
    photos: Sequence[Photo], kind: Kind, config: PoseConfig, wanted: set[tuple[int, int]] | None = None
) -> Generator[Progress, None, tuple[Features, ...]]:
    """Features of every photo; none for photos in no pair of `wanted`."""
    usual = {"sift": 2048, "xfeat": 1280 if len(photos) > 8 else 2048, "affine": 4900}
    count = config.max_keypoints or usual[kind]
    settings = FeatureConfig(kind=kind, max_keypoints=count)
    out = []
    for number, photo in enumerate(photos):
        yield Progress("features", number, len(photos), f"Finding features in {photo.name}")
        if wanted is not None and not any(number in pair for pair in wanted):
            out.append(Features(torch.zeros(0, 2), torch.zeros(0, 128), *photo.size, kind))
            continue
        found = feature_matching.extract(photo.image, settings, config.device)
        if config.only_masks and photo.mask is not None:
            column, row = found.keypoints.long().T.to(photo.mask.device)
            found = found[(photo.mask[row, column] > 0.5).to(found.keypoints.device)]
        out.append(found)
    return tuple(out)


def choose_pairs(features: Sequence[Features], config: PoseConfig) -> list[tuple[int, int]]:
    """All pairs of a small set; of a large one the most promising per photo and the neighbours in name order."""
    count = len(features)
    if count <= config.exhaustive_up_to:
        return list(combinations(range(count), 2))
    shared = np.zeros((count, count), np.int64)
    for i, j in combinations(range(count), 2):
        shared[i, j] = shared[j, i] = feature_matching.count_mutual(features[i], features[j])
    chosen = {(i, j) for i, j in combinations(range(count), 2) if j - i <= 2}
    for i in range(count):
        best = np.argsort(-shared[i], kind="stable")[: config.neighbours]
        chosen |= {(min(i, int(j)), max(i, int(j))) for j in best if j != i}
    return sorted(chosen)


def match_all(
    features: Sequence[Features], pairs: Sequence[tuple[int, int]], wanted: set[tuple[int, int]] | None = None
) -> Generator[Progress, None, tuple[np.ndarray, ...]]:
    """[M, 2] rows per pair; none for pairs outside `wanted`."""
    settings = FeatureConfig()
    out = []
    for number, (i, j) in enumerate(pairs):
        yield Progress("matches", number, len(pairs))
        first, second = features[i], features[j]
        fewest = HOPELESS * min(len(first), len(second))
        if wanted is not None and (i, j) not in wanted:
            out.append(np.zeros((0, 2), np.int64))
            continue
        hopeless = first.kind == "xfeat" and feature_matching.count_mutual(first, second) < fewest
        out.append(np.zeros((0, 2), np.int64) if hopeless else feature_matching.match(first, second, settings).numpy())
    return tuple(out)


def pose_problem(
    photos: Sequence[Photo],
    features: Sequence[Sequence[Features]],
    pairs: Sequence[tuple[int, int]],
    matches: Sequence[Sequence[np.ndarray]],
    config: PoseConfig,
) -> Problem:
    """Everything in the solver's pixels, one lens per image size and EXIF focal length (or per photo).

    `features` and `matches` come per kind; the keypoints of a photo are those of all kinds, one kind after the other.
    """
    first = np.cumsum([[0] * len(photos), *([len(f) for f in kind] for kind in features)], axis=0)  # [kinds + 1, N]
    joined = [
        np.concatenate([rows + first[k, list(pair)] for k, rows in enumerate(found)])
        for pair, found in zip(pairs, zip(*matches))
    ]
    keypoints, scales, turned, of_photo = [], [], [], []
    lenses: dict[tuple, int] = {}
    cameras: list[list[float]] = []
    for number, photo in enumerate(photos):
        width, height = photo.size
        scale = NOMINAL_SIDE / max(width, height)
        points = np.concatenate([kind[number].keypoints.double().cpu().numpy() for kind in features]) * scale
        if height > width:
            points = np.stack([points[:, 1], width * scale - points[:, 0]], axis=1)
        known = photo.focal_px is not None
        focal = photo.focal_px * scale if known else UNKNOWN_FOCAL * NOMINAL_SIDE
        key = (max(width, height), min(width, height), round(focal / NOMINAL_SIDE, 2), known)
        key = key if config.intrinsics == "shared" else (number,)
        if key not in lenses:
            lenses[key] = len(cameras)
            cameras.append([NOMINAL_SIDE, min(width, height) * scale, focal, float(known)])
        keypoints.append(points)
        scales.append(scale)
        turned.append(height > width)
        of_photo.append(lenses[key])
    linked = len({photo for pair, rows in zip(pairs, joined) if len(rows) >= WEAKEST for photo in pair})
    all_known = all(camera[3] for camera in cameras)
    return Problem(
        keypoints=tuple(keypoints),
        scale=np.array(scales),
        turned=np.array(turned),
        cameras=np.array(cameras),
        camera_of_photo=np.array(of_photo),
        pairs=np.array(pairs, np.int64).reshape(-1, 2),
        matches=tuple(joined),
        refine_focal=linked >= 6 or not all_known,  # a frozen wrong focal costs more than a refined one from 6 photos on
        refine_distortion=linked >= 7,
        exact=False,
        seed=config.seed,
        max_cpu_seconds=config.max_cpu_seconds,
    )


def map_problem(
    problem: Problem,
    names: Sequence[str],
    greys: Sequence[np.ndarray],
    repeats: tuple[np.ndarray, ...] | None,
    config: PoseConfig,
) -> Generator[Progress, None, tuple[Verified, list[Solution]]]:
    """Verify the pairs, run both mappers, and a more cautious one where neither leaves a clear case.

    `greys` are the photos' `pictures`; `repeats` is `Verified.second` of an earlier round whose keypoints were exact.
    """
    with tempfile.TemporaryDirectory(prefix="splatsmith-poses-") as name:
        folder = Path(name)
        problem.write(folder / "problem.npz")
        yield from run_steps(folder, ("verify",), config)
        if not (folder / "verify.npz").exists():
            raise StoppedLate(
                f"The photo pairs could not be verified within {config.max_cpu_seconds:.0f} s of computing; use fewer photos."
            )
        verified = only_alike(problem, Verified.read(folder / "verify.npz"), greys)
        verified = verified if repeats is None else replace(verified, second=repeats)
        np.save(folder / "dropped.npy", problem.pairs[verified.counts == 0])
        check_motion(names, problem, verified)
        if verified.counts.max(initial=0) < WEAKEST:
            return verified, []
        solutions: list[Solution] = []
        for steps in (("incremental", "global"), ("cautious",)):
            yield from run_steps(folder, steps, config)
            found = [Solution.read(folder / f"{step}.npz", step) for step in steps]
            solutions += [s for s in found if s is not None]
            judged = [judge(problem, verified, s, names) for s in solutions]
            if any(is_clear(j, len(names)) for j in judged):
                break
    return verified, solutions


def run_steps(folder: Path, steps: Sequence[str], config: PoseConfig) -> Generator[Progress, None, None]:
    """Run steps of `mapper.py` side by side; closing the generator or running out of time ends the processes."""
    script = Path(__file__).with_name("mapper.py")
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    logs = {step: (folder / f"{step}.log").open("w") for step in steps}
    running = {
        step: subprocess.Popen(
            [sys.executable, "-P", str(script), str(folder), step, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,  # never written to: it closes when this process dies, and the step ends then
            stdout=logs[step],
            stderr=subprocess.STDOUT,
            env={**os.environ, **single},
        )
        for step in steps
    }
    deadline = time.monotonic() + config.max_cpu_seconds * PATIENCE
    try:
        while any(process.poll() is None for process in running.values()) and time.monotonic() < deadline:
            yield Progress("poses", 0, 1, f"Solving ({', '.join(s for s, p in running.items() if p.poll() is None)})")
            time.sleep(0.05)
    finally:
        for step, process in running.items():
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdin.close()
            logs[step].close()
    for step, process in running.items():
        if process.returncode != 0:
            lines = (folder / f"{step}.log").read_text(errors="replace").strip().splitlines()
            reason = lines[-1][:200] if lines else "no message"
            log.warning("the step %s of the pose solver ended with status %d: %s", step, process.returncode, reason)


def as_poses(photos: Sequence[Photo], best: Attempt, seconds: float, notes: tuple[str, ...] = ()) -> Poses:
    """What is believed of a solution, in the photos' own pixels, with colours and observations; `notes` join the warnings."""
    problem, solution, judgement = best.problem, restricted(best.solution, best.judgement.kept), best.judgement
    cameras: list[Cameras | None] = [None] * len(photos)
    k1 = [0.0] * len(photos)
    observed: list[tuple[Observations, ...]] = [()] * len(photos)
    for row, number in enumerate(solution.photos):
        cameras[number] = photo_camera(photos[number], problem, number, solution.pose[row], solution.camera[row])
        k1[number] = float(solution.camera[row, 3])
        point = torch.full((len(problem.keypoints[number]),), -1, dtype=torch.int64)
        mine = solution.seen[solution.seen[:, 1] == number]
        point[mine[:, 2]] = torch.from_numpy(mine[:, 0].copy())
        parts = [best.features[kind][number] for kind in best.kinds]
        observed[number] = tuple(Observations(f, p) for f, p in zip(parts, point.split([len(f) for f in parts])))
    reasons = [
        None if camera is not None else judgement.dropped.get(number) or why_not(number, photos, problem, best.verified)
        for number, camera in enumerate(cameras)
    ]
    warnings = judgement.warnings + notes
    if judgement.explained < CLEAR:
        warnings += (
            f"The cameras explain only {judgement.explained:.0%} of what the photos share; "
            "if the result looks folded or doubled, add photos between the others.",
        )
    facts = {
        "reprojection_px": solution.reprojection_error,
        "reprojection_rad": solution.reprojection_error / float(np.median(solution.camera[:, 0])),
        "track_length": solution.track_length,
        "points_per_photo": len(solution.seen) / len(solution.photos),
        "focal_ratio": float(np.median(solution.camera[:, 0]) / NOMINAL_SIDE),
        "explained": judgement.explained,
        "xfeat": float("xfeat" in best.kinds),  # 1 where its weights, and LighterGlue's, had a part in the cameras
        "seconds": seconds,
    }
    return Poses(
        cameras=tuple(cameras),
        k1=tuple(k1),
        reasons=tuple(reasons),
        points=coloured_points(photos, cameras, observed, solution),
        warnings=warnings,
        facts=facts,
        observations=tuple(observed),
    )


def restricted(solution: Solution, kept: Sequence[int]) -> Solution:
    """Only the kept photos, and the points that at least two of them see."""
    rows = np.isin(solution.photos, kept)
    seen = solution.seen[np.isin(solution.seen[:, 1], kept)]
    alive = np.bincount(seen[:, 0], minlength=len(solution.points)) >= 2
    seen = seen[alive[seen[:, 0]]]
    seen = np.column_stack([(np.cumsum(alive) - 1)[seen[:, 0]], seen[:, 1:]])
    return replace(
        solution,
        photos=solution.photos[rows],
        pose=solution.pose[rows],
        camera=solution.camera[rows],
        points=solution.points[alive],
        error=solution.error[alive],
        seen=seen,
    )


def photo_camera(photo: Photo, problem: Problem, number: int, pose: np.ndarray, lens: np.ndarray) -> Cameras:
    """A solved camera in the pixels of its photo, turned back upright."""
    cam_from_world = np.eye(4)
    cam_from_world[:3] = pose
    if problem.turned[number]:  # the solver saw x' = y, y' = -x
        cam_from_world = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ cam_from_world
    K = intrinsics(lens[0] / problem.scale[number], *photo.size)
    return Cameras(torch.from_numpy(cam_from_world).float()[None], K[None], *photo.size)


def coloured_points(
    photos: Sequence[Photo], cameras: Sequence[Cameras | None], observed: Sequence[Sequence[Observations]], solution: Solution
) -> PointCloud:
    """Colour and pixel footprint averaged over the photos that see a point; confidence 1 - 1 / (photos that see it)."""
    xyz = torch.from_numpy(solution.points).float()
    rgb, radius, count = torch.zeros(len(xyz), 3), torch.zeros(len(xyz)), torch.zeros(len(xyz))
    for photo, camera, seen in ((p, c, o) for p, c, entry in zip(photos, cameras, observed) for o in entry):
        rows = seen.point[seen.point >= 0]
        pixels = seen.features.keypoints.cpu()[seen.point >= 0].long()
        x, y = pixels[:, 0].clamp(0, camera.width - 1), pixels[:, 1].clamp(0, camera.height - 1)
        _, depth = camera.project(xyz[rows])
        rgb[rows] += photo.image[y, x].cpu()
        radius[rows] += depth[0] / camera.K[0, 0, 0]
        count[rows] += 1
    count = count.clamp_min(1)
    return PointCloud(xyz, rgb / count[:, None], 1 - 1 / count.clamp_min(1.25), radius / count)


def why_not(number: int, photos: Sequence[Photo], problem: Problem, verified: Verified) -> str:
    """One sentence why a photo has no camera."""
    if len(problem.keypoints[number]) < FEW_KEYPOINTS:
        return f"only {len(problem.keypoints[number])} keypoints: blurred, or too little texture"
    touching = (problem.pairs == number).any(axis=1)
    counts = np.where(touching, verified.counts, 0)
    if counts.max(initial=0) < WEAKEST:
        return f"shares fewer than {WEAKEST} verified matches with any other photo; add photos between it and its neighbours"
    partner = int(problem.pairs[counts.argmax()].sum() - number)
    return f"{counts.max()} matches with {photos[partner].name}, but no position agrees with the other photos"
