"""Stochastic interpolants between two data distributions, e.g. damaged renders and photos (Albergo et al. 2023).

x_t = (1 - t) x_0 + t x_1 + gamma(t) z, gamma = scale sqrt(t (1 - t)); t runs from the first distribution to the second.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.objective.paths import per_sample

Field = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], t [B]) -> as x


def gamma(t: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(gamma, dgamma/dt) of t's shape; the slope is infinite at both ends, so draw t from inside (0, 1)."""
    root = (t * (1 - t)).clamp_min(1e-8).sqrt()
    return scale * root, scale * (1 - 2 * t) / (2 * root)


def velocity_loss(field: Field, x0: Tensor, x1: Tensor, t: Tensor, z: Tensor, scale: float = 0.5) -> Tensor:
    """|v|^2 / 2 - <dI/dt + gamma' z, v> [B], mean over elements, averaged over +z and -z (which cancels the steep gamma')."""
    g, dg = (per_sample(v, x0) for v in gamma(t, scale))
    middle, slope = (1 - per_sample(t, x0)) * x0 + per_sample(t, x0) * x1, x1 - x0
    total = 0.0
    for sign in (1, -1):
        v = field(middle + sign * g * z, t)
        total = total + (0.5 * v**2 - (slope + sign * dg * z) * v).flatten(1).mean(1) / 2
    return total


def denoiser_loss(field: Field, x0: Tensor, x1: Tensor, t: Tensor, z: Tensor, scale: float = 0.5) -> Tensor:
    """|eta|^2 / 2 - <z, eta> [B], antithetic; eta = E[z | x_t] gives the score -eta / gamma that stochastic sampling needs."""
    g, _ = gamma(t, scale)
    middle = (1 - per_sample(t, x0)) * x0 + per_sample(t, x0) * x1
    total = 0.0
    for sign in (1, -1):
        eta = field(middle + sign * per_sample(g, x0) * z, t)
        total = total + (0.5 * eta**2 - sign * z * eta).flatten(1).mean(1) / 2
    return total


def transport(
    velocity: Field,
    x: Tensor,
    steps: int = 10,
    *,
    denoiser: Field | None = None,
    noise: float = 0.0,
    scale: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """x [B, ...] of the first distribution carried to the second: Heun on dx = v dt; with `denoiser` and noise > 0 the SDE
    dx = (v - noise eta / gamma) dt + sqrt(2 noise) dW by Euler-Maruyama at mid-steps, whose law at every t is the same."""
    dt = 1.0 / steps
    for i in range(steps):
        if denoiser is None or noise == 0:
            t = torch.full((len(x),), i * dt, device=x.device, dtype=x.dtype)
            v = velocity(x, t)
            x = x + dt / 2 * (v + velocity(x + dt * v, t + dt))
        else:
            t = torch.full((len(x),), (i + 0.5) * dt, device=x.device, dtype=x.dtype)
            drift = velocity(x, t) - noise * denoiser(x, t) / per_sample(gamma(t, scale)[0], x)
            dw = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + dt * drift + (2 * noise * dt) ** 0.5 * dw
    return x


def bridge_state(x0: Tensor, x1: Tensor, t: Tensor, z: Tensor, scale: float) -> Tensor:
    """x_t of the interpolant between given ends, t [B]: a Brownian bridge of deviation `scale` at time 1."""
    middle = (1 - per_sample(t, x0)) * x0 + per_sample(t, x0) * x1
    return middle + per_sample(gamma_exact(t, scale), x0) * z


def gamma_exact(t: Tensor, scale: float) -> Tensor:
    """`gamma` without the floor that keeps its slope finite: 0 at both ends."""
    return scale * (t * (1 - t)).clamp_min(0).sqrt()


def bridge_step(x: Tensor, end: Tensor, t: float, s: float, z: Tensor, scale: float) -> Tensor:
    """x_s given x_t and where the bridge ends, 0 <= t < s <= 1: the law of a Brownian bridge, which is Markov.

    "I2SB: Image-to-Image Schroedinger Bridge" (Liu et al. 2023), eq. 4; with `end` a network's E[x_1 | x_t], its sampler. From
    t = 0 to s = 1 in one step it is the network's answer itself.
    """
    share = (s - t) / (1 - t)
    return x + share * (end - x) + scale * ((s - t) * (1 - s) / (1 - t)) ** 0.5 * z
