"""What the mean and covariance of the training latents already say: the first steps for free, and a small model for nothing.

At high noise a network's output is that of the Gaussian with the data's first two moments (Wang and Vastola 2024), whose ODE
has a closed solution and whose denoiser is Wiener's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion.samplers.sampling import Denoiser
from diffusion.schedules import Schedule
from splat.errors import InputError, check_finite


@dataclass(frozen=True, eq=False)
class GaussianPrior:
    """N(mean, basis diag(variances) basis^T) over flattened latents; variance outside `basis` counts as none."""

    mean: Tensor  # [*S], S the shape of one latent
    basis: Tensor  # [d, r], orthonormal columns, d = number of elements of S
    variances: Tensor  # [r], positive

    @staticmethod
    def fit(latents: Tensor, rank: int | None = None) -> GaussianPrior:
        """From training latents [n, *S], n >= 2, by PCA in float64; `rank` directions of them (default: all there are)."""
        if len(latents) < 2:
            raise InputError(f"A Gaussian prior needs at least 2 latents, got {len(latents)}; give more training latents.")
        if rank is not None and rank < 1:
            raise InputError(f"A Gaussian prior of rank {rank} asked for; ask for at least 1.")
        check_finite(latents, "The training latents")
        flat = latents.flatten(1).double()
        mean = flat.mean(0)
        _, spread, directions = torch.linalg.svd(flat - mean, full_matrices=False)
        variances = spread**2 / (len(latents) - 1)
        keep = int((variances > 1e-12 * variances[0]).sum())
        keep = keep if rank is None else min(rank, keep)
        shaped = mean.reshape(latents.shape[1:])
        return GaussianPrior(*(v.to(latents.dtype) for v in (shaped, directions[:keep].T, variances[:keep])))

    def _rescaled(self, centred: Tensor, inside: Tensor, outside: float) -> Tensor:
        """centred [B, *S] with its components along the basis multiplied by `inside` [r] and the rest by `outside`."""
        flat = centred.flatten(1)
        within = flat @ self.basis.to(flat)
        return (outside * flat + (within * (inside - outside).to(flat)) @ self.basis.to(flat).T).reshape(centred.shape)

    def denoise(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x_0 | x_t = x] as x [B, *S]: the Wiener filter, a `Denoiser` that costs no network call."""
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return self.mean.to(x) + self._rescaled(x - alpha * self.mean.to(x), gain, 0.0)

    def teleport(self, x: Tensor, schedule: Schedule, start: float, end: float) -> Tensor:
        """x [B, *S] at log-SNR `start` carried to log-SNR `end` along the Gaussian's own ODE, exactly, in one go.

        Good while sigma/alpha is well above the distance between the data's modes; skips the first 15 to 30 % of the steps.
        """
        (a0, s0), (a1, s1) = (tuple(map(float, schedule.alpha_sigma(lam))) for lam in (start, end))
        inside = ((a1**2 * self.variances + s1**2) / (a0**2 * self.variances + s0**2)).sqrt()
        return a1 * self.mean.to(x) + self._rescaled(x - a0 * self.mean.to(x), inside, s1 / s0)

    def save(self, path: Path) -> None:
        """As safetensors."""
        from safetensors.torch import save_file

        save_file({"mean": self.mean, "basis": self.basis.contiguous(), "variances": self.variances}, path)

    @staticmethod
    def load(path: Path) -> GaussianPrior:
        """What `save` wrote; raises InputError for a missing or damaged file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return GaussianPrior(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise InputError(f"No Gaussian prior can be read from {path} ({error}); fit one again.") from error


def stitched(small: Denoiser, big: Denoiser, switch: float) -> Denoiser:
    """T-Stitch (Pan et al. 2024): `small` while the log-SNR is below `switch`, then `big`; one latent space, one schedule."""

    def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
        noisy = alpha < sigma * math.exp(switch)
        return small(x, alpha, sigma) if noisy else big(x, alpha, sigma)

    return denoise
