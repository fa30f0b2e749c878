"""Searching a sampler's plan for one network, schedule and guidance: per-step solvers (USF / S^3) and DC-Solver's ratios.

Both look for the least distance to a fine reference on 16 to 32 calibration latents, and are believed only if they also win on
latents held out from the search. What is found is stored beside the model, with a hash of what it was found for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.mixtures import integrate
from diffusion.samplers.plan import PRESETS, Plan, Step
from diffusion.samplers.sampling import Denoiser, sample
from diffusion.schedules import Schedule
from splat.errors import InputError, StoppedLate

log = logging.getLogger(__name__)
GATE = 0.95  # a found plan must bring the held-out error below this share of the plan it would replace
UNIFORM = ("ddim", "deis2", "deis3", "dpmpp2", "dpmpp3", "unipc2", "unipc3")


@dataclass(frozen=True, eq=False)
class Latents:
    """Noise at the first node, the denoiser for it (with guidance and conditions), and where the fine reference takes it."""

    denoise: Denoiser
    noise: Tensor  # [n, *S]
    reference: Tensor  # as noise


@dataclass(frozen=True, eq=False)
class Problem:
    """What a plan is judged on."""

    schedule: Schedule  # vp or flow
    start: float  # log-SNR
    end: float
    calibration: Latents
    held_out: Latents

    @staticmethod
    def of(
        schedule: Schedule, calibration: tuple[Denoiser, Tensor], held_out: tuple[Denoiser, Tensor], end: float, fine: int = 100
    ) -> Problem:
        """(denoiser, noise [n, *S]) twice; integrates both references, 4 `fine` network calls each."""
        if schedule.kind not in ("vp", "flow") or len(calibration[1]) < 2 or len(held_out[1]) < 2:
            raise InputError("A plan search needs a VP or flow schedule and at least 2 calibration and 2 held-out latents.")
        start = schedule.log_snr_range[0]
        sets = [Latents(d, x, integrate(d, schedule, x, start, end, fine)) for d, x in (calibration, held_out)]
        return Problem(schedule, start, end, *sets)

    def error(self, plan: Plan, steps: int, held_out: bool = False) -> float:
        """Root mean square distance to the reference after `steps` steps; infinite where the plan blows up."""
        from diffusion.samplers.scheduler import EIScheduler

        scheduler = EIScheduler(
            plan=plan, prediction_type="sample", log_snr_start=self.start, log_snr_end=self.end, final_sigmas_type="sigma_min"
        )
        scheduler.schedule = self.schedule
        scheduler.set_timesteps(steps)
        latents = self.held_out if held_out else self.calibration
        try:
            x = sample(latents.denoise, scheduler, latents.noise)
        except StoppedLate:  # predictions overflowed on the way
            return math.inf
        return float((x - latents.reference).double().pow(2).mean().sqrt().nan_to_num(math.inf))


@dataclass(frozen=True)
class Found:
    """A search's answer. `plan` is the found one if it passed the gate, else the baseline; either names its nodes."""

    plan: Plan
    accepted: bool
    error: float  # held out, of the found plan
    baseline: float  # held out, of what it would replace
    baseline_name: str
    evaluations: int

    @property
    def shipped(self) -> float:
        """Held-out error of `plan` as returned."""
        return self.error if self.accepted else self.baseline


def search_compensation(problem: Problem, steps: int, preset: str = "unipc2", sweeps: int = 2) -> Found:
    """DC-Solver's ratio per step (Zhao et al. 2024), by coordinate descent on the final calibration error.

    The paper fits each ratio to the state after its step; with the final error as the score no step is tuned for its own sake.
    The first two steps keep ratio 1, having too little history.
    """
    plan = _placed(problem, PRESETS[preset].for_steps(steps), np.linspace(problem.start, problem.end, steps + 1))
    best, evaluations = problem.error(plan, steps), 1
    for sweep in range(sweeps):
        for i in range(min(2, steps - 1), steps):
            centre = plan.steps[i].compensation
            for offset in (
                (-0.4, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.4) if sweep == 0 else (-0.1, -0.05, -0.02, 0.02, 0.05, 0.1)
            ):
                changed = replace(plan.steps[i], compensation=centre + offset)
                trial = replace(plan, steps=(*plan.steps[:i], changed, *plan.steps[i + 1 :]))
                error, evaluations = problem.error(trial, steps), evaluations + 1
                if error < best:
                    best, plan = error, trial
    return _gated(problem, plan, PRESETS[preset], preset, steps, evaluations)


def search_plan(problem: Problem, steps: int, evaluations: int = 600, seed: int = 0) -> Found:
    """Nodes, order, kind and corrector of every step, by evolution (Liu et al. 2024: 15 parents, crossover and mutation 0.3).

    The score is the calibration error, not FID. The first generation holds every uniform solver, so the answer is never worse
    than the best of them on the calibration latents; the gate compares with that one on the held-out latents.
    """
    g = np.random.default_rng(seed)
    even = np.linspace(problem.start, problem.end, steps + 1)

    def mutated(plan: Plan) -> Plan:
        nodes = np.array([step.node for step in plan.steps])
        if steps > 1:
            gaps = np.diff([*nodes, problem.end]) * np.exp(0.3 * g.standard_normal(steps) * (g.random(steps) < 0.6))
            nodes = problem.start + (problem.end - problem.start) * np.concatenate([[0], np.cumsum(gaps)[:-1]]) / gaps.sum()
        solvers = [_mutated_step(step, g) for step in plan.steps]
        return _placed(problem, solvers, nodes)

    def crossed(a: Plan, b: Plan) -> Plan:
        nodes = np.array([(x.node + y.node) / 2 for x, y in zip(a.steps, b.steps)])
        return _placed(problem, [x if g.random() < 0.5 else y for x, y in zip(a.steps, b.steps)], nodes)

    first = [_placed(problem, PRESETS[name].for_steps(steps), even) for name in UNIFORM]
    scored = [(problem.error(plan, steps), i, plan) for i, plan in enumerate(first)]
    baseline = UNIFORM[min(scored, key=lambda entry: entry[:2])[1]]
    for i in range(len(scored), evaluations):
        parents = sorted(scored, key=lambda entry: entry[:2])[:15]
        one, two = parents[g.integers(len(parents))][2], parents[g.integers(len(parents))][2]
        child = crossed(one, two) if g.random() < 0.3 else one
        child = mutated(child)
        scored.append((problem.error(child, steps), i, child))
    best = min(scored, key=lambda entry: entry[:2])[2]
    return _gated(problem, best, PRESETS[baseline], baseline, steps, evaluations)


def _placed(problem: Problem, solvers: Sequence[Step], nodes: np.ndarray) -> Plan:
    """The steps with their nodes named, so that the plan is the same in every scheduler."""
    return Plan(tuple(replace(s, node=float(lam)) for s, lam in zip(solvers, nodes)), end=problem.end)


def _mutated_step(step: Step, g: np.random.Generator) -> Step:
    if g.random() < 0.3:
        step = replace(step, order=int(g.integers(1, 5)))
    if g.random() < 0.15:
        step = replace(step, kind="noise" if step.kind == "data" else "data")
    if g.random() < 0.15:
        step = replace(step, corrector="none" if step.corrector == "reuse" else "reuse")
    return step


def _gated(problem: Problem, plan: Plan, baseline: Plan, name: str, steps: int, evaluations: int) -> Found:
    error, before = problem.error(plan, steps, held_out=True), problem.error(baseline, steps, held_out=True)
    accepted = error < GATE * before
    if not accepted:
        log.info(
            "The searched plan does not hold on held-out latents (%.4g against %.4g of %s) and is dropped.", error, before, name
        )
        plan = _placed(problem, baseline.for_steps(steps), np.linspace(problem.start, problem.end, steps + 1))
    return Found(plan, accepted, error, before, name, evaluations)


def fingerprint(weights: Mapping[str, Tensor], schedule: Mapping[str, Any], guidance: Any) -> str:
    """SHA-256 of a network's weights, its scheduler config and the guidance (any JSON-like value), on any device."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    settings = {k: v for k, v in schedule.items() if not k.startswith("_") and k not in ("plan", "statistics")}
    digest.update(json.dumps([settings, guidance], sort_keys=True, default=_plain).encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Arrays whole: their text is abridged, and two long schedules would share a hash."""
    return value.tolist() if isinstance(value, np.ndarray | Tensor) else str(value)


def save_plan(path: Path, found: Found, hash_of: str) -> None:
    """The plan as JSON, with the fingerprint and the held-out errors."""
    about = {"fingerprint": hash_of, "error": found.error, "baseline": found.baseline, "baseline_name": found.baseline_name}
    Path(path).write_text(json.dumps(replace(found.plan, found_for=about).to_dict(), indent=2) + "\n", encoding="utf-8")


def load_plan(path: Path, hash_of: str) -> Plan:
    """A stored plan; raises InputError where it is missing, damaged, or was found for other weights, schedule or guidance."""
    from diffusion.samplers.plan import to_plan

    try:
        plan = to_plan(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"No sampling plan can be read from {path} ({error}); search one again.") from error
    if plan.found_for.get("fingerprint") != hash_of:
        raise InputError(f"The plan in {path} was found for another network, schedule or guidance; search one for this.")
    return plan
