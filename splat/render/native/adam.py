"""Adam for the fit on the CPU: one call for all parameters, on the kernels' own threads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splat.render.native import library
from splat.render.native.library import AdamArray, address


class NativeAdam(torch.optim.Adam):
    """`torch.optim.Adam` for contiguous float32 CPU parameters, to rounding; the state has the same form.

    A group with `lr_later` and `head` uses `lr` for the first `head` floats of every row of its parameters, and `lr_later` for
    the others. Knows neither weight decay nor amsgrad. `threads` is the renderer's.
    """

    def __init__(self, params, eps: float = 1e-8, threads: int | None = None) -> None:
        super().__init__(params, eps=eps)
        self.threads = library.thread_count(threads)

    @torch.no_grad()
    def step(self) -> None:
        arrays, alive = [], []
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state_of(parameter)
                state["step"] += 1
                t = float(state["step"])
                tensors = (parameter, parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
                alive.append(tensors)
                correction, root = 1 - beta1**t, 1 / math.sqrt(1 - beta2**t)
                row = parameter[0].numel() if "head" in group and len(parameter) else 1
                rates = (group["lr"] / correction, group.get("lr_later", group["lr"]) / correction)
                arrays.append(
                    AdamArray(*map(address, tensors), parameter.numel(), *rates, root, min(group.get("head", 1), row), row)
                )
        first = self.param_groups[0]
        status = library.load().splatsmith_adam(
            (AdamArray * len(arrays))(*arrays), len(arrays), *first["betas"], first["eps"], self.threads
        )
        if status != library.OK:
            raise MemoryError("the optimiser ran out of memory.")
        for parameter, *_ in alive:
            torch.autograd.graph.increment_version(parameter)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
