"""What may be done to a sample or a prediction beside the step itself: thresholding, Langevin, matched time, DC ratios."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffusion.samplers.coefficients import Node, lagrange
from diffusion.schedules import Schedule


def thresholded(data: Tensor, ratio: float, maximum: float) -> Tensor:
    """Dynamic thresholding of x_0 [B, ...] (Imagen, section 2.3): clipped at the ratio-quantile of its size, rescaled to 1."""
    if not data.numel():
        return data
    limit = torch.quantile(data.flatten(1).abs(), ratio, dim=1).clamp(1.0, maximum).reshape(-1, *(1,) * (data.ndim - 1))
    return data.clamp(-limit, limit) / limit


def langevin(x: Tensor, score: Tensor, snr: float, generator: Any) -> Tensor:
    """x [B, ...] after one Langevin step of size 2 (snr |z| / |score|)^2 at its noise level (Song et al. 2021, algorithm 5).

    The norms are each sample's own, not the batch's mean, so that no sample feels its neighbours; below some hundred elements
    these norms vary and bias the law.
    """
    z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    if not x.numel():
        return x
    size = 2 * (snr * z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp_min(1e-12)) ** 2
    size = size.reshape(-1, *(1,) * (x.ndim - 1))
    return x + size * score + (2 * size).sqrt() * z


def matched_time(x: Tensor, schedule: Schedule, data_variance: float, nominal: float, window: float) -> Tensor:
    """The time [B], within `window` of the nominal one, at which x's variance is a^2 v + 1 - a^2 (Li et al. 2023, time shift).

    They search it; the variance is monotonic in time unless v = 1, so it has a closed form.
    """
    variance = x.flatten(1).double().var(dim=1)
    bar = ((1 - variance) / (1 - data_variance)).clamp(1e-6, 1 - 1e-6)
    log_snr = 0.5 * (bar.log() - torch.log1p(-bar))
    time = torch.as_tensor(schedule.time(log_snr.detach().cpu().numpy()))
    return time.clamp(max(nominal - window, 0.0), min(nominal + window, schedule.num_train_timesteps - 1.0))


def compensation_weights(nodes: list[Node], ratio: float) -> list[float]:
    """Weights of the last predictions, newest first, for the newest one moved to ratio t_0 + (1 - ratio) t_-1 (DC-Solver)."""
    times = [node.time for node in nodes]
    return lagrange(times, ratio * times[0] + (1 - ratio) * times[1])
