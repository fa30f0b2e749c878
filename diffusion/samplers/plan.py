"""What a sampler does at every step, as data: a `Plan` of `Step`s, and the presets, which fit any number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from splat.errors import InputError

Kind = Literal["data", "noise", "flow", "v3"]


@dataclass(frozen=True)
class Step:
    """One step of a sampler; the defaults are DDIM."""

    order: int = 1  # 1..4: how many predictions the polynomial goes through (fewer while there are fewer)
    kind: Kind = "data"  # what the polynomial approximates; "v3" needs DPM-Solver-v3 statistics of the network
    corrector: Literal["none", "reuse", "fresh"] = "none"  # redo the step with the next prediction; fresh: one more call (Heun)
    node: float | None = None  # log-SNR where the step starts; None: the grid decides
    even: bool = False  # classical coefficients for even spacing in sigma/alpha (PLMS, GHVB); noise kind
    momentum: float = 1.0  # b in (0, 1]; 1 is none
    momentum_on: Literal["history", "update"] = "history"  # GHVB smooths the predictions, heavy ball (HB) the finished update
    compensation: float = 1.0  # DC-Solver's rho: the newest prediction is read off at rho of its way from the last; 1 is off
    eta: float = 0.0  # 0 the ODE, 1 the reverse SDE (ancestral sampling); data kind
    churn: float = 0.0  # overshoot by this much log-SNR, then add noise back up to the node; order 1
    langevin: float = 0.0  # signal-to-noise of one Langevin corrector before the step, one more call (score-SDE: 0.16)
    shift_window: float = 0.0  # half width, in training timesteps, of the variance-matched time shift at the end of the step

    def __post_init__(self):
        choices = {
            "order": (1, 2, 3, 4),
            "kind": ("data", "noise", "flow", "v3"),
            "corrector": ("none", "reuse", "fresh"),
            "momentum_on": ("history", "update"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known or isinstance(getattr(self, name), float):
                raise InputError(f"{name} = {getattr(self, name)!r} is none of {', '.join(map(str, known))}.")
        for name in ("node", "momentum", "compensation", "eta", "churn", "langevin", "shift_window"):
            if getattr(self, name) is not None and not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} = {getattr(self, name)} is no number to step by; give a finite one.")
        if not (0 < self.momentum <= 1 and 0 <= self.eta <= 1) or min(self.churn, self.langevin, self.shift_window) < 0:
            raise InputError("momentum lies in (0, 1], eta in [0, 1]; churn, langevin and shift_window are not negative.")
        corrected, smoothed = self.corrector != "none", self.momentum < 1
        if (self.even or (smoothed and self.momentum_on == "history")) and not (self.even and self.kind == "noise"):
            raise InputError("Even coefficients and momentum on the history go together with kind 'noise'; set even=True.")
        if corrected and (self.even or smoothed):
            raise InputError("Neither even coefficients nor momentum have a corrector; set corrector='none'.")
        if self.churn and (corrected or self.order > 1):
            raise InputError("Churn goes with order 1 and no corrector: predictions from before fresh noise bias the step.")
        if self.eta and self.kind != "data":
            raise InputError(f"Stochasticity eta = {self.eta} needs data prediction, not {self.kind!r}; use kind='data'.")

    @property
    def calls(self) -> int:
        """Network calls of this step."""
        return 1 + (self.corrector == "fresh") + (self.langevin > 0)


@dataclass(frozen=True)
class Plan:
    """Steps for one number of network calls, or one step repeated (`repeat`) for any number."""

    steps: tuple[Step, ...]
    repeat: bool = False
    end: float | None = None  # log-SNR where the last step ends when the steps name their nodes; None: clean data
    needs_mean: bool = False  # mean-reverting: `EIScheduler.set_mean` must have been called
    found_for: Mapping[str, Any] = field(default_factory=dict)  # hash and errors, written by the plan search

    def __post_init__(self):
        named = [step.node is not None for step in self.steps]
        if not self.steps or (any(named) and (self.repeat or not all(named))):
            raise InputError("A plan needs at least one step, and either every step or none names its node.")
        if not isinstance(self.found_for, Mapping) or (self.end is not None and not math.isfinite(self.end)):
            raise InputError(f"A plan's found_for is a mapping and its end finite, got {self.found_for!r} and {self.end}.")
        nodes = [step.node for step in self.steps if step.node is not None]
        if any(b <= a for a, b in zip(nodes, nodes[1:] + ([] if self.end is None or not nodes else [self.end]))):
            raise InputError(f"The plan's log-SNR nodes must rise from noise to data, got {nodes} to {self.end}.")

    def for_steps(self, count: int) -> tuple[Step, ...]:
        """Exactly `count` steps."""
        if self.repeat:
            return self.steps * count
        if len(self.steps) != count:
            raise InputError(
                f"This plan has {len(self.steps)} steps and {count} were asked for; ask for {len(self.steps)}, or use a preset "
                f"({', '.join(sorted(PRESETS))}), which fits any number."
            )
        return self.steps

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; steps list only what differs from a default step."""
        default = Step()
        steps = [{k: v for k, v in asdict(s).items() if v != getattr(default, k)} for s in self.steps]
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "steps": steps, "found_for": dict(self.found_for)}


def repeated(needs_mean: bool = False, **step: Any) -> Plan:
    """A plan of one step for any number of steps."""
    return Plan((Step(**step),), repeat=True, needs_mean=needs_mean)


def ghvb(order: float) -> Plan:
    """Momentum of non-integer order p - 1 + b (GHVB), e.g. 1.8 for p = 2, b = 0.8."""
    whole = math.ceil(order)
    return repeated(order=whole, kind="noise", even=True, momentum=1.0 - (whole - order))


PRESETS: dict[str, Plan] = {
    "ddim": repeated(),
    "deis1": repeated(kind="noise"),
    "deis2": repeated(order=2, kind="noise"),
    "deis3": repeated(order=3, kind="noise"),
    "dpmpp1": repeated(),
    "dpmpp2": repeated(order=2),
    "dpmpp3": repeated(order=3),
    "unipc2": repeated(order=2, corrector="reuse"),
    "unipc3": repeated(order=3, corrector="reuse"),
    "ghvb": ghvb(1.8),
    "plms4": repeated(order=4, kind="noise", even=True),
    "flow-euler": repeated(kind="flow"),
    "flow-heun": repeated(kind="flow", corrector="fresh"),
    "sde": repeated(order=2, eta=1.0),
    "mr": repeated(order=2, needs_mean=True),
}


def to_plan(plan: str | Mapping[str, Any] | Plan) -> Plan:
    """A preset's name, a `Plan.to_dict()` or a `Plan` as a `Plan`."""
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, str):
        if plan not in PRESETS:
            raise InputError(f"Unknown plan {plan!r}; presets are {', '.join(sorted(PRESETS))}.")
        return PRESETS[plan]
    try:
        return Plan(**{**plan, "steps": tuple(Step(**step) for step in plan["steps"])})
    except (TypeError, KeyError) as error:
        raise InputError(f"This is no sampling plan ({error}); write one with Plan.to_dict().") from error
