"""Error against network calls for every sampler, on Gaussian mixtures whose denoiser is a formula: no network, no data.

Every figure is the root mean square distance to a fine integration of the same ODE (RK4) over a batch, averaged over seeds;
each seed has its own mixture, noise and labels. Guidance w is classifier-free: D_u + w (D_c - D_u) towards one of the
components. Grids are evenly spaced in log-SNR from the VP-linear schedule's noise end to 3.5, unless a row says otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from diffusion.gaussian_prior import GaussianPrior, stitched
from diffusion.mixtures import Mixture, integrate
from diffusion.plan_search import Problem, search_compensation, search_plan
from diffusion.samplers.plan import PRESETS, Plan, Step, ghvb
from diffusion.samplers.sampling import sample
from diffusion.samplers.scheduler import EIScheduler
from diffusion.samplers.statistics import estimate_statistics
from diffusion.schedules import vp

SCHEDULE, END = vp(), 3.5
START = SCHEDULE.log_snr_range[0]
PLANS = {**{name: PRESETS[name] for name in PRESETS if name not in ("sde", "mr", "dpmpp1", "deis1")}, "ghvb2.5": ghvb(2.5)}
Row = dict[str, object]


class Case:
    """One seed: a mixture, noise and labels, and the reference for every guidance scale asked for."""

    def __init__(self, seed: int, batch: int):
        self.seed = seed
        self.mixture = Mixture.power_law(seed=seed)
        g = torch.Generator().manual_seed(1000 + seed)
        self.noise = torch.randn(batch, 64, dtype=torch.float64, generator=g)
        self.labels = torch.randint(8, (batch,), generator=g)
        self.references: dict[float, torch.Tensor] = {}

    def denoiser(self, scale: float):
        return self.mixture.denoise if scale == 1 else self.mixture.guided(self.labels, scale)

    def reference(self, scale: float) -> torch.Tensor:
        if scale not in self.references:
            self.references[scale] = integrate(self.denoiser(scale), SCHEDULE, self.noise, START, END, 150)
        return self.references[scale]

    def error(self, plan, calls: int, scale: float = 1.0, start: float = START, x=None, denoise=None, **config) -> float:
        return rms(self.run(plan, calls, scale, start, x, denoise, **config) - self.reference(scale))

    def run(self, plan, calls, scale=1.0, start=START, x=None, denoise=None, statistics=None, **config) -> torch.Tensor:
        config = {"log_snr_start": start, "log_snr_end": END, **config}
        scheduler = EIScheduler(plan=plan, prediction_type="sample", final_sigmas_type="sigma_min", **config)
        scheduler.statistics = statistics
        steps = calls // plan.steps[0].calls
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == calls, "every call is counted"
        return sample(denoise or self.denoiser(scale), scheduler, self.noise if x is None else x)


def rms(x: torch.Tensor) -> float:
    return float(x.pow(2).mean().sqrt())


def presets(cases: list[Case]) -> Iterator[Row]:
    """Every preset at 5 to 20 calls, unguided, w = 7.5, w = 15."""
    for scale in (1.0, 7.5, 15.0):
        for calls in (5, 6, 8, 10, 20):
            base = [case.error(PRESETS["ddim"], calls, scale) for case in cases]
            for name, plan in PLANS.items():
                if calls % plan.steps[0].calls:
                    continue
                errors = [case.error(plan, calls, scale) for case in cases]
                peak = max(float(case.run(plan, calls, scale).abs().max()) for case in cases)
                limit = max(float(case.reference(scale).abs().max()) for case in cases)
                yield {"plan": name, "w": scale, "calls": calls, **summary(errors, base), "largest": peak / limit}


def uniform_time(cases: list[Case]) -> Iterator[Row]:
    """The same with nodes evenly spaced in training time, from the same noise: what that habit costs."""
    for name in ("ddim", "deis2", "dpmpp2", "unipc2"):
        for calls in (5, 10):
            end = float(SCHEDULE.time(END))
            times = torch.linspace(999, end, calls + 1).tolist()
            nodes = [float(SCHEDULE.log_snr(t)) for t in times]
            steps = tuple(Step(**{**vars(s), "node": n}) for s, n in zip(PRESETS[name].for_steps(calls), nodes))
            plan = Plan(steps, end=END)
            errors = [case.error(plan, calls) for case in cases]
            yield {
                "plan": name,
                "grid": "time",
                "calls": calls,
                **summary(errors, [c.error(PRESETS[name], calls) for c in cases]),
            }


def searched(cases: list[Case], evaluations: int) -> Iterator[Row]:
    """DC-Solver's ratios on UniPC2, and plans by evolution, from 32 calibration latents; errors on 128 held-out ones."""
    for scale in (7.5, 1.0):
        for calls in (5, 8, 10):
            found: dict[str, list] = {"dc": [], "usf": []}
            for case in cases:
                mixture, g = case.mixture, torch.Generator().manual_seed(5000 + case.seed)
                sets = []
                for n in (32, 128):
                    labels = torch.randint(8, (n,), generator=g)
                    noise = torch.randn(n, 64, dtype=torch.float64, generator=g)
                    sets.append((mixture.denoise if scale == 1 else mixture.guided(labels, scale), noise))
                problem = Problem.of(SCHEDULE, *sets, end=END, fine=80)
                found["dc"].append(search_compensation(problem, calls))
                found["usf"].append(search_plan(problem, calls, evaluations, seed=case.seed))
            for name, results in found.items():
                row = summary([r.shipped for r in results], [r.baseline for r in results])
                names = " ".join(sorted({r.baseline_name for r in results}))
                accepted = sum(r.accepted for r in results)
                yield {
                    "search": name,
                    "w": scale,
                    "calls": calls,
                    **row,
                    "against": names,
                    "passed gate": f"{accepted}/{len(results)}",
                }


def warm(cases: list[Case]) -> Iterator[Row]:
    """Teleporting to sigma/alpha = u with the Gaussian prior (what the jump costs), then all calls below it; UniPC2."""
    priors = [GaussianPrior.fit(case.mixture.sample(4096, torch.Generator().manual_seed(9))) for case in cases]
    for u in (2.7, 4.0, 6.0):
        land, jumps = -math.log(u), []
        landed = [prior.teleport(case.noise, SCHEDULE, START, land) for case, prior in zip(cases, priors)]
        for case, x in zip(cases, landed):
            jumps.append(rms(x - integrate(case.mixture.denoise, SCHEDULE, case.noise, START, land, 100)))
        yield {"u": u, "row": "jump", **summary(jumps, [1.0] * len(jumps))}
        for calls in (5, 8, 10):
            errors = [case.error(PRESETS["unipc2"], calls, start=land, x=x) for case, x in zip(cases, landed)]
            plain = [case.error(PRESETS["unipc2"], calls) for case in cases]
            yield {"u": u, "row": "teleport", "calls": calls, **summary(errors, plain)}


def thresholding(cases: list[Case]) -> Iterator[Row]:
    """Dynamic thresholding (0.995, at most 3) of data prediction under guidance; against the same plan without it."""
    for scale in (7.5, 15.0):
        for name in ("dpmpp2", "dpmpp3", "unipc2"):
            for calls in (5, 8, 10):
                options = {"thresholding": True, "sample_max_value": 3.0}
                errors = [case.error(PRESETS[name], calls, scale, **options) for case in cases]
                plain = [case.error(PRESETS[name], calls, scale) for case in cases]
                largest = [float(case.run(PRESETS[name], calls, scale, **options).abs().max()) for case in cases]
                limit = [float(case.reference(scale).abs().max()) for case in cases]
                yield {"plan": name, "w": scale, "calls": calls, **summary(errors, plain), "largest": max(largest) / max(limit)}


def stitching(cases: list[Case]) -> Iterator[Row]:
    """T-Stitch with the Wiener filter for the first share of 20 UniPC2 calls: change of the result, and its error."""
    for share in (0.2, 0.3, 0.4, 0.5, 0.6):
        changes, errors, base = [], [], []
        for case in cases:
            prior = GaussianPrior.fit(case.mixture.sample(4096, torch.Generator().manual_seed(9)))
            switch = START + (END - START) * (share - 1e-6)
            mixed = case.run(PRESETS["unipc2"], 20, denoise=stitched(prior.denoise, case.mixture.denoise, switch))
            full = case.run(PRESETS["unipc2"], 20)
            changes.append(rms(mixed - full))
            errors.append(rms(mixed - case.reference(1.0)))
            base.append(rms(full - case.reference(1.0)))
        yield {"free share": share, "change": statistics.mean(changes), **summary(errors, base)}


def measured_statistics(cases: list[Case]) -> Iterator[Row]:
    """DPM-Solver-v3 with statistics of 512 samples at 61 levels, against data prediction of the same order."""
    curves = []
    for case in cases:
        data = case.mixture.sample(512, torch.Generator().manual_seed(11))
        curves.append(estimate_statistics(case.mixture.denoise, SCHEDULE, data, START, END, nodes=61))
    for order in (1, 2, 3):
        plan, plain = (Plan((Step(order=order, kind=kind),), repeat=True) for kind in ("v3", "data"))
        for calls in (5, 10, 20):
            errors = [case.error(plan, calls, statistics=s) for case, s in zip(cases, curves)]
            yield {"order": order, "calls": calls, **summary(errors, [case.error(plain, calls) for case in cases])}


def law(cases: list[Case]) -> Iterator[Row]:
    """Distance between the law of 4096 samples and the data's: sliced Wasserstein-2 over 256 directions. For `sde`, which has
    no path to compare; "fresh data" is what as many draws of the data themselves come to."""
    n, directions = 4096, torch.randn(64, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    directions = directions / directions.norm(dim=0)

    def distance(x: torch.Tensor, y: torch.Tensor) -> float:
        return rms((x @ directions).sort(0).values - (y @ directions).sort(0).values)

    data = [case.mixture.sample(n, torch.Generator().manual_seed(21)) for case in cases]
    floor = [distance(d, case.mixture.sample(n, torch.Generator().manual_seed(22))) for d, case in zip(data, cases)]
    yield {"plan": "fresh data", **summary(floor, floor)}
    for calls in (10, 20, 50):
        for name in ("ddim", "unipc2", "sde"):
            errors = []
            for case, d in zip(cases, data):
                g = torch.Generator().manual_seed(23)
                scheduler = EIScheduler(plan=name, prediction_type="sample", final_sigmas_type="sigma_min", log_snr_end=END)
                scheduler.set_timesteps(calls)
                errors.append(distance(sample(case.mixture.denoise, scheduler, torch.randn(n, 64, generator=g).double(), g), d))
            yield {"plan": name, "calls": calls, **summary(errors, floor)}


def summary(errors: list[float], base: list[float]) -> Row:
    """Mean error over seeds, and its ratio to the baseline's mean with the ratios' range over seeds."""
    ratios = [e / b for e, b in zip(errors, base)]
    mean = statistics.mean(errors)
    return {"error": mean, "ratio": mean / statistics.mean(base), "worst seed": max(ratios), "best seed": min(ratios)}


def plot(rows: list[Row], path: Path) -> None:
    """Error against calls, one panel per guidance scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scales = sorted({row["w"] for row in rows})
    figure, panels = pyplot.subplots(1, len(scales), figsize=(4.2 * len(scales), 4), sharey=True, layout="constrained")
    for scale, panel in zip(scales, panels):
        for i, name in enumerate(name for name in PLANS if name != "flow-euler"):  # the same as ddim
            points = sorted((row["calls"], row["error"]) for row in rows if row["w"] == scale and row["plan"] == name)
            panel.loglog(*zip(*points), marker="o", ms=3, lw=1.3, label=name, color=f"C{i % 10}", ls="-" if i < 10 else "--")
        panel.set_title("unguided" if scale == 1 else f"guidance {scale:g}")
        panel.set_xlabel("network calls")
        panel.set_xticks([5, 6, 8, 10, 20], ["5", "6", "8", "10", "20"], minor=False)
        panel.minorticks_off()
        panel.set_ylim(2e-3, 5)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("rms distance to the reference")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)


TABLES = {
    "presets": presets,
    "uniform-time": uniform_time,
    "searched": searched,
    "teleport": warm,
    "thresholding": thresholding,
    "stitch": stitching,
    "v3": measured_statistics,
    "law": law,
}


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="mixtures, noise and labels that nobody has looked at")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--evaluations", type=int, default=400, help="plans tried by the evolutionary search")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG of the table 'presets'; needs matplotlib")
    arguments = parser.parse_args()
    first = arguments.first_seed
    cases = [Case(seed, arguments.batch) for seed in range(first, first + arguments.seeds)]
    everything: dict[str, list[Row]] = {}
    for name in arguments.tables:
        began = time.process_time()
        table = TABLES[name]
        rows = everything[name] = []
        print(f"\n{name}: {(table.__doc__ or '').strip()}", flush=True)
        for row in table(cases, arguments.evaluations) if name == "searched" else table(cases):
            rows.append(row)
            print("  " + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        print(f"  ({time.process_time() - began:.0f} CPU-s)", flush=True)
    if arguments.plot and "presets" in everything:
        plot(everything["presets"], arguments.plot)
    if arguments.json:
        about = {
            "seeds": arguments.seeds,
            "first seed": first,
            "batch": arguments.batch,
            "torch": torch.__version__,
            "machine": platform.processor(),
        }
        arguments.json.write_text(json.dumps({**about, "tables": everything}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
