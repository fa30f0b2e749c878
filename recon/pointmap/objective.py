"""What the network learns by: DUSt3R's regression with confidence, free of scale, relative to depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recon.pointmap.network import PairGeometry, pixel_rays

SKY_ERROR = 1.0  # where nothing is hit there is no right depth, only too much confidence


@dataclass(frozen=True)
class PairTruth:
    """Of B pairs."""

    depth: Tensor  # [B, 2, H, W], 0 for sky
    second_from_first: Tensor  # [B, 4, 4]
    focal: Tensor  # [B] in long sides

    def to(self, device: torch.device | str) -> PairTruth:
        return PairTruth(self.depth.to(device), self.second_from_first.to(device), self.focal.to(device))

    def motions(self) -> Tensor:
        """[B, 2, 4, 4] from each picture's camera frame to the other's."""
        return torch.stack([self.second_from_first, torch.linalg.inv(self.second_from_first)], dim=1)


@dataclass(frozen=True)
class LossConfig:
    """Weights."""

    alpha: float = 0.2  # of the logarithm of certainty: the error at which certainty starts to pay, DUSt3R eq. 4
    other: float = 0.5  # points in the other's frame
    edges: float = 0.5  # steps of log depth between pixels
    motion: float = 0.5
    lens: float = 0.3


def pointmap_loss(said: PairGeometry, truth: PairTruth, config: LossConfig | None = None) -> tuple[Tensor, dict[str, float]]:
    """(mean loss, figures for a log): everything up to the one scale that makes the mean of log depth right."""
    config = config or LossConfig()
    known = truth.depth > 0
    log_true = truth.depth.clamp_min(1e-6).log()
    offset = _mean((log_true - said.log_depth), known, (1, 2, 3))  # [B]
    scale = offset.exp()
    error = said.log_depth + offset[:, None, None, None] - log_true  # [B, 2, H, W]
    motions = truth.motions()
    true_points = truth.depth[..., None] * pixel_rays(truth.focal, *truth.depth.shape[-2:])[:, None]
    moved = torch.einsum("bkij,bkhwj->bkhwi", motions[..., :3, :3], true_points) + motions[:, :, None, None, :3, 3]
    other = (scale[:, None, None, None, None] * said.points_in_other() - moved).norm(dim=-1) / truth.depth.clamp_min(1e-6)
    per_pixel = torch.where(known, error.abs() + config.other * other.log1p(), SKY_ERROR)
    certain = (said.certainty * per_pixel - config.alpha * said.certainty.log()).mean()
    plain = _mean(error.abs() + config.other * other.log1p(), known, (0, 1, 2, 3))
    edges = sum(_edges(error, known, step) for step in (1, 4))
    near = _mean(log_true, known, (1, 2, 3)).exp()  # [B] the size of the place
    turn = (said.rotation - motions[..., :3, :3]).square().sum((-1, -2)).add(1e-6).sqrt()
    shift = (scale[:, None, None] * said.translation - motions[..., :3, 3]).norm(dim=-1) / near[:, None]
    lens = (said.log_focal - truth.focal.log()).abs()
    loss = certain + plain + config.edges * edges + config.motion * (turn + shift).mean() + config.lens * lens.mean()
    return loss, {
        "depth": float(_mean(error.abs(), known, (0, 1, 2, 3)).detach()),
        "other": float(_mean(other.clamp_max(3), known, (0, 1, 2, 3)).detach()),
        "turn": float(turn.mean().detach()),
        "shift": float(shift.mean().detach()),
        "lens": float(lens.mean().detach()),
    }


def _mean(x: Tensor, known: Tensor, dims: tuple[int, ...]) -> Tensor:
    return torch.where(known, x, 0).sum(dims) / known.sum(dims).clamp_min(1)


def _edges(error: Tensor, known: Tensor, step: int) -> Tensor:
    """Mean difference of the error between pixels `step` apart: surfaces keep their shape, whatever their distance."""
    total = torch.zeros((), device=error.device)
    for axis in (-1, -2):
        n = error.shape[axis]
        a, b = error.narrow(axis, 0, n - step), error.narrow(axis, step, n - step)
        both = known.narrow(axis, 0, n - step) & known.narrow(axis, step, n - step)
        total = total + _mean((a - b).abs().clamp_max(0.5), both, (0, 1, 2, 3))
    return total
