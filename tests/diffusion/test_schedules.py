"""Schedules, conversions and grids: against diffusers' tables, closed forms, and round trips."""

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion import schedules
from diffusion.schedules import PREDICTION_TYPES, edm, flow, from_data, to_data_and_noise, vp
from splat.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers with numpy 2
ALL = {"vp": vp(), "cosine": vp("squaredcos_cap_v2"), "ve": vp("scaled_linear", kind="ve"), "edm": edm(), "flow": flow()}


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_vp_tables_are_diffusers(beta_schedule):
    theirs = diffusers.DDIMScheduler(beta_schedule=beta_schedule).alphas_cumprod.double().sqrt()
    alpha, _ = vp(beta_schedule).alpha_sigma(vp(beta_schedule).log_snrs)
    torch.testing.assert_close(torch.from_numpy(alpha), theirs, rtol=2e-4, atol=1e-7)  # theirs is a float32 product


@pytest.mark.parametrize("name", ALL)
def test_time_and_log_snr_are_inverse(name):
    schedule = ALL[name]
    lams = np.linspace(*schedule.log_snr_range, 23)
    np.testing.assert_allclose(schedule.log_snr(schedule.time(lams)), lams, atol=1e-9)
    alpha, sigma = schedule.alpha_sigma(lams)
    np.testing.assert_allclose(np.log(alpha / sigma), lams, atol=1e-9)
    norm = {"vp": alpha**2 + sigma**2, "flow": alpha + sigma}.get(schedule.kind, alpha)
    np.testing.assert_allclose(norm, 1)


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_infinite_log_snr_is_clean_data_or_pure_noise(name):
    alpha, sigma = ALL[name].alpha_sigma([-np.inf, np.inf])
    assert alpha.tolist() == [0, 1] and sigma.tolist() == [1, 0]


@given(lam=st.floats(-6, 6), kind=st.sampled_from(PREDICTION_TYPES), name=st.sampled_from(["vp", "ve", "flow"]))
def test_conversions_are_inverse_and_add_up(lam, kind, name):
    alpha, sigma = (float(v) for v in ALL[name].alpha_sigma(lam))
    g = torch.Generator().manual_seed(0)
    x0, n = (torch.randn(2, 5, dtype=torch.float64, generator=g) for _ in range(2))
    x = alpha * x0 + sigma * n
    data, noise = to_data_and_noise(from_data(x0, x, alpha, sigma, kind), x, alpha, sigma, kind)
    torch.testing.assert_close(data, x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(noise, n, rtol=1e-8, atol=1e-8)


def test_known_targets():
    x0, n, alpha, sigma = torch.tensor([[2.0]]), torch.tensor([[-1.0]]), 0.6, 0.8
    assert from_data(x0, alpha * x0 + sigma * n, alpha, sigma, "v_prediction").item() == pytest.approx(alpha * -1 - sigma * 2)
    x = 0.25 * x0 + 0.75 * n
    assert from_data(x0, x, 0.25, 0.75, "flow_prediction").item() == pytest.approx(-3)
    for convert in (to_data_and_noise, from_data):
        with pytest.raises(InputError, match="'score'"):
            convert(x0, x, 0.5, 0.5, "score")


def test_grids():
    schedule = vp()
    even = schedule.grid("log_snr", 4, end=3.5)
    np.testing.assert_allclose(np.diff(even), np.diff(even)[0])
    assert even[0] == schedule.log_snrs[-1] and even[-1] == 3.5
    karras = np.exp(-edm().grid("karras", 5))
    expected = (80 ** (1 / 7) + np.linspace(0, 1, 6) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(karras, expected)
    np.testing.assert_allclose(schedule.time(schedule.grid("linspace", 9)), np.linspace(999, 0, 10), atol=1e-6)
    np.testing.assert_allclose(schedule.time(schedule.grid("trailing", 10))[:-1], np.arange(999, 0, -100), atol=1e-6)
    assert np.isneginf(flow().grid("trailing", 4)[0])  # a flow starts at pure noise
    for bad in ("cubic", "Karras"):
        with pytest.raises(InputError, match="time grid"):
            schedule.grid(bad, 3)
    with pytest.raises(InputError, match="at least one"):
        schedule.grid("log_snr", 0)


def test_from_diffusers_reads_kind_and_betas():
    config = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_end=0.012).config
    schedule = schedules.from_diffusers(config)
    assert schedule.kind == "ve" and schedule.log_snrs[-1] == pytest.approx(vp("scaled_linear", beta_end=0.012).log_snrs[-1])
    assert schedules.from_diffusers(diffusers.EDMEulerScheduler(sigma_max=40.0).config).sigma_max == 40.0
    continuous = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    for ends in ({"sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True}, {}):
        theirs = diffusers.EulerDiscreteScheduler(**continuous, **ends)
        schedule = schedules.from_diffusers(theirs.config)
        theirs.set_timesteps(7)
        lams = -theirs.sigmas[:-1].double().log().numpy()
        np.testing.assert_allclose(schedule.time(lams), theirs.timesteps.numpy(), rtol=1e-6)
        np.testing.assert_allclose(schedule.log_snr(theirs.timesteps.numpy()), lams, rtol=1e-6)
        assert schedule.kind == "ve" and schedule.log_snr_range == pytest.approx((lams[0], lams[-1]), rel=1e-4)
    assert schedules.from_diffusers(diffusers.FlowMatchEulerDiscreteScheduler().config).kind == "flow"
    assert schedules.from_diffusers(diffusers.UniPCMultistepScheduler(use_flow_sigmas=True).config).kind == "flow"
    betas = np.linspace(0.001, 0.01, 50)
    assert len(schedules.from_diffusers(diffusers.DDIMScheduler(trained_betas=betas).config).log_snrs) == 50
    with pytest.raises(InputError, match="beta schedule"):
        vp("sigmoid")
