"""Latents of pictures: our own autoencoder, or any `AutoencoderKL` or `AutoencoderTiny` of diffusers in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from diffusion.models.from_disk import load_network
from diffusion.models.patch_autoencoder import PatchAutoencoder
from splat.errors import InputError

KINDS = (PatchAutoencoder, AutoencoderKL, AutoencoderTiny)
Network = PatchAutoencoder | AutoencoderKL | AutoencoderTiny


@dataclass(frozen=True)
class Autoencoder:
    """`encode` and `decode` between pictures in [0, 1] and latents of about mean 0 and variance 1. Both are differentiable.

    A picture is [B, 4, H, W], premultiplied sRGB and coverage, or [B, 3, H, W], opaque. A network of three colours, such as
    Stable Diffusion's, sees the former on white; one of four sees the latter with coverage 1.
    """

    network: Network
    shift: float | Tensor  # of the network's latents, or [C, 1, 1]
    scale: float | Tensor  # their deviation
    colours: int  # 3, or 4 with coverage: of what the network takes and makes
    channels: int  # of the latents
    factor: int  # pixels along the side of a latent

    @staticmethod
    def of(network: Network) -> Autoencoder:
        """Scaling as the network's config has it. Raises InputError where it takes other pictures than these."""
        c = network.config
        if c.in_channels not in (3, 4) or c.out_channels != c.in_channels:
            raise InputError(
                f"This autoencoder makes {c.out_channels} channels of {c.in_channels}; "
                "give one of 3 (colour) or 4 (colour, coverage)."
            )
        shift, scale = c.get("shift_factor") or 0.0, 1 / (c.get("scaling_factor") or 1.0)
        if c.get("latents_mean") is not None and c.get("latents_std") is not None:  # of each channel, as Playground v2.5 has it
            device = next(network.parameters()).device
            mean, deviation = (torch.tensor(c[k], device=device)[:, None, None] for k in ("latents_mean", "latents_std"))
            shift, scale = mean, scale * deviation
        return Autoencoder(network, shift, scale, c.in_channels, c.latent_channels, _factor(network))

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3 or 4, H, W] -> [B, C, H / factor, W / factor]; of a KL network the mode, so that equal pictures agree."""
        self._check_size(pictures)
        x = 2 * self._colours_of(pictures) - 1
        if isinstance(self.network, AutoencoderKL):
            latents = self.network.encode(x).latent_dist.mode()
        else:
            latents = self.network.encode(x).latents
        return (latents.float() - self.shift) / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, colours, h factor, w factor], about in [0, 1] and not cut off there."""
        return (self.network.decode(latents * self.scale + self.shift).sample.float() + 1) / 2

    def _colours_of(self, pictures: Tensor) -> Tensor:
        given = pictures.shape[1]
        if given == self.colours:
            return pictures
        if given == 4:
            return pictures[:, :3] + 1 - pictures[:, 3:]  # on white
        return torch.cat([pictures, torch.ones_like(pictures[:, :1])], dim=1)

    def _check_size(self, pictures: Tensor) -> None:
        assert pictures.ndim == 4 and pictures.shape[1] in (3, 4), pictures.shape
        height, width = pictures.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(
                f"Pictures of {width} x {height} px have no whole latents; sides must be multiples of {self.factor}."
            )


def _factor(network: Network) -> int:
    if isinstance(network, PatchAutoencoder):
        return network.factor
    c = network.config
    return 2 ** (len(c.block_out_channels if isinstance(network, AutoencoderKL) else c.num_encoder_blocks) - 1)


def load_autoencoder(folder: Path, device: torch.device | str = "cpu") -> Autoencoder:
    """From `save_pretrained`'s folder, or a pipeline's with that one as `vae`; safetensors alone, nothing is downloaded.

    float32, frozen, evaluating. Raises InputError for any other folder, and for weights that do not fit their config.
    """
    folder = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    network = load_network(folder, KINDS).to(device, memory_format=torch.channels_last)
    return Autoencoder.of(network.requires_grad_(False))
