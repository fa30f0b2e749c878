"""Which device and renderer a job gets, and how many threads."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass

import torch

from splat.errors import InputError
from splat.render import pick_backend
from splat.render.native.library import usable_cores


@dataclass(frozen=True)
class Place:
    """Where a job computes."""

    device: str  # "cpu" or "cuda"
    renderer: str  # a key of splat.render.BACKENDS
    threads: int  # CPU threads
    fallbacks: tuple[str, ...]  # sentences about what could not be had


def pick_place(device: str, threads: int | None, *, draw_on_cpu: bool = False) -> Place:
    """Resolve --device and --threads. Raises `InputError` for a GPU that is not there or that cannot draw.

    With `draw_on_cpu` the renderer is that of the CPU and only the networks go to the GPU, which then need not draw.
    """
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads} is no number of threads; give 1 or more.")
    fallbacks = ()
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda was asked for, but torch sees no NVIDIA GPU; use --device cpu or a CUDA build of torch."
        )
    if device != "cpu" and not draw_on_cpu and torch.cuda.is_available() and (missing := no_gsplat()):
        if device == "cuda":
            raise InputError(f"--device cuda was asked for, but {missing}; or use --device cpu.")
        fallbacks = (f"The GPU is not used, because {missing}.",)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not fallbacks else "cpu"
    threads = usable_cores() if threads is None else min(threads, usable_cores())
    renderer = pick_backend("cpu" if draw_on_cpu else device)
    if renderer == "reference":
        fallbacks += ("No C++ compiler built the native renderer, so the plain PyTorch one draws, some 40 times slower.",)
    return Place(device, renderer, threads, fallbacks)


def no_gsplat() -> str | None:
    """Why gsplat cannot draw on this machine's GPU, with the remedy; None when it can. Compiles nothing."""
    from splat.render.cuda_gsplat import INSTALL, kernels_built

    if importlib.util.find_spec("gsplat") is None:
        return f"the package gsplat is not installed; {INSTALL}"
    if not kernels_built() and not _cuda_compiler():
        return (
            "gsplat brings no CUDA kernels and there is no nvcc to compile them; "
            f"install the CUDA toolkit of torch's version ({torch.version.cuda}) or a gsplat wheel with ready kernels"
        )
    return None


def _cuda_compiler() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME  # from the environment, or where nvcc lies

    return shutil.which("nvcc", path=f"{CUDA_HOME}/bin" if CUDA_HOME else None) is not None


def is_out_of_memory(error: BaseException) -> bool:
    """torch reports a lack of main memory as a plain RuntimeError."""
    told = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in told or "can't allocate memory" in told)
    )


def colour(text: str) -> tuple[float, float, float]:
    """white, black or R,G,B in 0-255 -> sRGB in [0, 1]. Raises `InputError`."""
    named = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
    if text in named:
        return named[text]
    parts = text.split(",")
    if len(parts) != 3 or not all(p.strip().isdecimal() and int(p) <= 255 for p in parts):
        raise InputError(f"--background {text} is no colour; give white, black or R,G,B in 0-255.")
    r, g, b = (int(p) / 255 for p in parts)
    return r, g, b
