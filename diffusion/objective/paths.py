"""Interpolation paths x_t = a(t) x_0 + s(t) n for training; t runs from data (0) to noise (1), as flow networks have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from splat.errors import InputError


@dataclass(frozen=True, eq=False)
class Path:
    """(a, s, da/dt, ds/dt) of a time tensor, each of its shape."""

    name: str
    curves: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]

    def noisy(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [B, ...] for t [B]."""
        a, s, _, _ = (per_sample(v, x0) for v in self.curves(t))
        return a * x0 + s * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt [B, ...], the target of velocity networks; n - x_0 on the optimal-transport path."""
        _, _, da, ds = (per_sample(v, x0) for v in self.curves(t))
        return da * x0 + ds * noise

    def snr(self, t: Tensor) -> Tensor:
        """(a/s)^2, of t's shape."""
        a, s, _, _ = self.curves(t)
        return (a / s) ** 2


def per_sample(v: Tensor, like: Tensor) -> Tensor:
    """v [B] as [B, 1, ...], of like's type and device."""
    return v.to(like).reshape(-1, *(1,) * (like.ndim - 1))


def _optimal_transport(t: Tensor):
    return 1 - t, t, -torch.ones_like(t), torch.ones_like(t)


def _trigonometric(t: Tensor):
    angle = torch.pi / 2 * t
    return angle.cos(), angle.sin(), -torch.pi / 2 * angle.sin(), torch.pi / 2 * angle.cos()


def _vp(t: Tensor, beta_min: float = 0.1, beta_max: float = 20.0):
    """Song et al. 2021: ln a = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2, s^2 = 1 - a^2."""
    log_a = -(t**2) * (beta_max - beta_min) / 4 - t * beta_min / 2
    a, s = log_a.exp(), (-torch.expm1(2 * log_a)).clamp_min(1e-12).sqrt()
    da = a * (-t * (beta_max - beta_min) / 2 - beta_min / 2)
    return a, s, da, -a * da / s


OPTIMAL_TRANSPORT = Path("optimal transport", _optimal_transport)
TRIGONOMETRIC = Path("trigonometric", _trigonometric)
VP = Path("vp", _vp)


def posterior_power(data: Tensor, ratios: Tensor, draws: int = 512, seed: int = 0) -> Tensor:
    """lambda(r) = E|E[x_0 | x]|^2 / d at a/s = r, per entry of ratios [M], of the empirical distribution of data [n, d].

    The exact posterior mean over n points, so for few dimensions only: with many, each noisy point finds nothing but itself.
    """
    g = torch.Generator().manual_seed(seed)
    powers = []
    for r in ratios.double().tolist():
        pick = torch.randint(len(data), (draws,), generator=g)
        x = r * data[pick].double() + torch.randn(draws, data.shape[1], generator=g, dtype=torch.float64)
        p = (-0.5 * torch.cdist(x, r * data.double()) ** 2).softmax(-1)
        powers.append(((p @ data.double()) ** 2).mean())
    return torch.stack(powers)


def kinetic_optimal(data: Tensor, nodes: int = 257, seed: int = 0) -> Path:
    """The path of least kinetic energy for centred data [n, d] of unit mean variance (Shaul et al. 2023), as a spline.

    (a, s) = r (sin theta, cos theta) with r^2 = 1 - b u + b u^2, u = 1 - t, dtheta/du = sqrt((b - b^2/4) / gamma(theta)) / r^2,
    gamma = 1 - (1 - lambda(tan theta)) / cos^2 theta; b is found so that theta ends at pi/2. lambda = 1 (points, no posterior
    spread) gives optimal transport with b = 2. Gains are small and for few dimensions only; otherwise use OPTIMAL_TRANSPORT.
    """
    spread = float(((data - data.mean(0)) ** 2).mean())
    if not 0.8 <= spread <= 1.25 or float(data.mean(0).abs().max()) > 0.5:
        raise InputError(
            f"The kinetic-optimal path needs centred data of variance 1, got {spread:.2f}; standardise the latents."
        )
    angles = torch.linspace(0, torch.pi / 2, 66, dtype=torch.float64)[1:-1]
    power = posterior_power(data - data.mean(0), angles.tan(), seed=seed)
    gamma = (1 - (1 - power) / angles.cos() ** 2).clamp(0.02, 1.0)  # Monte Carlo noise and Gaussian data reach 0 and below
    return _shoot(angles.numpy(), gamma.numpy(), nodes)


def _shoot(angles: np.ndarray, gamma: np.ndarray, nodes: int) -> Path:
    # dtheta sqrt(gamma) = q du / r^2 separates: the left side is a function of theta, the right one of u
    theta = np.linspace(0, np.pi / 2, 4001)
    speed = np.sqrt(np.interp(theta, angles, gamma))
    travelled = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(theta))])
    low, high = 1e-9, 4 - 1e-9

    def reach(b: float, u: np.ndarray | float) -> np.ndarray | float:
        """int_0^u q / (1 - b v + b v^2) dv in closed form; at u = 1 it is 2 atan sqrt(b / (4 - b)), rising in b."""
        root = np.sqrt(b / (4 - b))
        return np.arctan(root * (2 * u - 1)) + np.arctan(root)

    for _ in range(100):
        b = (low + high) / 2
        low, high = (b, high) if reach(b, 1.0) < travelled[-1] else (low, b)
    u = np.linspace(0, 1, nodes)
    angle = np.interp(reach(b, u), travelled, theta)
    radius = np.sqrt(1 - b * u + b * u * u)
    return tabulated("kinetic-optimal", radius * np.sin(angle), radius * np.cos(angle))


def tabulated(name: str, a: np.ndarray, s: np.ndarray) -> Path:
    """A path through values [M] at even times from noise to data, joined by a C1 cubic (Catmull-Rom) spline."""
    values = torch.from_numpy(np.stack([a, s])[:, ::-1].copy())  # [2, M] by t
    slopes = torch.from_numpy(np.gradient(values.numpy(), axis=1, edge_order=2))  # per node interval

    def curves(t: Tensor):
        position = t.double().clamp(0, 1) * (values.shape[1] - 1)
        i = position.floor().long().clamp(max=values.shape[1] - 2)
        z = position - i
        v, w = values.to(t.device), slopes.to(t.device)
        h00, h10, h01, h11 = 2 * z**3 - 3 * z**2 + 1, z**3 - 2 * z**2 + z, 3 * z**2 - 2 * z**3, z**3 - z**2
        d00, d10, d01, d11 = 6 * z**2 - 6 * z, 3 * z**2 - 4 * z + 1, 6 * z - 6 * z**2, 3 * z**2 - 2 * z
        at = h00 * v[:, i] + h10 * w[:, i] + h01 * v[:, i + 1] + h11 * w[:, i + 1]
        rate = (d00 * v[:, i] + d10 * w[:, i] + d01 * v[:, i + 1] + d11 * w[:, i + 1]) * (values.shape[1] - 1)
        return (*at.to(t), *rate.to(t))

    return Path(name, curves)


def kinetic_energy(path: Path, power_of: Callable[[Tensor], Tensor], nodes: int = 2001) -> float:
    """int_0^1 a'^2 + s'^2 - beta^2 (1 - lambda(a/s)) dt, beta = a' - a s'/s: mean square speed of the flow per dimension."""
    t = torch.linspace(0, 1, nodes + 2, dtype=torch.float64)[1:-1]
    a, s, da, ds = path.curves(t)
    return float((da**2 + ds**2 - (da - a * ds / s) ** 2 * (1 - power_of(a / s))).mean())
