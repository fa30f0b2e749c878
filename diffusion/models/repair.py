"""Our network that mends renders of splats fitted to few photos: a U-Net that chooses between render and photos, and adds.

It predicts the clean end of a bridge whose other end is the damaged render (`diffusion.objective.bridges`). Its head blends the
pictures that it was given, pixel by pixel, and adds a residual: what a photo shows needs not be drawn anew. No statistics are
taken over the picture, so that crops in training and whole photos afterwards are treated alike.
"""

from __future__ import annotations

import itertools
import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

UNKNOWN = 1e-4  # of a photo where it saw nothing: its logit falls by 9


class RepairUNet(ModelMixin, ConfigMixin):
    """`references` photos are seen beside the render; `widths` from fine to coarse, the finest at half the picture's size.

    `noise` is the deviation of the bridge that it was trained on (`bridges.bridge_state`).
    """

    @register_to_config
    def __init__(
        self,
        references: int = 2,
        widths: tuple[int, ...] = (48, 72, 96),
        blocks: tuple[int, ...] = (1, 2, 3),
        embedding: int = 64,
        noise: float = 0.2,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"{len(widths)} widths and {len(blocks)} numbers of blocks; give one of each for every stage")
        self.time = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.enter = nn.Conv2d(4 * (8 + 4 * references), widths[0], 3, padding=1)
        stages = list(zip(widths, blocks))
        self.down = nn.ModuleList(nn.ModuleList(_Block(w, embedding) for _ in range(n)) for w, n in stages[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.middle = nn.ModuleList(_Block(widths[-1], embedding) for _ in range(blocks[-1]))
        self.grow = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in reversed(list(itertools.pairwise(widths))))
        self.up = nn.ModuleList(nn.ModuleList(_Block(w, embedding) for _ in range(n)) for w, n in reversed(stages[:-1]))
        self.leave = nn.Conv2d(widths[0], 4 * (3 + 2 + references), 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @property
    def multiple(self) -> int:
        """Sides are padded to whole multiples of it."""
        return 2 ** len(self.config.widths)

    def forward(self, state: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        """state [B, 3, H, W] at time t [B] in [0, 1] of the bridge -> the clean picture [B, 3, H, W], not clamped.

        conditions [B, 5 + 4 R, H, W]: the damaged render (3), its alpha, trust, then for each photo its colours in this view
        (3) and where they hold. All in [0, 1].
        """
        h, w = state.shape[-2:]
        pad = (0, -w % self.multiple, 0, -h % self.multiple)
        state, conditions = (F.pad(x, pad, mode="replicate") for x in (state, conditions))
        x = torch.cat([state, conditions], dim=1)
        x = F.pixel_unshuffle(2 * x - 1, 2).contiguous(memory_format=torch.channels_last)
        moment = self.time(_waves(t, self.config.embedding))
        x = self.enter(x)
        skips = []
        for blocks, shrink in zip(self.down, self.shrink):
            for block in blocks:
                x = block(x, moment)
            skips.append(x)
            x = shrink(x)
        for block in self.middle:
            x = block(x, moment)
        for grow, blocks in zip(self.grow, self.up):
            x = (F.pixel_shuffle(grow(x), 2) + skips.pop()).contiguous(memory_format=torch.channels_last)
            for block in blocks:
                x = block(x, moment)
        head = F.pixel_shuffle(self.leave(x), 2).float()
        return self._blended(head, state, conditions)[..., :h, :w]

    def _blended(self, head: Tensor, state: Tensor, conditions: Tensor) -> Tensor:
        references = self.config.references
        photos = conditions[:, 5:].unflatten(1, (references, 4))
        given = torch.cat([state[:, None], conditions[:, None, :3], photos[:, :, :3]], dim=1)  # [B, 2 + R, 3, H, W]
        heard = torch.cat([torch.ones_like(photos[:, :1, 3]).expand(-1, 2, -1, -1), photos[:, :, 3]], dim=1)
        weights = (head[:, 3:] + (heard + UNKNOWN).log()).softmax(dim=1)
        return (weights[:, :, None] * given).sum(1) + head[:, :3]


class _Block(nn.Module):
    """Residual, nothing at first; the moment scales and shifts what goes in."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.moment = nn.Linear(embedding, 2 * width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        for layer in (self.moment, self.second):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, moment: Tensor) -> Tensor:
        scale, shift = self.moment(moment)[:, None, None].chunk(2, dim=-1)
        y = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]) * (1 + scale) + shift  # over the channels of each pixel alone
        return x + self.second(F.silu(self.first(y.permute(0, 3, 1, 2))))


def _waves(t: Tensor, width: int) -> Tensor:
    """t [B] in [0, 1] -> [B, width] sines and cosines of 1/2 to 32 turns."""
    turns = 2.0 ** torch.linspace(-1, 5, width // 2, device=t.device)
    angle = 2 * math.pi * t[:, None].float() * turns
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
