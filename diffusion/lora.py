"""Low-rank changes to frozen linear layers: y = W x + B A x ("LoRA", Hu et al., ICLR 2022, eq. 3, with alpha = rank).

They live apart from the network and are heard only while `attached`, so that one network serves many scenes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from splat.errors import InputError


@dataclass(frozen=True)
class Lora:
    """down A [rank, in] and up B [out, rank] of every changed layer, float32, by the layer's name in its network.

    Names begin with the network's: "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q".
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        return next(iter(self.down.values())).shape[0]

    def parameters(self) -> list[Tensor]:
        return [*self.down.values(), *self.up.values()]


def new_lora(networks: Mapping[str, nn.Module], rank: int, generator: torch.Generator, inside: str) -> Lora:
    """For every linear layer of `networks` whose name holds `inside`. B is 0: the networks answer as before.

    A is what the layer's own first weights are usually drawn from, uniform in +-1 / sqrt(in).
    """
    down, up = {}, {}
    for name, layer in _layers(networks).items():
        if inside in name:
            reach = 1 / math.sqrt(layer.in_features)
            device = layer.weight.device
            down[name] = ((torch.rand(rank, layer.in_features, generator=generator) * 2 - 1) * reach).to(device)
            up[name] = torch.zeros(layer.out_features, rank, device=device)
    assert down, f"no linear layer's name holds {inside}"
    return Lora(down, up)


@contextmanager
def attached(lora: Lora | None, networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """The networks answer with `lora` added; None changes nothing. Differentiable in the tensors of `lora`.

    Raises InputError where its layers are not those of the networks.
    """
    with ExitStack() as hooks:
        if lora is not None:
            layers = _layers(networks)
            for name, down in lora.down.items():
                layer, up = layers.get(name), lora.up[name]
                if layer is None or (layer.in_features, layer.out_features) != (down.shape[1], up.shape[0]):
                    raise InputError(
                        f"The LoRA changes {name}, which this checkpoint lacks or has in another size; train it again."
                    )
                hooks.callback(layer.register_forward_hook(_adding(down, up)).remove)
        yield


def _adding(down: Tensor, up: Tensor):
    def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        a, b = (w.to(device=x.device, dtype=x.dtype) for w in (down, up))
        return output + nn.functional.linear(nn.functional.linear(x, a), b)

    return add


def _layers(networks: Mapping[str, nn.Module]) -> dict[str, nn.Linear]:
    return {
        f"{prefix}.{name}": layer
        for prefix, network in networks.items()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
    }


def save_lora(lora: Lora, path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Safetensors with the names that peft and diffusers use: NAME.lora_A.weight and NAME.lora_B.weight."""
    from safetensors.torch import save_file

    from splat.io.atomic import atomically

    tensors = {f"{name}.lora_A.weight": a.detach().cpu().contiguous() for name, a in lora.down.items()}
    tensors |= {f"{name}.lora_B.weight": b.detach().cpu().contiguous() for name, b in lora.up.items()}
    with atomically(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **(facts or {})})


def load_lora(path: Path) -> Lora:
    """What `save_lora` wrote. Raises InputError for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no LoRA in safetensors ({' '.join(str(error).split())[:200]}); train it again.") from error
    down = {k.removesuffix(".lora_A.weight"): v.float() for k, v in tensors.items() if k.endswith(".lora_A.weight")}
    up = {k.removesuffix(".lora_B.weight"): v.float() for k, v in tensors.items() if k.endswith(".lora_B.weight")}
    matched = len(down) + len(up) == len(tensors) > 0 and down.keys() == up.keys()
    if not matched or any(a.ndim != 2 or up[k].ndim != 2 or up[k].shape[1] != a.shape[0] for k, a in down.items()):
        raise InputError(f"{path} holds other tensors than pairs of lora_A and lora_B; train it again.")
    return Lora(down, up)
