"""Noise schedules x_t = alpha x_0 + sigma n, what networks predict of them, and where a sampler stops on the way.

The clock of everything here is the log-SNR lambda = ln(alpha / sigma), which rises from noise to data; `time` is what the
network is told. Scalars and grids are float64 numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from splat.errors import InputError

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
GRIDS = ("log_snr", "karras", "linspace", "trailing")

# Which diffusers scheduler's grid is asked for each class, and the coordinates its samples live in. Classes that visit every
# noise level twice, or levels in between, give the grid of their one-call relative.
BASES = {
    "DDPMScheduler": ("DDIMScheduler", "vp"),
    "DDPMParallelScheduler": ("DDIMScheduler", "vp"),
    "DDIMScheduler": ("DDIMScheduler", "vp"),
    "DDIMParallelScheduler": ("DDIMScheduler", "vp"),
    "PNDMScheduler": ("PNDMScheduler", "vp"),
    "DEISMultistepScheduler": ("DEISMultistepScheduler", "vp"),
    "DPMSolverMultistepScheduler": ("DPMSolverMultistepScheduler", "vp"),
    "DPMSolverSinglestepScheduler": ("DPMSolverSinglestepScheduler", "vp"),
    "UniPCMultistepScheduler": ("UniPCMultistepScheduler", "vp"),
    "SASolverScheduler": ("SASolverScheduler", "vp"),
    "EulerDiscreteScheduler": ("EulerDiscreteScheduler", "ve"),
    "EulerAncestralDiscreteScheduler": ("EulerAncestralDiscreteScheduler", "ve"),
    "HeunDiscreteScheduler": ("EulerDiscreteScheduler", "ve"),
    "KDPM2DiscreteScheduler": ("EulerDiscreteScheduler", "ve"),
    "KDPM2AncestralDiscreteScheduler": ("EulerDiscreteScheduler", "ve"),
    "LMSDiscreteScheduler": ("LMSDiscreteScheduler", "ve"),
    "EDMEulerScheduler": ("EDMEulerScheduler", "edm"),
    "EDMDPMSolverMultistepScheduler": ("EDMDPMSolverMultistepScheduler", "edm"),
    "FlowMatchEulerDiscreteScheduler": ("FlowMatchEulerDiscreteScheduler", "flow"),
    "FlowMatchHeunDiscreteScheduler": ("FlowMatchEulerDiscreteScheduler", "flow"),
}


@dataclass(frozen=True, eq=False)
class Schedule:
    """One noise schedule. kind "vp": alpha^2 + sigma^2 = 1; "ve": alpha = 1 around a VP network (its input is rescaled);
    "edm": alpha = 1 with Karras et al.'s preconditioning; "flow": alpha + sigma = 1.

    The network's clock is a table of training timesteps (`log_snrs`), a flow's time, or else ln(sigma) / 4: EDM, and the
    "ve" networks of diffusers' `timestep_type="continuous"` (Stable Video Diffusion).
    """

    kind: Literal["vp", "ve", "edm", "flow"]
    log_snrs: np.ndarray | None = None  # [T] by training timestep, decreasing
    num_train_timesteps: int = 1000
    sigma_min: float = 0.002  # without a table
    sigma_max: float = 80.0
    sigma_data: float = 0.5  # edm

    def __post_init__(self):
        fits = {"vp": self.log_snrs is not None, "ve": True}.get(self.kind, self.log_snrs is None)
        assert fits, f"kind {self.kind} and a table do not go together"

    def alpha_sigma(self, log_snr: Any) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma), float64 of log_snr's shape; log_snr may be infinite."""
        lam = np.asarray(log_snr, np.float64)
        if self.kind == "vp":
            return np.sqrt(_sigmoid(2 * lam)), np.sqrt(_sigmoid(-2 * lam))
        if self.kind == "flow":
            return _sigmoid(lam), _sigmoid(-lam)
        return np.ones_like(lam), np.exp(-lam)

    def time(self, log_snr: Any) -> np.ndarray:
        """What the network is told at this log-SNR: a fractional training timestep, or ln(sigma) / 4."""
        lam = np.asarray(log_snr, np.float64)
        if self.kind == "flow":
            return self.num_train_timesteps * _sigmoid(-lam)
        if self.log_snrs is None:
            return -lam / 4
        return np.interp(-lam, -self.log_snrs, np.arange(len(self.log_snrs)))

    def log_snr(self, time: Any) -> np.ndarray:
        """The inverse of `time`, float64; linear in the log-SNR between training timesteps, as DPM-Solver has it."""
        time = np.asarray(time, np.float64)
        if self.kind == "flow":
            with np.errstate(divide="ignore"):
                return np.log(self.num_train_timesteps - time) - np.log(time)
        if self.log_snrs is None:
            return -4 * time
        return np.interp(time, np.arange(len(self.log_snrs)), self.log_snrs)

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """(noisiest, cleanest) log-SNR the network was trained at; a flow's ends are taken one timestep inside."""
        if self.kind == "flow":
            return float(self.log_snr(self.num_train_timesteps - 1)), float(self.log_snr(1))
        if self.log_snrs is None:
            return -float(np.log(self.sigma_max)), -float(np.log(self.sigma_min))
        return float(self.log_snrs[-1]), float(self.log_snrs[0])

    def grid(self, name: str, steps: int, start: float | None = None, end: float | None = None) -> np.ndarray:
        """Log-SNR nodes [steps + 1], rising, both ends included.

        "log_snr": evenly spaced; "karras": sigma^(1/7) evenly spaced (Karras et al. 2022, eq. 5); "linspace": evenly spaced in
        time; "trailing": times T, T - T/n, ..., one below each, as Lin et al. 2023 table 2. The first two accept ends
        other than the schedule's; "trailing" and "linspace" end where the network's training does.
        """
        if steps < 1:
            raise InputError(f"{steps} sampling steps asked for; ask for at least one.")
        lowest, highest = self.log_snr_range
        lowest, highest = lowest if start is None else start, highest if end is None else end
        if not -np.inf < lowest < highest < np.inf:
            raise InputError(f"A grid from log-SNR {lowest} to {highest} does not rise from noise to data; change its ends.")
        if name == "log_snr":
            return np.linspace(lowest, highest, steps + 1)
        if name == "karras":
            ends = np.exp(-np.array([lowest, highest]) / 7)
            return -7 * np.log(np.linspace(*ends, steps + 1))
        if name == "linspace":
            return self.log_snr(np.linspace(self.time(lowest), self.time(highest), steps + 1))
        if name == "trailing":
            if self.kind != "flow" and self.log_snrs is None:
                raise InputError("The grid 'trailing' needs training timesteps, which EDM has not; use 'karras' or 'log_snr'.")
            times = self.num_train_timesteps * (1 - np.arange(steps + 1) / steps) - (0 if self.kind == "flow" else 1)
            return self.log_snr(np.maximum(times, self.time(highest)))
        raise InputError(f"Unknown time grid {name!r}; choose one of {', '.join(GRIDS)}.")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))  # never overflows, and keeps the small tail exact
    return np.where(x >= 0, 1.0, small) / (1 + small)


def vp(
    beta_schedule: str = "linear",
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    num_train_timesteps: int = 1000,
    trained_betas: Any = None,
    kind: Literal["vp", "ve"] = "vp",
    rescale_betas_zero_snr: bool = False,
) -> Schedule:
    """Variance-preserving schedule from betas: "linear" (DDPM), "scaled_linear" (Stable Diffusion) or "squaredcos_cap_v2".

    `rescale_betas_zero_snr` shifts alpha so that the last timestep is noise (Lin et al. 2023, algorithm 1), up to 2^-24.
    """
    T = num_train_timesteps
    if trained_betas is not None:
        betas = np.asarray(trained_betas, np.float64)
    elif beta_schedule == "linear":
        betas = np.linspace(beta_start, beta_end, T)
    elif beta_schedule == "scaled_linear":
        betas = np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2
    elif beta_schedule == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, eq. 17, offset 0.008, betas capped at 0.999
        bar = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    else:
        raise InputError(f"Unknown beta schedule {beta_schedule!r}; use linear, scaled_linear or squaredcos_cap_v2.")
    if not len(betas) or not ((betas > 0) & (betas < 1)).all():
        raise InputError(f"A schedule of {len(betas)} betas, not all inside (0, 1), is none; check beta_start and beta_end.")
    log_bar = np.cumsum(np.log1p(-betas))
    if rescale_betas_zero_snr:
        root = np.exp(log_bar / 2)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        log_bar = np.log(np.maximum(root**2, 2.0**-24))  # diffusers' floor too: a log-SNR of minus infinity has no grid
    return Schedule(kind, 0.5 * (log_bar - np.log(-np.expm1(log_bar))), len(betas))


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5) -> Schedule:
    """Karras et al. 2022: alpha = 1, the network wrapped in c_skip, c_out, c_in, c_noise."""
    return Schedule("edm", sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data)


def flow(num_train_timesteps: int = 1000) -> Schedule:
    """Conditional optimal transport, x_t = (1 - t) x_0 + t n."""
    return Schedule("flow", num_train_timesteps=num_train_timesteps)


def from_diffusers(config: Mapping[str, Any], base: str | None = None) -> Schedule:
    """The schedule of a diffusers scheduler's config. `base`: its class name when already known, else it is recognised."""
    kind = BASES[recognise(config, base)][1]
    if config.get("use_flow_sigmas"):
        kind = "flow"
    if kind == "flow":
        return flow(config.get("num_train_timesteps", 1000))
    if kind == "edm":
        return edm(*(config[k] for k in ("sigma_min", "sigma_max", "sigma_data")))
    keys = "beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas", "rescale_betas_zero_snr"
    table = vp(**{k: config[k] for k in keys if k in config}, kind=kind)
    if config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction":
        cleanest, noisiest = (float(np.exp(-table.log_snrs[i])) for i in (0, -1))
        return Schedule("ve", sigma_min=config.get("sigma_min") or cleanest, sigma_max=config.get("sigma_max") or noisiest)
    return table


def recognise(config: Mapping[str, Any], base: str | None = None) -> str:
    """The class a diffusers scheduler config came from, or `base`, if its grid is known; raises InputError else.

    A fresh config does not carry its class's name, so its keys decide. Every scheduler of diffusers is a candidate, so that
    distilled, inverse and rescaled ones are refused, not taken for the nearest known one.
    """
    import inspect

    import diffusers

    keys = {key for key in config if not key.startswith("_")}

    def wanted(name: str) -> set[str]:
        return set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self", "args", "kwargs"}

    named = base or config.get("_class_name")
    known = [*BASES, *(name for name in dir(diffusers) if name.endswith("Scheduler") and name not in BASES)]
    if base is None and named not in known:
        fitting = [name for name in known if wanted(name) and wanted(name) <= keys]
        named = max(fitting, key=lambda name: len(wanted(name)), default=named)
    if named not in BASES:
        raise InputError(
            f"This scheduler config ({named or 'no class name'}; keys {', '.join(sorted(keys)[:6])}, ...) belongs to no "
            f"scheduler whose grid is known; use one of {', '.join(sorted(BASES))}, or name one with base=."
        )
    return named


def to_data_and_noise(
    prediction: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """(x_0 prediction D, noise prediction e), both of x's shape, with x = alpha D + sigma e.

    alpha and sigma are floats or broadcast against x. v_prediction is Salimans and Ho's v = alpha n - sigma x_0 on the unit
    circle (so it also serves a VP network in VE coordinates); flow_prediction is n - x_0 on the line alpha + sigma = 1.
    """
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha, prediction
    if prediction_type == "sample":
        return prediction, (x - alpha * prediction) / sigma
    if prediction_type == "v_prediction":
        norm = (alpha**2 + sigma**2) ** 0.5
        c, s = alpha / norm, sigma / norm
        return (c / norm) * x - s * prediction, (s / norm) * x + c * prediction
    if prediction_type == "flow_prediction":
        return (x - sigma * prediction) / (alpha + sigma), (x + alpha * prediction) / (alpha + sigma)
    raise InputError(f"Unknown prediction type {prediction_type!r}; use one of {', '.join(PREDICTION_TYPES)}.")


def from_data(data: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, prediction_type: str) -> Tensor:
    """What a network of this prediction type would have said if its x_0 prediction were `data` [as x]."""
    noise = (x - alpha * data) / sigma
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return data
    if prediction_type == "v_prediction":
        norm = (alpha**2 + sigma**2) ** 0.5
        return (alpha * noise - sigma * data) / norm
    if prediction_type == "flow_prediction":
        return noise - data
    raise InputError(f"Unknown prediction type {prediction_type!r}; use one of {', '.join(PREDICTION_TYPES)}.")
