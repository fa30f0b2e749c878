"""Adam for the fit on the CPU: one call for all parameters, on the kernels' own threads."""

from __future__ import annotations

import ctypes

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
        first = self.param_groups[0]
        status = library.load().splatsmith_adam(arrays, len(arrays), *first["betas"], first["eps"], self.threads)
        if status != library.OK:
            raise MemoryError("the optimiser ran out of memory.")
        self.moved(moved, arrays)

    def arrays_of(self, parameters: list[Tensor], gradients: list[Tensor]) -> ctypes.Array:
        """What the kernel is told of `parameters`; the caller keeps all tensors alive."""
        groups, arrays = {id(p): group for group in self.param_groups for p in group["params"]}, []
        for parameter, gradient in zip(parameters, gradients):
            group, state = groups[id(parameter)], self._state_of(parameter)
            row = parameter[0].numel() if "head" in group and len(parameter) else 1
            tensors = (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])
            array = AdamArray(*map(address, tensors), count=parameter.numel(), steps=int(state["step"].item()))
            array.lr, array.later_lr = group["lr"], group.get("lr_later", group["lr"])
            array.head, array.row = min(group.get("head", 1), row), row
            arrays.append(array)
        return (AdamArray * len(arrays))(*arrays)

    def moved(self, parameters: list[Tensor], arrays: ctypes.Array) -> None:
        """Takes note of the steps that the kernel counted in the `arrays` of `parameters`."""
        for parameter, array in zip(parameters, arrays):
            self.state[parameter]["step"].fill_(array.steps)
            torch.autograd.graph.increment_version(parameter)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
