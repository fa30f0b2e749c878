"""Latents of pictures: our own autoencoder's training, and the seam for those of diffusers in a folder."""

import json
import math
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from tiny_bank import disc_bank

from diffusion.models.autoencoder import Autoencoder, load_autoencoder
from diffusion.train_autoencoder import (
    AutoencoderLoss,
    AutoencoderTrainConfig,
    divergence,
    measure,
    new_autoencoder,
    on_white,
    sheet_of,
    train_autoencoder,
    validation_sheet,
)
from diffusion.training import TrainConfig
from splat.errors import InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def kl(**options):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return AutoencoderKL(block_out_channels=(8, 8, 16), norm_num_groups=4, sample_size=16, **blocks, **options).eval()


def tiny(**options):
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return AutoencoderTiny(num_encoder_blocks=(0, 1), num_decoder_blocks=(1, 0), **blocks, **options).eval()


@pytest.fixture
def pictures():
    """[3, 4, 16, 16], premultiplied."""
    g = torch.Generator().manual_seed(1)
    coverage = torch.rand(3, 1, 16, 16, generator=g)
    return torch.cat([torch.rand(3, 3, 16, 16, generator=g) * coverage, coverage], dim=1)


def test_a_kl_autoencoder_of_diffusers_is_read_from_a_folder_and_encodes_as_its_pipelines_do(tmp_path, pictures):
    network = kl(scaling_factor=0.25, shift_factor=0.1)
    network.save_pretrained(tmp_path)
    ours = load_autoencoder(tmp_path)
    assert (ours.channels, ours.factor, ours.colours) == (4, 4, 3)
    with torch.no_grad():
        expected = (network.encode(2 * on_white(pictures) - 1).latent_dist.mean - 0.1) * 0.25
        torch.testing.assert_close(ours.encode(pictures), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.encode(on_white(pictures)), expected, rtol=1e-4, atol=1e-5)
        made = (network.decode(expected / 0.25 + 0.1).sample + 1) / 2
        torch.testing.assert_close(ours.decode(expected), made, rtol=1e-4, atol=1e-5)
    assert made.shape == (3, 3, 16, 16)


def test_statistics_of_each_channel_are_taken_where_the_config_has_them(pictures):
    network = kl(scaling_factor=0.5, latents_mean=(0.1, 0.2, 0.3, 0.4), latents_std=(1.0, 2.0, 3.0, 4.0))
    ours = Autoencoder.of(network)
    with torch.no_grad():
        raw = network.encode(2 * on_white(pictures) - 1).latent_dist.mean
        found = ours.encode(pictures)
    torch.testing.assert_close(found[:, 2], (raw[:, 2] - 0.3) * 0.5 / 3)
    torch.testing.assert_close(found[:, 1], (raw[:, 1] - 0.2) * 0.5 / 2)


def test_a_tiny_autoencoder_with_coverage_is_read_and_takes_opaque_pictures_too(tmp_path, pictures):
    network = tiny(in_channels=4, out_channels=4, latent_channels=6, scaling_factor=2.0, shift_factor=-0.3)
    network.save_pretrained(tmp_path)
    ours = load_autoencoder(tmp_path)
    assert (ours.channels, ours.factor, ours.colours) == (6, 2, 4)
    with torch.no_grad():
        expected = (network.encode(2 * pictures - 1).latents + 0.3) * 2
        torch.testing.assert_close(ours.encode(pictures), expected, rtol=1e-4, atol=1e-5)
        opaque = torch.cat([pictures[:, :3], torch.ones(3, 1, 16, 16)], dim=1)
        torch.testing.assert_close(ours.encode(pictures[:, :3]), ours.encode(opaque))
        torch.testing.assert_close(ours.decode(expected), (network.decode(expected / 2 - 0.3).sample + 1) / 2)


@pytest.mark.parametrize("network", [kl(), tiny()], ids=["kl", "tiny"])
def test_encoding_has_the_gradient_of_finite_differences(network):
    ours = Autoencoder.of(network.double().requires_grad_(False))
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x.requires_grad_()
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours.encode(x).square().sum().backward()
    with torch.no_grad():
        change = ours.encode(x + 1e-3 * direction).square().sum() - ours.encode(x - 1e-3 * direction).square().sum()
    assert float(change) / 2e-3 == pytest.approx(float((x.grad * direction).sum()), rel=1e-2)


def test_a_pipelines_folder_gives_its_vae_and_half_precision_files_become_single(tmp_path):
    tiny().half().save_pretrained(tmp_path / "vae", variant="fp16")
    ours = load_autoencoder(tmp_path)
    assert {p.dtype for p in ours.network.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in ours.network.parameters()) and not ours.network.training


def test_attention_under_the_names_of_stable_diffusion_1_is_read(tmp_path):
    kl().save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tmp_path / WEIGHTS)
    for name in [n for n in tensors if ".attentions." in n]:
        new = next((n for n in old if f".{n}." in name), None)
        if new is not None:
            tensors[name.replace(f".{new}.", f".{old[new]}.")] = tensors.pop(name)
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in tensors
    save_file(tensors, tmp_path / WEIGHTS)
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(load_autoencoder(tmp_path).encode(x), Autoencoder.of(kl()).encode(x), rtol=1e-4, atol=1e-5)


def spoilt(tmp_path, change):
    tiny().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    return tmp_path


NAME = "encoder.layers.0.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(NAME), f"1 missing, such as {NAME}"),
        (lambda t: t.update(more=torch.ones(1)), "1 unexpected, such as more"),
        (lambda t: t.update({NAME: torch.ones(9, 3, 3, 3)}), NAME),
    ],
    ids=["missing", "unexpected", "another shape"],
)
def test_weights_that_are_not_exactly_those_of_the_config_are_refused(tmp_path, change, told):
    with pytest.raises(InputError) as error:
        load_autoencoder(spoilt(tmp_path, change))
    assert told in str(error.value)


def test_what_is_no_autoencoder_on_disk_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        load_autoencoder(tmp_path / "nowhere")
    tiny().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).rename(tmp_path / "a" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="pickled"):
        load_autoencoder(tmp_path / "a")
    tiny().save_pretrained(tmp_path / "b")
    (tmp_path / "b" / WEIGHTS).write_bytes((tmp_path / "b" / WEIGHTS).read_bytes()[:300])
    with pytest.raises(InputError, match="copy it again"):
        load_autoencoder(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    with pytest.raises(InputError, match="a UNet2DModel, not PatchAutoencoder or AutoencoderKL or AutoencoderTiny"):
        load_autoencoder(tmp_path / "b")
    tiny(in_channels=5, out_channels=5).save_pretrained(tmp_path / "c")
    with pytest.raises(InputError, match="5 channels"):
        load_autoencoder(tmp_path / "c")
    with pytest.raises(InputError, match="multiples of 2"):
        Autoencoder.of(tiny()).encode(torch.zeros(1, 3, 7, 8))


def test_the_divergence_of_normal_latents_is_the_formula():
    x = torch.randn(200, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, deviation = torch.tensor([0.5, -1.0])[:, None, None], torch.tensor([2.0, 0.5])[:, None, None]
    formula = sum(0.5 * (m * m + s * s - 1) - math.log(s) for m, s in ((0.5, 2.0), (-1.0, 0.5))) / 2
    assert float(divergence(x * deviation + mean)) == pytest.approx(formula, rel=0.02)
    assert float(divergence(x)) < 1e-3


SMALL = AutoencoderTrainConfig(
    channels=6, patch=2, widths=(16, 32), blocks=(0, 1), batch=8, noise=0.05, recoloured=0.0,
    loop=TrainConfig(steps=320, lr=1e-2, warmup=20, average=0.95),
)  # fmt: skip


def test_pictures_to_learn_from_are_premultiplied_cut_outs_and_opaque_ones_over_backgrounds():
    bank = disc_bank()
    plain = AutoencoderTrainConfig(batch=64, recoloured=0.0, opaque=0.5)
    x, opaque = AutoencoderLoss(bank, bank.examples("train"), plain)._draw(torch.Generator().manual_seed(0))
    assert int(opaque.sum()) == 32
    assert bool((x[opaque, 3] == 1).all()) and bool((x[~opaque, :3] <= x[~opaque, 3:]).all())
    corner = x[:, :, 0, 0]  # no disc reaches it
    assert bool((corner[~opaque] == 0).all()) and corner[opaque, :3].std() > 0.2
    middle = x[:, :3, 8, 8].amax(1)  # every disc covers it: what is behind does not show
    assert float((middle - 200 / 255).abs().max()) < 1e-6
    permuted = AutoencoderTrainConfig(batch=64, recoloured=1.0, opaque=0.0)
    only_red = bank.examples("train")[::3]
    x, _ = AutoencoderLoss(bank, only_red, permuted)._draw(torch.Generator().manual_seed(0))
    assert set(x[:, :3, 8, 8].argmax(1).tolist()) == {0, 1, 2}


def test_training_reconstructs_objects_that_were_not_seen_and_writes_the_latents_statistics(tmp_path):
    """The mean of all pictures has 12.5 dB and white 9.4."""
    bank, events = disc_bank(), []
    run = train_autoencoder(bank, SMALL, tmp_path / "run", validation_sheet(bank, 6))
    try:
        while True:
            events.append(next(run))
    except StopIteration as stop:
        network = stop.value
    assert (tmp_path / "run" / "sheet-000320.png").is_file()
    assert events[-1].stage == "sheet" and events[-1].values["psnr"] > 15.5
    network.save_pretrained(tmp_path / "network")
    ours = load_autoencoder(tmp_path / "network")
    assert (ours.channels, ours.factor, ours.colours) == (6, 4, 4)
    x = torch.from_numpy(bank.views[bank.examples("train"), 1, ..., :4]).permute(0, 3, 1, 2).float() / 255
    found = measure(ours, x)
    assert found["psnr"] > 15.5 and abs(found["mean"]) < 0.15 and found["deviation"] == pytest.approx(1, abs=0.15)


def test_a_bank_without_validation_objects_has_no_sheet():
    assert validation_sheet(replace(disc_bank(4), splits=("train",) * 4)) is None


def test_a_fresh_autoencoder_is_the_same_for_one_seed_and_stages_must_match():
    a, b = (new_autoencoder(SMALL).state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(InputError, match="1 numbers of blocks"):
        new_autoencoder(AutoencoderTrainConfig(blocks=(1,)))


def test_a_sheet_has_pictures_above_what_was_made_of_them():
    x = torch.zeros(3, 4, 8, 8)
    x[:, 0], x[:, 3] = 1.0, 1.0
    sheet = sheet_of(x, torch.zeros(3, 4, 8, 8), columns=2)
    assert sheet.shape == (32, 16, 3)
    assert sheet[0, 0].tolist() == [1, 0, 0] and sheet[8, 0].tolist() == [1, 1, 1]
