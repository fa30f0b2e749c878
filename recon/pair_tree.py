"""First poses from pairwise motions: the spanning tree that most of the other pairs agree with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recon.pair_samples import Motion, PairSamples, weighted_median

AGREE_DEG = 8.0  # angle at which a pair's vote for a tree has fallen to 1/e
DISAGREE_DEG = 25.0  # a pair further off than this, and than four times the median, is taken for wrong


@dataclass(frozen=True)
class Start:
    """First guess of everything that the refinement moves."""

    poses: dict[int, np.ndarray]  # photo -> cam_from_world [4, 4]; the root's is the identity
    root: int
    log_scales: np.ndarray  # [E] world units per unit of each pair
    used: np.ndarray  # [E] bool: between placed photos, and not taken for wrong


def first_poses(count: int, pairs: Sequence[PairSamples], motions: Sequence[Motion]) -> Start:
    """Poses of the largest group of photos that the pairs tie together; photos of other groups are not in `poses`."""
    quality = np.array([motion.quality for motion in motions])
    tree = _maximum_tree(count, pairs, quality)
    group = largest_group(count, pairs, tree)
    tree = [e for e in tree if pairs[e].first in group]
    inner = np.array([pair.first in group and pair.second in group for pair in pairs])
    votes = quality * inner
    root = max(sorted(group), key=lambda k: sum(votes[e] for e, p in enumerate(pairs) if k in (p.first, p.second)))
    best = _along(tree, root, pairs, motions)
    score = float((votes * _votes(best, pairs, motions, inner)).sum())
    improved = True
    while improved:  # climb: a wrong pair in the tree is outvoted once another takes its place
        improved = False
        for left_out in tree:
            weakened = quality.copy()
            weakened[left_out] = 0
            other = [e for e in _maximum_tree(count, pairs, weakened) if pairs[e].first in group]
            if len(other) < len(tree):  # a bridge
                continue
            poses = _along(other, root, pairs, motions)
            found = float((votes * _votes(poses, pairs, motions, inner)).sum())
            if found > score * (1 + 1e-6):
                tree, best, score, improved = other, poses, found, True
                break
    angles = np.where(inner, _angles_deg(best, pairs, motions, inner), np.inf)
    limit = max(DISAGREE_DEG, 4 * float(np.median(angles[inner])))
    used = inner & (angles <= limit)
    used[tree] = True
    return Start(best.poses, root, _all_scales(best, pairs, motions, used), used)


@dataclass(frozen=True)
class _Walk:
    """A tree walked from its root."""

    poses: dict[int, np.ndarray]
    log_depths: dict[int, tuple[np.ndarray, np.ndarray]]  # photo -> (log depth [S], trust [S]) of its samples


def log_depth_first(pair: PairSamples) -> np.ndarray:
    return np.log(np.maximum(pair.own[:, 2], 1e-12))


def log_depth_second(pair: PairSamples, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
    """(log depth [S], trust [S]) of the second photo's samples, in the pair's unit."""
    z = pair.other @ motion.rotation[2] + motion.translation[2]
    return np.log(np.maximum(z, 1e-12)), pair.other_trust * (z > 1e-3)


def _maximum_tree(count: int, pairs: Sequence[PairSamples], quality: np.ndarray) -> list[int]:
    """Kruskal's: pair numbers of a spanning forest, the best first."""
    group = list(range(count))
    tree = []
    for e in sorted(range(len(pairs)), key=lambda e: (-quality[e], e)):
        a, b = group[pairs[e].first], group[pairs[e].second]
        if a != b and quality[e] > 0:
            group = [a if g == b else g for g in group]
            tree.append(e)
    return tree


def largest_group(count: int, pairs: Sequence[PairSamples], tying: Iterable[int]) -> set[int]:
    """The photos that the pairs numbered `tying` tie together; of groups of one size the first."""
    group = list(range(count))
    for e in tying:
        a, b = group[pairs[e].first], group[pairs[e].second]
        group = [min(a, b) if g in (a, b) else g for g in group]
    members = [{i for i in range(count) if group[i] == g} for g in sorted(set(group))]
    return max(members, key=len)


def _along(tree: Sequence[int], root: int, pairs: Sequence[PairSamples], motions: Sequence[Motion]) -> _Walk:
    """Poses by walking from the root; scales by the depth that neighbouring pairs give the photo they share."""
    poses, depths = {root: np.eye(4)}, {}
    waiting = list(tree)
    while waiting:
        e = next(e for e in waiting if (pairs[e].first in poses) != (pairs[e].second in poses))
        waiting.remove(e)
        pair, motion = pairs[e], motions[e]
        forward = pair.first in poses
        known, new = (pair.first, pair.second) if forward else (pair.second, pair.first)
        seen = {pair.first: (log_depth_first(pair), pair.own_trust), pair.second: log_depth_second(pair, motion)}
        log_scale = _log_ratio(depths[known], seen[known]) if known in depths else 0.0
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = motion.rotation, np.exp(log_scale) * motion.translation
        poses[new] = (step if forward else np.linalg.inv(step)) @ poses[known]
        for photo in (known, new):
            depths.setdefault(photo, (seen[photo][0] + log_scale, seen[photo][1]))
    return _Walk(poses, depths)


def _log_ratio(known: tuple[np.ndarray, np.ndarray], seen: tuple[np.ndarray, np.ndarray]) -> float:
    """What to add to `seen` log depths to make them `known`; 0 where they share no pixel."""
    weight = known[1] * seen[1]
    return weighted_median(known[0] - seen[0], weight) if weight.sum() > 0 else 0.0


def _angles_deg(walk: _Walk, pairs: Sequence[PairSamples], motions: Sequence[Motion], inner: np.ndarray) -> np.ndarray:
    """[E] how far the poses turn each pair from its own motion: rotation, and half of the angle between directions."""
    out = np.zeros(len(pairs))
    for e in np.flatnonzero(inner):
        relative = walk.poses[pairs[e].second] @ np.linalg.inv(walk.poses[pairs[e].first])
        turn = angle_deg(relative[:3, :3] @ motions[e].rotation.T)
        a, b = relative[:3, 3], motions[e].translation
        norm = np.linalg.norm(a) * np.linalg.norm(b)
        way = np.degrees(np.arccos(np.clip(a @ b / norm, -1, 1))) if norm > 1e-12 else 0.0
        # of a photo that hardly moved, the direction says little
        out[e] = max(turn, 0.5 * way * min(np.linalg.norm(b) / 0.1, 1))
    return out


def _votes(walk: _Walk, pairs: Sequence[PairSamples], motions: Sequence[Motion], inner: np.ndarray) -> np.ndarray:
    return np.where(inner, np.exp(-_angles_deg(walk, pairs, motions, inner) / AGREE_DEG), 0)


def _all_scales(walk: _Walk, pairs: Sequence[PairSamples], motions: Sequence[Motion], used: np.ndarray) -> np.ndarray:
    """[E] each pair's log scale from the depth of both its photos."""
    out = np.zeros(len(pairs))
    for e in np.flatnonzero(used):
        pair = pairs[e]
        seen = ((pair.first, (log_depth_first(pair), pair.own_trust)), (pair.second, log_depth_second(pair, motions[e])))
        ratios = [_log_ratio(walk.log_depths[k], s) for k, s in seen if k in walk.log_depths]
        out[e] = float(np.mean(ratios))
    return out


def angle_deg(rotation: np.ndarray) -> float:
    """Of [3, 3]; exact for small angles."""
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    return float(np.degrees(np.arctan2(np.linalg.norm(skew) / 2, (np.trace(rotation) - 1) / 2)))
