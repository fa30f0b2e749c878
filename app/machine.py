"""Which device and renderer a job gets, and how many threads."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from splat.errors import InputError
from splat.render import pick_backend


@dataclass(frozen=True)
class Place:
    """Where a job computes."""

    device: str  # "cpu" or "cuda"
    renderer: str  # a key of splat.render.BACKENDS
    threads: int  # CPU threads
    fallbacks: tuple[str, ...]  # sentences about what could not be had


def pick_place(device: str, threads: int | None) -> Place:
    """Resolve --device and --threads. Raises `InputError` for a GPU that is not there."""
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads} is no number of threads; give 1 or more.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda was asked for, but torch sees no NVIDIA GPU; use --device cpu or a CUDA build of torch."
        )
    if threads is None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    renderer = pick_backend(device)
    fallbacks = ()
    if renderer == "reference":
        fallbacks = ("No C++ compiler built the native renderer, so the plain PyTorch one draws, some 40 times slower.",)
    return Place(device, renderer, threads, fallbacks)


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
