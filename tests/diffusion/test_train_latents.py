"""The first stage's loss on Gaussian latents, where the best denoiser is a formula; draws of objects; coarse to fine."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion.field import colour_of, field_of
from diffusion.models.latent_denoiser import LatentDenoiser
from diffusion.text_features import StoredText
from diffusion.text_stages import interpolated
from diffusion.train_attributes import field_loss
from diffusion.train_latents import LatentLoss, LatentTrainConfig, balanced_weights

VARIANCES = torch.tensor([4.0, 1.0, 0.25])


def losses(scale: float) -> torch.Tensor:
    """Of a network that still is the linear estimate for `VARIANCES`, on Gaussian latents of that variance times `scale`."""
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(4000, 3, generator=g) * (scale * VARIANCES).sqrt()
    text = StoredText(torch.randn(2, 16, generator=g).half(), torch.tensor([0, 1, 2]), torch.eye(2, 16), ("a", "b"))
    config = LatentTrainConfig(batch=2000, jitter=0.0)
    loss = LatentLoss(latents, text, torch.tensor([[0, 1]]).repeat(4000, 1), torch.ones(4000), config)
    network = LatentDenoiser(3, 16, 1, 16, 16, 16, conditioning=8, heads=1, head_dim=8).eval()
    network.variances.copy_(VARIANCES)
    return torch.stack([loss(network, torch.Generator().manual_seed(i))[0].detach() for i in range(4)])


def test_the_best_linear_denoiser_of_gaussian_latents_has_loss_one():
    """In preconditioned units an error as large as the posterior's deviation counts 1, at every noise and component."""
    assert float(losses(1.0).mean()) == pytest.approx(1, abs=0.03)
    assert float(losses(2.0).mean()) > 1.1


def test_a_rare_nouns_objects_are_drawn_more_often_and_variants_share_their_objects_chance():
    bank = SimpleNamespace(objects=np.array([0, 0, 1, 2, 3, 4]), nouns=("chair", "chair", "chair", "chair", "urn"))
    weights = balanced_weights(bank, np.arange(6), 0.5)
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.25, 0.5, 0.5, 0.5, 1.0]))
    torch.testing.assert_close(balanced_weights(bank, np.arange(6), 0.0), torch.tensor([0.5, 0.5, 1, 1, 1, 1.0]))


def test_interpolated_fields_have_the_finer_limit_and_keep_colours():
    centres, rgb = torch.tensor([[0.05, -0.1, 0.02]]), torch.tensor([[0.9, 0.2, 0.1]])
    made = interpolated(field_of(centres, rgb, 16, 0.3)[None], 0.3, 32, 0.15)
    true = field_of(centres, rgb, 32, 0.15)[None]
    near, slope = true[:, :1], (true[:, :1] > 0.1) & (true[:, :1] < 0.7)  # the tip itself is rounded off by interpolation
    assert float((made[:, :1] - near)[slope].abs().mean()) < 0.06  # 0.32 were the limit still 0.3
    told = colour_of(made).movedim(1, -1)[slope[:, 0]]
    assert torch.allclose(told, rgb.expand_as(told), atol=0.02)
    assert bool((made[:, :1] >= 0).all()) and float(made.abs().amax(1)[near[:, 0] == 0].max()) < 0.05


def test_errors_near_a_surface_count_ten_times_and_a_perfect_field_nothing():
    true = torch.zeros(2, 4, 4, 4, 4)
    true[1] = 1.0
    assert torch.equal(field_loss(true, true), torch.zeros(2))
    far, near = field_loss(true - 0.1 * (torch.arange(4) == 0)[:, None, None, None], true)
    assert float(near / far) == pytest.approx(10, rel=1e-4)
