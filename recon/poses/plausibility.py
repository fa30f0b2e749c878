"""Is a solution true? Neither its reprojection error nor the number of placed photos can tell.

A mapper keeps the matches that suit its model and forgets the rest, so a model folded at one wrong joint fits its own points to
a pixel. What it forgot gives it away: every pair of photos is held against the solved cameras, and a strong pair that they do
not explain is evidence against them. Where that evidence rivals what holds two groups of photos together, the groups are parted
and the larger one is kept. Only matches that look alike (`likeness.py`) count, for and against.

The numbers below come from 170 solutions of scenes whose sides look alike, of boxes and gardens without a part like another
and of real photos; limits stand between what right cameras and what wrong ones gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from recon.poses.solution import NOMINAL_SIDE, Problem, Solution, Verified
from splat.errors import InputError

MAX_ERROR = 4.0  # px (solver's): a match is explained when it is this near the epipolar line, with the point in front of both
LINK = 30  # explained matches that tie two photos together; a wrong photo hung on 26, right ones have 33 and more
STRONG = 40  # matches of a pair that can part photos
CREDIBLE = 0.6  # share of the matches that a solution explains; below it most poses are wrong
AGAINST = 15  # of a pair that the cameras do not explain; right cameras left at most 9, folded ones 48 and more
TWICE = 20  # matches that agree on a second arrangement; without repeated content at most 16 were seen
ANCHORED = 8  # points that three photos see: without them the distance of one from the other two is free
TRIANGLE = 10.0  # degrees; the directions between three photos fix their distances where no angle is flatter
FEW_KEYPOINTS = 60  # a photo with fewer is blurred or shows nothing with texture
FOCAL_RANGE = (0.35, 4.0)  # x long side; from a 125 degree lens to a long telephoto; wrong models reach 0.33, 10, 21


@dataclass(frozen=True)
class Judgement:
    """What may be believed of a solution."""

    kept: tuple[int, ...]  # photos tied to each other by explained matches; empty when the whole is refused
    dropped: dict[int, str]  # placed by the mapper and not believed, with the reason
    warnings: tuple[str, ...]
    refusal: str | None  # one sentence, when nothing may be believed
    support: float  # matches explained; the measure for choosing between solutions of one problem
    explained: float  # the same as a share of all verified matches between placed photos
    anchors: int = 0  # points seen by three photos that the worst anchored kept photo has


def check_texture(names: Sequence[str], problem: Problem) -> None:
    """Raise `InputError` for photos that show nothing to hold on to."""
    keypoints = np.array([len(k) for k in problem.keypoints])
    if np.median(keypoints) < FEW_KEYPOINTS:
        raise InputError(
            f"{(keypoints < FEW_KEYPOINTS).sum()} of {len(names)} photos show almost no texture (median "
            f"{np.median(keypoints):.0f} keypoints); photograph something with texture, or put a patterned cloth or newspaper "
            "under and behind it."
        )


def check_motion(names: Sequence[str], problem: Problem, verified: Verified) -> None:
    """Raise `InputError` for photos that cannot show depth: the same picture, or all taken from one spot."""
    strong = [n for n, count in enumerate(verified.counts) if count >= STRONG]
    if not strong:
        return
    if all(_same_picture(problem, verified, n) for n in strong):
        raise InputError(
            f"The {len(names)} photos that match are the same picture; take photos from at least 3 places, "
            "moving sideways by a step between them."
        )
    if all(_only_turned(problem, verified, n) for n in strong):
        raise InputError(
            f"All {len(strong)} matching pairs of photos were taken from one spot, so there is no depth in them; "
            "walk sideways between photos instead of turning the camera."
        )


def _same_picture(problem: Problem, verified: Verified, number: int) -> bool:
    i, j = problem.pairs[number]
    matches = verified.inliers[number]
    moved = np.linalg.norm(problem.keypoints[i][matches[:, 0]] - problem.keypoints[j][matches[:, 1]], axis=1)
    return bool(np.median(moved) < 0.5)


def _only_turned(problem: Problem, verified: Verified, number: int) -> bool:
    """Does a homography K R K^-1 explain 93 % of a pair's verified matches to 3 px, for some plausible focal length?

    A plane seen from two places has a homography too, but not one of this form. Hartley and Zisserman, section 13.4.
    """
    i, j = problem.pairs[number]
    matches = verified.inliers[number]
    a, b = problem.keypoints[i][matches[:, 0]], problem.keypoints[j][matches[:, 1]]
    width, height, focal, known = problem.cameras[problem.camera_of_photo[i]]
    for guess in np.linspace(0.85, 1.15, 7) * focal if known else np.geomspace(*FOCAL_RANGE, 24) * NOMINAL_SIDE:
        rays = [np.column_stack([(p - [width / 2, height / 2]) / guess, np.ones(len(p))]) for p in (a, b)]
        unit = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rays]
        rotation = _best_rotation(unit[0], unit[1])
        turned = rays[0] @ rotation.T
        error = np.linalg.norm(turned[:, :2] / turned[:, 2:] - rays[1][:, :2], axis=1) * guess
        if np.mean(error < 3.0) > 0.93:
            return True
    return False


def _best_rotation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[3, 3] with b ~ R a for unit rows; half of the worst rows are left out after a first guess (Kabsch 1976)."""
    weight = np.ones(len(a))
    for _ in range(5):
        u, _, vt = np.linalg.svd((b * weight[:, None]).T @ a)
        rotation = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
        error = np.linalg.norm(a @ rotation.T - b, axis=1)
        weight = (error <= max(np.median(error), 1e-9)).astype(float)
    return rotation


def bearings(problem: Problem, solution: Solution) -> dict[int, np.ndarray]:
    """photo -> [K, 3] directions (x/z, y/z, 1) of its keypoints, lens distortion removed."""
    out = {}
    for row, photo in enumerate(solution.photos):
        focal, cx, cy, k1 = solution.camera[row]
        bent = (problem.keypoints[photo] - [cx, cy]) / focal
        plain = bent.copy()
        for _ in range(10):
            plain = bent / (1 + k1 * (plain**2).sum(1, keepdims=True))
        out[int(photo)] = np.column_stack([plain, np.ones(len(plain))])
    return out


def explained_shares(problem: Problem, matched: Sequence[np.ndarray], solution: Solution) -> np.ndarray:
    """[P] share of each pair's matches [M, 2] that the solved cameras explain; NaN where a photo is not placed."""
    row = {int(photo): r for r, photo in enumerate(solution.photos)}
    rays = bearings(problem, solution)
    shares = np.full(len(problem.pairs), np.nan)
    for number, ((i, j), matches) in enumerate(zip(problem.pairs, matched)):
        if len(matches) == 0 or i not in row or j not in row:
            continue
        first, second = solution.pose[row[i]], solution.pose[row[j]]
        rotation = second[:, :3] @ first[:, :3].T
        translation = second[:, 3] - rotation @ first[:, 3]
        focal = 0.5 * (solution.camera[row[i], 0] + solution.camera[row[j], 0])
        good = explained(rays[i][matches[:, 0]], rays[j][matches[:, 1]], rotation, translation, MAX_ERROR / focal)
        shares[number] = good.mean()
    return shares


def explained(a: np.ndarray, b: np.ndarray, rotation: np.ndarray, translation: np.ndarray, max_error: float) -> np.ndarray:
    """[M] bool for bearings a, b [M, 3]: Sampson distance (Hartley and Zisserman, eq. 11.9) and both depths positive."""
    t = translation / max(np.linalg.norm(translation), 1e-12)
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    line_b, line_a = a @ (cross @ rotation).T, b @ (cross @ rotation)
    distance = np.abs((b * line_b).sum(1)) / np.sqrt((line_b[:, :2] ** 2).sum(1) + (line_a[:, :2] ** 2).sum(1) + 1e-18)
    turned = a @ rotation.T  # z_b b = z_a turned + t
    normal = np.cross(turned, b)
    depth_a, depth_b = -(np.cross(t, b) * normal).sum(1), -(np.cross(t, turned) * normal).sum(1)
    return (distance < max_error) & (depth_a > 0) & (depth_b > 0)


def judge(problem: Problem, verified: Verified, solution: Solution, names: Sequence[str]) -> Judgement:
    """Hold `solution` against everything that was matched."""
    shares = explained_shares(problem, verified.inliers, solution)
    counts = verified.counts
    placed = np.isfinite(shares)
    hits = np.where(placed, np.nan_to_num(shares) * counts, 0)
    support, share = float(hits.sum()), float(hits.sum() / max(counts[placed].sum(), 1))
    focal = solution.camera[:, 0] / NOMINAL_SIDE
    if focal.min() < FOCAL_RANGE[0] or focal.max() > FOCAL_RANGE[1]:
        worst = focal.min() if focal.min() < FOCAL_RANGE[0] else focal.max()
        return _refused(
            f"The solved focal length is {worst:.2f} times the photos' long side, which no ordinary lens has; "
            "take more photos from more different places.",
            support,
            share,
        )
    if share < CREDIBLE:
        return _refused(
            f"The cameras found explain only {share:.0%} of what the photos share, so they would be wrong; "
            "add photos between the others, of something with more texture.",
            support,
            share,
        )
    tied = (np.nan_to_num(shares) >= 0.5) & (hits >= LINK)
    groups = tied_groups(problem, counts, np.nan_to_num(shares), solution)
    group = max(groups, key=lambda g: (len(g), -g[0]))
    kept, anchors = anchored(problem, tied, solution, group)
    count = len(problem.keypoints)
    if len(kept) < 3 <= count - 1:
        return _refused(
            f"Only {len(kept)} of {count} photos agree on where they were taken, too few to trust; "
            "take more photos that overlap by two thirds, moving sideways between them.",
            support,
            share,
        )
    if len(kept) < 2:
        return _refused(
            "No two photos agree on where they were taken; take more photos that overlap by two thirds.", support, share
        )
    dropped = {p: "its position contradicts its matches with other photos" for p in solution.photos.tolist() if p not in kept}
    for photo in set(group) - set(kept):
        dropped[photo] = "too few of its points are seen by two other photos; add photos between it and its neighbours"
    # Photos that were parted speak too: the pair that tells of look-alike sides may have lost the wrong one of its photos.
    against = placed & (counts >= AGAINST) & (np.nan_to_num(shares) < 0.3)
    warnings = []
    if against.any():
        i, j = problem.pairs[np.where(against, counts, 0).argmax()]
        warnings.append(
            f"{against.sum()} pairs of photos look alike but were placed apart (for one, {names[i]} and {names[j]}); "
            "if the result looks folded or doubled, add photos between them."
        )
    if len(kept) == 2:
        warnings.append("Only 2 photos were placed, and no third confirms their positions; add photos beside them.")
    elif len(kept) < count / 2:
        warnings.append(f"Only {len(kept)} of {count} photos agree on where they were taken; add photos between the others.")
    # A geometry that took in half of a pair's matches leaves the other half to a second one; the cameras explain both then.
    second = verified.second_counts * (1 - np.nan_to_num(explained_shares(problem, verified.second, solution)))
    twice = placed & (second >= np.maximum(TWICE, 0.05 * counts))
    if twice.any():
        i, j = problem.pairs[np.where(twice, second, 0).argmax()]
        warnings.append(
            f"{twice.sum()} pairs of photos match in two different ways (for one, {names[i]} and {names[j]}), so sides of the "
            "subject look alike and may have been taken for one another; look at the result from all sides."
        )
    return Judgement(kept, dropped, tuple(warnings), None, support, share, anchors)


def anchored(problem: Problem, tied: np.ndarray, solution: Solution, group: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The most photos of `group` whose distances hang together, and the fewest points seen by three of them that any has.

    `tied` [P] bool: pairs joined by explained matches. Such a pair fixes the direction between two photos and not its length:
    two groups that share one photo can each have a scale of its own, with every match explained. A photo joins the scale of
    others when it sees `ANCHORED` points that two of them see, or when it closes a triangle of tied pairs. Two photos by
    themselves are not asked.
    """
    if len(group) <= 2:
        return tuple(sorted(group)), 0
    seen = np.zeros((len(problem.keypoints), len(solution.points)), bool)
    seen[solution.seen[:, 1], solution.seen[:, 0]] = True
    center = dict(zip(solution.photos.tolist(), solution.centers))
    edges = {(int(i), int(j)) for (i, j), t in zip(problem.pairs, tied) if t and i in group and j in group}
    closed = [
        set(trio)
        for trio in combinations(sorted(group), 3)
        if edges.issuperset(combinations(trio, 2)) and _least_angle([center[p] for p in trio]) > TRIANGLE
    ]
    bodies: list[set[int]] = []
    for edge in sorted(edges, key=lambda e: -np.count_nonzero(seen[e[0]] & seen[e[1]])):
        if any(body.issuperset(edge) for body in bodies):
            continue
        body, joined = set(), set(edge)
        while joined:
            body |= joined
            known = seen[sorted(body)].sum(axis=0) >= 2
            joined = {p for p in group if p not in body and np.count_nonzero(seen[p] & known) >= ANCHORED}
            joined |= {p for trio in closed if len(trio & body) == 2 for p in trio - body}
        bodies.append(body)
    kept = sorted(max(bodies, key=len, default=()))
    length = seen[kept].sum(axis=0)
    return tuple(kept), min((int((length[seen[p]] >= 3).sum()) for p in kept), default=0)


def _least_angle(corners: Sequence[np.ndarray]) -> float:
    """Degrees, of a triangle."""
    sides = [np.linalg.norm(corners[i] - corners[j]) for i, j in ((0, 1), (1, 2), (0, 2))]
    a, b, c = np.maximum(sorted(sides), 1e-12)  # the least angle lies opposite the shortest side
    return float(np.degrees(np.arccos(np.clip((b * b + c * c - a * a) / (2 * b * c), -1, 1))))


def _refused(sentence: str, support: float, share: float) -> Judgement:
    return Judgement((), {}, (), sentence, support, share)


def tied_groups(problem: Problem, counts: np.ndarray, shares: np.ndarray, solution: Solution) -> list[tuple[int, ...]]:
    """The placed photos in groups that the matches hold together.

    Within a group, the explained matches that join any two photos of a contradicted strong pair (the minimum cut between
    them) outweigh that pair twice; else the group is parted at that cut.
    """
    members = sorted(int(p) for p in solution.photos)
    size = max(members) + 1
    weight = np.zeros((size, size))
    for (i, j), count, share in zip(problem.pairs, counts, shares):
        if share >= 0.5 and count * share >= LINK:
            weight[i, j] = weight[j, i] = count * share
    doubts = [(int(i), int(j), int(n)) for (i, j), n, s in zip(problem.pairs, counts, shares) if n >= STRONG and s < 0.3]
    doubts = [d for d in sorted(doubts, key=lambda d: -d[2]) if d[0] in members and d[1] in members]
    pending, groups = _components(members, weight), []
    while pending:
        group = pending.pop()
        for i, j, against in doubts:
            if i in group and j in group:
                flow, side = minimum_cut(weight, group, i, j)
                if flow < 2 * against:
                    rest = tuple(p for p in group if p not in side)
                    pending += _components(side, weight) + _components(rest, weight)
                    break
        else:
            groups.append(group)
    return groups


def minimum_cut(weight: np.ndarray, group: Sequence[int], source: int, sink: int) -> tuple[float, tuple[int, ...]]:
    """The least total weight that parts `source` from `sink` within `group`, and the side of `source`."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    nodes = list(group)
    capacity = np.round(weight[np.ix_(nodes, nodes)]).astype(np.int32)
    result = maximum_flow(csr_array(capacity), nodes.index(source), nodes.index(sink))
    left = csr_array((capacity - result.flow.toarray() > 0).astype(np.int32))
    reached = breadth_first_order(left, nodes.index(source), return_predecessors=False)
    return float(result.flow_value), tuple(nodes[r] for r in sorted(reached))


def _components(members: Sequence[int], weight: np.ndarray) -> list[tuple[int, ...]]:
    left, out = set(members), []
    while left:
        found, front = set(), [min(left)]
        while front:
            photo = front.pop()
            found.add(photo)
            front += [p for p in left if weight[photo, p] > 0 and p not in found]
        left -= found
        out.append(tuple(sorted(found)))
    return out
