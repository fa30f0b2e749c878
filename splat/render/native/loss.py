"""L1 + SSIM for training on the CPU, value and gradient computed together."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splat.render.native import library
from splat.render.native.library import L1Ssim, address, as_kernel_input


def fused_l1_ssim(
    image: Tensor, target: Tensor, ssim_weight: float, weight: Tensor | None = None, threads: int | None = None
) -> Tensor:
    """image, target [..., H, W, 3], weight [..., H, W] >= 0 or None -> scalar (1 - s) L1 + s (1 - SSIM).

    Both terms are means over pixels and channels, weighed by `weight` where given (0 when it is 0 everywhere). SSIM as
    `splat.metrics.ssim_map`: 11x11 Gaussian, sigma 1.5, zeros outside. float32 on CPU; differentiable in `image` alone.
    """
    shape = tuple(image.shape)
    if len(shape) < 3 or shape[-1] != 3 or 0 in shape:
        raise ValueError(f"image has shape {shape}; expected [..., H, W, 3]")
    if target.requires_grad or (weight is not None and weight.requires_grad):
        raise ValueError("the fused loss is differentiable in the image alone; detach target and weight")
    image = as_kernel_input(image, "image", shape)
    target = as_kernel_input(target, "target", shape)
    if weight is not None:
        weight = as_kernel_input(weight, "weight", shape[:-1])
    return FusedL1Ssim.apply(image, target, weight, float(ssim_weight), library.thread_count(threads))


class FusedL1Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, target, weight, ssim_weight, threads):
        height, width = image.shape[-3:-1]
        gradient = torch.empty_like(image) if ctx.needs_input_grad[0] else None
        loss = ctypes.c_double()
        job = L1Ssim(
            image=address(image), target=address(target), weight=address(weight), gradient=address(gradient),
            loss=ctypes.addressof(loss), batch=image.numel() // (3 * height * width), height=height, width=width,
            ssim_weight=ssim_weight, threads=threads,
        )  # fmt: skip
        if library.load().splatsmith_l1_ssim(job) != library.OK:
            raise MemoryError("the loss ran out of memory; use smaller images.")
        ctx.gradient = gradient
        return image.new_tensor(loss.value)

    @staticmethod
    @once_differentiable
    def backward(ctx, v_loss):
        return None if ctx.gradient is None else ctx.gradient * v_loss, None, None, None, None
