"""EIScheduler as a citizen of diffusers: unmodified pipelines, files, dtypes, batches, compilation, one clear error each."""

import json
import math
import shutil
import warnings

import diffusers
import pytest
import torch

from diffusion import schedules
from diffusion.mixtures import Mixture
from diffusion.samplers.adjustments import compensation_weights, langevin, thresholded
from diffusion.samplers.coefficients import Node
from diffusion.samplers.plan import PRESETS, Plan, Step, to_plan
from diffusion.samplers.sampling import sample
from diffusion.samplers.scheduler import EIScheduler
from splat.errors import InputError, StoppedLate

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # diffusers with numpy 2
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # diffusers on its own deprecated configs
]


def run(scheduler, x, steps=6, seed=0, network=lambda x, t: 0.5 * x):
    scheduler.set_timesteps(steps)
    g = torch.Generator().manual_seed(seed)
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, generator=g).prev_sample
    return x


def noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


# ---- pipelines ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ddpm():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("plan", ["unipc2", "deis2", "ghvb", "sde", "plms4"])
def test_unmodified_ddpm_pipeline(ddpm, plan):
    pipeline = diffusers.DDPMPipeline(ddpm.unet, EIScheduler.from_config(diffusers.DDPMScheduler().config, plan=plan))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=5, output_type="pt", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (2, 3, 8, 8) and images.isfinite().all()


def test_pipeline_saves_and_loads_with_the_scheduler(ddpm, tmp_path):
    pipeline = diffusers.DDPMPipeline(ddpm.unet, EIScheduler.from_config(diffusers.DDPMScheduler().config, plan="deis2"))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, EIScheduler) and again.scheduler.plan == PRESETS["deis2"]
    options = {"num_inference_steps": 4, "output_type": "pt"}
    first = pipeline(generator=torch.Generator().manual_seed(0), **options).images
    torch.testing.assert_close(first, again(generator=torch.Generator().manual_seed(0), **options).images, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def stable_diffusion():
    """Tiny and random; text comes as embeddings, so there is no text encoder."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    config = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "steps_offset": 1,
        "skip_prk_steps": True,
    }
    return unet, vae, diffusers.PNDMScheduler(**config)


def sd_pipeline(kind, stable_diffusion, scheduler):
    unet, vae, _ = stable_diffusion
    pipeline = kind(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("plan", ["unipc2", "dpmpp3", "flow-heun"])
@pytest.mark.parametrize("base", ["pndm", "euler", "dpm"])
def test_unmodified_stable_diffusion_pipeline(stable_diffusion, base, plan):
    config = stable_diffusion[2].config
    bases = {
        "pndm": stable_diffusion[2],
        "euler": diffusers.EulerDiscreteScheduler.from_config(config),
        "dpm": diffusers.DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True),
    }
    scheduler = EIScheduler.from_config(bases[base].config, plan=plan)
    assert scheduler.schedule.kind == ("ve" if base == "euler" else "vp")
    pipeline = sd_pipeline(diffusers.StableDiffusionPipeline, stable_diffusion, scheduler)
    g = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 4, 8, generator=g)
    latents = pipeline(
        prompt_embeds=embeds, negative_prompt_embeds=torch.zeros_like(embeds), num_inference_steps=5, guidance_scale=3.0,
        output_type="latent", generator=g,
    ).images  # fmt: skip
    assert latents.shape == (1, 4, 8, 8) and latents.isfinite().all()


def test_unmodified_image_to_image_pipeline_starts_in_the_middle(stable_diffusion):
    scheduler = EIScheduler.from_config(stable_diffusion[2].config, plan="unipc2")
    pipeline = sd_pipeline(diffusers.StableDiffusionImg2ImgPipeline, stable_diffusion, scheduler)
    g, embeds = torch.Generator().manual_seed(0), torch.ones(1, 4, 8)
    clean = torch.randn(1, 4, 8, 8, generator=g)  # four channels are taken as latents
    latents = pipeline(
        image=clean, prompt_embeds=embeds, negative_prompt_embeds=-embeds, strength=0.5, num_inference_steps=6,
        output_type="latent", generator=g,
    ).images  # fmt: skip
    assert latents.shape == clean.shape and latents.isfinite().all()
    assert scheduler.step_index == 6 and scheduler.begin_index == 3


@pytest.mark.parametrize("plan", ["flow-euler", "flow-heun", "unipc2"])
def test_unmodified_flow_pipeline(plan):
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), shift_factor=0.06, scaling_factor=1.5,
    )  # fmt: skip
    scheduler = EIScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config, plan=plan)
    nothing = dict.fromkeys(["text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"])
    pipeline = diffusers.StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, vae=vae, **nothing)
    pipeline.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(0)
    embeds, pooled = torch.randn(1, 4, 8, generator=g), torch.randn(1, 8, generator=g)
    latents = pipeline(
        prompt_embeds=embeds, pooled_prompt_embeds=pooled, guidance_scale=1.0, num_inference_steps=4, height=16, width=16,
        output_type="latent", generator=g,
    ).images  # fmt: skip
    assert latents.isfinite().all()


@pytest.mark.parametrize("plan", ["unipc2", "flow-heun"])
def test_unmodified_pipeline_that_always_passes_sigmas_on_another_grid(plan):
    """Flux says by its own sigmas how many steps it wants, and shifts them by the image's size; grid= replaces both."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), shift_factor=0.06, scaling_factor=1.5,
    )  # fmt: skip
    base = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    nothing = dict.fromkeys(["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
    g = torch.Generator().manual_seed(0)
    embeds, pooled = torch.randn(1, 4, 8, generator=g), torch.randn(1, 8, generator=g)
    for grid in (None, "log_snr", "karras"):
        scheduler = EIScheduler.from_config(base.config, plan=plan, grid=grid)
        pipeline = diffusers.FluxPipeline(transformer=transformer, scheduler=scheduler, vae=vae, **nothing)
        pipeline.set_progress_bar_config(disable=True)
        latents = pipeline(
            prompt_embeds=embeds, pooled_prompt_embeds=pooled, num_inference_steps=4, height=16, width=16, output_type="latent"
        ).images
        assert latents.isfinite().all() and scheduler.step_index == len(scheduler.timesteps) == (4 if plan == "unipc2" else 7)
        own = EIScheduler(schedule="flow", grid=grid, plan=plan, prediction_type="flow_prediction")
        own.set_timesteps(4)
        assert (grid is not None) == torch.equal(scheduler.timesteps, own.timesteps)


# ---- files and configs ----------------------------------------------------------------------------------------------


def test_config_round_trip_keeps_everything(tmp_path):
    base = diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True, thresholding=True)
    plan = Plan(
        (Step(order=2, compensation=0.9), Step(order=3, kind="noise", momentum=1.0), Step()), found_for={"fingerprint": "x"}
    )
    first = EIScheduler.from_config(base.config, plan=plan)
    first.save_pretrained(tmp_path)
    second = EIScheduler.from_pretrained(tmp_path)
    assert (
        second.plan == first.plan == plan and json.loads((tmp_path / "scheduler_config.json").read_text())["use_karras_sigmas"]
    )
    assert torch.equal(run(first, noise(2, 4, 4, 4), 3), run(second, noise(2, 4, 4, 4), 3))
    assert EIScheduler.from_config(first.config).plan == plan  # its own config, in memory


def test_a_diffusers_scheduler_can_take_the_config_back():
    ours = EIScheduler.from_config(diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear").config, plan="deis2")
    assert diffusers.DDIMScheduler.from_config(ours.config).config.beta_schedule == "scaled_linear"


@pytest.mark.parametrize("base", ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_another_grid_on_a_known_schedule(base, tmp_path):
    """Nodes even in log-SNR for a network of diffusers, which says at what fractional time to ask it."""
    ours = EIScheduler.from_config(getattr(diffusers, base)().config, plan="deis2", grid="log_snr")
    assert run(ours, noise(1, 3, 4, 4) * ours.init_noise_sigma, 8).isfinite().all()
    gaps = [b.log_snr - a.log_snr for a, b in zip(ours._nodes[:-2], ours._nodes[1:-1])]
    assert max(gaps) - min(gaps) < 1e-9 and ours._nodes[-1].sigma == 0
    ours.save_pretrained(tmp_path)
    again = EIScheduler.from_pretrained(tmp_path)
    again.set_timesteps(8)
    assert torch.equal(again.timesteps, ours.timesteps)
    with pytest.raises(InputError, match="own grid"):
        ours.set_timesteps(sigmas=[0.9, 0.5])


def test_custom_sigmas_and_timesteps_go_to_the_base():
    flow = EIScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config, plan="unipc2")
    flow.set_timesteps(sigmas=[1.0, 0.6, 0.2], mu=0.7)
    assert [round(n.sigma, 6) for n in flow._nodes] == [1.0, 0.6, 0.2, 0.0]
    dpm = EIScheduler.from_config(diffusers.DPMSolverMultistepScheduler().config, plan="dpmpp2")
    dpm.set_timesteps(timesteps=[999, 500, 100])
    assert dpm.timesteps.tolist() == [999, 500, 100]
    deis = EIScheduler.from_config(diffusers.DEISMultistepScheduler().config, plan="deis2")
    with pytest.raises(InputError, match="no custom timesteps"):
        deis.set_timesteps(timesteps=[999, 500])


@pytest.mark.parametrize("name", sorted(schedules.BASES))
def test_every_known_scheduler_is_recognised(name):
    theirs = getattr(diffusers, name)()
    ours = EIScheduler.from_config(theirs.config, plan="ddim")
    assert ours.schedule.kind == schedules.BASES[name][1]
    assert run(ours, noise(1, 3, 4, 4)).isfinite().all()


def test_unknown_scheduler_is_refused():
    with pytest.raises(InputError, match="whose grid is known"):
        EIScheduler.from_config(diffusers.ScoreSdeVeScheduler().config)


def test_initial_noise_is_the_base_schedulers():
    for theirs in (diffusers.EulerDiscreteScheduler(timestep_spacing="leading"), diffusers.EDMEulerScheduler()):
        ours = EIScheduler.from_config(theirs.config, plan="ddim")
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
        ours.set_timesteps(7)
        theirs.set_timesteps(7)
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
        torch.testing.assert_close(ours.sigmas, theirs.sigmas.to(ours.sigmas))


@pytest.mark.parametrize("grid", schedules.GRIDS)
@pytest.mark.parametrize("schedule", ["vp", "ve", "edm", "flow"])
def test_own_grids_run_from_noise_to_data(schedule, grid):
    scheduler = EIScheduler(schedule=schedule, grid=grid, plan="dpmpp2", prediction_type="v_prediction")
    if (schedule, grid) == ("edm", "trailing"):
        with pytest.raises(InputError, match="trailing"):
            scheduler.set_timesteps(6)
        return
    assert run(scheduler, noise(1, 3, 4, 4)).isfinite().all()
    log_snrs = [node.log_snr for node in scheduler._nodes]
    assert len(log_snrs) == 7 and log_snrs == sorted(log_snrs) and log_snrs[-1] == math.inf


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("plan", ["unipc3", "ghvb", "flow-heun", "sde"])
def test_dtypes(plan, dtype):
    exact = run(EIScheduler(plan=plan), noise(2, 3, 4, 4, dtype=torch.float64))
    got = run(EIScheduler(plan=plan), noise(2, 3, 4, 4, dtype=dtype))
    assert got.dtype == dtype and got.isfinite().all()
    if plan != "sde":  # random numbers differ between dtypes
        tolerance = {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float32: 1e-5, torch.float64: 0}[dtype]
        assert float((got.double() - exact).norm() / exact.norm()) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once_a_step(dtype):
    """What is known of earlier steps stays in float32, and so does the arithmetic."""
    half, single = EIScheduler(plan="unipc3"), EIScheduler(plan="unipc3")
    half.set_timesteps(5)
    single.set_timesteps(5)
    x = noise(2, 3, 4, 4, dtype=dtype)
    for t in half.timesteps:
        said = x.tanh()
        expected = single.step(said.float(), t, x.float()).prev_sample.to(dtype)
        x = half.step(said, t, x).prev_sample
        assert torch.equal(x, expected)


@pytest.mark.parametrize("plan", [*PRESETS, "everything"])
def test_batches_of_one_and_of_none_and_independence(plan):
    if plan == "everything":
        plan = Plan((Step(churn=0.3, langevin=0.1, compensation=0.9),), repeat=True, needs_mean=True)
    one, empty = EIScheduler(plan=plan), EIScheduler(plan=plan, thresholding=True)

    def run_anew(scheduler, x):
        if scheduler.plan.needs_mean:
            scheduler.set_mean(torch.zeros(3, 4, 4))
        return run(scheduler, x)

    assert run_anew(one, noise(1, 3, 4, 4)).shape == (1, 3, 4, 4)
    assert run_anew(empty, noise(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    step = one.plan.steps[0]
    if not (step.eta or step.churn or step.langevin):  # a sample does not feel its neighbours
        both = run_anew(one, noise(2, 3, 4, 4))
        torch.testing.assert_close(both[:1], run_anew(one, noise(2, 3, 4, 4)[:1]))


def test_mean_reverting_sampling_is_ordinary_sampling_of_the_difference():
    mean, x = noise(1, 3, 4, 4, dtype=torch.float64) + 2, noise(2, 3, 4, 4, dtype=torch.float64)
    ordinary = run(EIScheduler(plan="dpmpp2"), x, network=lambda x, t: x.tanh())
    reverting = EIScheduler(plan="mr")
    reverting.set_mean(mean)
    shifted = run(reverting, x + mean, network=lambda x, t: (x - mean).tanh())
    torch.testing.assert_close(shifted - mean, ordinary, rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="call set_mean"):  # the next picture must bring its own
        reverting.set_timesteps(6)
    with pytest.raises(InputError, match="not mean-reverting"):
        EIScheduler(plan="dpmpp2").set_mean(mean)
    clipped = EIScheduler(plan="mr", clip_sample=True)  # x_0 is clipped, not its distance from the mean
    clipped.set_mean(mean)
    got = run(clipped, x + mean, network=lambda x, t: (x - mean).tanh())
    assert float(got.abs().max()) == pytest.approx(1) and float((got - mean).abs().max()) > 1


def test_stochastic_plans_keep_the_law():
    """Reverse SDE, churn and Langevin steps on a Gaussian: mean and variance of many samples, to sampling error."""
    mean, variance = 1.5, 0.25

    def denoise(x, alpha, sigma):
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)

    # churn and Langevin steps are first order here: churn's bias falls with the step, from 0.029 at 60
    for step, steps in ((Step(order=2, eta=1.0), 60), (Step(churn=0.025), 240), (Step(langevin=0.1), 240)):
        scheduler = EIScheduler(plan=Plan((step,), repeat=True), prediction_type="sample", final_sigmas_type="sigma_min")
        scheduler.set_timesteps(steps)
        g = torch.Generator().manual_seed(0)
        x = sample(denoise, scheduler, torch.randn(250, 256, generator=g), g)
        assert abs(float(x.mean()) - mean) < 0.01, step
        assert abs(float(x.var()) - variance) < 0.015, step


@pytest.mark.parametrize(
    "step",
    [{"order": 3, "eta": 0.5}, {"order": 2, "eta": 1.0}, {"order": 2, "eta": 0.7, "corrector": "reuse"}, {"churn": 0.8}],
    ids=str,
)
def test_noise_of_a_stochastic_step_fills_its_level_exactly(step):
    """Data that are one point: whatever the step, x must be alpha c + sigma z at every node. Five long steps, so that nearly
    all of z is fresh; 200,000 draws know sigma^2 to 0.3 %."""
    scheduler = EIScheduler(plan=Plan((Step(**step),), repeat=True), prediction_type="sample", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(5)
    g, c = torch.Generator().manual_seed(0), 1.5
    start = scheduler._nodes[0]
    x = start.alpha * c + start.sigma * torch.randn(1000, 200, generator=g, dtype=torch.float64)
    for t, node in zip(scheduler.timesteps, scheduler._nodes[1:]):
        x = scheduler.step(torch.full_like(x, c), t, x, generator=g).prev_sample
        assert float(x.mean()) == pytest.approx(node.alpha * c, abs=0.01 * node.sigma)
        assert float(x.var()) == pytest.approx(node.sigma**2, rel=0.015)


def test_langevin_and_heun_calls_are_laid_out_as_diffusers_counts_them():
    scheduler = EIScheduler(plan="flow-heun", schedule="flow", prediction_type="flow_prediction")
    scheduler.set_timesteps(5)
    assert scheduler.order == 2 and len(scheduler.timesteps) == 9 and scheduler.timesteps[1] == scheduler.timesteps[2]
    assert EIScheduler(plan="unipc3").order == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("plan", ["unipc2", "ghvb", "flow-heun"])
def test_step_compiles_without_a_graph_break(plan, backend):
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    scheduler = EIScheduler(plan=plan, final_sigmas_type="sigma_min")
    x = noise(2, 3, 4, 4)
    expected = run(scheduler, x, 4, network=lambda x, t: x.tanh())

    def loop(x):
        for t in scheduler.timesteps:
            x = scheduler.step(x.tanh(), t, x, return_dict=False)[0]
        return x

    scheduler.set_timesteps(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on tracing
        got = torch.compile(loop, backend=backend, fullgraph=True)(x)
    bounds = {"rtol": 1e-4, "atol": 1e-4} if backend == "inductor" else {}  # it fuses and reorders float32 sums
    torch.testing.assert_close(got, expected, **bounds)


def test_compiled_step_called_from_an_eager_loop():
    """More steps than torch recompiles: the rest runs eagerly, with the same result."""
    scheduler, x = EIScheduler(plan="unipc2"), noise(2, 3, 4, 4)
    expected = run(scheduler, x, 12, network=lambda x, t: x.tanh())
    scheduler.set_timesteps(12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = torch.compile(scheduler.step, backend="eager")
        for t in scheduler.timesteps:
            x = step(x.tanh(), t, x, return_dict=False)[0]
    torch.testing.assert_close(x, expected)


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu():
    x = noise(2, 3, 4, 4)
    for plan in ("unipc2", "ghvb", "flow-heun"):
        here, there = run(EIScheduler(plan=plan), x), run(EIScheduler(plan=plan), x.cuda())
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)


def test_add_noise_follows_the_schedule():
    theirs = diffusers.DDIMScheduler()
    ours, x0, n = EIScheduler.from_config(theirs.config, plan="ddim"), noise(3, 2, 4, 4), noise(3, 2, 4, 4).flip(0)
    times = torch.tensor([0, 500, 999])
    torch.testing.assert_close(ours.add_noise(x0, n, times), theirs.add_noise(x0, n, times), rtol=1e-4, atol=1e-5)


# ---- one clear error each -------------------------------------------------------------------------------------------


def test_errors():
    scheduler = EIScheduler(plan="ddim")
    for steps in (0, -3, None):
        with pytest.raises(InputError, match=r"steps|ask for at least one"):
            scheduler.set_timesteps(steps)
    with pytest.raises(InputError, match="set_timesteps"):
        scheduler.step(noise(1, 2), 3, noise(1, 2))
    with pytest.raises(InputError, match="prediction type 'score'"):
        EIScheduler(prediction_type="score")
    with pytest.raises(InputError, match="Unknown plan 'euler-a'"):
        EIScheduler(plan="euler-a")
    with pytest.raises(InputError, match="Unknown time grid"):
        EIScheduler(grid="cubic").set_timesteps(3)
    with pytest.raises(InputError, match="3 steps and 5 were asked"):
        EIScheduler(plan=Plan((Step(),) * 3)).set_timesteps(5)
    with pytest.raises(InputError, match="3 steps and 2 were asked"):  # a plan longer than the steps
        EIScheduler(plan=Plan((Step(),) * 3)).set_timesteps(2)
    with pytest.raises(InputError, match="set_mean"):
        EIScheduler(plan="mr").set_timesteps(3)
    with pytest.raises(InputError, match="statistics"):
        EIScheduler(plan=Plan((Step(kind="v3"),), repeat=True)).set_timesteps(3)
    with pytest.raises(InputError, match="v_prediction"):
        base = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
        EIScheduler.from_config(base.config, plan="ddim").set_timesteps(3)
    scheduler.set_timesteps(2)
    with pytest.raises(InputError, match="none of this plan"):
        scheduler.step(noise(1, 2), 123.4, noise(1, 2))


def test_too_many_calls_is_an_error():
    scheduler = EIScheduler(plan="ddim")
    run(scheduler, noise(1, 2), 2)
    with pytest.raises(InputError, match="All 2 calls"):
        scheduler.step(noise(1, 2), scheduler.timesteps[-1], noise(1, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_predictions_that_are_not_finite_stop_with_numbers(bad):
    scheduler = EIScheduler(plan="unipc2")
    scheduler.set_timesteps(4)
    prediction = noise(1, 3, 2, 2)
    prediction[0, 1] = bad
    with pytest.raises(StoppedLate, match=r"call 1 of 4 .* has 4 of 12 values"):
        scheduler.step(prediction, scheduler.timesteps[0], noise(1, 3, 2, 2))


@pytest.mark.parametrize(
    "step",
    [
        {"order": 5},
        {"kind": "score"},
        {"momentum": 0},
        {"momentum": 0.5},
        {"eta": 2},
        {"eta": 1, "kind": "noise"},
        {"even": True},
        {"order": 2.0},
        {"corrector": "reused"},
        {"momentum": 0.5, "momentum_on": "both"},
        {"compensation": math.nan},
        {"node": math.inf},
    ],
)
def test_impossible_steps_are_refused(step):
    with pytest.raises(InputError):
        Step(**step)


def test_plans_from_files_are_checked():
    with pytest.raises(InputError, match="no sampling plan"):
        to_plan({"steps": [{"speed": 3}]})
    for wrong in ({"found_for": None}, {"end": math.nan}):
        with pytest.raises(InputError, match="found_for is a mapping"):
            to_plan({"steps": [{}], **wrong})
    with pytest.raises(InputError, match="rise from noise to data"):
        Plan((Step(node=1.0), Step(node=0.5)))
    nodes = Plan((Step(node=-4.0), Step(node=0.0, order=2)), end=3.0)
    scheduler = EIScheduler(plan=nodes)
    scheduler.set_timesteps(2)
    assert [round(node.log_snr, 9) for node in scheduler._nodes] == [-4.0, 0.0, 3.0]


def test_mixture_sampling_ends_on_the_mixture():
    """A whole run in float32 to clean data: 20 calls of UniPC on an ideal denoiser have the data's moments."""
    mixture = Mixture.power_law(d=8, components=3, seed=0)
    scheduler = EIScheduler(plan="unipc2", prediction_type="sample")
    scheduler.set_timesteps(20)
    x = sample(mixture.denoise, scheduler, noise(20_000, 8))
    truth = mixture.sample(20_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(x.double().mean(0), truth.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(x.T.double()), torch.cov(truth.T), rtol=0, atol=0.04)


# ---- what a user may get wrong --------------------------------------------------------------------------------------


def test_keywords_of_the_base_are_its_own_and_misspelt_ones_refused():
    theirs = diffusers.DPMSolverMultistepScheduler()
    ours = EIScheduler.from_config(theirs.config, plan="dpmpp2", use_karras_sigmas=True, timestep_spacing="trailing")
    karras = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, timestep_spacing="trailing")
    for scheduler in (ours, karras):
        scheduler.set_timesteps(7)
    torch.testing.assert_close(ours.sigmas, karras.sigmas.to(ours.sigmas))
    with pytest.raises(InputError, match="No scheduler reads plann"):
        EIScheduler.from_config(theirs.config, plann="dpmpp2")


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler", "CogVideoXDDIMScheduler", "DDIMInverseScheduler"])
def test_relatives_that_solve_another_problem_are_refused(name):
    config = dict(getattr(diffusers, name)().config)
    for given in (config, {**config, "_class_name": name}):
        with pytest.raises(InputError, match="whose grid is known"):
            EIScheduler.from_config(given)


def test_noise_of_a_zero_terminal_snr_schedule():
    theirs = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    ours, x0, n = EIScheduler.from_config(theirs.config), noise(3, 2, 4, 4), noise(3, 2, 4, 4).flip(0)
    times = torch.tensor([0, 500, 999])
    torch.testing.assert_close(ours.add_noise(x0, n, times), theirs.add_noise(x0, n, times), rtol=1e-3, atol=1e-3)
    own = EIScheduler.from_config(theirs.config, plan="deis2", grid="log_snr")
    assert run(own, x0, 5).isfinite().all() and own._nodes[0].alpha < 1e-3


def test_a_run_may_start_at_any_step_but_not_at_its_corrector():
    scheduler = EIScheduler(plan="flow-heun", schedule="flow", prediction_type="flow_prediction")
    scheduler.set_timesteps(5)
    scheduler.step(noise(1, 2), scheduler.timesteps[2], noise(1, 2))  # the time of a corrector and of the next step
    assert scheduler.step_index == 3
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(1)
    with pytest.raises(InputError, match="corrects a step that was not taken"):
        scheduler.step(noise(1, 2), None, noise(1, 2))


def test_learned_variances_are_dropped_and_other_shapes_refused():
    theirs = diffusers.DDPMScheduler(variance_type="learned_range")
    both, plain = (EIScheduler.from_config(c, plan="ddim") for c in (theirs.config, diffusers.DDPMScheduler().config))
    for scheduler in (both, plain):
        scheduler.set_timesteps(3)
    x, e = noise(1, 1, 4, 4), noise(1, 2, 4, 4)
    got = both.step(e, both.timesteps[0], x).prev_sample
    assert torch.equal(got, plain.step(e[:, :1], plain.timesteps[0], x).prev_sample)
    with pytest.raises(InputError, match=r"shape \(1, 2, 4, 4\) and the sample \(1, 1, 4, 4\)"):
        plain.step(e, plain.timesteps[1], x)  # would broadcast


def test_a_plan_with_nodes_runs_where_a_pipeline_brings_its_own_sigmas():
    plan = Plan((Step(node=-4.0), Step(node=0.0)), end=3.0)
    scheduler = EIScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config, plan=plan)
    scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=0.7)
    assert [round(node.log_snr, 9) for node in scheduler._nodes] == [-4.0, 0.0, 3.0]


@pytest.mark.parametrize(
    "config",
    [
        {"schedule": "vpp"},
        {"final_sigmas_type": "none"},
        {"base": "EulerScheduler"},
        {"beta_end": 1.5},
        {"trained_betas": []},
        {"log_snr_start": 3.0, "log_snr_end": -3.0},
        {"log_snr_end": math.nan},
    ],
)
def test_impossible_configs_are_refused(config):
    with pytest.raises(InputError):
        EIScheduler(plan="dpmpp2", **config).set_timesteps(4)


def test_more_steps_than_the_grid_has_levels():
    scheduler = EIScheduler.from_config(diffusers.DPMSolverMultistepScheduler().config, plan="dpmpp2")
    with pytest.raises(InputError, match="same noise level twice"):
        scheduler.set_timesteps(1500)
    with pytest.raises(InputError, match="whole number"):
        scheduler.set_timesteps(2.5)


@pytest.mark.parametrize("plan", ["unipc3", "deis3", "ghvb", "flow-heun", "sde"])
@pytest.mark.parametrize("base", [diffusers.PNDMScheduler(), diffusers.DDIMScheduler(set_alpha_to_one=False)])
def test_a_grid_whose_last_step_stays_where_it_is(base, plan):
    """DDIM and PNDM without steps_offset call the network at time 0 and end there: that step changes nothing."""
    scheduler = EIScheduler.from_config(base.config, plan=plan, clip_sample=False)
    scheduler.set_timesteps(5)
    x, states = noise(1, 3, 4, 4), []
    for t in scheduler.timesteps:
        x = scheduler.step(0.5 * x, t, x).prev_sample
        states.append(x)
    assert x.isfinite().all() and scheduler._nodes[-1].log_snr == scheduler._nodes[-2].log_snr
    if scheduler.plan.steps[0].corrector == "none":  # a corrector still moves the state that the last call is made at
        torch.testing.assert_close(states[-1], states[-2])


def test_a_corrector_belongs_to_the_step_that_it_redoes():
    """The first of four steps is corrected, with the second's prediction; the others are not."""
    mixed = EIScheduler(plan=Plan((Step(order=2, corrector="reuse"), *(Step(order=2),) * 3)))
    always, never = EIScheduler(plan="unipc2"), EIScheduler(plan="dpmpp2")
    states = {}
    for scheduler in (mixed, always, never):
        scheduler.set_timesteps(4)
        x, states[scheduler] = noise(1, 3, 4, 4, dtype=torch.float64), []
        for t in scheduler.timesteps:
            x = scheduler.step(x.tanh(), t, x).prev_sample
            states[scheduler].append(x)
    assert torch.equal(states[mixed][1], states[always][1]) and not torch.equal(states[mixed][1], states[never][1])
    assert not torch.equal(states[mixed][2], states[always][2])


def test_a_fresh_corrector_from_pure_noise_has_nothing_to_integrate():
    plan = Plan((Step(corrector="fresh"),), repeat=True)
    scheduler = EIScheduler(plan=plan, schedule="flow", grid="trailing", prediction_type="flow_prediction")
    assert run(scheduler, noise(1, 3, 4, 4)).isfinite().all() and math.isinf(scheduler._nodes[0].log_snr)


def test_thresholding_clips_each_sample_at_its_own_quantile():
    ramp = torch.linspace(-1, 1, 2001).reshape(1, 3, 667)
    data = torch.cat([4 * ramp, 0.5 * ramp, 40 * ramp])  # sizes evenly spread up to 4, 0.5 and 40
    got = thresholded(data, 0.75, 10.0)
    torch.testing.assert_close(got[0], (4 * ramp[0]).clamp(-3, 3) / 3, rtol=2e-3, atol=2e-3)  # three quarters lie below 3
    torch.testing.assert_close(got[1], data[1])  # never spread out
    torch.testing.assert_close(got[2], (40 * ramp[0]).clamp(-10, 10) / 10)  # 30, but at most 10


def test_langevin_step_has_the_published_size():
    """Two alike generators: the step's noise is known, so x moves by e score + sqrt(2 e) z with e = 2 (snr |z| / |score|)^2."""
    x, score = noise(1, 500), noise(2, 500)[1:]
    z = torch.randn(1, 500, generator=torch.Generator().manual_seed(7))
    size = 2 * (0.16 * z.norm() / score.norm()) ** 2
    got = langevin(x, score, 0.16, torch.Generator().manual_seed(7))
    torch.testing.assert_close(got, x + size * score + (2 * size).sqrt() * z)


def test_compensation_reads_the_quadratic_at_its_ratio():
    nodes = [Node(0.6, 0.8, time) for time in (300.0, 500.0, 900.0)]
    assert compensation_weights(nodes, 1.0) == pytest.approx([1, 0, 0])
    weights = compensation_weights(nodes, 0.75)  # time 350
    assert sum(w * (n.time / 100) ** 2 for w, n in zip(weights, nodes)) == pytest.approx(3.5**2)
    assert compensation_weights(nodes[:2], 0.75) == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(("kind", "prediction_type"), [("data", "sample"), ("noise", "epsilon")])
def test_a_compensated_prediction_replaces_the_newest_and_stays_in_the_history(kind, prediction_type):
    """A first-order step at ratio 0.8 is the plain one of the quadratic through the last three, read off at 0.8."""
    plans = (Plan((Step(kind=kind, compensation=0.8),), repeat=True), Plan((Step(kind=kind),), repeat=True))
    ours, plain = (EIScheduler(plan=plan, prediction_type=prediction_type) for plan in plans)
    ours.set_timesteps(5)
    plain.set_timesteps(5)
    x, known = noise(6, 2, 4, 4, dtype=torch.float64)[:3], []
    for i, said in enumerate(noise(6, 2, 4, 4, dtype=torch.float64)[3:]):
        known.insert(0, said)
        if i:
            weights = compensation_weights([ours._nodes[i - j] for j in range(len(known))], 0.8)
            known[0] = sum(w * k for w, k in zip(weights, known))
        expected = plain.step(known[0], None, x[i]).prev_sample
        torch.testing.assert_close(ours.step(said, None, x[i]).prev_sample, expected)


def test_heavy_ball_keeps_its_share_of_the_last_update():
    """v = (1 - b) v_last + b e per unit of the step's weight; b = 0.25, so that b and 1 - b differ."""
    plan = Plan((Step(kind="noise", momentum=0.25, momentum_on="update", even=True),), repeat=True)
    heavy, plain = EIScheduler(plan=plan), EIScheduler(plan="deis1")
    x, first, second = noise(3, 2, 4, 4, dtype=torch.float64).unbind(0)
    for scheduler in (heavy, plain):
        scheduler.set_timesteps(4)
    torch.testing.assert_close(heavy.step(first, None, x).prev_sample, plain.step(first, None, x).prev_sample)
    mixed = 0.75 * first + 0.25 * second
    torch.testing.assert_close(heavy.step(second, None, x).prev_sample, plain.step(mixed, None, x).prev_sample)
