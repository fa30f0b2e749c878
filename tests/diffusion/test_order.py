"""Convergence on closed-form Gaussian ODEs, exactness of the coefficients, and the mixtures' own reference."""

import math

import numpy as np
import pytest
import torch

from diffusion.mixtures import Mixture, integrate
from diffusion.samplers.coefficients import adams_bashforth, lagrange, phi, polynomial_weights
from diffusion.samplers.plan import Plan, Step
from diffusion.samplers.sampling import sample
from diffusion.samplers.scheduler import EIScheduler
from diffusion.schedules import vp

START, END = -5.0, 3.0  # from a VP schedule's noise, where the low-order first steps leave no trace
VARIANCES = torch.tensor([4.0, 1.0, 0.25, 0.05], dtype=torch.float64)


def gaussian_denoiser(x, alpha, sigma):
    return alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2) * x


def gaussian_flow(x, schedule):
    """The exact solution: every coordinate keeps its place in units of its standard deviation."""
    (a0, s0), (a1, s1) = schedule.alpha_sigma(START), schedule.alpha_sigma(END)
    return x * ((a1**2 * VARIANCES + s1**2) / (a0**2 * VARIANCES + s0**2)).sqrt()


def solve(plan, steps, denoise=gaussian_denoiser, **config):
    scheduler = EIScheduler(
        plan=plan, prediction_type="sample", log_snr_start=START, log_snr_end=END, final_sigmas_type="sigma_min", **config
    )
    scheduler.set_timesteps(steps)
    x = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return sample(denoise, scheduler, x), x, scheduler.schedule


def slope(plan, **config):
    errors = []
    for steps in (20, 40, 80, 160):
        got, x, schedule = solve(plan, steps, **config)
        errors.append(float((got - gaussian_flow(x, schedule)).norm()))
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_observed_order(order, kind):
    observed = slope(Plan((Step(order=order, kind=kind),), repeat=True))
    assert abs(observed - order) < 0.15 if order < 3 else observed >= 2.9


@pytest.mark.parametrize(("order", "corrector"), [(1, "reuse"), (2, "reuse"), (3, "reuse"), (1, "fresh")])
@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
def test_corrector_adds_one_order(order, kind, corrector):
    observed = slope(Plan((Step(order=order, kind=kind, corrector=corrector),), repeat=True))
    assert observed >= (order + 0.85 if order < 3 else 3.5)  # measured 3.8 to 4.1 at order 3, not yet asymptotic


@pytest.mark.parametrize("schedule", ["vp", "ve", "flow"])
def test_order_in_every_coordinate_system(schedule):
    """x/alpha of any schedule solves the same ODE. EDM wraps the network: test_parity.py covers it."""
    assert abs(slope(Plan((Step(order=2),), repeat=True), schedule=schedule) - 2) < 0.15


def test_even_coefficients_are_adams_bashforth_and_first_order_on_uneven_nodes():
    assert adams_bashforth(4) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])
    assert adams_bashforth(3) == pytest.approx([23 / 12, -16 / 12, 5 / 12])
    assert adams_bashforth(3, 0.5) == pytest.approx([20.5 / 6, -20 / 6, 5.5 / 6])
    assert adams_bashforth(2, 0.8) == pytest.approx([2.8 / 1.6, -1.2 / 1.6])
    for order in (1, 2, 3, 4):
        for b in (0.3, 1.0):  # a constant slope is integrated exactly, whatever the momentum
            assert sum(adams_bashforth(order, b)) == pytest.approx(1)


@pytest.mark.parametrize("rate", [-2.0, -1.0, 0.0, 1.0])
@pytest.mark.parametrize("h", [1e-4, 0.3, 0.9999, 1.0001, 4.0])
def test_weights_integrate_polynomials_exactly(h, rate):
    """Against Gauss-Legendre with 40 nodes, relative to the size of the integrand."""
    nodes, quadrature = np.polynomial.legendre.leggauss(40)
    z, dz = h * (nodes + 1) / 2, quadrature * h / 2
    for n in (1, 2, 3, 4, 5):
        offsets = [h * o for o in (1.0, 0.0, -0.7, -1.9, -3.1)[:n]]
        weights = polynomial_weights(offsets, h, rate)
        for k in range(n):
            exact = float((dz * np.exp(rate * (h - z)) * (z / h) ** k).sum())
            got = sum(w * (o / h) ** k for w, o in zip(weights, offsets))
            assert got == pytest.approx(exact, rel=1e-11, abs=1e-13 * h)


def test_phi_is_continuous_where_the_series_meets_the_recursion():
    for k in range(7):
        for z in (-1.0, 1.0):
            assert phi(k, z * (1 - 1e-12)) == pytest.approx(phi(k, z), rel=1e-10)


def test_lagrange_weights_reproduce_a_quadratic():
    nodes, square = [3.0, 1.0, -2.0], lambda t: t * t - t + 4
    assert sum(w * square(t) for w, t in zip(lagrange(nodes, 2.2), nodes)) == pytest.approx(square(2.2))


def test_reference_integrator_is_fourth_order_and_exact_on_gaussians():
    schedule = vp()
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = gaussian_flow(x, schedule)
    errors = [float((integrate(gaussian_denoiser, schedule, x, START, END, n) - exact).norm()) for n in (50, 100)]
    assert 12 < errors[0] / errors[1] < 20 and errors[1] < 1e-4


def test_mixture_denoiser_is_the_posterior_mean():
    """Against the score of the noisy density by finite differences: D = (x + sigma^2 grad log p) / alpha (Tweedie)."""
    mixture = Mixture.power_law(d=5, components=3, seed=4)
    alpha, sigma = 0.8, 0.6
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    noisy = mixture.bases @ torch.diag_embed(alpha**2 * mixture.variances + sigma**2) @ mixture.bases.mT
    components = torch.distributions.MultivariateNormal(alpha * mixture.means, noisy)
    density = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), components)
    (score,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(mixture.denoise(x, alpha, sigma), (x + sigma**2 * score) / alpha)


def test_mixture_samples_have_the_stated_moments():
    mixture = Mixture.power_law(d=6, components=4, seed=1)
    x = mixture.sample(40_000, torch.Generator().manual_seed(0))
    covariance = (mixture.bases @ torch.diag_embed(mixture.variances) @ mixture.bases.mT).mean(0)
    covariance = covariance + torch.cov(mixture.means.T, correction=0)
    torch.testing.assert_close(x.mean(0), mixture.means.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(x.T, correction=0), covariance, atol=0.12, rtol=0)
