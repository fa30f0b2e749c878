"""Poses, pair scales and one focal length that explain all pairs' samples together: robust least squares, float64.

A sample of a pair's first photo lies on that photo's ray by the focal length alone; one of the second photo is taken there by
the poses. Two residuals each: the place in the picture, and the logarithm of depth against the photo's own depth at that
pixel, one unknown that all pairs of the photo share and that is eliminated (variable projection). Levenberg-Marquardt over
what is left, weights by iteratively reweighted least squares (Cauchy).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from recon.pair_samples import FOCALS, PairSamples

LEAST_NOISE = (1e-5, 1e-5)  # of place (long sides) and log depth: below, residuals are rounding
WRONG_PAIR = 4.0  # a pair whose median residual is so many times the typical one counts little


@dataclass(frozen=True)
class State:
    """What is refined."""

    poses: dict[int, np.ndarray]  # photo -> cam_from_world [4, 4]
    log_scales: np.ndarray  # [E]
    log_focal: float


@dataclass(frozen=True)
class Fit:
    """How well a state explains the samples."""

    place: np.ndarray  # [E, 2, S, 2] first and second photo, long sides
    depth: np.ndarray  # [E, 2, S] log depth as the pair says it
    weight: np.ndarray  # [E, 2, S] trust, 0 for points behind a camera
    noise: tuple[float, float]  # typical residual of place and of log depth
    pair_trust: np.ndarray  # [E] in [0, 1]


def refine(
    state: State, root: int, pairs: Sequence[PairSamples], places: np.ndarray, iterations: int, move_focal: bool
) -> Generator[tuple[int, float], None, tuple[State, Fit]]:
    """`pairs` of placed photos, `places` [photos, S, 2] of their samples in long sides from the middle.

    Yields (iteration, typical residual of place); returns the state and its fit. The root's pose stays; scale is free.
    """
    photos = sorted(state.poses)
    columns = {photo: 6 * n for n, photo in enumerate(k for k in photos if k != root)}
    problem = _Problem(pairs, places, photos, columns, move_focal)
    damping = 1e-3
    fit = problem.explain(state)
    for iteration in range(iterations):
        weights = problem.weights(state, fit)
        system, slope, before = problem.normal_equations(state, fit, weights)
        shrunk = False
        for _ in range(6):
            step = np.linalg.solve(system + damping * np.diag(np.diag(system) + 1e-9), -slope)
            trial = problem.moved(state, step)
            after = problem.cost(trial, weights)
            if after < before:
                shrunk = True
                break
            damping = min(damping * 8, 1e8)
        yield iteration, fit.noise[0]
        if not shrunk:
            break
        state, damping = trial, max(damping / 4, 1e-9)
        fit = problem.explain(state)
        if np.abs(step).max() < 1e-9:
            break
    return state, fit


@dataclass(frozen=True)
class _Problem:
    pairs: Sequence[PairSamples]
    places: np.ndarray
    photos: list[int]
    columns: dict[int, int]  # photo -> first of its 6 columns
    move_focal: bool

    @property
    def size(self) -> int:
        return 6 * len(self.columns) + len(self.pairs) + 1

    def moved_points(self, state: State, e: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pair e's second points: [S, 3] in the first camera, [S, 3] in the second, [3, 3] the turn between them."""
        pair = self.pairs[e]
        relative = state.poses[pair.second] @ np.linalg.inv(state.poses[pair.first])
        scaled = np.exp(state.log_scales[e]) * pair.other
        return scaled, scaled @ relative[:3, :3].T + relative[:3, 3], relative[:3, :3]

    def explain(self, state: State) -> Fit:
        focal = np.exp(state.log_focal)
        count, samples = len(self.pairs), self.places.shape[1]
        place, depth = np.zeros((count, 2, samples, 2)), np.zeros((count, 2, samples))
        weight = np.zeros((count, 2, samples))
        for e, pair in enumerate(self.pairs):
            _, moved, _ = self.moved_points(state, e)
            for side, (points, photo, trust, shift) in enumerate(
                ((pair.own, pair.first, pair.own_trust, state.log_scales[e]), (moved, pair.second, pair.other_trust, 0.0))
            ):
                ahead = points[:, 2] > 1e-6
                z = np.where(ahead, points[:, 2], 1.0)
                place[e, side] = focal * points[:, :2] / z[:, None] - self.places[photo]
                depth[e, side] = np.log(z) + shift
                weight[e, side] = trust * ahead
        use = weight > 0
        off = np.linalg.norm(place, axis=-1)
        rest = np.abs(depth - self.photo_medians(depth, weight))
        shared = use & (rest > 0)  # a median is itself one of the values
        noise = (
            max(float(np.median(off[:, 1][use[:, 1]])), LEAST_NOISE[0]) if use[:, 1].any() else LEAST_NOISE[0],
            max(float(np.median(rest[shared])), LEAST_NOISE[1]) if shared.any() else LEAST_NOISE[1],
        )
        typical = np.array([np.median(off[e, 1][use[e, 1]]) if use[e, 1].any() else np.inf for e in range(count)])
        middle = max(float(np.median(typical)), LEAST_NOISE[0])
        pair_trust = 1 / (1 + (typical / (WRONG_PAIR * middle)) ** 4)
        return Fit(place, depth, weight, noise, pair_trust)

    def photo_depths(self, depth: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """[E, 2, S] each photo's own log depth where its pairs' residuals are: their weighted mean."""
        total = np.zeros((len(self.places), depth.shape[2]))
        mass = np.zeros_like(total)
        for e, pair in enumerate(self.pairs):
            for side, photo in enumerate((pair.first, pair.second)):
                total[photo] += weight[e, side] * depth[e, side]
                mass[photo] += weight[e, side]
        mean = total / np.maximum(mass, 1e-300)
        return np.stack([np.stack([mean[p.first], mean[p.second]]) for p in self.pairs])

    def photo_medians(self, depth: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """[E, 2, S] as `photo_depths`, by the weighted median: where a third of the pairs may be wrong."""
        out = np.zeros_like(depth)
        for photo in self.photos:
            rows = [
                (e, side) for e, pair in enumerate(self.pairs) for side in (0, 1) if photo == (pair.first, pair.second)[side]
            ]
            at = tuple(np.array(rows).T) if rows else None
            if at is None:
                continue
            values, mass = depth[at], weight[at]  # [P, S]
            order = np.argsort(values, axis=0, kind="stable")
            reached = np.cumsum(np.take_along_axis(mass, order, 0), axis=0)
            row = (reached >= 0.5 * reached[-1]).argmax(0)
            out[at] = np.take_along_axis(np.take_along_axis(values, order, 0), row[None], 0)
        return out

    def weights(self, state: State, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
        """[E, 2, S] of place and of log depth: trust times the robust weight, over the noise squared."""
        scale = [1.5 * n for n in fit.noise]  # from median absolute to standard deviation, about
        base = fit.weight * fit.pair_trust[:, None, None]
        place = base * _share(np.linalg.norm(fit.place, axis=-1) / (3 * scale[0])) / scale[0] ** 2
        rest = fit.depth - self.photo_medians(fit.depth, base)
        for _ in range(2):  # the photos' depths move with the weights
            depth = base * _share(rest / (3 * scale[1]))
            rest = fit.depth - self.photo_depths(fit.depth, depth)
        return place, depth / scale[1] ** 2

    def cost(self, state: State, weights: tuple[np.ndarray, np.ndarray]) -> float:
        fit = self.explain(state)
        behind = fit.weight == 0
        lost = (weights[0] > 0) & behind  # a point that went behind a camera costs what one far off does
        rest = fit.depth - self.photo_depths(fit.depth, weights[1] * ~behind)
        place = (weights[0] * (fit.place**2).sum(-1) * ~behind).sum() + (weights[0] * lost).sum()
        return float(place + (weights[1] * rest**2 * ~behind).sum())

    def normal_equations(
        self, state: State, fit: Fit, weights: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """J^T W J and J^T W r of all that is refined, the photos' depths eliminated, and the cost."""
        n = self.size
        system, slope = np.zeros((n, n)), np.zeros(n)
        focal = np.exp(state.log_focal)
        depths = self.photo_depths(fit.depth, weights[1])
        shared = {photo: _Shared() for photo in self.photos}
        for e, pair in enumerate(self.pairs):
            scaled, moved, turn = self.moved_points(state, e)
            own = pair.own[:, :2] / np.where(pair.own[:, 2:] > 1e-6, pair.own[:, 2:], 1)
            # first photo: places move with the focal length, depths with the pair's scale
            w, r = weights[0][e, 0], fit.place[e, 0]
            system[n - 1, n - 1] += (w[:, None] * (focal * own) ** 2).sum()
            slope[n - 1] += (w[:, None] * focal * own * r).sum()
            here = np.array([6 * len(self.columns) + e])
            shared[pair.first].add(here, np.ones((len(w), 1)), weights[1][e, 0], fit.depth[e, 0] - depths[e, 0])
            # second photo
            columns, motion = self._motion(e, scaled, moved, turn)  # [S, 3, C]
            z = np.where(moved[:, 2] > 1e-6, moved[:, 2], 1.0)
            flat = moved[:, :2] / z[:, None]
            log_z = motion[:, 2] / z[:, None]  # [S, C]
            place = focal * (motion[:, :2] / z[:, None, None] - flat[:, :, None] * log_z[:, None])  # [S, 2, C]
            place = np.concatenate([place, (focal * flat)[:, :, None]], axis=2)
            every = np.append(columns, n - 1)
            weighted = place * weights[0][e, 1][:, None, None]
            system[np.ix_(every, every)] += np.einsum("skc,skd->cd", weighted, place, optimize=True)
            slope[every] += np.einsum("skc,sk->c", weighted, fit.place[e, 1])
            shared[pair.second].add(columns, log_z, weights[1][e, 1], fit.depth[e, 1] - depths[e, 1])
        for part in shared.values():
            part.into(system, slope)
        if not self.move_focal:
            system[n - 1], system[:, n - 1], slope[n - 1] = 0, 0, 0
            system[n - 1, n - 1] = 1
        # the scale of everything is free: hold the mean of the pairs' scales
        scales = slice(6 * len(self.columns), n - 1)
        system[scales, scales] += np.diag(system)[scales].mean() / len(self.pairs)
        return system, slope, self.cost(state, weights)

    def _motion(self, e: int, scaled: np.ndarray, moved: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns that move pair e's second points, and how: [S, 3, C]. Poses are moved by exp(xi) from the left."""
        pair = self.pairs[e]
        columns, parts = [], []
        if pair.first in self.columns:
            columns.append(self.columns[pair.first] + np.arange(6))
            lever = np.concatenate([np.broadcast_to(np.eye(3), (len(scaled), 3, 3)), -_hat(scaled)], axis=2)
            parts.append(-turn @ lever)
        if pair.second in self.columns:
            columns.append(self.columns[pair.second] + np.arange(6))
            parts.append(np.concatenate([np.broadcast_to(np.eye(3), (len(moved), 3, 3)), -_hat(moved)], axis=2))
        columns.append(np.array([6 * len(self.columns) + e]))
        parts.append((scaled @ turn.T)[:, :, None])
        return np.concatenate(columns), np.concatenate(parts, axis=2)

    def moved(self, state: State, step: np.ndarray) -> State:
        """After a step, no turn of which is more than a quarter, no shift of scale or focal more than e."""
        step = np.clip(step, -1, 1)
        poses = dict(state.poses)
        for photo, at in self.columns.items():
            poses[photo] = _se3_exp(step[at : at + 6]) @ poses[photo]
        scales = slice(6 * len(self.columns), self.size - 1)
        low, high = np.log(FOCALS)
        return State(poses, state.log_scales + step[scales], float(np.clip(state.log_focal + step[-1], low, high)))


def _share(x: np.ndarray) -> np.ndarray:
    """Geman and McClure's weight: unlike Cauchy's, what lies far off on one side alone has next to no pull."""
    return 1 / (1 + x * x) ** 2


class _Shared:
    """Residuals h - d of one photo's log depths, whose unknown d (one a pixel) is eliminated."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, columns: np.ndarray, jacobian: np.ndarray, weight: np.ndarray, residual: np.ndarray) -> None:
        self.parts.append((columns, jacobian, weight, residual))

    def into(self, system: np.ndarray, slope: np.ndarray) -> None:
        if not self.parts:
            return
        every = np.unique(np.concatenate([columns for columns, *_ in self.parts]))
        samples = len(self.parts[0][2])
        mixed, mass = np.zeros((samples, len(every))), np.zeros(samples)  # sum of w J, sum of w
        for columns, jacobian, weight, residual in self.parts:
            weighted = jacobian * weight[:, None]
            system[np.ix_(columns, columns)] += weighted.T @ jacobian
            slope[columns] += weighted.T @ residual  # the sum of w r over a pixel is 0 at the mean: no other term
            mixed[:, np.searchsorted(every, columns)] += weighted
            mass += weight
        system[np.ix_(every, every)] -= mixed.T @ (mixed / np.maximum(mass, 1e-300)[:, None])


def _hat(v: np.ndarray) -> np.ndarray:
    """[S, 3] -> [S, 3, 3] with hat(v) x = v x x."""
    out = np.zeros((len(v), 3, 3))
    out[:, 0, 1], out[:, 0, 2], out[:, 1, 2] = -v[:, 2], v[:, 1], -v[:, 0]
    return out - out.transpose(0, 2, 1)


def _se3_exp(tangent: np.ndarray) -> np.ndarray:
    """[6] (translation part, rotation vector) -> [4, 4] rigid."""
    angle = np.linalg.norm(tangent[3:])
    hat = _hat(tangent[None, 3:])[0]
    a = np.sinc(angle / np.pi)
    b = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    c = (1 - a) / angle**2 if angle > 1e-4 else 1 / 6
    out = np.eye(4)
    out[:3, :3] = np.eye(3) + a * hat + b * hat @ hat
    out[:3, 3] = (np.eye(3) + b * hat + c * hat @ hat) @ tangent[:3]
    return out
