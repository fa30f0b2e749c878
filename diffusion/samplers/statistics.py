"""DPM-Solver-v3's statistics of a network, and the step that uses them (Zheng et al. 2023).

With f = (sigma e - l x) / alpha the ODE of x/alpha is linear in l plus f, and f itself nearly linear: f' = s f + b. The three
curves l, s, b (per dimension, over the log-SNR) are measured once; l = 1, s = b = 0 is data prediction, l = 0, s = -1, b = 0
noise prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.samplers.coefficients import Move, Node
from diffusion.samplers.sampling import Denoiser
from diffusion.schedules import Schedule
from splat.errors import InputError

_QUADRATURE = np.polynomial.legendre.leggauss(24)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Curves over log-SNR nodes; between nodes linear."""

    log_snrs: Tensor  # [M], rising, float64
    l: Tensor  # [M, *S], S the shape of one sample
    s: Tensor  # [M, *S]
    b: Tensor  # [M, *S]

    def __post_init__(self):
        curves = (self.l, self.s, self.b)
        shapes = {tuple(c.shape) for c in curves}
        if len(shapes) > 1 or self.log_snrs.shape != self.l.shape[:1] or not (self.log_snrs.diff() > 0).all():
            raise InputError(
                f"Statistics need rising log-SNRs {tuple(self.log_snrs.shape)} and three curves there, got {shapes}."
            )
        if not all(bool(c.isfinite().all()) for c in curves):
            raise InputError("The statistics hold NaN or infinity; measure them again, the network in float32.")
        dl = self.log_snrs.diff().reshape(-1, *(1,) * (self.l.ndim - 1))

        def cumulated(curve: Tensor) -> Tensor:
            steps = torch.cumsum(dl * (curve[1:] + curve[:-1]) / 2, 0)
            return torch.cat([torch.zeros_like(curve[:1]), steps])

        S = cumulated(self.s)
        object.__setattr__(self, "_integrals", (cumulated(self.l), S, cumulated((-S).exp() * self.b)))

    def _at(self, curve: Tensor, log_snr: float) -> Tensor:
        i = int(torch.searchsorted(self.log_snrs, log_snr).clamp(1, len(self.log_snrs) - 1))
        left, right = self.log_snrs[i - 1], self.log_snrs[i]
        return torch.lerp(curve[i - 1], curve[i], (log_snr - left) / (right - left))

    def move(self, r: Node, t: Node, known: Sequence[Node]) -> Move:
        """The exact step from r to t when g = e^{-S} f - B is the polynomial through its values at `known` (newest first)."""
        for node in (r, t, *known):
            if not self.log_snrs[0] - 1e-6 <= node.log_snr <= self.log_snrs[-1] + 1e-6:
                covered = f"{float(self.log_snrs[0]):.2f} to {float(self.log_snrs[-1]):.2f}"
                raise InputError(
                    f"The statistics cover log-SNR {covered}, and the step goes to {node.log_snr:.2f}; measure them over the "
                    "whole grid, and end it with final_sigmas_type='sigma_min'."
                )
        L, S, B = self._integrals
        h, L_t = t.log_snr - r.log_snr, self._at(L, t.log_snr)
        offsets = [node.log_snr - r.log_snr for node in known]
        inverse = np.linalg.inv(np.vander(np.asarray(offsets) / h, len(known), increasing=True).T)
        moments = [torch.zeros_like(L_t) for _ in known]
        gain = torch.zeros_like(L_t)
        for u, weight in zip((_QUADRATURE[0] + 1) / 2, _QUADRATURE[1] / 2):
            lam = r.log_snr + h * u
            kernel = h * weight * (self._at(L, lam) - L_t + self._at(S, lam)).exp()
            gain = gain + kernel * self._at(B, lam)
            moments = [m + kernel * u**k for k, m in enumerate(moments)]
        data, noise, bias = [], [], -t.alpha * gain
        for j, node in enumerate(known):
            weight = -t.alpha * sum(float(inverse[j, k]) * m for k, m in enumerate(moments))
            l, S_j, B_j = (self._at(curve, node.log_snr) for curve in (self.l, S, B))
            data.append(-weight * (-S_j).exp() * l)  # f = (1 - l) (sigma / alpha) e - l D
            noise.append(weight * (-S_j).exp() * (1 - l) * node.sigma / node.alpha)
            bias = bias - weight * B_j
        keep = t.alpha / r.alpha * (self._at(L, r.log_snr) - L_t).exp()
        return Move(keep, tuple(data), tuple(noise), 0.0, bias)

    def save(self, path: Path) -> None:
        """As safetensors, beside the model."""
        from safetensors.torch import save_file

        save_file({name: getattr(self, name).contiguous() for name in ("log_snrs", "l", "s", "b")}, path)

    @staticmethod
    def load(path: Path | str) -> Statistics:
        """What `save` wrote; raises InputError for a missing or damaged file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not Path(path).is_file():
            raise InputError(f"No statistics at {path}; measure them with estimate_statistics and save them there.")
        try:
            return Statistics(**load_file(path))
        except (SafetensorError, TypeError) as error:
            raise InputError(f"{path} holds no statistics ({error}); measure them again.") from error


@torch.no_grad()
def estimate_statistics(
    denoise: Denoiser, schedule: Schedule, data: Tensor, start: float, end: float, nodes: int = 121, seed: int = 0
) -> Statistics:
    """Measure l, s, b of a denoiser on data [n, *S] noised to `nodes` log-SNRs from `start` to `end`; 5 calls of n each.

    l: mean diagonal of sigma de/dx, by Hutchinson's probes; s, b: regression of df/dlambda along the ODE on f, per dimension.
    Derivatives are central differences, so any network will do. The calls run on data's device, the result is on the CPU.
    """
    lams = torch.linspace(start, end, nodes, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(data.shape, generator=g, dtype=data.dtype).to(data.device)

    def level(lam: float) -> tuple[float, float]:
        return tuple(map(float, schedule.alpha_sigma(lam)))

    def noise_of(x: Tensor, lam: float) -> Tensor:
        alpha, sigma = level(lam)
        return (x - alpha * denoise(x, alpha, sigma)) / sigma

    diagonals = []
    for lam in lams.tolist():
        alpha, sigma = level(lam)
        x = alpha * data + sigma * noise
        probe = torch.randint(0, 2, data.shape, generator=g).to(data) * 2 - 1
        step = 1e-2 * sigma
        slope = (noise_of(x + step * probe, lam) - noise_of(x - step * probe, lam)) / (2 * step)
        diagonals.append((sigma * probe * slope).mean(0).double().cpu())
    l = torch.stack(diagonals)
    plain = Statistics(lams, l, torch.zeros_like(l), torch.zeros_like(l))

    def f(x: Tensor, lam: float) -> Tensor:
        alpha, sigma = level(lam)
        return (sigma * noise_of(x, lam).double() - plain._at(l, lam).to(x.device) * x.double()) / alpha

    slopes, offsets, step = [], [], (end - start) / (nodes - 1) / 2
    for lam in lams.tolist():
        alpha, sigma = level(lam)
        x = alpha * data + sigma * noise
        here = f(x, lam)
        drift = -((sigma / alpha) * noise_of(x, lam))  # d(x / alpha) / dlambda

        def along(d: float, x=x, alpha=alpha, drift=drift, lam=lam) -> Tensor:
            return f(level(lam + d)[0] * (x / alpha + d * drift), lam + d)

        rate = (along(step) - along(-step)) / (2 * step)
        slope = ((here * rate).mean(0) - here.mean(0) * rate.mean(0)) / here.var(0, correction=0).clamp_min(1e-12)
        slopes.append(slope.cpu())
        offsets.append((rate.mean(0) - slope * here.mean(0)).cpu())
    return Statistics(lams, l, torch.stack(slopes), torch.stack(offsets))
