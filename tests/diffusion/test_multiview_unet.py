"""The splat denoiser on a Stable Diffusion backbone, with a tiny U-Net and a tiny autoencoder of random weights from disk."""

import json
import math

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from tiny_bank import disc_bank

from diffusion.image_config import ImageSampleConfig
from diffusion.models.autoencoder import Autoencoder, load_autoencoder
from diffusion.models.multiview_unet import MultiviewUNet, from_pipeline, from_unet, load_multiview_unet
from diffusion.sample_views import KnownViews, sample_splats
from diffusion.splat_maps import MAP_CHANNELS, ray_features, to_splats
from diffusion.train_multiview import MultiviewLoss, MultiviewTrainConfig
from diffusion.view_bank import cameras_at
from diffusion.view_space import LatentSpace
from splat.errors import InputError

SIDE, FACTOR, LATENT = 32, 4, 8  # pictures, pixels to a latent, latents
TOKENS, WIDTH = 5, 12


def tiny_unet(**options):
    """Two stages, attention in the finer one and the middle, as Stable Diffusion 1 is built."""
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
        "sample_size": LATENT,
    }
    return UNet2DConditionModel(**{**blocks, **options}).eval()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder as a pipeline's save_pretrained leaves it, without its text encoder."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_unet().save_pretrained(folder / "unet")
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), norm_num_groups=4, sample_size=SIDE, **blocks)
    vae.save_pretrained(folder / "vae")
    DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.02).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def network(pipeline):
    return from_pipeline(pipeline, load_autoencoder(pipeline), SIDE)


def inputs(batch=2, views=4, seed=0):
    """noisy, clean, is_clean (the first view), alpha, sigma, rays; and the cameras of one object."""
    g = torch.Generator().manual_seed(seed)
    coverage = torch.rand(batch, views, 1, SIDE, SIDE, generator=g).round()
    clean = torch.cat([torch.rand(batch, views, 3, SIDE, SIDE, generator=g) * coverage, coverage], dim=2)
    azimuth = torch.arange(views) * 2 * math.pi / views
    cameras = cameras_at(azimuth, torch.full((views,), 0.3), SIDE)
    is_clean = torch.zeros(batch, views, dtype=torch.bool)
    is_clean[:, 0] = True
    rays = torch.stack([ray_features(c, k, cameras, SIDE // 2) for c, k in zip(clean, is_clean, strict=True)])
    sigma = torch.full((batch,), 0.6)
    noisy = torch.randn(batch, views, 4, LATENT, LATENT, generator=g)
    return [noisy, clean, is_clean, (1 - sigma**2).sqrt(), sigma, rays], cameras


def a_sample(count=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    times = torch.tensor([10.0, 500.0, 999.0])[:count]
    return torch.randn(count, 4, LATENT, LATENT, generator=g), times, torch.randn(count, TOKENS, WIDTH, generator=g)


@torch.no_grad()
def test_without_the_added_channels_a_single_view_is_the_original_unet_bit_for_bit(network, pipeline):
    original = UNet2DConditionModel.from_pretrained(pipeline / "unet", low_cpu_mem_usage=False).eval()
    sample, time, text = a_sample()
    expected = original(sample, time, text).sample
    assert torch.equal(network.reference_prediction(sample, time, 1, text), expected)
    added = torch.randn(3, network.backbone.conv_in.added.in_channels, LATENT, LATENT)  # untrained, they change nothing
    assert torch.equal(network.reference_prediction(torch.cat([sample, added], 1), time, 1, text), expected)
    unwritten = original(sample, time, torch.zeros(3, 1, WIDTH)).sample
    assert torch.equal(network.reference_prediction(sample, time), unwritten)


@torch.no_grad()
def test_views_of_an_object_see_each_other_and_objects_do_not(network):
    sample, time, text = a_sample()
    sample = torch.cat([sample, sample.flip(0)])[:4]  # 2 objects in 2 views
    time = torch.full((4,), 300.0)
    before = network.features(sample, time, 2, text[:2])
    changed = sample.clone()
    changed[1] += 1  # the first object's second view
    after = network.features(changed, time, 2, text[:2])
    assert float((after[0] - before[0]).abs().max()) > 1e-4
    torch.testing.assert_close(after[2:], before[2:])
    alone = network.features(sample[:1], time[:1], 1, text[:1])
    assert float((alone - before[:1]).abs().max()) > 1e-4
    twice = network.features(sample[:1].expand(2, -1, -1, -1), time[:2], 2, text[:1])  # attention to a copy is no news
    torch.testing.assert_close(twice, alone.expand(2, -1, -1, -1), rtol=1e-4, atol=1e-5)


def test_it_makes_gaussians_of_noisy_latents_as_the_small_denoiser_does(network):
    arguments, cameras = inputs()
    maps = network(*arguments)
    assert maps.shape == (2, 4, MAP_CHANNELS, SIDE, SIDE) and bool(maps.isfinite().all())
    assert 0 < float(maps.detach().abs().mean()) < 0.5  # an untrained head says little
    splats = to_splats(maps[0], cameras, arguments[1][0], arguments[2][0])
    assert len(splats.means) == 4 * SIDE * SIDE
    assert network.config.side == SIDE and network.config.space == "latent" and network.channels == 4


@torch.no_grad()
def test_known_views_are_read_clean_and_others_noisy(network):
    (noisy, clean, is_clean, alpha, sigma, rays), _ = inputs()
    before = network(noisy, clean, is_clean, alpha, sigma, rays)
    other = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(9))
    first = torch.tensor([True, False, False, False])[None, :, None, None, None]
    torch.testing.assert_close(network(torch.where(first, other, noisy), clean, is_clean, alpha, sigma, rays), before)
    torch.testing.assert_close(network(noisy, torch.where(first, clean, 0.5), is_clean, alpha, sigma, rays), before)
    for change in (torch.where(first, noisy, other), clean), (noisy, torch.where(first, 0.0 * clean, clean)):
        assert float((network(*change, is_clean, alpha, sigma, rays) - before).abs().max()) > 1e-4


@torch.no_grad()
def test_the_noise_level_becomes_the_schedules_timestep_and_scaled_samples_stay_the_same(network):
    (noisy, clean, is_clean, _, _, rays), _ = inputs()
    betas = torch.linspace(0.001**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - betas, 0)[400]
    heard = []
    handle = network.backbone.time_proj.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    try:
        a, s = (x.sqrt().float().expand(2) for x in (bar, 1 - bar))
        maps = network(noisy, clean, is_clean, a, s, rays)
        scaled = network(3 * noisy, clean, is_clean, 3 * a, 3 * s, rays)
    finally:
        handle.remove()
    torch.testing.assert_close(heard[0], torch.full((8,), 400.0), rtol=0, atol=0.01)
    torch.testing.assert_close(scaled, maps, rtol=1e-3, atol=1e-5)


def test_a_step_of_training_moves_what_was_added_and_the_backbone_but_not_the_reference(pipeline):
    network = from_pipeline(pipeline, load_autoencoder(pipeline), SIDE).train()
    (noisy, clean, is_clean, alpha, sigma, rays), _ = inputs()
    noisy.requires_grad_()
    target = torch.randn(2, 4, MAP_CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    loss = (network(noisy, clean, is_clean, alpha, sigma, rays) - target).square().mean()
    loss.backward()
    for name in ("head.weight", "head.bias", "nothing", "backbone.conv_in.added.weight", "backbone.conv_in.original.weight"):
        assert float(network.get_parameter(name).grad.abs().max()) > 0, name
    attention = network.backbone.mid_block.attentions[0].transformer_blocks[0].attn1
    assert float(attention.to_q.weight.grad.abs().max()) > 0
    assert float(noisy.grad[:, 1:].abs().min(dim=0).values.max()) > 0 and float(noisy.grad[:, 0].abs().max()) == 0
    assert network.reference.weight.grad is None and not network.reference.weight.requires_grad
    with torch.no_grad():
        for p in network.parameters():
            if p.grad is not None:
                p -= 0.05 * p.grad / p.grad.norm().clamp(min=1e-8)
        assert float((network(noisy, clean, is_clean, alpha, sigma, rays) - target).square().mean()) < float(loss.detach())


def test_training_and_sampling_of_the_small_denoiser_take_it_as_it_is(network, pipeline):
    """Its space is the autoencoder's; the loss renders its Gaussians, and the sampler goes through them."""
    bank, space = disc_bank(side=SIDE), LatentSpace(network.autoencoder)
    rows = torch.from_numpy(bank.examples("train"))
    config = MultiviewTrainConfig(batch=2, extra=1)
    loss = MultiviewLoss(bank, space, torch.ones(len(rows)), rows, config)
    value, _ = loss(network, torch.Generator().manual_seed(0))
    value.backward()
    moved = network.backbone.conv_in.added.weight.grad
    network.zero_grad()
    assert math.isfinite(float(value.detach())) and float(moved.abs().max()) > 0
    (_, clean, is_clean, *_), cameras = inputs(batch=1)
    given = KnownViews(clean[0], is_clean[0], cameras)
    splats = sample_splats(network, space, given, 0, ImageSampleConfig(steps=2))
    assert len(splats.means) == 4 * SIDE * SIDE and bool(splats.means.isfinite().all())


def test_it_is_saved_and_loaded_with_its_schedule_and_tokens(network, pipeline, tmp_path):
    text = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(4))
    autoencoder = load_autoencoder(pipeline)
    first = from_pipeline(pipeline, autoencoder, SIDE, no_text=text)
    with torch.no_grad():
        first.backbone.conv_in.added.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(6))
    first.save_pretrained(tmp_path)
    again = load_multiview_unet(tmp_path, autoencoder)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    arguments, _ = inputs()
    with torch.no_grad():
        assert torch.equal(first(*arguments), again(*arguments))
        assert torch.equal(first(*arguments), first(*arguments, text=text.expand(2, -1, -1)))
        assert not torch.equal(first(*arguments), network(*arguments))
    assert again.config.betas["beta_end"] == 0.02
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["_class_name"] == "MultiviewUNet" and saved["unet"]["cross_attention_dim"] == WIDTH
    with pytest.raises(InputError, match="load_multiview_unet"):
        MultiviewUNet.from_pretrained(tmp_path, low_cpu_mem_usage=False)(*arguments)
    with pytest.raises(InputError, match="4th the size"):
        load_multiview_unet(tmp_path, Autoencoder.of(AutoencoderTiny()))


def test_a_lone_unet_has_stable_diffusions_schedule(pipeline):
    network = from_pipeline(pipeline / "unet", load_autoencoder(pipeline), SIDE)
    assert network.config.betas["beta_start"] == 0.00085


def test_what_cannot_be_a_backbone_is_refused(pipeline, tmp_path):
    autoencoder = load_autoencoder(pipeline)
    with pytest.raises(InputError, match="reads 9 channels and the autoencoder makes 4"):
        from_unet(tiny_unet(in_channels=9), autoencoder, SIDE)
    with pytest.raises(InputError, match="classes"):
        from_unet(tiny_unet(num_class_embeds=10), autoencoder, SIDE)
    sdxl = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
    with pytest.raises(InputError, match="addition_embed_type"):
        from_unet(tiny_unet(**sdxl), autoencoder, SIDE)
    with pytest.raises(InputError, match="multiple of 8"):
        from_unet(tiny_unet(), autoencoder, 36)
    with pytest.raises(InputError, match="not UNet2DConditionModel"):
        from_pipeline(pipeline / "vae", autoencoder, SIDE)
    (tmp_path / "unet").mkdir()
    for file in (pipeline / "unet").iterdir():
        (tmp_path / "unet" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"scheduler_config\.json"):
        from_pipeline(tmp_path, autoencoder, SIDE)


def test_stable_diffusions_own_size_fits():
    """Without memory: the 859,520,964 parameters of Stable Diffusion 1's published U-Net, all kept, and the maps' shape."""
    published = {
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "sample_size": 64,
    }
    with torch.device("meta"), torch.no_grad():
        network = MultiviewUNet(published, side=256)
        added = sum(
            network.get_parameter(name).numel() for name in ("backbone.conv_in.added.weight", "head.weight", "head.bias")
        )
        assert sum(p.numel() for p in network.parameters()) - added - 768 == 859_520_964
        sample = torch.empty(4, 4 + network.backbone.conv_in.added.in_channels, 32, 32)
        maps = network.head(network.features(sample, torch.empty(4), views=4))
    assert maps.shape == (4, MAP_CHANNELS * 64, 32, 32)
