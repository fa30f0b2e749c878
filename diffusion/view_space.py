"""What the multiview denoiser denoises: pictures themselves, or latents of an autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from diffusion.models.autoencoder import Autoencoder


class ViewSpace(Protocol):
    """Pictures <-> what noise is added to, of about unit size. `name` is that of the network's config."""

    name: str

    def encode(self, pictures: Tensor) -> Tensor:
        """Premultiplied sRGB and coverage [B, 4, S, S] in [0, 1] -> [B, C, h, w]; differentiable."""
        ...


class PixelSpace:
    """The pictures, from [0, 1] to [-1, 1]."""

    name = "pixel"

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 4, S, S] -> the same shape."""
        return 2 * pictures - 1


class LatentSpace:
    """Latents of an autoencoder, the project's own or any of diffusers."""

    name = "latent"

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 4, S, S] -> [B, C, S / factor, S / factor]."""
        return self.autoencoder.encode(pictures)
