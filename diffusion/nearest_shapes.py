"""Which known shapes are nearest to a new one, whatever their colours: did a generator learn, or does it repeat?

Distance is the Chamfer distance, mean over both directions of the distance from a point of one set to the nearest of the
other, in world units (an object's longest side is 1). A lookup in coarse distance fields finds the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion.volume import nearest_nodes, node_positions

POINTS = 4096  # of a shape, among which nearest ones are looked for: the denser, the nearer two samplings of one surface
QUERIES = 1024  # of them from which it is looked
FIELD = 16  # nodes to a side of the fields; only candidates depend on it
CANDIDATES = 24  # shapes whose distance is computed exactly


@dataclass(frozen=True)
class KnownShapes:
    """G shapes to search in."""

    points: tuple[Tensor, ...]  # [<= POINTS, 3] each
    fields: Tensor  # [G, FIELD^3] distance from each node to the shape
    weights: Tensor  # [G, FIELD^3] share of the shape's points in the node's cell

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class NearestShapes:
    """For each of N shapes the K nearest known ones, nearest first."""

    distances: Tensor  # [N, K] Chamfer distance, world units
    rows: Tensor  # [N, K] int64 into the known shapes


def known_shapes(points: Sequence[Tensor]) -> KnownShapes:
    """Point sets [P, 3] in the cube of side 1 around the origin; an even choice of POINTS is kept of larger ones."""
    kept = tuple(thinned(p) for p in points)
    assert kept and all(len(p) for p in kept), "a shape without points"
    fields, weights = zip(*(_field_and_weights(p) for p in kept), strict=True)
    return KnownShapes(kept, torch.stack(fields), torch.stack(weights))


def nearest_shapes(
    points: Sequence[Tensor], known: KnownShapes, count: int = 5, left_out: Tensor | None = None
) -> NearestShapes:
    """The `count` nearest of `known` to each point set [P, 3]; `left_out` [N, G] bool are not looked at. Deterministic."""
    kept = [thinned(p) for p in points]
    fields, weights = (torch.stack(x) for x in zip(*(_field_and_weights(p) for p in kept), strict=True))
    rough = weights @ known.fields.T + fields @ known.weights.T  # [N, G]
    if left_out is not None:
        rough = rough.masked_fill(left_out, torch.inf)
    assert int(rough.isfinite().sum(1).min()) >= count, "fewer known shapes than neighbours are asked for"
    candidates = rough.topk(min(CANDIDATES, len(known)), largest=False)
    distances, rows = [], []
    for own, guesses, values in zip(kept, candidates.indices, candidates.values, strict=True):
        guesses = guesses[values.isfinite()]
        exact = torch.tensor([chamfer(own, known.points[g]) for g in guesses.tolist()])
        best = exact.topk(count, largest=False)
        distances.append(best.values)
        rows.append(guesses[best.indices])
    return NearestShapes(torch.stack(distances), torch.stack(rows))


def chamfer(a: Tensor, b: Tensor) -> float:
    """Point sets [P, 3] and [Q, 3] -> half the sum of both mean distances to the other set's nearest point.

    The means are over an even choice of QUERIES points of larger sets. Deterministic.
    """
    from scipy.spatial import KDTree

    there = KDTree(b.numpy()).query(thinned(a, QUERIES).numpy())[0]
    back = KDTree(a.numpy()).query(thinned(b, QUERIES).numpy())[0]
    return float(there.mean() + back.mean()) / 2


def thinned(points: Tensor, count: int = POINTS) -> Tensor:
    """At most `count` of points [P, 3], drawn without repetition, always the same ones."""
    if len(points) <= count:
        return points
    chosen = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:count]
    return points[chosen.sort().values]


def _field_and_weights(points: Tensor) -> tuple[Tensor, Tensor]:
    from scipy.spatial import KDTree

    nodes = node_positions(torch.arange(FIELD**3), FIELD).numpy()
    field = torch.from_numpy(KDTree(points.numpy()).query(nodes)[0].astype(np.float32))
    weights = torch.bincount(nearest_nodes(points, FIELD), minlength=FIELD**3).float() / len(points)
    return field, weights
