"""How far rendered depth is from prior depth, up to an unknown scale and offset or in absolute terms."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_KNOWN = 0.25  # share of a tile's pixels whose prior is known, below which the tile says nothing
LEAST_SPREAD = 1e-3  # standard deviation over mean below which a prior is flat: its correlation would be noise
FLAT = 1e-4  # the same of a rendered depth, below which its own spread no longer divides the gradient


def pearson_loss(depth: Tensor, prior: Tensor, known: Tensor) -> Tensor:
    """depth, prior [..., P] and known [..., P] in {0, 1} -> [...]: 1 - the correlation over the known ones.

    In [0, 2]; 0 with no gradient where fewer than two are known or where the prior is flat. Differentiable in `depth`.
    """
    known = known.to(depth.dtype)
    count = known.sum(-1, keepdim=True).clamp_min(1)
    x, y = ((d - (d * known).sum(-1, keepdim=True) / count) * known for d in (depth, prior))
    floor = LEAST_SPREAD * (prior * known).sum(-1) / count[..., 0]
    spread = (y.square().sum(-1) / count[..., 0]).sqrt()
    told = (spread > floor) & (known.sum(-1) >= 2)
    # A flat render has no direction to move in: the least variance keeps its gradient finite.
    least = (FLAT * (depth.detach() * known).sum(-1)).square() / count[..., 0]
    norm = (x.square().sum(-1) + least + 1e-20).sqrt() * (y.square().sum(-1) + 1e-20).sqrt()
    return torch.where(told, 1 - (x * y).sum(-1) / norm, 0.0)


def local_pearson_loss(depth: Tensor, prior: Tensor, known: Tensor, tile: int, corner: tuple[int, int] = (0, 0)) -> Tensor:
    """The mean of `pearson_loss` over the square tiles of images [H, W] that are known well enough; 0 if none is.

    `corner` (row, column) is where the first tile begins; what no whole tile covers does not count. LM-Gaussian (Yu, Long, Tan
    2024) draws half of the boxes at random places; a tiling at a random corner covers as much at every step.
    """
    height, width = depth.shape
    tile = max(min(tile, height, width), 2)
    row, column = corner[0] % (height % tile + 1), corner[1] % (width % tile + 1)

    def tiles(x: Tensor) -> Tensor:
        x = x[row:, column:]
        x = x[: x.shape[0] // tile * tile, : x.shape[1] // tile * tile]
        return x.unflatten(0, (-1, tile)).unflatten(2, (-1, tile)).transpose(1, 2).reshape(-1, tile * tile)

    depth, prior, known = tiles(depth), tiles(prior), tiles(known)
    enough = known.to(depth.dtype).mean(-1) >= LEAST_KNOWN
    losses = pearson_loss(depth, prior, known)
    return (losses * enough).sum() / enough.sum().clamp_min(1)


def absolute_loss(depth: Tensor, prior: Tensor, known: Tensor) -> Tensor:
    """Mean over all pixels of |depth - prior| / prior where known, 0 elsewhere; differentiable in `depth`."""
    return ((depth - prior).abs() / prior.clamp_min(1e-12) * known).mean()
