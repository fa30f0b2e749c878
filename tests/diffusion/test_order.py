"""Convergence on closed-form Gaussian ODEs, exactness of the coefficients, and the mixtures' own reference."""

import math

import numpy as np
import pytest
import torch

from diffusion.mixtures import Mixture, integrate
from diffusion.samplers.coefficients import adams_bashforth, lagrange, phi, polynomial_weights
from diffusion.samplers.plan import Plan, Step
from diffusion.samplers.scheduler import EIScheduler, Known
from diffusion.schedules import vp

START, END = -5.0, 3.0  # from a VP schedule's noise, where the low-order first steps leave little trace
VARIANCES = torch.tensor([4.0, 1.0, 0.25, 0.05], dtype=torch.float64)


def gaussian_denoiser(x, alpha, sigma):
    return alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2) * x


def gaussian_flow(x, schedule, start=START, end=END):
    """The exact solution: every coordinate keeps its place in units of its standard deviation."""
    (a0, s0), (a1, s1) = schedule.alpha_sigma(start), schedule.alpha_sigma(end)
    return x * ((a1**2 * VARIANCES + s1**2) / (a0**2 * VARIANCES + s0**2)).sqrt()


def error(plan, steps, start=START, exact=0, **config):
    """Distance to the exact solution. The first `exact` steps are not taken: states and predictions there are the true ones."""
    scheduler = EIScheduler(
        plan=plan, prediction_type="sample", log_snr_start=start, log_snr_end=END, final_sigmas_type="sigma_min", **config
    )
    scheduler.set_timesteps(steps)
    noise = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states = [gaussian_flow(noise, scheduler.schedule, start, node.log_snr) for node in scheduler._nodes]
    for x, node in zip(states[:exact], scheduler._nodes):
        data = gaussian_denoiser(x, node.alpha, node.sigma)
        scheduler._history = (Known(data, (x - node.alpha * data) / node.sigma, node), *scheduler._history)
    scheduler.set_begin_index(exact)
    x = states[exact]
    for _ in scheduler.timesteps[exact:]:
        node = scheduler.current_node()
        x = scheduler.step(gaussian_denoiser(x, node.alpha, node.sigma), None, x).prev_sample
    return float((x - states[-1]).norm())


def slope(plan, steps=160, **config):
    return math.log2(error(plan, steps // 2, **config) / error(plan, steps, **config))


def repeated(**step):
    return Plan((Step(**step),), repeat=True)


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_observed_order(order, kind):
    observed = slope(repeated(order=order, kind=kind))
    assert abs(observed - order) < 0.15 if order < 3 else observed >= 2.9


@pytest.mark.parametrize(("order", "corrector"), [(1, "reuse"), (2, "reuse"), (3, "reuse"), (1, "fresh")])
@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
def test_corrector_adds_one_order(order, kind, corrector):
    observed = slope(repeated(order=order, kind=kind, corrector=corrector))
    assert observed >= (order + 0.85 if order < 3 else 3.5)  # a whole run at order 3: 3.8 to 4.1, not yet asymptotic


@pytest.mark.parametrize("corrector", ["none", "reuse"])
@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_of_the_formula_alone(order, kind, corrector):
    """From log-SNR -2, in the thick of it, after as many exact steps as the polynomial wants, so that every step has its order.

    Third-order data prediction is still above its order here (3.17; 3.33 at 80 steps).
    """
    expected = order + (corrector == "reuse")
    observed = slope(repeated(order=order, kind=kind, corrector=corrector), 320, start=-2.0, exact=4)
    assert expected - 0.1 < observed < expected + 0.2


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
def test_low_order_first_steps_bound_the_order_of_a_run(kind):
    """The first step has one prediction to go by, so its error is of second order, third with a corrector, whatever follows.

    A run from pure noise hardly shows that, because predictions scarcely change there; one that starts in the middle does.
    """
    assert abs(slope(repeated(order=3, kind=kind), 320, start=-2.0) - 2) < 0.15
    assert slope(repeated(order=3, kind=kind), 320, start=-2.0, exact=2) >= 2.9  # two exact steps are enough


@pytest.mark.parametrize("schedule", ["vp", "ve", "edm", "flow"])
def test_order_in_every_coordinate_system(schedule):
    """x/alpha of any schedule solves the same ODE. EDM's network, with its preconditioning, is in test_parity.py."""
    assert abs(slope(repeated(order=2), schedule=schedule) - 2) < 0.15


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
