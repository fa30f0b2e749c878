"""The multiview splat denoiser: noisy views and clean ones of an object, with their cameras -> Gaussians for every pixel.

After DSplats (Miao et al. 2024), DiffusionGS and LGM (methods.md A3), small enough for a processor: convolutions see each
view alone at half and a quarter of the resolution, a transformer sees the patches of all views at once, `b (v n) d`.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.splat_maps import HULL_CHANNELS, MAP_CHANNELS

FREQUENCIES = 16  # of the noise level's embedding
PATCH = 8  # pixels along the side of a token


class MultiviewDenoiser(ModelMixin, ConfigMixin):
    """`forward` makes the Gaussians (`splat_maps.to_splats`) whose renders are the x_0 prediction of every view.

    `space` "pixel": what is denoised are the pictures themselves, `channels` 4, at `side` pixels. "latent": the latents of an
    autoencoder that halves three times, `channels` of them at side / 8. `bottleneck` "none" is the control that predicts
    every view by itself, from the same maps (`splat_maps.to_pictures`). With `text_channels` a sentence about the object
    is added to the modulation of the blocks by the noise level.
    """

    @register_to_config
    def __init__(
        self, side: int = 64, space: str = "pixel", channels: int = 4, width: int = 256, blocks: int = 6, heads: int = 4,
        half: int = 48, quarter: int = 96, expand: int = 3, variance: float = 0.3,
        bottleneck: str = "splats", text_channels: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if space not in ("pixel", "latent") or side % PATCH or width % heads:
            raise ValueError(f"space {space!r}, side {side} and width {width} make no network")
        seen = (
            4 * 4 + 1 + 6 + HULL_CHANNELS + (4 * channels if space == "pixel" else 0)
        )  # at half resolution: clean, its mask, rays, hull, noisy
        self.enter = nn.Conv2d(seen, half, 3, padding=1)
        self.fine = _Residual(half)
        self.to_quarter = nn.Conv2d(half, quarter, 2, stride=2)
        self.middle = _Residual(quarter)
        self.to_tokens = nn.Conv2d(quarter, width, 2, stride=2)
        self.latents = nn.Conv2d(channels, width, 1) if space == "latent" else None
        n = (side // PATCH) ** 2
        self.position = nn.Parameter(0.02 * torch.randn(n, width))
        self.sentence = nn.Linear(text_channels, 6 * width) if text_channels else None
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, 6 * width))
        self.layers = nn.ModuleList(_Block(width, heads, expand) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.up_quarter = nn.Linear(width, 4 * quarter)
        self.middle_out = _Residual(quarter)
        self.up_half = nn.Conv2d(quarter, 4 * half, 1)
        self.fine_out = _Residual(half)
        self.leave = nn.Conv2d(half, 4 * MAP_CHANNELS, 3, padding=1)
        nn.init.zeros_(self.leave.bias)
        self.leave.weight.data.mul_(0.1)

    def forward(
        self,
        noisy: Tensor,
        clean: Tensor,
        is_clean: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        rays: Tensor,
        text: Tensor | None = None,
    ) -> Tensor:
        """-> maps [B, V, MAP_CHANNELS, S, S].

        noisy [B, V, C, h, w] = alpha x_0 + sigma n; clean [B, V, 4, S, S] premultiplied sRGB and coverage in [0, 1]; is_clean
        [B, V] bool, which views those are known of: only there `clean` is read, and only elsewhere `noisy` is; alpha, sigma
        [B]; rays [B, V, 6 + HULL_CHANNELS, S/2, S/2]: `splat_maps.plucker_rays` and `hull_features`; text [B, text_channels],
        `TextFeatures.pooled` of a sentence about each object, 0 or None where there is none.
        """
        c = self.config
        known = is_clean[:, :, None, None, None].to(clean.dtype)
        power = (alpha**2 * c.variance + sigma**2).sqrt()[:, None, None, None, None]
        noisy = (1 - known) * noisy / power
        seen = [F.pixel_unshuffle((known * clean).flatten(0, 1), 2), rays.flatten(0, 1)]
        seen.append(known.flatten(0, 1).expand(-1, 1, *rays.shape[-2:]))
        if self.latents is None:
            seen.append(F.pixel_unshuffle(noisy.flatten(0, 1), 2))
        fine = self.fine(self.enter(torch.cat(seen, dim=1).contiguous(memory_format=torch.channels_last)))
        middle = self.middle(self.to_quarter(fine))
        tokens = self.to_tokens(middle)  # [B V, D, n, n]
        if self.latents is not None:
            tokens = tokens + self.latents(noisy.flatten(0, 1))
        side = tokens.shape[-1]
        x = tokens.flatten(2).transpose(1, 2) + self.position
        x = x.reshape(len(noisy), -1, c.width)  # [B, V n, D]
        frequencies = 0.25 * 1.35 ** torch.arange(FREQUENCIES, device=x.device)
        level = ((alpha / sigma).log().clamp(-10, 10))[:, None] * frequencies
        modulation = self.level(torch.cat([level.sin(), level.cos()], dim=-1))
        if self.sentence is not None:
            none = modulation.new_zeros(len(noisy), c.text_channels)
            modulation = modulation + self.sentence(none if text is None else text.to(none))
        elif text is not None:
            raise ValueError("this network takes no text")
        modulation = modulation.unflatten(-1, (6, -1))[:, :, None]
        for block in self.layers:
            x = block(x, modulation)
        x = self.up_quarter(self.norm(x)).reshape(-1, side * side, 4 * c.quarter).transpose(1, 2)
        middle = self.middle_out(middle + F.pixel_shuffle(x.unflatten(2, (side, side)), 2))
        fine = self.fine_out(fine + F.pixel_shuffle(self.up_half(middle), 2))
        return F.pixel_shuffle(self.leave(F.silu(fine)), 2).unflatten(0, noisy.shape[:2])


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class _Block(nn.Module):
    """Attention among the patches of all views, then an MLP; the noise level scales and shifts both (adaLN-single)."""

    def __init__(self, width: int, heads: int, expand: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.own = nn.Parameter(torch.zeros(6, 1, width))  # added to the shared modulation
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expand * width), nn.GELU(approximate="tanh"), nn.Linear(expand * width, width)
        )

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = (modulation + self.own).unbind(1)  # each [B, 1, D]
        q, k, v = self.qkv(self.norm1(x) * (1 + scale1) + shift1).chunk(3, dim=-1)
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        found = F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)
        x = x + (1 + gate1) * self.out(found)
        return x + (1 + gate2) * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
