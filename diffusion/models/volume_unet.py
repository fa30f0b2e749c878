"""A 3-D U-Net with cross-attention to text: GVGEN's network for both of its stages, and our upsampler between the two.

GVGEN (He et al. 2024; released configuration): 224 base channels, multipliers 1, 2, 4, 4, two residual blocks to a level,
spatial transformers of depth 1 where the grid is reduced by 4 and 8, heads of 32 channels, text tokens of CLIP ViT-L/14.
With `timed`, one channel in and one out it is its distance-field denoiser; untimed, one in and thirteen out, its attribute
predictor.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

GVGEN = {  # the published size, for 32^3 nodes
    "channels": 224,
    "multipliers": (1, 2, 4, 4),
    "blocks": 2,
    "attention": (False, False, True, True),
    "head_dim": 32,
    "text_dim": 768,
}
FREQUENCIES = 32  # of the time embedding


class VolumeUNet(ModelMixin, ConfigMixin):
    """`forward` maps grids [B, in, R, R, R] to [B, out, R * finer, R * finer, R * finer]; R a multiple of 2^(levels - 1)."""

    @register_to_config
    def __init__(
        self, in_channels: int = 1, out_channels: int = 1, channels: int = 32, multipliers: tuple[int, ...] = (1, 2, 4),
        blocks: int = 1, attention: tuple[bool, ...] = (False, False, True), head_dim: int = 32, text_dim: int = 384,
        timed: bool = True, finer: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        assert len(multipliers) == len(attention), (multipliers, attention)
        widths = [channels * m for m in multipliers]
        embedding = 4 * channels
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.text = nn.Linear(text_dim, embedding)
        self.nothing = nn.Parameter(torch.zeros(text_dim))  # the token of no sentence
        self.enter = _Conv3d(in_channels, widths[0], 3, padding=1)
        self.down, self.up, skips, width = nn.ModuleList(), nn.ModuleList(), [widths[0]], widths[0]
        for level, w in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Level(width, w, embedding, head_dim, text_dim, attention[level]))
                width = w
                skips.append(w)
            if level < len(widths) - 1:
                self.down.append(_Conv3d(w, w, 3, stride=2, padding=1))
                skips.append(w)
        self.middle = _Level(width, width, embedding, head_dim, text_dim, True)
        for level, w in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(_Level(width + skips.pop(), w, embedding, head_dim, text_dim, attention[level]))
                width = w
            if level > 0:
                self.up.append(_Conv3d(w, w, 3, padding=1))
        self.leave = nn.Sequential(
            nn.GroupNorm(_groups(width), width), nn.SiLU(), _Conv3d(width, out_channels * finer**3, 3, padding=1)
        )
        nn.init.zeros_(self.leave[2].weight)
        nn.init.zeros_(self.leave[2].bias)

    def forward(
        self, x: Tensor, tokens: Tensor, mask: Tensor, time: Tensor | None = None, without: Tensor | None = None
    ) -> Tensor:
        """x [B, in, R, R, R]; tokens [B, T, D], mask [B, T] bool; time [B] in [0, 1000]; `without` [B]: ignore the text."""
        if without is not None:
            tokens = torch.where(without[:, None, None], self.nothing, tokens)
        weight = mask[..., None].to(tokens)
        c = self.text((tokens * weight).sum(1) / weight.sum(1).clamp_min(1))
        if self.config.timed:
            rates = torch.exp(-math.log(10000.0) * torch.arange(FREQUENCIES, device=x.device) / FREQUENCIES)
            angles = time[:, None].float() * rates
            c = c + self.time(torch.cat([angles.cos(), angles.sin()], dim=-1).to(x))
        h = self.enter(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, c, tokens, mask) if isinstance(layer, _Level) else layer(h)
            skips.append(h)
        h = self.middle(h, c, tokens, mask)
        for layer in self.up:
            if isinstance(layer, _Level):
                h = layer(torch.cat([h, skips.pop()], dim=1), c, tokens, mask)
            else:
                h = layer(F.interpolate(h, scale_factor=2, mode="nearest"))
        return _unfolded(self.leave(h), self.config.finer)


def _unfolded(x: Tensor, finer: int) -> Tensor:
    """[B, C f^3, R, R, R] -> [B, C, R f, R f, R f]: each node's channels become its f^3 children."""
    if finer == 1:
        return x
    b, _, r = x.shape[:3]
    x = x.reshape(b, -1, finer, finer, finer, r, r, r).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, -1, r * finer, r * finer, r * finer)


def _groups(channels: int) -> int:
    return math.gcd(channels, 8)


class _Conv3d(nn.Conv3d):
    """Single precision on a CPU where the grid is 2 nodes deep, whatever autocast says.

    There the bfloat16 gradient of a 3x3x3 kernel, as oneDNN 3.12 computes it, reads memory that nobody has written.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.shape[2] == 2:
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


class _Level(nn.Module):
    """A residual block and, where asked for, a transformer block over the grid's nodes."""

    def __init__(self, width: int, out: int, embedding: int, head_dim: int, text_dim: int, attention: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(_groups(width), width), nn.SiLU(), _Conv3d(width, out, 3, padding=1))
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out))
        self.norm = nn.GroupNorm(_groups(out), out)
        self.second = _Conv3d(out, out, 3, padding=1)
        self.across = _Conv3d(width, out, 1) if width != out else nn.Identity()
        self.transformer = _Transformer(out, head_dim, text_dim) if attention else None
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, c: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        h = self.first(x)
        scale, shift = self.modulate(c)[:, :, None, None, None].chunk(2, dim=1)
        h = self.across(x) + self.second(F.silu(self.norm(h) * (1 + scale) + shift))
        return h if self.transformer is None else self.transformer(h, tokens, mask)


class _Transformer(nn.Module):
    """Self-attention, cross-attention to the text, and an MLP, each added to what came in."""

    def __init__(self, width: int, head_dim: int, text_dim: int) -> None:
        super().__init__()
        self.heads = max(width // head_dim, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.query, self.keys_values, self.out = (
            nn.Linear(width, width),
            nn.Linear(text_dim, 2 * width),
            nn.Linear(width, width),
        )
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, grid: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        h = grid.flatten(2).transpose(1, 2)  # [B, nodes, C]
        h = h + self.self_out(self._attend(*self.self_qkv(self.norms[0](h)).chunk(3, dim=-1)))
        keys, values = self.keys_values(tokens).chunk(2, dim=-1)
        h = h + self.out(self._attend(self.query(self.norms[1](h)), keys, values, mask[:, None, None, :]))
        h = h + self.mlp(self.norms[2](h))
        return h.transpose(1, 2).reshape(grid.shape)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
