"""Painted patterns for the surfaces of made-up rooms: colour differences about 0 on a square that repeats."""

from __future__ import annotations

import numpy as np

SIDE = 256  # px of a pattern


def random_texture(rng: np.random.Generator) -> np.ndarray:
    """[SIDE, SIDE, 3] float32 in about [-0.5, 0.5], mean near 0; seamless but for the tiles' own joints."""
    kinds = (_noise, _noise, _bricks, _stripes, _speckle, _panes, _grain, _patches)
    grey = kinds[int(rng.integers(len(kinds)))](rng)
    grey = grey + rng.uniform(0, 0.6) * _noise(rng)
    grey = grey / max(float(np.abs(grey).max()), 1e-6) * 0.5
    tint = 1 + rng.normal(0, 0.15, 3)
    second = 0.12 * rng.normal(0, 1, 3) * _noise(rng)[..., None]
    out = grey[..., None] * tint + second
    return (out - out.mean((0, 1))).astype(np.float32)


def mip_levels(texture: np.ndarray) -> list[np.ndarray]:
    """The pattern and its halves down to one pixel, box filtered."""
    levels = [texture]
    while levels[-1].shape[0] > 1:
        half = levels[-1].shape[0] // 2
        levels.append(levels[-1].reshape(half, 2, half, 2, 3).mean((1, 3)))
    return levels


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Value noise over several octaves, whose share falls at a random rate."""
    out = np.zeros((SIDE, SIDE))
    fall = rng.uniform(0.45, 0.95)
    for octave, cells in enumerate((4, 8, 16, 32, 64, 128)):
        out += fall**octave * _smooth(rng.uniform(-0.5, 0.5, (cells, cells)))
    return out


def _smooth(lattice: np.ndarray) -> np.ndarray:
    """A periodic lattice, interpolated to SIDE x SIDE."""
    cells = len(lattice)
    at = np.arange(SIDE) * cells / SIDE
    low = at.astype(int)
    part = at - low
    part = part * part * (3 - 2 * part)
    rows = lattice[low] * (1 - part)[:, None] + lattice[(low + 1) % cells] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, (low + 1) % cells] * part


def _grid() -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="xy")


def _bricks(rng: np.random.Generator) -> np.ndarray:
    """Rows of stones or tiles of one size each with a shade of its own, and joints."""
    x, y = _grid()
    rows, columns = int(rng.choice([2, 4, 8, 16])), int(rng.choice([1, 2, 4, 8]))
    tall, wide = SIDE // rows, SIDE // columns
    row = y // tall
    shift = (row % 2) * (wide // 2) if rng.random() < 0.6 else 0
    column = ((x + shift) // wide) % columns
    shade = rng.normal(0, 0.3, (rows, columns))[row, column]
    joint = int(rng.integers(1, 6))
    edge = (y % tall < joint) | ((x + shift) % wide < joint)
    return np.where(edge, rng.choice([-0.8, 0.6]), shade)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    """Boards or a woven cloth."""
    x, y = _grid()
    count = int(rng.choice([2, 4, 8, 16, 32]))
    boards = rng.normal(0, 0.4, count)[(x * count // SIDE) % count]
    if rng.random() < 0.4:
        boards = boards + rng.normal(0, 0.4, count)[(y * count // SIDE) % count]
    return boards + 0.3 * _smooth(rng.uniform(-0.5, 0.5, (128, 128)))


def _speckle(rng: np.random.Generator) -> np.ndarray:
    """Gravel, pebbles, leaves: every pixel belongs to the nearest of some points."""
    count = int(rng.choice([60, 150, 400]))
    from scipy.spatial import cKDTree

    centres = rng.uniform(0, SIDE, (count, 2))
    tiled = np.concatenate([centres + SIDE * np.array([i, j]) for i in (-1, 0, 1) for j in (-1, 0, 1)])
    x, y = _grid()
    distance, nearest = cKDTree(tiled).query(np.stack([x, y], -1).reshape(-1, 2), k=2)
    shade = rng.normal(0, 0.4, count)[nearest[:, 0] % count]
    rim = np.clip((distance[:, 1] - distance[:, 0]) / 3, 0, 1)
    return (shade - rng.uniform(0, 1) * (1 - rim)).reshape(SIDE, SIDE)


def _panes(rng: np.random.Generator) -> np.ndarray:
    """The front of a building: dark windows in a plain wall."""
    x, y = _grid()
    count = int(rng.choice([1, 2, 4]))
    cell = SIDE // count
    u, v = (x % cell) / cell, (y % cell) / cell
    left, top = rng.uniform(0.1, 0.3, 2)
    inside = (u > left) & (u < 1 - left) & (v > top) & (v < 1 - rng.uniform(0.1, 0.3))
    bar = (np.abs(u - 0.5) < 0.02) | (np.abs(v - 0.5) < 0.02)
    glass = rng.normal(-0.6, 0.3, (count, count))[y // cell, x // cell]
    return np.where(inside, np.where(bar, 0.4, glass), 0.2)


def _grain(rng: np.random.Generator) -> np.ndarray:
    """Wood: rings drawn out along one direction."""
    x, _ = _grid()
    bend = _smooth(rng.uniform(-0.5, 0.5, (4, 4))) * rng.uniform(10, 60)
    return 0.5 * np.sin((x + bend) * 2 * np.pi * int(rng.choice([4, 8, 16])) / SIDE) + 0.2 * _noise(rng)


def _patches(rng: np.random.Generator) -> np.ndarray:
    """Print: rectangles of many sizes over each other, as on boxes, books and posters."""
    out = np.zeros((SIDE, SIDE))
    for _ in range(int(rng.integers(15, 90))):
        w, h = np.exp(rng.uniform(np.log(4), np.log(110), 2)).astype(int)
        left, top = rng.integers(0, SIDE - w), rng.integers(0, SIDE - h)
        out[top : top + h, left : left + w] = rng.uniform(-1, 1)
    return out
