"""What is refused, and why."""

import pytest
import torch

from diffusion.samplers.coefficients import Node
from diffusion.samplers.plan import Plan, Step
from diffusion.samplers.scheduler import EIScheduler
from diffusion.schedules import vp
from splat.errors import InputError

SHIFTING = Plan((Step(shift_window=30.0),), repeat=True)


def test_time_shift_on_unit_variance_latents_is_refused():
    for variance in (0.8, 1.0, 1.2):
        with pytest.raises(InputError, match="says nothing about time"):
            EIScheduler(plan=SHIFTING, data_variance=variance).set_timesteps(5)
    with pytest.raises(InputError, match="data_variance"):
        EIScheduler(plan=SHIFTING).set_timesteps(5)


def test_because_the_variance_of_unit_variance_latents_is_the_same_at_every_time():
    """var(x_t) = a^2 v + s^2: its whole range over 1000 timesteps is 1 - v, while one sample of 4x32x32 measures it to 0.02."""
    alpha, sigma = vp().alpha_sigma(vp().log_snrs)

    def span(v):
        return float((alpha**2 * v + sigma**2).max() - (alpha**2 * v + sigma**2).min())

    one_sample = (2 / (4 * 32 * 32)) ** 0.5
    assert span(1.0) < 1e-12 and span(0.25) > 30 * one_sample
    # and then the best time in any window is whichever the sampling error picks
    x = torch.randn(64, 4 * 32 * 32, generator=torch.Generator().manual_seed(0))
    bars = torch.from_numpy(alpha[400:461] ** 2)
    target = bars * 1.0001 + (1 - bars)
    picked = (x.double().var(1)[:, None] - target).abs().argmin(1)
    assert set(picked.tolist()) <= {0, 60}  # always an edge of the window


def test_time_shift_finds_the_time_of_a_sample_where_the_data_vary_less():
    """Data of variance 0.1: a sample that truly belongs to time 420 or 380 while the plan says 400 is recognised."""
    schedule, variance, window = vp(), 0.1, 60.0
    for true_time in (380.0, 420.0):
        scheduler = EIScheduler(plan=SHIFTING, data_variance=variance, prediction_type="sample")
        scheduler.set_timesteps(5)
        scheduler._step_index = 1
        alpha, sigma = (float(v) for v in schedule.alpha_sigma(schedule.log_snr(true_time)))
        g = torch.Generator().manual_seed(0)
        x = alpha * variance**0.5 * torch.randn(8, 100_000, generator=g) + sigma * torch.randn(8, 100_000, generator=g)
        scheduler._nodes[1] = Node(alpha, sigma, 400.0)
        scheduler._shift_time(x, window)
        torch.testing.assert_close(scheduler.shifted_time, torch.full((8,), true_time, dtype=torch.float64), rtol=0, atol=8.0)
        assert abs(float(scheduler.timesteps[1]) - true_time) < 5


def test_a_loop_over_the_timesteps_sees_the_shifted_ones():
    """As in a pipeline: it holds views of `timesteps`, which is written in place."""
    scheduler = EIScheduler(plan=SHIFTING, data_variance=0.25)
    scheduler.set_timesteps(6)
    nominal, told = scheduler.timesteps.clone(), []
    x = torch.randn(2, 2048, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        told.append(float(t))
        x = scheduler.step(0.9 * x, t, x).prev_sample
    assert told == scheduler.timesteps.tolist() and told[0] == nominal[0] and told != nominal.tolist()
    assert (scheduler.timesteps - nominal).abs().max() <= 30


def lml(noise, previous, kappa, damping):
    """The Levenberg-Marquardt-Langevin direction as published: (I - w w^T / (damping + |w|^2)) e, brought back to |e|."""
    w = kappa * previous + (1 - kappa) * noise
    direction = noise - w * (w * noise).sum() / (damping + (w * w).sum())
    return direction * noise.norm() / direction.norm()


def test_lml_direction_without_momentum_is_exactly_a_no_op():
    """kappa = 0 makes w = e, so the projection only shrinks e, and the normalisation undoes that: nothing happened."""
    g = torch.Generator().manual_seed(0)
    noise, previous = (torch.randn(4 * 64 * 64, dtype=torch.float64, generator=g) for _ in range(2))
    for damping in (1e-3, 1.0, 1e3):
        torch.testing.assert_close(lml(noise, previous, 0.0, damping), noise, rtol=1e-6 / damping, atol=0)
    assert (lml(noise, previous, 0.5, 1.0) - noise).norm() > 0.5 * noise.norm()


def test_what_lml_changes_without_momentum_is_rounding():
    """In float32 the same formula moves the direction by 28 %, in bfloat16 by its own size: cancellation, not a method."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(4 * 64 * 64, generator=g)

    def deviation(dtype):
        moved = lml(noise.to(dtype), noise.to(dtype), 0.0, 1e-3).double()
        return float((moved - noise.to(dtype).double()).norm() / noise.double().norm())

    assert deviation(torch.float64) < 1e-6
    assert deviation(torch.float32) > 0.05
    assert not deviation(torch.bfloat16) < 0.5  # or not even a number


def variance_gap(window, steps):
    """Mean |var(x) - (a^2 v + s^2)| along DDIM on Gaussian data of variance 0.25, the network being told the shifted time."""
    schedule, v = vp(), 0.25
    scheduler = EIScheduler(plan=Plan((Step(shift_window=window),), repeat=True), data_variance=v)
    scheduler.set_timesteps(steps)
    x = torch.randn(8, 8192, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gaps = []
    for i in range(steps):
        alpha, sigma = (float(s) for s in schedule.alpha_sigma(schedule.log_snr(float(scheduler.timesteps[i]))))
        x = scheduler.step(sigma / (alpha**2 * v + sigma**2) * x, None, x).prev_sample
        node = scheduler._nodes[i + 1]
        gaps.append(float((x.var(1) - (node.alpha**2 * v + node.sigma**2)).abs().mean()))
    return sum(gaps) / len(gaps)


@pytest.mark.parametrize("steps", [10, 20])
def test_time_shift_lessens_the_variance_gap_where_it_is_allowed(steps):
    """Measured 0.0647 -> 0.0516 at 10 steps, 0.0336 -> 0.0155 at 20; at 5 steps it does not help (0.128 -> 0.132)."""
    assert variance_gap(50.0, steps) < 0.9 * variance_gap(0.0, steps)
