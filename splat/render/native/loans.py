"""Memory for large results, lent again and again: the system is slower to supply fresh pages than the kernels to fill them."""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref

import torch
from torch import Tensor

LARGE = 1 << 20  # bytes; the C library keeps smaller blocks by itself
SPARE_BLOCKS, SPARE_BYTES = 16, 1 << 30  # that wait for the next loan, at most

_spare: list[mmap.mmap] = []  # the last one given back at the end


def empty(*shape: int) -> Tensor:
    """Like `torch.empty`, float32 on CPU. A large block returns here when the last tensor that uses it is gone."""
    count = math.prod(shape)
    if 4 * count < LARGE:
        return torch.empty(shape)
    block = _take(4 * count)
    loan = (ctypes.c_float * count).from_buffer(block)
    weakref.finalize(loan, _give_back, block).atexit = False
    return torch.frombuffer(loan, dtype=torch.float32).view(shape)


def _take(size: int) -> mmap.mmap:
    # Other threads take and give back, too: nothing here relies on the list staying as it is.
    for block in sorted((b for b in tuple(_spare) if size <= len(b) <= 2 * size), key=len):
        try:
            _spare.remove(block)
        except ValueError:
            continue
        return block
    # Python's default is memory shared with forked processes, which would draw into each other's images.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    block = mmap.mmap(-1, size + size // 8, **private)  # the next result is often a little larger
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give_back(block: mmap.mmap) -> None:
    _spare.append(block)
    while len(_spare) > SPARE_BLOCKS or sum(map(len, tuple(_spare))) > SPARE_BYTES:
        try:
            _spare.pop(0)  # the one that was of no use for longest
        except IndexError:
            return
