"""SSIM on a GPU in one or two kernels that torch.compile makes, where that is faster there than convolutions.

Written and tested on a CPU; it has not run on a GPU yet.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from splat.metrics import SIGMA, WINDOW, ssim_map

log = logging.getLogger(__name__)
REPEATS = 5  # of each candidate, when the faster one is looked for

SsimMap = Callable[[Tensor, Tensor], Tensor]


def shifted_ssim_map(image: Tensor, truth: Tensor) -> Tensor:
    """`splat.metrics.ssim_map` as sums of shifted images: additions and multiplications alone, which a compiler can fuse."""
    x, y = image.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2)
    maps = torch.stack([x, y, x * x, y * y, x * y])
    weights = [2.718281828459045 ** (-((k - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for k in range(WINDOW)]
    weights = [w / sum(weights) for w in weights]
    h, w = x.shape[-2:]
    half = WINDOW // 2
    wide = torch.nn.functional.pad(maps, (half, half))
    maps = sum(weights[k] * wide[..., k : k + w] for k in range(WINDOW))
    tall = torch.nn.functional.pad(maps, (0, 0, half, half))
    mx, my, xx, yy, xy = sum(weights[k] * tall[..., k : k + h, :] for k in range(WINDOW)).unbind()
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    bottom = (mx * mx + my * my + c1) * (xx - mx * mx + yy - my * my + c2)
    return (top / bottom).permute(0, 2, 3, 1)


@functools.cache
def fastest_ssim_map(device: torch.device) -> SsimMap:
    """The faster of the compiled map and `ssim_map` on `device`, tried once; `ssim_map` where nothing compiles."""
    log.info("compiling the SSIM for %s; this takes some seconds, once", device)
    compiled = torch.compile(shifted_ssim_map, fullgraph=True, dynamic=True)
    try:
        seconds = {f: seconds_of(f, device) for f in (compiled, ssim_map)}
    except Exception as error:  # whatever a compiler that is missing or broken raises: the plain map always works
        reason = str(error).strip().splitlines()[:1]
        log.warning("the SSIM could not be compiled and uses convolutions (%s)", *reason or [type(error).__name__])
        return ssim_map
    log.info("SSIM: %.2f ms compiled, %.2f ms with convolutions", *(1e3 * s for s in seconds.values()))
    return min(seconds, key=seconds.get)


@torch.enable_grad()  # the first one to ask may be without
def seconds_of(ssim: SsimMap, device: torch.device, side: int = 512) -> float:
    """Of a value and its gradient for an image of `side` pixels, the best of a few."""
    truth = torch.rand(1, side, side, 3, device=device)
    image = torch.rand(1, side, side, 3, device=device, requires_grad=True)
    best = float("inf")
    for repeat in range(REPEATS + 1):  # the first one compiles
        start = time.perf_counter()
        torch.autograd.grad(ssim(image, truth).mean(), image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat:
            best = min(best, time.perf_counter() - start)
    return best
