"""A bank of views without objects: one disc each, for tests of what trains on banks."""

import math

import numpy as np

from diffusion.view_bank import ViewBank, ViewBankConfig


def disc_bank(objects: int = 12, side: int = 16) -> ViewBank:
    """One red, green or blue disc each, in 4 ring views and 4 tilted ones; the last two objects are for validation."""
    y, x = np.mgrid[:side, :side] + 0.5
    views = np.zeros((objects, 8, side, side, 5), dtype=np.uint8)
    for o in range(objects):
        for v in range(8):
            inside = np.hypot(x - side / 2 - v % 4 + 1.5, y - side / 2) < 3 + o % 3
            views[o, v, ..., o % 3] = 200 * inside
            views[o, v, ..., 3] = 255 * inside
            views[o, v, ..., 4] = 128 * inside
    directions = [(k % 4 * math.pi / 2, 0.3 + 0.2 * (k > 3)) for k in range(8)]
    words = tuple(f"object {o}" for o in range(objects))
    columns = dict.fromkeys(("keys", "nouns", "names", "licences", "authors", "sources"), words)
    return ViewBank(
        views=views, angles=np.tile(np.array(directions, dtype=np.float32), (objects, 1, 1)),
        objects=np.arange(objects), shapes=np.zeros(objects, dtype=np.int64),
        splits=("train",) * (objects - 2) + ("val",) * 2, config=ViewBankConfig(size=side, ring=4, extra=0), **columns,
    )  # fmt: skip
