"""Adam for the fit on the CPU: one call for all parameters, on the kernels' own threads."""

from __future__ import annotations

import ctypes
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
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad.contiguous() for p in moved]
        arrays = self.arrays_of(moved, gradients)
        self.begin_step(moved, arrays)
        first = self.param_groups[0]
        status = library.load().splatsmith_adam(arrays, len(arrays), *first["betas"], first["eps"], self.threads)
        if status != library.OK:
            raise MemoryError("the optimiser ran out of memory.")
        for parameter in moved:
            torch.autograd.graph.increment_version(parameter)

    def arrays_of(self, parameters: list[Tensor], gradients: list[Tensor]) -> ctypes.Array:
        """What the kernel is told of `parameters`, but for the rates; the caller keeps all tensors alive."""
        groups, arrays = self._groups(), []
        for parameter, gradient in zip(parameters, gradients):
            group, state = groups[id(parameter)], self._state_of(parameter)
            row = parameter[0].numel() if "head" in group and len(parameter) else 1
            tensors = (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])
            arrays.append(
                AdamArray(*map(address, tensors), parameter.numel(), head=min(group.get("head", 1), row), row=row)
            )  # fmt: skip
        return (AdamArray * len(arrays))(*arrays)

    def begin_step(self, parameters: list[Tensor], arrays: ctypes.Array) -> None:
        """Counts a step of `parameters` and sets the rates of their `arrays`."""
        groups, steps = self._groups(), [self.state[parameter]["step"] for parameter in parameters]
        if steps:
            torch._foreach_add_(steps, 1)
        for parameter, step, array in zip(parameters, steps, arrays):
            group, t = groups[id(parameter)], step.item()
            beta1, beta2 = group["betas"]
            correction = 1 - beta1**t
            array.rate = group["lr"] / correction
            array.later_rate = group.get("lr_later", group["lr"]) / correction
            array.root = 1 / math.sqrt(1 - beta2**t)

    def _groups(self) -> dict[int, dict]:
        return {id(p): group for group in self.param_groups for p in group["params"]}

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
