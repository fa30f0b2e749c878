"""Stable Diffusion as a repairer: small random networks of the real classes, and folders that will not do."""

import dataclasses
import json
import shutil

import pytest
import torch
from tiny_stable_diffusion import save_tiny_stable_diffusion

from diffusion.licence_notice import UNKNOWN, licence_of
from diffusion.models.stable_diffusion import decoded, encoded
from diffusion.sd_repair import PUBLISHED, SdRepairConfig, framed, load_sd_repairer, repair_cost, unframed
from diffusion.trusted_pixels import blurred, keep_trusted
from splat.errors import InputError
from splat.repair_request import RepairRequest

PLAIN = SdRepairConfig(least_side=8, keep_px=0, prompt="a chair", quality="")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return save_tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def repairer(checkpoint):
    return load_sd_repairer(checkpoint, PLAIN)


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(checkpoint, tmp_path / "sd")


def asked(images, trust=0.0, seed=3):
    v, h, w = images.shape[:3]
    rows = torch.zeros(v, 0, h, w)
    return RepairRequest(
        images, torch.ones(v, h, w), torch.full((v, h, w), trust), rows[..., None].expand(v, 0, h, w, 3), rows, seed
    )


def pictures(v=2, h=24, w=32, seed=0):
    return torch.rand(v, h, w, 3, generator=torch.Generator().manual_seed(seed))


def with_config(repairer, **changes):
    """The same networks, asked otherwise."""
    from diffusion.samplers.scheduler import EIScheduler

    config = dataclasses.replace(repairer.config, **changes)
    pipeline = type(repairer.pipeline)(**repairer.pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = EIScheduler.from_config(pipeline.scheduler.config, plan=config.plan)
    return dataclasses.replace(repairer, pipeline=pipeline, config=config)


def test_views_are_repaired_in_their_own_size_the_same_way_every_time(repairer):
    for size in ((24, 32), (37, 51), (9, 8)):
        images = pictures(1, *size)
        made = repairer(asked(images))
        assert made.shape == images.shape and made.dtype == torch.float32
        assert float(made.min()) >= 0 and float(made.max()) <= 1
        assert torch.equal(made, repairer(asked(images)))
        assert not torch.equal(made, images)


def test_views_of_a_request_share_their_noise(repairer):
    one = pictures(1)
    made = repairer(asked(one.expand(3, -1, -1, -1).contiguous()))
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert torch.equal(made[:1], repairer(asked(one)))  # and no view depends on the others
    assert not torch.equal(made[:1], repairer(asked(one, seed=4)))


def test_fresh_noise_of_a_stochastic_sampler_is_shared_too(repairer):
    stochastic = with_config(repairer, eta=1.0)
    one = pictures(1)
    made = stochastic(asked(one.expand(2, -1, -1, -1).contiguous()))
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[:1], repairer(asked(one)), atol=1e-3)


def test_it_computes_what_diffusers_own_ddim_does(repairer):
    from diffusers import DDIMScheduler

    stochastic = with_config(repairer, calls=PUBLISHED.calls, eta=PUBLISHED.eta)
    made = stochastic(asked(pictures(1)))
    names = ("beta_start", "beta_end", "beta_schedule", "clip_sample", "set_alpha_to_one", "timestep_spacing")
    config = stochastic.pipeline.scheduler.config
    pipeline = stochastic.pipeline
    pipeline.scheduler = DDIMScheduler(**{name: config[name] for name in names})
    picture, _ = framed(pictures(1)[0], 8, 8)
    with torch.no_grad():
        latents = pipeline(
            prompt="a chair",
            image=encoded(pipeline.vae, picture),
            control_image=picture,
            strength=0.2,
            num_inference_steps=50,
            guidance_scale=1.0,
            eta=1.0,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
        ).images
        theirs = decoded(pipeline.vae, latents).clamp(0, 1).permute(0, 2, 3, 1)
    assert torch.allclose(made, theirs, atol=1e-4)


def test_calls_are_counted(repairer):
    for strength, calls, expected in ((0.2, 5, 5), (0.2, 10, 10), (0.3, 7, 7), (0.7, 3, 3), (1.0, 4, 4), (0.003, 10, 3)):
        asking = with_config(repairer, strength=strength, calls=calls)
        heard = []
        hook = asking.pipeline.unet.register_forward_hook(lambda *_, heard=heard: heard.append(1))
        asking(asked(pictures(1, 8, 8)))
        hook.remove()
        assert len(heard) == expected, (strength, calls)


def test_the_less_noise_the_less_is_changed(repairer):
    """At strength 0 nothing is; towards it, what is left is the way through the autoencoder."""
    images = pictures(1)
    assert torch.equal(with_config(repairer, strength=0.0)(asked(images)), images)
    assert torch.equal(with_config(repairer, strength=0.0005)(asked(images)), images)  # less than one noise level
    picture, _ = framed(images[0], 8, 8)
    with torch.no_grad():
        through = decoded(repairer.pipeline.vae, encoded(repairer.pipeline.vae, picture)).clamp(0, 1).permute(0, 2, 3, 1)
    apart = [float((with_config(repairer, strength=s)(asked(images)) - through).abs().mean()) for s in (0.002, 0.05, 0.2, 0.8)]
    assert apart == sorted(apart) and apart[0] < 0.1 * apart[-1], apart


def test_words_and_render_are_heard(repairer):
    images = pictures(1)
    made = repairer(asked(images))
    assert not torch.equal(made, with_config(repairer, prompt="a table")(asked(images)))
    assert not torch.equal(made, with_config(repairer, control=0.0)(asked(images)))
    assert not torch.equal(made, with_config(repairer, guidance=3.0)(asked(images)))
    assert SdRepairConfig(prompt=" a chair ").text == "a chair, best quality, sharp"
    assert SdRepairConfig().text == "best quality, sharp"


def test_half_precision_stays_near(checkpoint, repairer):
    half = load_sd_repairer(checkpoint, PLAIN, dtype=torch.bfloat16)
    assert half.pipeline.unet.dtype == torch.bfloat16 and half.pipeline.vae.dtype == torch.float32
    images = pictures(1)
    assert float((half(asked(images)) - repairer(asked(images))).abs().mean()) < 0.02


@pytest.mark.parametrize("height, width", [(8, 8), (13, 40), (37, 51), (1, 3), (64, 30)])
def test_pictures_come_back_exactly_where_they_were(height, width):
    image = pictures(1, height, width)[0]
    picture, inner = framed(image, 1, 8)
    assert picture.shape[2] % 8 == 0 and picture.shape[3] % 8 == 0 and inner == (height, width)
    assert torch.equal(unframed(picture, inner, (height, width)), image)
    assert torch.equal(picture[0, :, -1, -1], image[-1, -1])  # the border goes on


def test_small_pictures_are_enlarged_for_the_network():
    smooth = blurred(pictures(1, 40, 30).permute(0, 3, 1, 2), 3.0)[0].permute(1, 2, 0)
    picture, inner = framed(smooth, 96, 8)
    assert inner == (128, 96) and picture.shape == (1, 3, 128, 96)
    assert float((unframed(picture, inner, (40, 30)) - smooth).abs().max()) < 0.01


def test_trusted_pixels_keep_their_colours_and_take_the_detail():
    """A repair that shifts every colour and sharpens: the shift goes everywhere, the detail stays everywhere."""
    render = 0.3 + 0.4 * blurred(pictures(1, 96, 96).permute(0, 3, 1, 2), 12.0).permute(0, 2, 3, 1)
    detail = 0.1 * (torch.arange(96) % 2)[None, None, :, None] - 0.05
    repaired = render + detail + torch.tensor([0.08, -0.05, 0.03])
    trust = torch.ones(1, 96, 96)
    trust[:, :, 48:] = 0  # the right half is a guess
    kept = keep_trusted(repaired, render, trust, torch.ones_like(trust), 8.0)
    assert float((kept - render - detail).abs().max()) < 5e-3
    assert float((keep_trusted(repaired, render, 0 * trust, torch.ones_like(trust), 8.0) - repaired).abs().max()) < 1e-6


def test_what_is_a_guess_may_change_altogether_and_does_not_bleed_into_what_is_trusted():
    render = torch.full((1, 64, 96, 3), 0.5)
    render[:, :, 48:] = 0.9  # a floater where nothing is known
    repaired = torch.full((1, 64, 96, 3), 0.5)
    trust = torch.ones(1, 64, 96)
    trust[:, :, 48:] = 0
    kept = keep_trusted(repaired, render, trust, torch.ones_like(trust), 6.0)
    assert torch.allclose(kept, repaired, atol=1e-5)


def test_trusted_background_is_kept_to_the_last_bit():
    render, repaired = torch.ones(1, 32, 32, 3), pictures(1, 32, 32)
    alpha = torch.zeros(1, 32, 32)
    alpha[:, 8:24, 8:24] = 1
    kept = keep_trusted(repaired, render, torch.ones(1, 32, 32), alpha, 4.0)
    assert torch.equal(kept[alpha == 0], render[alpha == 0])
    assert not torch.equal(kept[alpha == 1], render[alpha == 1])


def test_a_trusted_view_keeps_its_low_frequencies_through_the_networks(repairer):
    images = blurred(pictures(1, 64, 64).permute(0, 3, 1, 2), 6.0).permute(0, 2, 3, 1)
    kept = with_config(repairer, keep_px=4.0)

    def low(x):
        return blurred(x.permute(0, 3, 1, 2), 8.0)

    free = float((low(repairer(asked(images))) - low(images)).abs().mean())
    held = float((low(kept(asked(images, trust=1.0))) - low(images)).abs().mean())
    assert held < 0.15 * free, (held, free)


def test_what_it_costs_grows_with_views_and_pixels(repairer):
    small, large = repair_cost(repairer, 1, 512, 512), repair_cost(repairer, 10, 1024, 1024)
    assert large.seconds > 10 * small.seconds and large.memory > small.memory
    parts = {"unet": 859_520_964, "controlnet": 361_279_120}  # of Stable Diffusion 1.5
    assert small.memory < 4 * sum(parts.values())


def test_licences_are_read_from_the_folders(checkpoint, repairer, tmp_path):
    assert repairer.licences[0].endswith(": creativeml-openrail-m") and UNKNOWN in repairer.licences[1]
    (tmp_path / "LICENSE.md").write_text("\n# MIT License\n\nCopyright")
    assert licence_of(tmp_path) == "MIT License"
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: 'stair'\n---\n")
    assert licence_of(tmp_path) == "stair"
    (tmp_path / "README.md").write_text("---\nno end")
    assert licence_of(tmp_path) == "MIT License"


def test_parts_may_be_in_half_precision(folder):
    from safetensors.torch import load_file, save_file

    for name in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        whole = folder / f"{name}.safetensors"
        save_file({k: v.half() for k, v in load_file(whole).items()}, folder / f"{name}.fp16.safetensors", {"format": "pt"})
        whole.unlink()
    assert load_sd_repairer(folder, PLAIN).pipeline.unet.dtype == torch.float32


def edited(folder, path, **changes):
    file = folder / path
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickled(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_name("diffusion_pytorch_model.bin"))
    weights.unlink()


def cut(folder, path):
    file = folder / path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


SPOILT = {
    "no ControlNet": (lambda f: shutil.rmtree(f / "controlnet"), "lacks controlnet"),
    "a single file": (lambda f: (shutil.rmtree(f), f.write_text("x")), "is no folder"),
    "pickles": (pickled, "no .safetensors"),
    "a U-Net for a ControlNet": (
        lambda f: (shutil.rmtree(f / "controlnet"), shutil.copytree(f / "unet", f / "controlnet")),
        "not ControlNetModel",
    ),
    "cut weights": (lambda f: cut(f, "vae/diffusion_pytorch_model.safetensors"), "no whole AutoencoderKL"),
    "cut text encoder": (lambda f: cut(f, "text_encoder/model.safetensors"), "no CLIP model"),
    "no words": (lambda f: [p.unlink() for p in (f / "tokenizer").iterdir()], "neither tokenizer.json"),
    "words of another": (lambda f: edited(f, "text_encoder/config.json", vocab_size=20), "no CLIP model"),
    "another config": (lambda f: edited(f, "controlnet/config.json", block_out_channels=[8, 32]), "controlnet"),
    "no noise": (lambda f: (f / "scheduler" / "scheduler_config.json").write_text("[]"), "no noise schedule"),
    "strange noise": (lambda f: edited(f, "scheduler/scheduler_config.json", beta_schedule="loud"), "no noise schedule"),
    "unknown prediction": (lambda f: edited(f, "scheduler/scheduler_config.json", prediction_type="x"), "prediction type"),
}


@pytest.mark.parametrize("spoil, words", SPOILT.values(), ids=SPOILT)
def test_folders_that_will_not_do_are_refused_in_one_sentence(folder, spoil, words):
    spoil(folder)
    before = sorted(folder.rglob("*")) if folder.is_dir() else []
    with pytest.raises(InputError, match=words) as refused:
        load_sd_repairer(folder, PLAIN)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
    assert (sorted(folder.rglob("*")) if folder.is_dir() else []) == before


def test_parts_of_two_families_are_refused(folder):
    from diffusers import ControlNetModel

    ControlNetModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), block_out_channels=(8, 16), norm_num_groups=4,
        layers_per_block=1, attention_head_dim=4, cross_attention_dim=48, conditioning_embedding_out_channels=(4, 4, 8, 8),
    ).save_pretrained(folder / "controlnet")  # fmt: skip
    with pytest.raises(InputError, match="48 numbers and its text encoder gives 32"):
        load_sd_repairer(folder, PLAIN)


@pytest.mark.parametrize("wrong", [{"strength": 1.5}, {"calls": 0}, {"guidance": 0.5}, {"control": -1}, {"keep_px": -1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="must be"):
        SdRepairConfig(**wrong)


def test_samplers_that_make_no_sense_here_are_refused():
    for name in ("mr", "no such", "flow-heun"):
        with pytest.raises(InputError, match="none for repairs"):
            _ = SdRepairConfig(sampler=name).plan
