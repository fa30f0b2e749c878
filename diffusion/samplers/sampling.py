"""The plain sampling loop, for denoisers written as functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffusion.schedules import Schedule, from_data, to_data_and_noise

if TYPE_CHECKING:
    from diffusion.samplers.scheduler import EIScheduler

Denoiser = Callable[[Tensor, float, float], Tensor]  # (x [B, ...], alpha, sigma) -> predicted x_0, as x


def sample(denoise: Denoiser, scheduler: EIScheduler, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Run all calls of a scheduler that has had `set_timesteps`, from x at its first node; returns x at its last."""
    for t in scheduler.timesteps:
        node = scheduler.current_node()
        prediction = from_data(denoise(x, node.alpha, node.sigma), x, node.alpha, node.sigma, scheduler.config.prediction_type)
        x = scheduler.step(prediction, t, x, generator=generator).prev_sample
    return x


def start_of(strength: float) -> float | None:
    """ln(alpha / sigma) where sigma, with alpha^2 + sigma^2 = 1, is `strength`; None, which is pure noise, for 1."""
    return None if strength >= 1 else 0.5 * math.log1p(-(strength**2)) - math.log(strength)


def as_denoiser(network: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, prediction_type: str) -> Denoiser:
    """A network (x, time [B]) -> prediction, VP or flow, as a function of the noise level."""

    def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
        time = float(schedule.time(np.log(alpha) - np.log(sigma)))
        prediction = network(x, torch.full((len(x),), time, device=x.device))
        return to_data_and_noise(prediction, x, alpha, sigma, prediction_type)[0]

    return denoise
