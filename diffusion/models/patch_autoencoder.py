"""Our own autoencoder of small pictures: residual blocks on patches, never at full size, which a processor is slow at.

It has the contract of diffusers' `AutoencoderTiny`: `encode(x).latents`, `decode(z).sample`, pictures in [-1, 1], scaling in
its config, so that it takes that one's place in a pipeline.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Pictures [B, in, H, W] <-> latents [B, C, H / f, W / f], f = patch * 2^(stages - 1); `widths` from fine to coarse."""

    @register_to_config
    def __init__(
        self, in_channels: int = 4, out_channels: int = 4, latent_channels: int = 16, patch: int = 4,
        widths: tuple[int, ...] = (48, 96), blocks: tuple[int, ...] = (1, 2), scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"{len(widths)} widths and {len(blocks)} numbers of blocks; give one of each for every stage")
        down: list[nn.Module] = [nn.PixelUnshuffle(patch), nn.Conv2d(in_channels * patch**2, widths[0], 3, padding=1)]
        up: list[nn.Module] = [
            nn.PixelShuffle(patch),
            nn.Conv2d(widths[0], out_channels * patch**2, 3, padding=1),
            *_end(widths[0]),
        ]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if stage:
                down.append(nn.Conv2d(widths[stage - 1], width, 3, stride=2, padding=1))
                up += [nn.PixelShuffle(2), nn.Conv2d(width, 4 * widths[stage - 1], 1)]
            down += [_Residual(width) for _ in range(count)]
            up += [_Residual(width) for _ in range(count)]
        down += [*reversed(_end(widths[-1])), nn.Conv2d(widths[-1], latent_channels, 3, padding=1)]
        up.append(nn.Conv2d(latent_channels, widths[-1], 3, padding=1))
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*reversed(up))

    @property
    def factor(self) -> int:
        return self.config.patch * 2 ** (len(self.config.widths) - 1)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        latents = self.encoder(x)
        return AutoencoderTinyOutput(latents) if return_dict else (latents,)

    def decode(
        self, x: Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        sample = self.decoder(x)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        return self.decode(self.encode(sample).latents, return_dict=return_dict)


def _end(width: int) -> list[nn.Module]:
    """Before a last convolution, in the order of the way back."""
    return [nn.SiLU(), nn.GroupNorm(8, width)]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        silu = nn.functional.silu
        return x + self.second(silu(self.norm2(self.first(silu(self.norm1(x))))))
