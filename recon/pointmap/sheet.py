"""A picture of what the network says of pairs it has not learnt from, beside the truth, and figures."""

from __future__ import annotations

import torch
from torch import Tensor

from recon.pointmap.network import PairGeometry, PointmapNetwork
from recon.pointmap.objective import pointmap_loss
from recon.pointmap.pair_bank import PairBank, pair_of, stacked

PAIRS = 3  # of each room


@torch.no_grad()
def pair_sheet(network: PointmapNetwork, bank: PairBank, device: str, rows: int = 8) -> tuple[Tensor | None, dict[str, float]]:
    """(picture [H, W, 3] of the first `rows` wide rooms of the validation split, mean figures of all of them)."""
    import numpy as np

    figures: list[dict[str, float]] = []
    lines = []
    for name in ("val wide", "val upright"):
        for path in bank.rooms[name]:
            with np.load(path) as f:
                room = {key: f[key] for key in f.files}
            near = [pair_of(room, i, i + 1) for i in range(min(PAIRS, len(room["images"]) - 1))]
            pair, truth = stacked(near)
            said = network(pair.to(device))
            _, found = pointmap_loss(said, truth.to(device))
            turn = _angle_deg(said.rotation[:, 0].cpu(), truth.second_from_first[:, :3, :3])
            way = _between_deg(said.translation[:, 0].cpu(), truth.second_from_first[:, :3, 3])
            figures.append({**found, "turn_deg": float(turn.median()), "way_deg": float(way.median())})
            if name == "val wide" and len(lines) < rows:
                lines.append(line(pair.images[0], said, truth.depth[0]))
    if not figures:
        return None, {}
    mean = {key: sum(f[key] for f in figures) / len(figures) for key in figures[0]}
    return torch.cat(lines) if lines else None, mean


def line(images: Tensor, said: PairGeometry, depth: Tensor | None = None) -> Tensor:
    """[H, W, 3] the two pictures, inverse depth as said (and as it is), certainty; of the first pair of `said`."""
    near = torch.exp(-said.log_depth[0].cpu())
    parts = [*images.permute(0, 2, 3, 1), *(_grey(x) for x in near)]
    if depth is not None:
        parts += [_grey(torch.where(x > 0, 1 / x.clamp_min(1e-6), 0)) for x in depth]
    parts += [_grey(x) for x in 1 - 1 / said.certainty[0].cpu()]
    return torch.cat(parts, dim=1)


def _grey(x: Tensor) -> Tensor:
    low, high = torch.quantile(x.flatten(), torch.tensor([0.02, 0.98]))
    return ((x - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)[..., None].expand(*x.shape, 3)


def _angle_deg(a: Tensor, b: Tensor) -> Tensor:
    cosine = ((a.mT @ b).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.rad2deg(cosine.clamp(-1, 1).acos())


def _between_deg(a: Tensor, b: Tensor) -> Tensor:
    return torch.rad2deg(torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos())
