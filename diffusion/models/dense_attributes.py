"""GVGEN's second stage: the dense field and a sentence -> the Gaussians, by a 3-D U-Net in one pass (He et al. 2024, 3.2).

Where ours differs: nodes further than `REACH` from every centre stay empty whatever the network says, so that no loss is spent
on them, and where the field has colours the network predicts a change of those. Shapes are those of `SplatVolume`.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from diffusion.field import FIELD_CHANNELS
from diffusion.models.attribute_predictor import Attributes, attributes_at, near_nodes
from diffusion.models.volume_unet import VolumeUNet
from diffusion.volume import CHANNELS, EMPTY, FIELD_LIMIT


class DenseAttributes(ModelMixin, ConfigMixin):
    """`forward` maps fields [B, 4, R, R, R] and a text to `Attributes` of the nodes near a centre, as `AttributePredictor`."""

    @register_to_config
    def __init__(
        self, resolution: int = 32, limit: float = FIELD_LIMIT, max_offset: float = 1.5, field_channels: int = FIELD_CHANNELS,
        channels: int = 32, multipliers: tuple[int, ...] = (1, 2, 4), blocks: int = 1,
        attention: tuple[bool, ...] = (False, False, True), head_dim: int = 32, text_dim: int = 384,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("mean", EMPTY.clone())
        self.register_buffer("std", torch.ones(CHANNELS))
        self.unet = VolumeUNet(
            field_channels, CHANNELS, channels, multipliers, blocks, attention, head_dim, text_dim, timed=False
        )

    def forward(self, fields: Tensor, tokens: Tensor, mask: Tensor, pooled: Tensor | None = None) -> Attributes:
        """fields [B, 4, R, R, R]; tokens [B, T, D], mask [B, T] bool. `pooled` is not read.

        Of fields with more channels than `field_channels` the rest is not seen, colours among them.
        """
        seen = fields[:, : self.config.field_channels]
        if seen.shape[1] < fields.shape[1]:
            fields = torch.cat([seen, torch.zeros_like(fields[:, seen.shape[1] :])], dim=1)
        where = batch, z, y, x = near_nodes(fields, self.config.limit)
        out = self.unet(seen, tokens, mask)[batch, :, z, y, x]
        return attributes_at(where, out, fields, self.mean, self.std, self.config.max_offset)
