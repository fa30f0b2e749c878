"""The exponential integrator against diffusers' own schedulers, on their own grids, in float64."""

import diffusers
import pytest
import torch

from diffusion.samplers.scheduler import EIScheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers with numpy 2


def network(x, t):
    """Any smooth function will do: parity is a statement about coefficients."""
    mix = torch.linspace(-0.5, 0.5, 9, dtype=x.dtype).reshape(3, 3)
    return torch.einsum("ij,bjhw->bihw", mix, x).tanh() + 0.1 * torch.sin(torch.as_tensor(t, dtype=x.dtype) / 300)


def trajectory(scheduler, steps, dtype=torch.float64, network=network, **step_options):
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    states = []
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t).to(dtype), t, x, **step_options).prev_sample
        states.append(x)
    return torch.stack(states)


def difference(theirs, plan, steps, **options):
    expected = trajectory(theirs, steps, **options)
    ours = trajectory(EIScheduler.from_config(theirs.config, plan=plan), steps)
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize("steps", [5, 12, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order, steps):
    assert difference(diffusers.DEISMultistepScheduler(solver_order=order), f"deis{order}", steps) <= 1e-5


@pytest.mark.parametrize("steps", [5, 12, 20])
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_plus_plus(order, steps):
    theirs = diffusers.DPMSolverMultistepScheduler(solver_order=order, solver_type="heun")
    assert difference(theirs, f"dpmpp{order}", steps) <= 1e-5


def test_midpoint_variant_differs_by_design():
    theirs = diffusers.DPMSolverMultistepScheduler(solver_order=2, solver_type="midpoint")
    assert 1e-4 < difference(theirs, "dpmpp2", 12) < 0.02


def test_from_config_reproduces_the_twelve_step_deis_trajectory():
    """In float32, with the ideal noise predictor of data of variance 0.25, so that states have the size they have in use."""
    theirs = diffusers.DEISMultistepScheduler(solver_order=2, beta_schedule="linear")
    ours = EIScheduler.from_config(theirs.config, plan="deis2")

    def ideal(x, t):
        bar = theirs.alphas_cumprod[int(t)]
        return (1 - bar).sqrt() / (0.25 * bar + 1 - bar) * x

    expected, got = (trajectory(s, 12, torch.float32, network=ideal) for s in (theirs, ours))
    assert len(expected) == 12 and ours.timesteps.tolist() == theirs.timesteps.tolist()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


ONE_CALL = {
    "ddim": (diffusers.DDIMScheduler(clip_sample=False), "ddim"),
    "ddim, scaled linear, trailing": (
        diffusers.DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear", timestep_spacing="trailing"),
        "ddim",
    ),
    "ddim, zero terminal SNR": (
        diffusers.DDIMScheduler(
            clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
        ),
        "deis1",
    ),
    "euler": (diffusers.EulerDiscreteScheduler(), "ddim"),
    "euler karras v": (diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, prediction_type="v_prediction"), "deis1"),
    "euler continuous": (
        diffusers.EulerDiscreteScheduler(  # Stable Video Diffusion's
            timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0
        ),
        "ddim",
    ),
    "edm": (diffusers.EDMEulerScheduler(), "ddim"),
    "edm v": (diffusers.EDMEulerScheduler(prediction_type="v_prediction"), "ddim"),
    "flow": (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "flow-euler"),
    "flow as data prediction": (diffusers.FlowMatchEulerDiscreteScheduler(), "ddim"),
    "flow heun": (diffusers.FlowMatchHeunDiscreteScheduler(), "flow-heun"),
    "flow sigmas of a VP class": (
        diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=2, solver_type="heun"
        ),
        "dpmpp2",
    ),
}


@pytest.mark.parametrize("name", ONE_CALL)
def test_first_order_schedulers_of_every_family(name):
    theirs, plan = ONE_CALL[name]
    assert difference(theirs, plan, 10) <= 1e-5


def test_clipped_prediction_counts_for_the_noise_too():
    theirs = diffusers.DDIMScheduler(clip_sample=True)
    assert difference(theirs, "ddim", 10, use_clipped_model_output=True) <= 1e-5


def test_dynamic_thresholding():
    theirs = diffusers.DPMSolverMultistepScheduler(solver_type="heun", thresholding=True, sample_max_value=1.5)
    assert difference(theirs, "dpmpp2", 10) <= 1e-5


def test_eta_one_is_ancestral_sampling():
    """The first-order reverse SDE is DDIM with eta = 1, noise for noise (Lu et al. 2022b, section 4)."""
    theirs = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    expected = trajectory(theirs, 10, eta=1.0, generator=torch.Generator().manual_seed(3))
    ours = EIScheduler.from_config(theirs.config, plan={"steps": [{"eta": 1.0}], "repeat": True})
    got = trajectory(ours, 10, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(got[:-1], expected[:-1], rtol=1e-5, atol=1e-6)
