"""Fields as short vectors: principal components of the training fields, whitened half way.

Of 16^3 fields with colours, 384 components keep more than nine tenths of the variance, and a sample of the diffusion takes
a tenth of a second on one core. What they cut off, thin rods and sharp edges, the upsampler restores: it is
trained on fields that have been through this codec.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.field import FIELD_CHANNELS
from splat.errors import InputError

COLOUR_WEIGHT = 0.5  # of the colour channels in the squared error, relative to nearness, before the square
WHITENING = 0.5  # 0 leaves latents at their size in the field, 1 makes every component equally large


@dataclass(frozen=True)
class FieldCodec:
    """`encode` and `decode` between fields [B, 4, R, R, R] and latents [B, K] of mean 0 and mean square 1."""

    mean: Tensor  # [4 R^3]
    basis: Tensor  # [K, 4 R^3] rows orthonormal in the weighted space, by falling variance
    scales: Tensor  # [K] size of a latent of 1 in that space
    resolution: int
    limit: float  # world units at which the fields are cut off

    def __post_init__(self) -> None:
        size = FIELD_CHANNELS * self.resolution**3
        shapes = (tuple(self.mean.shape), self.basis.shape[1], len(self.basis))
        if shapes != ((size,), size, len(self.scales)):
            raise InputError(
                f"A codec's tables {shapes} do not fit a field of {self.resolution}^3 nodes; install the weights again."
            )

    @property
    def dimensions(self) -> int:
        return len(self.basis)

    def encode(self, fields: Tensor) -> Tensor:
        x = fields.flatten(1).to(self.mean) - self.mean
        return (x * self._weights()) @ self.basis.T / self.scales

    def decode(self, latents: Tensor) -> Tensor:
        x = (latents.to(self.mean) * self.scales) @ self.basis / self._weights() + self.mean
        return x.reshape(-1, FIELD_CHANNELS, *[self.resolution] * 3)

    def to(self, target: torch.device | str | torch.dtype) -> FieldCodec:
        tables = (x.to(target) for x in (self.mean, self.basis, self.scales))
        return FieldCodec(*tables, self.resolution, self.limit)

    def _weights(self) -> Tensor:
        return _weights(self.resolution).to(self.mean)

    @staticmethod
    def learn(fields: Tensor, dimensions: int, limit: float, seed: int = 0) -> FieldCodec:
        """From fields [N, 4, R, R, R] of any float dtype; randomised SVD (Halko et al. 2011), the same for one `seed`."""
        resolution = fields.shape[-1]
        if dimensions >= len(fields):
            raise InputError(f"{len(fields)} fields do not have {dimensions} principal components; give more or ask for fewer.")
        x = fields.flatten(1).float()
        mean = x.mean(0)
        x = (x - mean) * _weights(resolution)
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)  # svd_lowrank takes no generator
        _, singular, v = torch.svd_lowrank(x, q=min(dimensions + 32, len(x)), niter=3)
        torch.random.set_rng_state(state)
        deviations = singular[:dimensions] / len(x) ** 0.5
        scales = deviations**WHITENING
        scales = scales * ((deviations / scales) ** 2).mean().sqrt()  # latents of mean square 1 over all components
        basis = v[:, :dimensions].T
        basis = torch.stack([from_bytes(*to_bytes(row)) for row in basis])  # what a file of bytes will hold, from the start
        return FieldCodec(mean, basis, scales, resolution, limit)


def to_bytes(row: Tensor) -> tuple[Tensor, Tensor]:
    """[D] float -> [D] int8 and the value of 1; a component's entries need no more than that."""
    step = row.abs().max().clamp_min(1e-12) / 127
    return (row / step).round().to(torch.int8), step


def from_bytes(row: Tensor, step: Tensor) -> Tensor:
    """The inverse of `to_bytes`, exact for what came out of it."""
    return row.float() * step


def _weights(resolution: int) -> Tensor:
    return torch.tensor([1.0, COLOUR_WEIGHT, COLOUR_WEIGHT, COLOUR_WEIGHT]).repeat_interleave(resolution**3)
