"""Semi-global matching: the smooth surface through a cost volume."""

from __future__ import annotations

import torch
from torch import Tensor


def aggregate(cost: Tensor, gray: Tensor, small_step: float, large_step: float) -> Tensor:
    """Costs [D, H, W] -> sums of path costs along left, right, up and down, divided by 4: [D, H, W].

    `small_step` is charged for a change by one plane, `large_step` for more; the latter shrinks where `gray` [H, W]
    (in [0, 1]) has an edge along the path. Hirschmueller, "Stereo processing by semi-global matching and mutual
    information", 2008, eq. 13.
    """
    rows = cost.permute(1, 0, 2).contiguous()  # [H, D, W]: a path step is one contiguous slice
    vertical = _two_ways(rows, (gray[1:] - gray[:-1]).abs(), small_step, large_step).permute(1, 0, 2)
    columns = cost.permute(2, 0, 1).contiguous()  # [W, D, H]
    horizontal = _two_ways(columns, (gray[:, 1:] - gray[:, :-1]).abs().T, small_step, large_step).permute(1, 2, 0)
    return (vertical + horizontal) / 4


def _two_ways(cost: Tensor, edges: Tensor, small_step: float, large_step: float) -> Tensor:
    """Sum of the forward and the backward pass along dimension 0; cost [L, D, M], edges [L - 1, M]."""
    jump = (large_step / (1 + edges * 20)).clamp_min(small_step * 1.5)  # a jump of 0.05 in brightness halves the price
    total = torch.zeros_like(cost)
    for order, before in ((range(len(cost)), 1), (range(len(cost) - 1, -1, -1), 0)):
        path = None
        for i in order:
            path = cost[i].clone() if path is None else _next_path(path, cost[i], jump[i - before], small_step)
            total[i] += path
    return total


def _next_path(previous: Tensor, cost: Tensor, jump: Tensor, small_step: float) -> Tensor:
    """One step along a path: stay on the plane, move by one, or jump; [D, M], jump [M]."""
    least = previous.amin(0)
    path = torch.minimum(previous, (least + jump)[None])
    path[1:] = torch.minimum(path[1:], previous[:-1] + small_step)
    path[:-1] = torch.minimum(path[:-1], previous[1:] + small_step)
    return path + (cost - least)
