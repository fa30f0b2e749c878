"""How much memory a step of training takes, found without taking it: the network runs on torch's meta device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusion.train_field import UNetConfig

BYTES_PER_PARAMETER = 20  # weight, gradient, two moments and average, float32
TOKENS = 77  # to a sentence, at most


@dataclass(frozen=True)
class TrainingMemory:
    """Of one step."""

    parameters: int
    kept: int  # bytes for the backward pass, as if all were float32; under autocast less

    @property
    def total(self) -> int:
        """Bytes; what kernels need to work in is not counted."""
        return BYTES_PER_PARAMETER * self.parameters + self.kept

    def sentence(self, batch: int) -> str:
        return (
            f"The network has {self.parameters / 1e6:.1f} million parameters; to train it takes some {self.total / 1e9:.1f} GB "
            f"with {batch} examples to a batch."
        )


def training_memory(network: nn.Module, forward: Callable[[], Tensor]) -> TrainingMemory:
    """What autograd keeps of a call of `network`, each tensor once and no parameters; all on one device, best on meta."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in own:
            kept[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = forward()
    count = sum(p.numel() for p in network.parameters())
    total = sum(x.untyped_storage().nbytes() for x in kept.values())
    del out
    return TrainingMemory(count, total)


def unet_memory(
    kind: type[nn.Module], unet: UNetConfig, batch: int, resolution: int, field_channels: int, text_dim: int
) -> TrainingMemory:
    """Of a network of `kind` (FieldDenoiser, DenseAttributes) around a U-Net of this size."""
    with torch.device("meta"):
        network = unet.made(kind, resolution=resolution, field_channels=field_channels, text_dim=text_dim)
        x = torch.empty(batch, field_channels, resolution, resolution, resolution)
        tokens, mask = torch.empty(batch, TOKENS, text_dim), torch.ones(batch, TOKENS, dtype=torch.bool)
        time = torch.empty(batch) if network.unet.config.timed else None
        return training_memory(network, lambda: network.unet(x, tokens, mask, time))
