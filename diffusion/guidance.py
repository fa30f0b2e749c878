"""Classifier-free guidance whose scale depends on the step, with interval guidance and rescaling.

`scheduled_guider` is diffusers' own guider with a scale that moves, for pipelines that take guiders; `guided` is the same for
denoisers written as functions. Diffusers' other guiders (APG, CFG-Zero*, PAG, SLG, SEG, FDG, TCFG, AutoGuidance) serve as they
are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffusion.samplers.sampling import Denoiser
from splat.errors import InputError


@dataclass(frozen=True)
class GuidanceSchedule:
    """Scale w of D_u + w (D_c - D_u) by log-SNR; 1 is no guidance, and costs no unconditional call."""

    scale: float = 7.5
    shape: str = "constant"  # constant, linear (from 1 up to scale towards the data) or cosine (the same, smoothly)
    start: float = -math.inf  # guide only where the log-SNR lies in [start, end] (Kynkäänniemi et al. 2024)
    end: float = math.inf
    ramp: tuple[float, float] = (-5.0, 3.5)  # log-SNR over which linear and cosine run
    rescale: float = 0.0  # phi of Lin et al. 2023, eq. 15-16: how far the guided spread returns to the conditional one

    def __post_init__(self):
        if self.shape not in ("constant", "linear", "cosine"):
            raise InputError(f"Unknown guidance shape {self.shape!r}; use constant, linear or cosine.")
        if not 0 <= self.rescale <= 1 or not self.start <= self.end:
            raise InputError(
                f"Rescale {self.rescale} must lie in [0, 1] and the interval [{self.start}, {self.end}] must be one."
            )
        if not math.isfinite(self.scale) or not self.ramp[0] < self.ramp[1]:
            raise InputError(f"Scale {self.scale} must be finite and the ramp {self.ramp} rise.")

    def at(self, log_snr: float) -> float:
        """The scale at this log-SNR."""
        if not self.start <= log_snr <= self.end:
            return 1.0
        if self.shape == "constant":
            return self.scale
        low, high = self.ramp
        share = min(max((log_snr - low) / (high - low), 0.0), 1.0)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return 1.0 + (self.scale - 1.0) * share


def guided(conditional: Denoiser, free: Denoiser, schedule: GuidanceSchedule) -> Denoiser:
    """The guided denoiser; calls `free` only where the scale is not 1."""

    def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
        log_snr = math.log(alpha / sigma) if alpha > 0 else -math.inf
        data, scale = conditional(x, alpha, sigma), schedule.at(log_snr)
        if scale == 1.0:
            return data
        without = free(x, alpha, sigma)
        return rescaled(without + scale * (data - without), data, schedule.rescale)

    return denoise


def rescaled(guided: Tensor, conditional: Tensor, amount: float) -> Tensor:
    """`guided` [B, ...] with each sample's standard deviation moved `amount` of the way to `conditional`'s."""
    if not amount:
        return guided
    from diffusers.guiders.guider_utils import rescale_noise_cfg

    return rescale_noise_cfg(guided, conditional, amount)


def scheduled_guider(schedule: GuidanceSchedule, log_snr_of: Callable[[float], float]):
    """diffusers' ClassifierFreeGuidance with the scale of `schedule`; `log_snr_of` maps its timestep (`Schedule.log_snr`)."""
    from diffusers.guiders import ClassifierFreeGuidance

    class ScheduledGuidance(ClassifierFreeGuidance):
        def set_state(self, step: int, num_inference_steps: int, timestep) -> None:
            super().set_state(step, num_inference_steps, timestep)
            self.guidance_scale = schedule.at(float(log_snr_of(float(timestep))))

    return ScheduledGuidance(guidance_scale=schedule.scale, guidance_rescale=schedule.rescale)
