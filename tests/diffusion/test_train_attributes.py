"""The loss of the attribute predictor."""

import torch

from diffusion.train_attributes import channel_loss
from diffusion.volume import CHANNELS, OPACITY


def test_of_a_field_without_a_surface_the_loss_is_zero_and_differentiable():
    rows = torch.zeros(0, CHANNELS, requires_grad=True)
    loss = channel_loss(rows, torch.zeros(0, CHANNELS), torch.ones(CHANNELS))
    loss.backward()
    assert loss.item() == 0 and rows.grad.shape == rows.shape


def test_the_attributes_of_absent_gaussians_do_not_count():
    true = torch.zeros(2, CHANNELS)
    true[:, OPACITY] = torch.tensor([4.0, -20.0])
    rows = true.clone()
    at_rest = channel_loss(rows, true, torch.ones(CHANNELS))
    rows[1, 0] = 3.0
    assert torch.equal(channel_loss(rows, true, torch.ones(CHANNELS)), at_rest)
    rows[0, 0] = 3.0
    assert channel_loss(rows, true, torch.ones(CHANNELS)) > at_rest
