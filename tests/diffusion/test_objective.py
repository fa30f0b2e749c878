"""Paths, losses, bridges, ambient training, averages: closed forms on Gaussians, and identities."""

import math

import numpy as np
import pytest
import torch

from diffusion.objective.average import WeightAverage
from diffusion.objective.bridges import denoiser_loss, gamma, transport, velocity_loss
from diffusion.objective.losses import ambient_loss, denoising_loss, min_snr_weight, rendered_loss
from diffusion.objective.paths import (
    OPTIMAL_TRANSPORT,
    TRIGONOMETRIC,
    VP,
    _shoot,
    kinetic_energy,
    kinetic_optimal,
    posterior_power,
    tabulated,
)
from diffusion.samplers.scheduler import EIScheduler
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.render import RenderOptions
from splat.render.reference import render as render_reference


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clusters():
    """Two tight clusters in 2-D, standardised: where straight paths are far from optimal."""
    x = randn(1000, 2, seed=3) * 0.15 + torch.where(torch.arange(1000)[:, None] % 2 == 0, 1.0, -1.0)
    return (x - x.mean(0)) / x.std(0)


@pytest.fixture(scope="module")
def fitted(clusters):
    return kinetic_optimal(clusters)


@pytest.mark.parametrize("path", [OPTIMAL_TRANSPORT, TRIGONOMETRIC, VP, "fitted"], ids=lambda p: getattr(p, "name", p))
def test_paths_join_data_and_noise_and_know_their_slope(path, fitted):
    path = fitted if path == "fitted" else path
    a, s, _, _ = path.curves(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert a[0] == pytest.approx(1, abs=1e-6) and s[0] == pytest.approx(0, abs=2e-5)
    assert a[1] == pytest.approx(0, abs=0.01) and s[1] == pytest.approx(1, abs=1e-4)
    t, h = torch.linspace(0.05, 0.95, 13, dtype=torch.float64), 1e-5
    x0, n = randn(13, 3), randn(13, 3, seed=1)
    difference = (path.noisy(x0, n, t + h) - path.noisy(x0, n, t - h)) / (2 * h)
    torch.testing.assert_close(path.velocity(x0, n, t), difference, rtol=1e-4, atol=1e-4)
    assert (path.snr(t).diff() < 0).all()


def test_velocity_of_optimal_transport_and_of_the_circle():
    x0, n, t = randn(4, 2), randn(4, 2, seed=1), torch.full((4,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(OPTIMAL_TRANSPORT.velocity(x0, n, t), n - x0)
    a, s, _, _ = TRIGONOMETRIC.curves(t[0])
    torch.testing.assert_close(TRIGONOMETRIC.velocity(x0, n, t), math.pi / 2 * (a * n - s * x0))  # v-prediction


def test_kinetic_optimal_path_spends_less_than_the_others(clusters, fitted):
    ratios = torch.logspace(-3, 3, 60, dtype=torch.float64)
    power = posterior_power(clusters, ratios, draws=1000)

    def power_of(r):
        i = torch.searchsorted(ratios, r.clamp(ratios[0], ratios[-1])).clamp(1, 59)
        share = (r.clamp(ratios[0], ratios[-1]).log() - ratios[i - 1].log()) / (ratios[i].log() - ratios[i - 1].log())
        return torch.lerp(power[i - 1], power[i], share).clamp(0, 1)

    energies = {p.name: kinetic_energy(p, power_of) for p in (fitted, OPTIMAL_TRANSPORT, TRIGONOMETRIC)}
    assert min(energies, key=energies.get) == "kinetic-optimal", energies


def test_kinetic_optimal_path_of_points_is_optimal_transport():
    """lambda = 1 at every noise level: the posterior has no spread."""
    angles = np.linspace(0.01, np.pi / 2 - 0.01, 50)
    path = _shoot(angles, np.ones(50), 257)
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    torch.testing.assert_close(torch.stack(path.curves(t)[:2]), torch.stack([1 - t, t]), rtol=0, atol=1e-4)


def test_posterior_power_of_a_gaussian_is_known():
    r = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)
    expected = r**2 / (1 + r**2)
    torch.testing.assert_close(posterior_power(randn(5000, 1), r, draws=2000), expected, rtol=0, atol=0.06)


def test_kinetic_optimal_wants_standardised_latents():
    with pytest.raises(InputError, match="standardise"):
        kinetic_optimal(5 * randn(100, 2))


def test_min_snr_is_one_loss_in_every_prediction_type():
    """The same x_0 error costs the same, whatever the network predicts."""
    x0, n, wrong = randn(6, 3, 4), randn(6, 3, 4, seed=1), randn(6, 3, 4, seed=2)
    alpha = torch.tensor([0.05, 0.3, 0.6, 0.9, 0.99, 0.999], dtype=torch.float64)
    for sigma, types in (
        ((1 - alpha**2).sqrt(), ("sample", "epsilon", "v_prediction")),
        (1 - alpha, ("sample", "epsilon", "flow_prediction")),
    ):
        a, s = alpha[:, None, None], sigma[:, None, None]
        x = a * x0 + s * n
        e = (x - a * wrong) / s
        norm = (a**2 + s**2).sqrt()
        says = {"sample": wrong, "epsilon": e, "v_prediction": (a * e - s * wrong) / norm, "flow_prediction": e - wrong}
        losses = [denoising_loss(says[t], x0, n, alpha, sigma, t, snr_floor=0.2) for t in types]
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0])
    assert min_snr_weight(torch.tensor([100.0, 0.01]), "sample", floor=0.2).tolist() == pytest.approx([5.0, 0.2])
    with pytest.raises(InputError):
        min_snr_weight(torch.ones(1), "score")


def test_perfect_predictions_cost_nothing():
    x0, n = randn(2, 5), randn(2, 5, seed=1)
    alpha = torch.tensor([0.3, 0.9], dtype=torch.float64)
    sigma = (1 - alpha**2).sqrt()
    targets = {"epsilon": n, "sample": x0, "v_prediction": alpha[:, None] * n - sigma[:, None] * x0}
    for kind, target in targets.items():
        assert denoising_loss(target, x0, n, alpha, sigma, kind).max() < 1e-20
    flow = denoising_loss(n - x0, x0, n, 1 - alpha, alpha, "flow_prediction", snr_limit=None)
    assert flow.max() < 1e-20


# ---- through a renderer ---------------------------------------------------------------------------------------------


class SplatPainter(torch.nn.Module):
    """From two noisy 12 x 12 views to six splats: the smallest network with a splat bottleneck."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2 * 144 * 3 + 1, 32), torch.nn.SiLU(), torch.nn.Linear(32, 6 * 14))
        torch.nn.init.normal_(self.layers[-1].weight, std=0.02)
        g = torch.Generator().manual_seed(0)
        self.start = torch.nn.Parameter(torch.randn(6, 14, generator=g) * torch.tensor([0.4] * 3 + [0.2] * 11))

    def forward(self, noisy, time):
        out = self.layers(torch.cat([noisy.flatten(1), time[:, None] / 1000], 1)).unflatten(1, (6, 14)) + self.start
        return [
            Splats(o[:, :3], o[:, 3:7] + torch.tensor([1.0, 0, 0, 0]), o[:, 7:10] - 1.2, o[:, 10] + 1, o[:, 11:, None].mT)
            for o in out
        ]


@pytest.fixture(scope="module")
def cameras():
    return Cameras.orbit(2, 3.0, 10.0, 45.0, 12, 12, azimuth_deg=30.0)


def test_x0_through_a_renderer_trains_and_samples(cameras):
    """The loss falls, its gradient reaches every weight, and a sampler runs with the render as the x_0 prediction."""
    torch.manual_seed(0)
    network = SplatPainter()
    truth = Splats(
        torch.tensor([[0.3, 0.0, 0.0], [-0.3, 0.2, 0.1]]), torch.tensor([[1.0, 0, 0, 0]] * 2), torch.full((2, 3), -1.3),
        torch.full((2,), 3.0), torch.tensor([[[1.5, -1.0, -1.0]], [[-1.0, 1.5, 0.0]]]),
    )  # fmt: skip

    def pictures(splats):
        return render_reference(splats, cameras, RenderOptions()).rgb

    target = torch.stack([pictures(truth)])  # [1, V, H, W, 3]
    schedule = EIScheduler(prediction_type="sample").schedule
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    g = torch.Generator().manual_seed(1)
    history = []
    for _ in range(150):
        time = torch.randint(100, 900, (1,), generator=g)
        alpha, sigma = (torch.from_numpy(v).float() for v in schedule.alpha_sigma(schedule.log_snr(time.numpy())))
        noisy = alpha * target + sigma * torch.randn(target.shape, generator=g)
        rendered = torch.stack([pictures(s) for s in network(noisy, time.float())])
        loss = rendered_loss(rendered, target, torch.ones(1)).mean()  # weight 1, so that losses compare between times
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimiser.step()
        history.append(loss.item())
    assert sum(history[-20:]) < 0.4 * sum(history[:20])
    scheduler = EIScheduler(plan="unipc2", prediction_type="sample")
    scheduler.set_timesteps(5)
    x = torch.randn(target.shape, generator=g)
    with torch.no_grad():
        for t in scheduler.timesteps:
            render = torch.stack([pictures(s) for s in network(x, t.reshape(1))])
            x = scheduler.step(render, t, x).prev_sample
    torch.testing.assert_close(x, render, rtol=0, atol=1e-4)  # the result is a render: 3-D consistent by construction


def test_rendered_loss_weighs_views():
    target, rendered = torch.zeros(2, 3, 4, 4, 3), torch.ones(2, 3, 4, 4, 3)
    snr = torch.tensor([100.0, 0.01])
    torch.testing.assert_close(rendered_loss(rendered, target, snr), torch.tensor([5.0, 0.2]))
    one_unseen = rendered_loss(rendered, target, snr, unseen=torch.tensor([False, False, True]))
    torch.testing.assert_close(one_unseen, torch.tensor([11 / 3, 1.4 / 3]))
    masks = torch.ones(2, 3, 4, 4)
    with_masks = rendered_loss(rendered, target, snr, rendered_alpha=0 * masks, masks=masks, mask_weight=0.5)
    torch.testing.assert_close(with_masks, torch.tensor([7.5, 0.3]))

    def perceptual(a, b):
        return (a - b).abs().mean((1, 2, 3))

    torch.testing.assert_close(rendered_loss(rendered, target, snr, perceptual=perceptual), torch.tensor([10.0, 0.4]))


# ---- bridges --------------------------------------------------------------------------------------------------------


def test_bridge_between_two_gaussians_by_regression():
    """N(0, 1) to N(3, 0.25): the loss's minimiser among affine fields per time is the known velocity, and it transports."""
    a0, a1, m = 1.0, 0.5, 3.0

    def velocity(x, t):
        """E[dI/dt + gamma' z | x_t] of independent Gaussian ends."""
        (g, dg), t = gamma(t, 0.5), t
        variance = (1 - t) ** 2 * a0**2 + t**2 * a1**2 + g**2
        slope = (-(1 - t) * a0**2 + t * a1**2 + g * dg) / variance
        return m + slope[:, None] * (x - (t * m)[:, None])

    def denoiser(x, t):
        g, _ = gamma(t, 0.5)
        variance = (1 - t) ** 2 * a0**2 + t**2 * a1**2 + g**2
        return (g / variance)[:, None] * (x - (t * m)[:, None])

    n = 40_000
    x0, x1, z = randn(n, 1), m + a1 * randn(n, 1, seed=1), randn(n, 1, seed=2)
    t = torch.full((n,), 0.3, dtype=torch.float64)
    for loss, field in ((velocity_loss, velocity), (denoiser_loss, denoiser)):
        best = float(loss(field, x0, x1, t, z).mean())
        for wrong in (
            lambda x, t, f=field: 1.5 * f(x, t),
            lambda x, t, f=field: f(x, t) + 0.3,
            lambda x, t, f=field: f(x, t) + 0.2 * x,
        ):
            assert float(loss(wrong, x0, x1, t, z).mean()) > best + 0.003
    by_ode = transport(velocity, x0[:5000], 40)
    g = torch.Generator().manual_seed(5)
    by_sde = transport(velocity, x0[:5000], 200, denoiser=denoiser, noise=0.2, generator=g)
    for moved in (by_ode, by_sde):
        assert abs(float(moved.mean()) - m) < 0.03 and abs(float(moved.std()) - a1) < 0.03


def test_noise_of_the_bridge_sde_has_its_variance():
    """Where nothing pulls, x spreads by 2 noise t."""

    def zero(x, t):
        return 0 * x

    g = torch.Generator().manual_seed(5)
    x = transport(zero, randn(40_000, 1) * 0, 10, denoiser=zero, noise=0.2, generator=g)
    assert float(x.var()) == pytest.approx(0.4, rel=0.03)


# ---- ambient training -----------------------------------------------------------------------------------------------


def test_ambient_loss_is_least_at_the_clean_denoiser():
    """From samples of noise level 0.5 alone the minimiser is E[x_0 | x] of the clean data, not of the noisy ones."""
    n, own, v = 40_000, 0.5, 1.0
    y = randn(n, 1) * v**0.5 + own * randn(n, 1, seed=1)
    sigma = torch.full((n,), 1.2, dtype=torch.float64)
    level = torch.full((n,), own, dtype=torch.float64)
    noise = randn(n, 1, seed=2)

    def loss(gain):
        return float(ambient_loss(lambda x, s: gain * x, y, level, sigma, noise).mean())

    clean, noisy = v / (v + 1.2**2), (v + own**2) / (v + 1.2**2)
    assert loss(clean) < min(loss(clean - 0.03), loss(clean + 0.03), loss(noisy))
    with pytest.raises(InputError, match="above each sample"):
        ambient_loss(lambda x, s: x, y[:2], level[:2], torch.tensor([0.6, 0.4], dtype=torch.float64), noise[:2])


def test_ambient_loss_without_own_noise_is_edm_training():
    x0, noise = randn(5, 3), randn(5, 3, seed=1)
    sigma = torch.linspace(0.2, 3, 5, dtype=torch.float64)
    got = ambient_loss(lambda x, s: 0.3 * x, x0, torch.zeros(5, dtype=torch.float64), sigma, noise)
    x = x0 + sigma[:, None] * noise
    torch.testing.assert_close(got, (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * ((0.3 * x - x0) ** 2).mean(1))


# ---- averages -------------------------------------------------------------------------------------------------------


def test_weight_average():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = WeightAverage.of(network, decay=0.5)
    weight = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight.add_(1)
        network[1].num_batches_tracked.fill_(7)
    average.update(network)  # decay (1 + 1) / (10 + 1) at the first update
    torch.testing.assert_close(average.values["0.weight"], weight + 9 / 11)
    for _ in range(60):
        average.update(network)
    average.copy_to(other := torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).half())
    torch.testing.assert_close(other[0].weight.float(), weight + 1, rtol=1e-2, atol=1e-2)
    assert other[1].num_batches_tracked == 7


def test_tabulated_path_interpolates_its_table():
    u = np.linspace(0, 1, 11)
    path = tabulated("straight", u, 1 - u)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(
        torch.stack(path.curves(t)), torch.stack([1 - t, t, -torch.ones(7).double(), torch.ones(7).double()])
    )
