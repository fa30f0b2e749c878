"""GVGEN's Candidate Pool Strategy: densification that never leaves the grid (He et al. 2024, section 3.1).

A node whose Gaussian has faded joins the pool of free nodes. A Gaussian that wants to become two may do so only if a free
node lies within reach of the second one, which then belongs to that node. So there is never more than one to a node.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.volume import nearest_nodes, node_positions
from splat.densify import DEAD, Edit, split_along_the_longest_axis
from splat.gaussians import Splats


@dataclass(frozen=True)
class Grid:
    """Where the nodes are."""

    resolution: int
    side: float  # world units
    reach: float  # spacings per axis: how far from its node a Gaussian may be

    @property
    def spacing(self) -> float:
        return self.side / self.resolution

    def positions(self, nodes: Tensor) -> Tensor:
        return node_positions(nodes, self.resolution, self.side).to(nodes.device)

    def free(self, taken: Tensor) -> Tensor:
        """[R^3] bool: the pool, when the nodes `taken` are not in it."""
        pool = torch.ones(self.resolution**3, dtype=torch.bool, device=taken.device)
        pool[taken] = False
        return pool


def pool_edit(
    splats: Splats, nodes: Tensor, score: Tensor, count: int, grid: Grid, clone_below: float
) -> tuple[Edit, Tensor] | None:
    """Faded Gaussians give their nodes to the pool; the `count` of highest `score` [N] become two where it has a node.

    `nodes` [N] are the Gaussians' own. One whose longest deviation is under `clone_below` spacings is copied as it is,
    others are split in two along it. Returns the edit and the nodes of the new rows [M], or None when nothing changes.
    Deterministic; ties go to the lower row.
    """
    stay = (splats.opacities > DEAD).nonzero().squeeze(-1)
    if len(stay) == 0:  # everything faded: keep what there is rather than an empty cube
        return None
    order = score[stay].argsort(descending=True, stable=True)[:count]
    order = order[score[stay][order] > 0]
    parents = splats[stay[order]]
    means, log_scales = split_along_the_longest_axis(parents)
    small = parents.scales.amax(-1) < clone_below * grid.spacing
    halves = torch.where(small[None, :, None], parents.means, means.unflatten(0, (2, -1)))  # [2, M, 3]
    log_scales = torch.where(small[:, None], parents.log_scales, log_scales[: len(parents)])
    home = grid.positions(nodes[stay[order]])
    nearer = (halves - home).norm(dim=-1).argmin(0)  # the half that keeps the node
    kept, moved = (halves.gather(0, which[None, :, None].expand(1, -1, 3))[0] for which in (nearer, 1 - nearer))

    chosen = match(moved, grid.free(nodes[stay]), grid)
    split = (chosen >= 0).nonzero().squeeze(-1)
    if len(stay) == len(splats) and len(split) == 0:
        return None
    alive, rows = len(stay), order[split]
    children = torch.arange(alive, alive + len(rows), device=rows.device)
    touched = torch.cat([rows, children])
    source = torch.cat([stay, stay[rows]])
    # Moments are inherited: Adam corrects its bias by the fit's step, so that moments from zero would mean steps several times
    # as long as the rate for a hundred steps, a large part of so short a fit.
    fresh = torch.zeros(len(source), dtype=torch.bool, device=rows.device)
    values = {
        "means": (touched, torch.cat([kept[split], moved[split]])),
        "log_scales": (touched, log_scales[split].repeat(2, 1)),
    }
    return Edit(source, fresh, values), torch.cat([nodes[stay], chosen[split]])


def match(points: Tensor, pool: Tensor, grid: Grid) -> Tensor:
    """points [M, 3], pool [R^3] bool -> [M] the free node for each, -1 for none within `grid.reach` on every axis.

    The shortest distances are served first: no point could have a nearer node than its own from one that is further off.
    """
    chosen = torch.full((len(points),), -1, dtype=torch.long, device=points.device)
    if len(points) == 0:
        return chosen
    r, steps = grid.resolution, math.ceil(grid.reach)
    around = torch.tensor(list(itertools.product(range(-steps, steps + 1), repeat=3)), device=points.device)  # [K, 3] x, y, z
    cell = nearest_nodes(points, r, grid.side)
    xyz = torch.stack([cell % r, cell // r % r, cell // r**2], dim=-1)[:, None] + around  # [M, K, 3]
    inside = ((xyz >= 0) & (xyz < r)).all(-1)
    xyz = xyz.clamp(0, r - 1)
    node = xyz[..., 0] + r * (xyz[..., 1] + r * xyz[..., 2])  # [M, K]
    offset = points[:, None] - grid.positions(node.flatten()).unflatten(0, node.shape)
    reachable = inside & (offset.abs() <= grid.reach * grid.spacing + 1e-6).all(-1)
    who, which = (reachable & pool[node]).nonzero(as_tuple=True)
    nearest_first = offset[who, which].norm(dim=-1).argsort(stable=True)
    taken: dict[int, int] = {}  # node -> point
    placed = set()
    for point, wish in zip(who[nearest_first].tolist(), node[who, which][nearest_first].tolist()):
        if point not in placed and wish not in taken:
            taken[wish] = point
            placed.add(point)
    chosen[list(taken.values())] = torch.tensor(list(taken), dtype=torch.long, device=chosen.device)
    return chosen


def reactivation(splats: Splats, nodes: Tensor, grid: Grid, opacity: float) -> tuple[Edit, Tensor] | None:
    """Every free node beside a taken one (six neighbours) gets a faint, small copy of that Gaussian's colour.

    GVGEN puts all of its pool back into play when densification ends; nodes far from any surface would only cost time.
    Returns the edit and the nodes of the new rows, or None where there is no such node.
    """
    r = grid.resolution
    pool = grid.free(nodes)
    xyz = torch.stack([nodes % r, nodes // r % r, nodes // r**2], dim=-1)
    wanted, parents = [], []
    for axis, step in itertools.product(range(3), (-1, 1)):
        beside = xyz.clone()
        beside[:, axis] += step
        inside = ((beside >= 0) & (beside < r)).all(-1)
        beside = beside.clamp(0, r - 1)
        node = beside[:, 0] + r * (beside[:, 1] + r * beside[:, 2])
        rows = (inside & pool[node]).nonzero().squeeze(-1)
        wanted.append(node[rows])
        parents.append(rows)
        pool[node[rows]] = False
    new, parent = torch.cat(wanted), torch.cat(parents)
    if len(new) == 0:
        return None
    n = len(nodes)
    rows = torch.arange(n, n + len(new), device=nodes.device)
    fresh = torch.zeros(n + len(new), dtype=torch.bool, device=nodes.device)
    fresh[rows] = True
    values = {
        "means": (rows, grid.positions(new)),
        "log_scales": (rows, splats.log_scales.new_full((len(new), 3), math.log(0.3 * grid.spacing))),
        "opacity_logits": (rows, splats.opacity_logits.new_full((len(new),), math.log(opacity / (1 - opacity)))),
    }
    return Edit(torch.cat([torch.arange(n, device=nodes.device), parent]), fresh, values), torch.cat([nodes, new])
