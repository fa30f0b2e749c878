"""What the samplers must reach on Gaussian mixtures, each figure the mean of three seeds; benchmarks/samplers.py measures more.

Errors are root mean square distances to a fine integration of the same ODE. The mixtures are fixed: 64 dimensions, 8
components, spectrum 1/j, means of standard deviation 0.3; nodes even in log-SNR from the VP-linear schedule's noise to 3.5.
"""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler

from diffusion.gaussian_prior import GaussianPrior, stitched
from diffusion.mixtures import Mixture, integrate
from diffusion.plan_search import Problem, fingerprint, load_plan, save_plan, search_compensation, search_plan
from diffusion.samplers.plan import PRESETS, Plan, Step, ghvb
from diffusion.samplers.sampling import as_denoiser, sample
from diffusion.samplers.scheduler import EIScheduler
from diffusion.samplers.statistics import Statistics, estimate_statistics
from diffusion.schedules import vp
from splat.errors import InputError

SCHEDULE, END, SEEDS, BATCH = vp(), 3.5, (0, 1, 2), 48
START = SCHEDULE.log_snr_range[0]


class Case:
    def __init__(self, seed):
        g = torch.Generator().manual_seed(1000 + seed)
        self.mixture = Mixture.power_law(seed=seed)
        self.noise = torch.randn(BATCH, 64, dtype=torch.float64, generator=g)
        self.labels = torch.randint(8, (BATCH,), generator=g)
        self.prior = GaussianPrior.fit(self.mixture.sample(4096, torch.Generator().manual_seed(9)))
        self.known = {}

    def denoiser(self, w):
        return self.mixture.denoise if w == 1 else self.mixture.guided(self.labels, w)

    def reference(self, w):
        if w not in self.known:
            self.known[w] = integrate(self.denoiser(w), SCHEDULE, self.noise, START, END, 60)
        return self.known[w]

    def run(self, plan, calls, w=1.0, start=START, x=None, denoise=None, curves=None):
        options = {"log_snr_start": start, "log_snr_end": END, "final_sigmas_type": "sigma_min"}
        scheduler = EIScheduler(plan=plan, prediction_type="sample", **options)
        scheduler.statistics = curves
        scheduler.set_timesteps(calls // scheduler.plan.steps[0].calls)
        return sample(denoise or self.denoiser(w), scheduler, self.noise if x is None else x)

    def error(self, plan, calls, w=1.0, **options):
        return float((self.run(plan, calls, w, **options) - self.reference(w)).pow(2).mean().sqrt())


@pytest.fixture(scope="module")
def cases():
    return [Case(seed) for seed in SEEDS]


def ratio(cases, plan, calls, w, than="ddim"):
    mean = [statistics.mean(case.error(p, calls, w) for case in cases) for p in (plan, than)]
    return mean[0] / mean[1]


def test_the_reference_is_fine_enough(cases):
    again = integrate(cases[0].denoiser(7.5), SCHEDULE, cases[0].noise, START, END, 120)
    assert float((again - cases[0].reference(7.5)).abs().max()) < 1e-4


def test_unguided_second_and_third_order(cases):
    assert ratio(cases, "unipc2", 10, 1.0) <= 0.5
    assert ratio(cases, "dpmpp3", 20, 1.0) <= 0.35


def test_guided_noise_prediction_and_that_data_prediction_is_no_cure(cases):
    assert ratio(cases, "deis2", 10, 7.5) <= 0.6
    for plan in ("dpmpp2", "dpmpp3", "unipc2"):  # without thresholding, worse than DDIM under guidance at few calls
        assert ratio(cases, plan, 5, 7.5) > 1
    assert ratio(cases, "dpmpp2", 10, 7.5) > 1


def test_ghvb_stays_calm_where_plms_explodes(cases):
    """CFG 15, 10 calls: at most a tenth of PLMS4's error, and the largest value within 15 % of the reference's."""
    assert ratio(cases, "ghvb", 10, 15.0, than="plms4") <= 0.1
    assert ratio(cases, ghvb(2.5), 10, 15.0, than="plms4") <= 0.1
    for case in cases:
        largest, wanted = (float(x.abs().max()) for x in (case.run("ghvb", 10, 15.0), case.reference(15.0)))
        assert abs(largest / wanted - 1) <= 0.15


def test_heavy_ball_momentum_calms_too(cases):
    heavy = Plan((Step(order=4, kind="noise", even=True, momentum=0.5, momentum_on="update"),), repeat=True)
    assert ratio(cases, heavy, 10, 15.0, than="plms4") <= 0.5  # measured 0.21


def problem(case, w, seed):
    g = torch.Generator().manual_seed(5000 + seed)
    sets = []
    for n in (32, 64):
        labels = torch.randint(8, (n,), generator=g)
        noise = torch.randn(n, 64, dtype=torch.float64, generator=g)
        sets.append((case.mixture.denoise if w == 1 else case.mixture.guided(labels, w), noise))
    return Problem.of(SCHEDULE, *sets, end=END, fine=40)


@pytest.fixture(scope="module")
def guided_problems(cases):
    return [problem(case, 7.5, seed) for seed, case in enumerate(cases)]


def test_compensation_under_guidance(guided_problems):
    """DC ratios: held-out error at most 0.65 of UniPC2's; the plan keeps them, and they are real."""
    for calls in (5, 8):
        found = [search_compensation(p, calls, sweeps=1) for p in guided_problems]
        assert statistics.mean(f.shipped for f in found) <= 0.65 * statistics.mean(f.baseline for f in found)
        assert all(f.accepted and f.plan.steps[0].compensation == f.plan.steps[1].compensation == 1 for f in found)


def test_plan_search_under_guidance(guided_problems):
    """USF: held-out error at most 0.6 of the best uniform solver's."""
    found = [search_plan(p, 5, evaluations=250, seed=i) for i, p in enumerate(guided_problems)]
    assert statistics.mean(f.shipped for f in found) <= 0.6 * statistics.mean(f.baseline for f in found)
    for f, p in zip(found, guided_problems):
        again = EIScheduler(plan=f.plan.to_dict(), prediction_type="sample")
        again.set_timesteps(5)
        assert p.error(again.plan, 5, held_out=True) == pytest.approx(f.shipped)


def test_plan_search_tries_every_solver_anywhere():
    """Crossing the uniform solvers alone would never make, say, noise prediction with a corrector."""
    tried = []

    class Anything:
        start, end = START, END

        def error(self, plan, steps, held_out=False):
            tried.extend(plan.steps[1:])
            return 1.0 / (len(tried) + 1)  # always a little better, so that the newest plans are the parents

    search_plan(Anything(), 4, evaluations=400)
    assert len({(step.order, step.kind, step.corrector) for step in tried}) == 4 * 2 * 2
    assert all(START < step.node < END for step in tried) and len({step.node for step in tried}) > 300


def test_what_does_not_hold_on_held_out_latents_is_dropped(guided_problems):
    """Held-out latents on which the baseline is already perfect: what helped on the calibration latents must not replace it."""
    p = guided_problems[0]
    scheduler = EIScheduler(plan="unipc2", prediction_type="sample", log_snr_end=END, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(5)
    perfect = replace(p.held_out, reference=sample(p.held_out.denoise, scheduler, p.held_out.noise))
    found = search_compensation(replace(p, held_out=perfect), 5, sweeps=1)
    assert found.baseline < 1e-12 < found.error and found.shipped == found.baseline
    assert not found.accepted and [replace(s, node=None) for s in found.plan.steps] == list(PRESETS["unipc2"].for_steps(5))
    assert p.error(found.plan, 5) == pytest.approx(p.error(PRESETS["unipc2"], 5))  # on the same nodes


def test_plans_are_stored_for_what_they_were_found_for(guided_problems, tmp_path):
    weights = {"w": torch.arange(6.0).reshape(2, 3)}
    schedule = dict(EIScheduler().config)
    mark = fingerprint(weights, schedule, {"scale": 7.5})
    found = search_compensation(guided_problems[1], 5, sweeps=1)
    save_plan(tmp_path / "plan.json", found, mark)
    plan = load_plan(tmp_path / "plan.json", mark)
    assert plan.steps == found.plan.steps and plan.found_for["error"] == found.error
    theirs = DDIMScheduler(prediction_type="sample", clip_sample=False)
    scheduler = EIScheduler.from_config(theirs.config, plan=plan)  # the plan brings its own nodes
    scheduler.set_timesteps(5)
    held_out = guided_problems[1].held_out
    error = (sample(held_out.denoise, scheduler, held_out.noise) - held_out.reference).pow(2).mean().sqrt()
    assert float(error) == pytest.approx(found.error, rel=1e-6)
    for other in (
        fingerprint({"w": weights["w"] + 1}, schedule, {"scale": 7.5}),
        fingerprint(weights, {**schedule, "beta_end": 0.012}, {"scale": 7.5}),
        fingerprint(weights, schedule, {"scale": 5.0}),
    ):
        with pytest.raises(InputError, match="another network, schedule or guidance"):
            load_plan(tmp_path / "plan.json", other)
    assert fingerprint(weights, {**schedule, "plan": "ddim"}, {"scale": 7.5}) == mark
    betas = torch.linspace(1e-4, 0.02, 2000)
    longer = [fingerprint(weights, {"trained_betas": b.numpy()}, 1) for b in (betas, betas * (1 + (betas > 0.01)))]
    assert longer[0] != longer[1]  # the text of a long array is abridged
    with pytest.raises(InputError, match="search one again"):
        load_plan(tmp_path / "none.json", mark)


def test_teleport(cases):
    """Past the first steps for free: at most 0.7 of the error at equal calls."""
    land = -math.log(2.7)
    for calls in (5, 8, 10):
        ours, plain = [], []
        for case in cases:
            landed = case.prior.teleport(case.noise, SCHEDULE, START, land)
            ours.append(case.error("unipc2", calls, start=land, x=landed))
            plain.append(case.error("unipc2", calls))
        assert statistics.mean(ours) <= 0.7 * statistics.mean(plain)


def test_teleport_is_exact_on_a_gaussian_and_keeps_shapes():
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, dtype=torch.float64, generator=g)
    data = (torch.randn(500, 12, dtype=torch.float64, generator=g) @ mixing + 1).reshape(500, 3, 2, 2)
    prior = GaussianPrior.fit(data)
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64, generator=g)
    torch.testing.assert_close(
        prior.teleport(x, SCHEDULE, START, 2.0), integrate(prior.denoise, SCHEDULE, x, START, 2.0, 400), rtol=1e-5, atol=1e-5
    )
    there = prior.teleport(x, SCHEDULE, START, 0.0)
    torch.testing.assert_close(prior.teleport(there, SCHEDULE, 0.0, START), x)
    low = GaussianPrior.fit(data, rank=4)
    assert low.basis.shape == (12, 4) and low.teleport(x[:0], SCHEDULE, START, 0.0).shape == (0, 3, 2, 2)
    with pytest.raises(InputError, match="at least 2 latents"):
        GaussianPrior.fit(data[:1])


def test_prior_round_trip(tmp_path, cases):
    cases[0].prior.save(tmp_path / "prior.safetensors")
    again = GaussianPrior.load(tmp_path / "prior.safetensors")
    torch.testing.assert_close(again.denoise(cases[0].noise, 0.5, 0.8), cases[0].prior.denoise(cases[0].noise, 0.5, 0.8))
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 40)
    for name in ("broken.safetensors", "none.safetensors"):
        with pytest.raises(InputError, match="fit one again"):
            GaussianPrior.load(tmp_path / name)
    with pytest.raises(InputError, match="NaN"):
        GaussianPrior.fit(torch.full((3, 2), math.nan))


def test_stitching_is_free_to_forty_per_cent_and_not_to_sixty(cases):
    """Wiener filter for the first share of 20 calls: the error does not rise at 40 % and multiplies at 60 %."""

    def error(case, share):
        switch = START + (END - START) * (share - 1e-6)
        calls = []

        def counted(x, alpha, sigma):
            calls.append(1)
            return case.mixture.denoise(x, alpha, sigma)

        value = case.error("unipc2", 20, denoise=stitched(case.prior.denoise, counted, switch))
        assert len(calls) == round(20 * (1 - share))
        return value

    plain, forty, sixty = (statistics.mean(error(case, share) for case in cases) for share in (0.0, 0.4, 0.6))
    assert forty <= 1.02 * plain and sixty > 2 * plain


@pytest.fixture(scope="module")
def curves(cases):
    data = cases[0].mixture.sample(256, torch.Generator().manual_seed(11))
    return estimate_statistics(cases[0].mixture.denoise, SCHEDULE, data, START, END, nodes=41)


@pytest.mark.parametrize("order", [1, 3])
def test_measured_statistics_beat_data_prediction(cases, curves, order):
    v3 = Plan((Step(order=order, kind="v3"),), repeat=True)
    plain = Plan((Step(order=order),), repeat=True)
    assert cases[0].error(v3, 10, curves=curves) < 0.9 * cases[0].error(plain, 10)


@pytest.mark.parametrize(("l", "s", "kind"), [(1.0, 0.0, "data"), (0.0, -1.0, "noise")])
@pytest.mark.parametrize("corrector", ["none", "reuse"])
def test_trivial_statistics_are_data_and_noise_prediction(cases, l, s, kind, corrector):
    lams = torch.linspace(START, END, 9, dtype=torch.float64)
    flat = torch.ones(9, 64, dtype=torch.float64)
    curves = Statistics(lams, l * flat, s * flat, 0 * flat)
    v3, plain = (Plan((Step(order=3, kind=k, corrector=corrector),), repeat=True) for k in ("v3", kind))
    torch.testing.assert_close(cases[0].run(v3, 8, curves=curves), cases[0].run(plain, 8), rtol=1e-8, atol=1e-8)


def test_statistics_are_saved_beside_the_model_and_checked(cases, curves, tmp_path):
    curves.save(tmp_path / "statistics.safetensors")
    plan = Plan((Step(order=2, kind="v3"),), repeat=True)
    options = {"log_snr_end": END, "final_sigmas_type": "sigma_min", "prediction_type": "sample", "plan": plan}
    scheduler = EIScheduler(statistics=str(tmp_path / "statistics.safetensors"), **options)
    scheduler.set_timesteps(6)
    got = sample(cases[0].mixture.denoise, scheduler, cases[0].noise)
    torch.testing.assert_close(got, cases[0].run(plan, 6, curves=curves))
    with pytest.raises(InputError, match="statistics cover"):
        scheduler = EIScheduler(
            statistics=str(tmp_path / "statistics.safetensors"), **{**options, "final_sigmas_type": "zero", "log_snr_end": 5.0}
        )
        scheduler.set_timesteps(6)
    (tmp_path / "none").write_bytes(b"x" * 40)
    with pytest.raises(InputError, match="holds no statistics"):
        Statistics.load(tmp_path / "none")
    with pytest.raises(InputError, match="rising log-SNRs"):
        Statistics(curves.log_snrs.flip(0), curves.l, curves.s, curves.b)
    with pytest.raises(InputError, match="NaN"):
        Statistics(curves.log_snrs, math.nan * curves.l, curves.s, curves.b)
    (tmp_path / "none").unlink()
    with pytest.raises(InputError, match="No statistics"):
        EIScheduler(statistics=str(tmp_path / "none"), **options).set_timesteps(3)


def test_a_network_as_a_denoiser(cases):
    def network(x, time):  # says epsilon, and is told fractional timesteps
        alpha, sigma = (float(v) for v in SCHEDULE.alpha_sigma(SCHEDULE.log_snr(float(time[0]))))
        return (x - alpha * cases[0].mixture.denoise(x, alpha, sigma)) / sigma

    wrapped = as_denoiser(network, SCHEDULE, "epsilon")
    torch.testing.assert_close(
        wrapped(cases[0].noise, 0.6, 0.8), cases[0].mixture.denoise(cases[0].noise, 0.6, 0.8), rtol=1e-6, atol=1e-6
    )
