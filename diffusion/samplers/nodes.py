"""Where a run stops between noise and data: the base diffusers scheduler's own nodes, or a grid on our schedule."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from diffusion.samplers.coefficients import Node
from diffusion.schedules import BASES, Schedule
from splat.errors import InputError

CLEAN = Node(1.0, 0.0, 0.0)


def node_at(schedule: Schedule, log_snr: float) -> Node:
    """The schedule's node at a log-SNR."""
    alpha, sigma = schedule.alpha_sigma(log_snr)
    return Node(float(alpha), float(sigma), float(schedule.time(log_snr)))


def grid_nodes(schedule: Schedule, config: Mapping[str, Any], steps: int) -> list[Node]:
    """steps + 1 nodes by the config's grid, log_snr_start, log_snr_end; final_sigmas_type "zero": the last is clean data."""
    name, start, end = config["grid"] or "log_snr", config["log_snr_start"], config["log_snr_end"]
    to_clean = config["final_sigmas_type"] == "zero"
    if to_clean and (steps == 1 or name in ("linspace", "trailing")):  # these end at the cleanest trained time by themselves
        return [*(node_at(schedule, lam) for lam in schedule.grid(name, steps, start)[:-1]), CLEAN]
    grid = schedule.grid(name, steps - to_clean, start, end)
    return [node_at(schedule, lam) for lam in grid] + [CLEAN] * to_clean


def make_base(config: Mapping[str, Any]) -> SchedulerMixin:
    """The diffusers scheduler whose grid is kept, from the fields of the config it knows."""
    kind = getattr(diffusers, BASES[config["base"]][0])
    return kind(**{k: config[k] for k in inspect.signature(kind.__init__).parameters if k in config})


def base_nodes(base: SchedulerMixin, schedule: Schedule, steps: int | None, custom: dict[str, Any]) -> tuple[list[Node], bool]:
    """(nodes, whether it tells the network integer timesteps) of the base; `custom` holds its timesteps=, sigmas= or mu=."""
    known = inspect.signature(base.set_timesteps).parameters
    if not set(custom) <= set(known):
        raise InputError(f"{type(base).__name__} takes no custom {', '.join(set(custom) - set(known))}; leave them out.")
    if steps is not None or "num_inference_steps" in known:
        custom = {"num_inference_steps": steps, **custom}
    with warnings.catch_warnings():  # diffusers turns tensors into numpy arrays in a way that numpy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        base.set_timesteps(**custom)
    if hasattr(base, "final_alpha_cumprod"):  # DDIM and PNDM name levels by timestep only
        times = base._timesteps[::-1].copy() if hasattr(base, "prk_timesteps") else base.timesteps.numpy()
        bars = [*(float(base.alphas_cumprod[t]) for t in times), float(base.final_alpha_cumprod)]
        pairs = [(math.sqrt(bar), math.sqrt(1 - bar)) for bar in bars]
    else:
        times = base.timesteps.double().tolist()
        pairs = [_pair(schedule.kind, sigma) for sigma in base.sigmas.double().tolist()]
    nodes = [Node(alpha, sigma, float(t)) for (alpha, sigma), t in zip(pairs, [*times, 0.0])]
    return nodes, not base.timesteps.is_floating_point()


def _pair(kind: str, sigma: float) -> tuple[float, float]:
    """(alpha, sigma) of the sample from diffusers' sigma: the ratio, or a flow's time."""
    if kind == "flow":
        return 1.0 - sigma, sigma
    alpha = 1.0 / math.hypot(1.0, sigma) if kind == "vp" else 1.0
    return alpha, sigma * alpha
