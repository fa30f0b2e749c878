"""One update rule, exactly: the diffusion ODE with the prediction replaced by a polynomial, integrated in closed form.

With lambda = ln(alpha / sigma) and h the step in it, a step from r to t is one of (DPM-Solver++ eq. 9, DEIS eq. 12)

    data   x_t = (sigma_t / sigma_r) x_r + alpha_t int_0^h e^{-(h - z)} D(lambda_r + z) dz
    noise  x_t = (alpha_t / alpha_r) x_r - sigma_t int_0^h e^{+(h - z)} e(lambda_r + z) dz
    flow   y_t = y_r + int (e - D) dkappa,   y = x / (alpha + sigma), kappa = sigma / (alpha + sigma)

so all of them need the weights of int_0^h e^{rate (h - z)} p(z) dz for polynomials p through given nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Adams-Bashforth for evenly spaced steps, generalised to momentum b (Wizadwongsa et al. 2023, GHVB): numerators without b,
# numerators per b, denominator per b. At b = 1 these are the classical formulas, order 4 being PLMS.
_GHVB = {
    1: ((0.0,), (1.0,), 1.0),
    2: ((2.0, -2.0), (1.0, 1.0), 2.0),
    3: ((18.0, -24.0, 6.0), (5.0, 8.0, -1.0), 12.0),
    4: ((46.0, -78.0, 42.0, -10.0), (9.0, 19.0, -5.0, 1.0), 24.0),
}


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^{(1-u) z} u^{k-1} / (k-1)! du, phi_0 = e^z, to float64 rounding for k <= 6."""
    if k == 0:
        return math.exp(z)
    if abs(z) < 1:  # the recursion below cancels there; 20 terms of the series are exact
        return sum(z**j / math.factorial(j + k) for j in range(20))
    value = math.exp(z)
    for i in range(k):
        value = (value - 1 / math.factorial(i)) / z
    return value


def polynomial_weights(offsets: Sequence[float], h: float, rate: float) -> list[float]:
    """w with int_0^h e^{rate (h - z)} p(z) dz = sum_j w_j p(offsets_j) for every polynomial p of degree < len(offsets)."""
    n = len(offsets)
    if n == 1:
        return [h * phi(1, rate * h)]
    vandermonde = np.vander(np.asarray(offsets, np.float64) / h, n, increasing=True).T
    moments = [math.factorial(k) * phi(k + 1, rate * h) for k in range(n)]
    return (h * np.linalg.solve(vandermonde, moments)).tolist()


def adams_bashforth(order: int, momentum: float = 1.0) -> list[float]:
    """Weights, newest first, for the mean slope over one step of even spacing, histories smoothed by `momentum` in (0, 1]."""
    plain, with_b, scale = _GHVB[order]
    return [(p + momentum * q) / (scale * momentum) for p, q in zip(plain, with_b)]


def lagrange(nodes: Sequence[float], at: float) -> list[float]:
    """Weights of the interpolating polynomial through distinct `nodes`, evaluated at `at`."""
    return [math.prod((at - b) / (a - b) for j, b in enumerate(nodes) if j != i) for i, a in enumerate(nodes)]


@dataclass(frozen=True, eq=False)
class Move:
    """x_t = keep x_r + sum_j (data_j D_j + noise_j e_j) + bias + spread z, histories newest first, z standard normal.

    All numbers are floats, or tensors of one sample's shape where statistics per dimension are used.
    """

    keep: Any
    data: tuple[Any, ...]
    noise: tuple[Any, ...]
    spread: float = 0.0
    bias: Any = 0.0


@dataclass(frozen=True)
class Node:
    """A noise level: alpha, sigma, their log-ratio (infinite at either end) and what the network is told there."""

    alpha: float
    sigma: float
    time: float

    @property
    def log_snr(self) -> float:
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    @property
    def kappa(self) -> float:
        return self.sigma / (self.alpha + self.sigma)


def move(kind: str, r: Node, t: Node, known: Sequence[Node], eta: float = 0.0) -> Move:
    """The exact step from r to t in prediction kind "data", "noise" or "flow", through predictions at the nodes `known`.

    `known` may contain t itself: then this is the corrector. eta in [0, 1] mixes in the reverse SDE (1: ancestral sampling),
    data kind only:  x_t = (sigma_t/sigma_r) e^{-eta^2 h} x_r + (1 + eta^2) alpha_t int e^{-(1 + eta^2)(h - z)} D dz
                           + sigma_t sqrt(1 - e^{-2 eta^2 h}) z.
    """
    assert not eta or kind == "data", kind
    if kind == "flow":
        step = t.kappa - r.kappa
        weights = polynomial_weights([n.kappa - r.kappa for n in known], step, 0.0)
        scale = t.alpha + t.sigma
        weights = [scale * w for w in weights]
        return Move(scale / (r.alpha + r.sigma), tuple(-w for w in weights), tuple(weights))
    h = t.log_snr - r.log_snr
    if math.isinf(h):  # from pure noise or to clean data only the constant polynomial has an integral: DDIM's step
        assert len(known) == 1
        fresh = eta > 0
        return Move(0.0, (t.alpha,), (0.0 if fresh else t.sigma,), t.sigma if fresh else 0.0)
    offsets = [n.log_snr - r.log_snr for n in known]
    zeros = (0.0,) * len(known)
    if kind == "noise":
        return Move(t.alpha / r.alpha, zeros, tuple(-t.sigma * w for w in polynomial_weights(offsets, h, 1.0)))
    rate = 1.0 + eta**2
    weights = tuple(rate * t.alpha * w for w in polynomial_weights(offsets, h, -rate))
    keep = t.sigma / r.sigma * math.exp(-(eta**2) * h)
    return Move(keep, weights, zeros, t.sigma * math.sqrt(-math.expm1(-2 * eta**2 * h)))


def even_move(r: Node, t: Node, order: int, momentum: float = 1.0) -> Move:
    """The classical multistep update in x/alpha over sigma/alpha, as if steps were even (PLMS, GHVB); noise predictions."""
    du = t.sigma / t.alpha - r.sigma / r.alpha
    weights = tuple(t.alpha * du * w for w in adams_bashforth(order, momentum))
    return Move(t.alpha / r.alpha, (0.0,) * order, weights)
