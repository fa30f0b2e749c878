"""Exponential moving average of a network's weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class WeightAverage:
    """Averages in float32 of every floating-point weight and buffer; other buffers are copied."""

    values: dict[str, Tensor]
    decay: float = 0.998
    updates: int = 0

    @staticmethod
    def of(network: nn.Module, decay: float = 0.998) -> WeightAverage:
        """Starting at the network's own weights."""
        state = network.state_dict()
        return WeightAverage(
            {k: v.detach().clone().float() if v.is_floating_point() else v.clone() for k, v in state.items()}, decay
        )

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Once per optimiser step; early on the decay is (1 + n) / (10 + n), so that the start is forgotten."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value.to(self.values[name]), 1 - decay)
            else:
                self.values[name].copy_(value)

    def copy_to(self, network: nn.Module) -> None:
        """Put the averages into a network of the same shape, in its own dtype."""
        network.load_state_dict({k: self.values[k].to(v) for k, v in network.state_dict().items()})
