"""The second stage: a field and a sentence -> the Gaussians, in one pass (GVGEN, He et al. 2024, section 3.2).

GVGEN predicts attributes at all nodes with a 3-D U-Net. Here only nodes near a surface are computed, some 15 % at 32^3: each
sees the field around it, and in a second round what its neighbours have found out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffusion.field import colour_of, distance_of
from diffusion.volume import CHANNELS, COLOUR, EMPTY, FIELD_LIMIT, LOGIT_LIMIT, OFFSET, OPACITY, STRETCH, SplatVolume
from splat.sh import from_rgb

REACH = 1.5  # spacings: nodes further than this from every centre get no Gaussian; made fields are vague about thin rods


@dataclass(frozen=True)
class Attributes:
    """What is predicted for M nodes of B fields."""

    batch: Tensor  # [M] int64 which field
    nodes: Tensor  # [M] int64 flat node, x fastest
    rows: Tensor  # [M, 13] as in `SplatVolume.features`

    def volume(self, count: int, resolution: int, max_offset: float) -> SplatVolume:
        """As `count` cubes; nodes that were not predicted are empty. Differentiable."""
        grid = EMPTY.to(self.rows).repeat(count * resolution**3, 1)
        grid = grid.index_put((self.batch * resolution**3 + self.nodes,), self.rows)
        return SplatVolume(grid.reshape(count, *[resolution] * 3, CHANNELS).movedim(-1, 1), 1.0, max_offset)


class AttributePredictor(ModelMixin, ConfigMixin):
    """`forward` maps fields [B, 4, R, R, R] and a pooled text to `Attributes` of the nodes within `REACH` of a centre.

    Colours are predicted as a change of the field's own, and the other channels from the mean of those channels in training.
    """

    @register_to_config
    def __init__(
        self, resolution: int = 32, limit: float = FIELD_LIMIT, max_offset: float = 1.5, width: int = 192, passed_on: int = 32,
        pooled_dim: int = 384,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("mean", EMPTY.clone())
        self.register_buffer("std", torch.ones(CHANNELS))
        self.text = nn.Linear(pooled_dim, width)
        self.look = nn.Sequential(nn.Linear(125 + 81 + 3, width), nn.SiLU())
        self.think = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.tell = nn.Linear(width, passed_on)
        self.listen = nn.Linear(27 * passed_on, width)
        self.conclude = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, CHANNELS))
        nn.init.zeros_(self.text.weight)
        nn.init.normal_(self.conclude[3].weight, std=0.01)
        nn.init.zeros_(self.conclude[3].bias)

    def forward(self, fields: Tensor, tokens: Tensor, mask: Tensor, pooled: Tensor) -> Attributes:
        """fields [B, 4, R, R, R]; pooled [B, D']; tokens and mask are not read: all predictors are called alike."""
        r = self.config.resolution
        where = batch, z, y, x = near_nodes(fields, self.config.limit)
        near = _around(fields[:, :1], where, 2)
        colours = _around(fields[:, 1:], where, 1)
        position = (torch.stack([x, y, z], dim=-1) + 0.5) / r * 2 - 1
        h = self.look(torch.cat([near, colours, position.to(near)], dim=-1)) + self.text(pooled * pooled.shape[1] ** 0.5)[batch]
        h = h + self.think(h)
        told = self.tell(h)
        grid = told.new_zeros(len(fields), r, r, r, told.shape[1]).index_put(where, told).movedim(-1, 1)
        h = h + self.listen(_around(grid, where, 1))
        return attributes_at(where, self.conclude(h), fields, self.mean, self.std, self.config.max_offset)


def near_nodes(fields: Tensor, limit: float) -> tuple[Tensor, ...]:
    """Fields [B, 4, R, R, R] -> which field, z, y and x [M] of the nodes within `REACH` of a centre."""
    return (distance_of(fields, limit) < min(REACH / fields.shape[-1], limit)).nonzero(as_tuple=True)


def attributes_at(
    where: tuple[Tensor, ...], out: Tensor, fields: Tensor, mean: Tensor, std: Tensor, max_offset: float
) -> Attributes:
    """What a network says [M, 13] of the nodes `where`, as `Attributes`: in deviations, colours from those of the fields."""
    batch, z, y, x = where
    out, r = out.float(), fields.shape[-1]
    own = from_rgb(colour_of(fields))[batch, :, z, y, x]
    rows = torch.cat(
        [
            (out[:, OFFSET] * std[OFFSET] + mean[OFFSET]).clamp(-max_offset, max_offset),
            own + out[:, COLOUR] * std[COLOUR],
            out[:, STRETCH] * std[STRETCH] + mean[STRETCH],
            (4 * out[:, OPACITY:] + 1).clamp(-LOGIT_LIMIT, LOGIT_LIMIT),
        ],
        dim=-1,
    )
    return Attributes(batch, x + r * (y + r * z), rows)


def _around(grid: Tensor, where: tuple[Tensor, ...], reach: int) -> Tensor:
    """Grid [B, C, R, R, R] -> [M, C (2 reach + 1)^3] of the nodes around each of `where`, 0 outside."""
    batch, z, y, x = where
    r = grid.shape[-1] + 2 * reach
    padded = nn.functional.pad(grid, [reach] * 6).movedim(1, -1).reshape(-1, grid.shape[1])  # [B r^3, C]
    span = torch.arange(2 * reach + 1, device=grid.device)
    steps = (span[:, None, None] * r * r + span[None, :, None] * r + span[None, None, :]).flatten()
    start = ((batch * r + z) * r + y) * r + x
    return padded[start[:, None] + steps].flatten(1)
