"""GVGEN's first stage: a noisy distance field on the dense grid and a sentence -> the clean field (He et al. 2024, 3.2).

Where ours differs: GVGEN's network gives x_0 itself, of a field scaled to [-1, 1]; ours works on fields less their mean over
the training set, each channel of variance 1, preconditioned as EDM's is (Karras et al. 2022, table 1), so that at little noise
it has little to do. It can be trained with its text left out, and so be guided. With four field channels colours are
diffused together with the distance; GVGEN's has the distance alone.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from diffusion.field import FIELD_CHANNELS
from diffusion.models.volume_unet import VolumeUNet
from diffusion.objective.paths import per_sample


class FieldDenoiser(ModelMixin, ConfigMixin):
    """`forward` predicts x_0 [B, C, R, R, R] from x = alpha x_0 + sigma n, alpha^2 + sigma^2 = 1; x_0 is `encode`d fields."""

    @register_to_config
    def __init__(
        self, resolution: int = 32, field_channels: int = FIELD_CHANNELS, channels: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 4), blocks: int = 1, attention: tuple[bool, ...] = (False, False, True),
        head_dim: int = 32, text_dim: int = 384,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("mean", torch.zeros(field_channels, *[resolution] * 3))
        self.register_buffer("std", torch.ones(field_channels))
        self.unet = VolumeUNet(
            field_channels, field_channels, channels, multipliers, blocks, attention, head_dim, text_dim, timed=True
        )

    def encode(self, fields: Tensor) -> Tensor:
        """Fields [B, 4, R, R, R], of which the first `field_channels` are read -> [B, C, R, R, R] of mean 0 and variance 1."""
        return (fields[:, : len(self.std)] - self.mean) / self.std[:, None, None, None]

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode`, within what a field can hold: [B, 4, R, R, R], grey without colour channels."""
        fields = x * self.std[:, None, None, None] + self.mean
        near = fields[:, :1].clamp(0, 1)
        colours = fields[:, 1:].clamp(-1, 1) if len(self.std) > 1 else near.new_zeros(len(x), FIELD_CHANNELS - 1, *x.shape[2:])
        return torch.cat([near, colours], dim=1)

    def forward(
        self,
        x: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        tokens: Tensor,
        mask: Tensor,
        pooled: Tensor | None = None,
        without: Tensor | None = None,
    ) -> Tensor:
        """alpha, sigma [B]; tokens [B, T, D], mask [B, T] bool; `without` [B] bool: no text. `pooled` is not read."""
        time = 1000 * torch.sigmoid(-(alpha / sigma).log() / 2)
        out = self.unet(x, tokens, mask, time, without).float()
        return per_sample(alpha, x) * x + per_sample(sigma, x) * out
