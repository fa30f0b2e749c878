"""The first stage's network: a noisy latent of a field and a sentence -> the clean latent.

A latent is one vector (`FieldCodec`), so the network is a residual MLP with cross-attention to the sentence's tokens: a
thousand samples a second to train on one CPU core, where a 3-D U-Net on the same field makes five.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

FREQUENCIES = 16  # of the noise level's embedding


class LatentDenoiser(ModelMixin, ConfigMixin):
    """`forward` predicts x_0 [B, K] from x = alpha x_0 + sigma n; `variances` [K] are those of the latents.

    Preconditioned component by component as EDM is as a whole (Karras et al. 2022, table 1): the linear estimate from the
    component's own variance is added to the network's output, so that at little noise the network has little to do.
    """

    @register_to_config
    def __init__(
        self, dimensions: int = 384, width: int = 512, blocks: int = 5, hidden: int = 1024, text_dim: int = 384,
        pooled_dim: int = 384, conditioning: int = 256, heads: int = 4, head_dim: int = 32, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("variances", torch.ones(dimensions))
        self.enter = nn.Linear(dimensions, width)
        self.condition = nn.Sequential(
            nn.Linear(2 * FREQUENCIES + pooled_dim, conditioning), nn.SiLU(), nn.Linear(conditioning, conditioning), nn.SiLU()
        )
        self.nothing = nn.Parameter(torch.zeros(pooled_dim))  # the pooled direction of no sentence
        self.nothing_token = nn.Parameter(torch.zeros(text_dim))
        self.keys_values = nn.Linear(text_dim, 2 * heads * head_dim)
        self.layers = nn.ModuleList(_Block(width, hidden, conditioning, heads, head_dim, dropout) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dimensions))
        nn.init.zeros_(self.leave[1].weight)
        nn.init.zeros_(self.leave[1].bias)

    def forward(
        self,
        x: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        tokens: Tensor,
        mask: Tensor,
        pooled: Tensor,
        without: Tensor | None = None,
    ) -> Tensor:
        """x [B, K]; alpha, sigma [B]; tokens [B, T, D], mask [B, T] bool, pooled [B, D']; `without` [B] bool: no text."""
        if without is not None:
            pooled = torch.where(without[:, None], self.nothing, pooled)
            tokens = torch.where(without[:, None, None], self.nothing_token, tokens)
        a, s = alpha[:, None], sigma[:, None]
        power = a * a * self.variances + s * s
        level = (alpha / sigma).log()[:, None] * (0.25 * 1.35 ** torch.arange(FREQUENCIES, device=x.device))
        pooled = pooled * pooled.shape[1] ** 0.5  # from unit length to unit variance
        c = self.condition(torch.cat([level.sin(), level.cos(), pooled], dim=-1))
        keys, values = self.keys_values(tokens).chunk(2, dim=-1)
        h = self.enter(x / power.sqrt())
        for block in self.layers:
            h = block(h, c, keys, values, mask)
        return a * self.variances / power * x + (self.variances / power).sqrt() * s * self.leave(h)


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, conditioning: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(conditioning, 3 * width)
        self.query = nn.Linear(width, heads * head_dim)
        self.answer = nn.Linear(heads * head_dim, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, width))
        for layer in (self.modulate, self.answer):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, c: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        scale, shift, gate = self.modulate(c).chunk(3, dim=-1)
        x = self.norm(h) * (1 + scale) + shift
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        found = F.scaled_dot_product_attention(
            split(self.query(x)[:, None]), split(keys), split(values), attn_mask=mask[:, None, None, :]
        )
        x = x + self.answer(found.transpose(1, 2).flatten(1))
        return h + (1 + gate) * self.mlp(x)
