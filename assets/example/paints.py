"""Procedural paints of the example scene: functions of points [M, 3] in an object's own frame -> sRGB [M, 3]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]  # points [M, 3], outward normals [M, 3] -> colours [M, 3]


def hashed(cells: np.ndarray, seed: int) -> np.ndarray:
    """Integer cells [..., D] -> one uniform number in [0, 1) each; the same on every machine."""
    h = np.full(cells.shape[:-1], seed * 2654435761 % 2**32, dtype=np.uint64)
    for k in range(cells.shape[-1]):
        h = (h ^ (cells[..., k].astype(np.int64).astype(np.uint64) & np.uint64(0xFFFFFFFF))) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    return ((h * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(40)).astype(np.float64) / 2**24


def noise(points: np.ndarray, seed: int, octaves: int = 3) -> np.ndarray:
    """Value noise [M, D] -> [M], about in [-1, 1]; lattice 1, each octave twice as fine and half as strong."""
    total = np.zeros(len(points))
    for octave in range(octaves):
        p = points * 2**octave + 17.3 * octave
        cell = np.floor(p).astype(np.int64)
        f = p - cell
        f = f * f * (3 - 2 * f)
        value = np.zeros(len(points))
        for corner in np.ndindex(*(2,) * p.shape[1]):
            weight = np.prod(np.where(corner, f, 1 - f), axis=1)
            value += weight * hashed(cell + np.array(corner), seed + octave)
        total += (2 * value - 1) / 2**octave
    return total / 1.5


def mix(a, b, t: np.ndarray) -> np.ndarray:
    """Colours a, b ([3] or [M, 3]) blended by t [M]."""
    t = np.clip(t, 0, 1)[:, None]
    return np.asarray(a, dtype=float) * (1 - t) + np.asarray(b, dtype=float) * t


def wood(light=(0.78, 0.58, 0.38), dark=(0.50, 0.31, 0.17), scale: float = 9.0, seed: int = 1) -> Paint:
    """Growth rings round the x axis, with fibres along it."""

    def paint(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        ring = np.hypot(p[:, 1] + 0.4, p[:, 2] - 0.2) * scale + 1.2 * noise(p * [0.8, 2, 2], seed)
        fibre = noise(p * [4, 60, 60], seed + 9, 2)
        return mix(light, dark, 0.5 + 0.45 * np.sin(ring * 2 * np.pi) + 0.3 * fibre) * (
            1 + 0.10 * noise(p * 3, seed + 4)[:, None]
        )

    return paint


def coat(colour, seed: int, worn: float = 0.42) -> Paint:
    """Brushed paint over wood, rubbed through here and there."""
    below = wood(seed=seed + 50)

    def paint(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        streak = noise(p * [5, 38, 38], seed, 2)
        blotch = noise(p * 6, seed + 3, 4)
        painted = np.asarray(colour, dtype=float) * (1 + 0.10 * streak + 0.12 * blotch)[:, None]
        rubbed = np.clip((blotch + 0.6 * noise(p * 28, seed + 5, 2) - (1.05 - worn)) * 5, 0, 1)
        return mix(painted, below(p, n), rubbed)

    return paint


def banded(base: Paint, bands: list[tuple[float, float]], colour) -> Paint:
    """`base` with painted rings where x lies within (centre, half width)."""

    def paint(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        out = base(p, n)
        for centre, half in bands:
            inside = np.clip((half - np.abs(p[:, 0] - centre)) / 0.006, 0, 1)
            out = mix(out, np.asarray(colour) * (1 + 0.12 * noise(p * 30, 77, 2)[:, None]), inside)
        return out

    return paint


def flowered(base: Paint, radius: float, seed: int) -> Paint:
    """Daisies of several colours and sizes scattered on a cylinder of `radius` round x."""

    def paint(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        out = base(p, n)
        surface = np.stack([p[:, 0], np.arctan2(p[:, 2], p[:, 1]) * radius], axis=1) / 0.19
        cell = np.floor(surface).astype(np.int64)
        size = 0.30 + 0.16 * hashed(cell, seed)
        centre = 0.5 + 0.24 * np.stack([hashed(cell, seed + 1) - 0.5, hashed(cell, seed + 2) - 0.5], axis=1)
        d = surface - cell - centre
        r, angle = np.hypot(d[:, 0], d[:, 1]), np.arctan2(d[:, 1], d[:, 0])
        petals = 5 + np.floor(4 * hashed(cell, seed + 3))
        edge = size * (0.72 + 0.28 * np.cos(petals * angle + 6 * hashed(cell, seed + 4)))
        palette = np.array([[0.97, 0.95, 0.88], [0.99, 0.80, 0.25], [0.55, 0.78, 0.93], [0.98, 0.66, 0.62]])
        colour = palette[(hashed(cell, seed + 5) * 4).astype(int)]
        there = hashed(cell, seed + 6) < 0.8
        out = mix(out, colour, np.where(there, (edge - r) / 0.05, 0))
        return mix(out, (0.80, 0.45, 0.10), np.where(there, (0.3 * size - r) / 0.05, 0))

    return paint


def checked(base: Paint, axes: tuple[int, int], cell: float, other, low: float, high: float, across: int) -> Paint:
    """`base` with a chequered stripe where coordinate `across` lies in [low, high]."""

    def paint(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        odd = (np.floor(p[:, axes[0]] / cell) + np.floor(p[:, axes[1]] / cell)) % 2
        inside = (p[:, across] > low) & (p[:, across] < high)
        return mix(base(p, n), np.asarray(other) * (1 + 0.1 * noise(p * 20, 5, 2)[:, None]), odd * inside)

    return paint


def wheel(radius: float, rim, spoke, spokes: int, seed: int) -> Paint:
    """A disc in the xy plane: rim, hub and painted spokes, over wood."""
    below = wood(seed=seed, scale=16)

    def paint(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        r, angle = np.hypot(p[:, 0], p[:, 1]) / radius, np.arctan2(p[:, 1], p[:, 0]) + seed
        between = np.abs((angle * spokes / (2 * np.pi)) % 1 - 0.5) * 2 * np.pi / spokes * r
        shade = (1 + 0.12 * noise(p * 25, seed + 1, 2))[:, None]
        out = mix(below(p, n), np.asarray(spoke) * shade, (0.10 - (np.pi / spokes * r - between)) / 0.02)
        out = mix(out, np.asarray(rim) * shade, np.maximum((r - 0.78) / 0.03, (0.24 - r) / 0.03))
        return mix(out, (0.95, 0.9, 0.7), (0.09 - r) / 0.02)

    return paint


def lettered(base: Paint, marks: dict[tuple[int, int], np.ndarray], half: tuple[float, float, float], ink) -> Paint:
    """`base` with bitmaps [h, w] in [0, 1] on the sides of a box: (axis, sign) -> bitmap, filling the side."""

    def paint(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        out = base(p, n)
        for (axis, sign), bitmap in marks.items():
            on_side = np.sign(n[:, axis]) * (np.abs(n[:, axis]) > 0.9) == sign
            # Seen from outside: which coordinate runs to the right, which upwards.
            right, right_sign = {0: (2, -sign), 1: (0, 1), 2: (0, sign)}[axis]
            up, up_sign = {0: (1, 1), 1: (2, -sign), 2: (1, 1)}[axis]
            u = 0.5 + 0.5 * right_sign * p[:, right] / half[right]
            v = 0.5 - 0.5 * up_sign * p[:, up] / half[up]
            rows = np.clip((v * bitmap.shape[0]).astype(int), 0, bitmap.shape[0] - 1)
            columns = np.clip((u * bitmap.shape[1]).astype(int), 0, bitmap.shape[1] - 1)
            out = mix(out, np.asarray(ink) * (1 + 0.1 * noise(p * 30, 8, 2)[:, None]), bitmap[rows, columns] * on_side)
        return out

    return paint


def floor_boards(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Planks along x, each of its own tone and grain, staggered, with dark gaps and knots."""
    board = np.floor(p[:, 2] / 0.42)
    shift = hashed(board[:, None], 3) * 3
    piece = np.floor((p[:, 0] + shift) / 2.6)
    key = np.stack([board, piece], axis=1)
    across, along = p[:, 2] / 0.42 - board, (p[:, 0] + shift) / 2.6 - piece
    q = np.stack([p[:, 0] * 0.9, across + 5 * hashed(key, 4), 9 * hashed(key, 5)], axis=1)
    grain = np.sin(2 * np.pi * (5 * q[:, 1] + 1.6 * noise(q * [1.2, 1.5, 1], 6)))
    fibre = noise(np.stack([p[:, 0] * 7, p[:, 2] * 90], axis=1), 7, 2)
    knots = np.clip((noise(np.stack([p[:, 0] * 2.2, p[:, 2] * 4], axis=1), 13, 2) - 0.62) * 8, 0, 1)
    tone = (0.80 + 0.35 * hashed(key, 8))[:, None]
    out = mix((0.66, 0.49, 0.33), (0.47, 0.31, 0.18), 0.5 + 0.35 * grain + 0.35 * fibre) * tone
    out = mix(out, (0.26, 0.15, 0.08), knots)
    gap = np.minimum(np.minimum(across, 1 - across) * 0.42, np.minimum(along, 1 - along) * 2.6)
    return mix((0.12, 0.08, 0.05), out, gap / 0.008)


def patchwork_rug(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Woven squares, each with its own motif and colours, so that no two corners look alike; a fringed border."""
    palette = np.array(
        [[0.72, 0.22, 0.18], [0.16, 0.32, 0.45], [0.90, 0.72, 0.38], [0.93, 0.88, 0.78], [0.25, 0.45, 0.36], [0.42, 0.20, 0.33]]
    )
    cell = np.floor(p[:, [0, 2]] / 0.46).astype(np.int64)
    q = p[:, [0, 2]] / 0.46 - cell - 0.5
    first = (hashed(cell, 21) * 6).astype(int)
    second = (first + 1 + (hashed(cell, 22) * 5).astype(int)) % 6
    third = (second + 1 + (hashed(cell, 24) * 5).astype(int)) % 6
    a, b = np.abs(q[:, 0]), np.abs(q[:, 1])
    r, diamond = np.hypot(q[:, 0], q[:, 1]), a + b
    turns = 3 + np.floor(5 * hashed(cell, 25))
    star = r * (1 + 0.4 * np.cos(turns * np.arctan2(q[:, 1], q[:, 0]) + 6 * hashed(cell, 26)))
    tile, strip = np.floor((q + 0.5) * 5).astype(np.int64), np.floor((q[:, :1] + 0.5) * 9).astype(np.int64)
    motifs = np.stack(
        [
            hashed(np.concatenate([cell, tile], axis=1), 28) < 0.5,  # a mosaic, different in every square
            hashed(np.concatenate([cell, strip], axis=1), 33) < 0.5,  # stripes of uneven width
            noise(p[:, [0, 2]] * 9, 29, 2) > 0.05,  # batik
            star < 0.33,
            (r > 0.10 + 0.12 * hashed(cell, 34)) & (r < 0.26 + 0.12 * hashed(cell, 35)),
            diamond < 0.22 + 0.2 * hashed(cell, 36),
        ]
    )
    kind = (hashed(cell, 23) * len(motifs)).astype(int)
    on = motifs[kind, np.arange(len(p))]
    out = np.where(on[:, None], palette[second], palette[first])
    out = np.where(((r < 0.10) & (hashed(cell, 27) < 0.7))[:, None], palette[third], out)
    out = mix(out, (0.20, 0.13, 0.10), np.where(np.maximum(a, b) > 0.475, 0.8, 0))
    # Uneven dye: patches of their own tone, so that equal corners of a motif do not look alike.
    patch = np.floor((p[:, [0, 2]] + 0.02 * noise(p[:, [0, 2]] * 12, 37, 2)[:, None]) / 0.055).astype(np.int64)
    out = out * (0.82 + 0.36 * hashed(patch, 38))[:, None]
    weave = 0.09 * np.sin(p[:, 0] * 2 * np.pi / 0.028) * np.sin(p[:, 2] * 2 * np.pi / 0.028)
    return out * (1 + weave + 0.12 * noise(p * 14, 31, 3))[:, None]


def papered_wall(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Wallpaper with scattered leaves over panelling; the pattern is aperiodic."""
    along = p[:, 0] + p[:, 2]
    surface = np.stack([along, p[:, 1]], axis=1)
    paper = mix((0.62, 0.70, 0.66), (0.70, 0.74, 0.66), 0.5 + noise(surface * 0.8, 41))
    cell = np.floor(surface / 0.5).astype(np.int64)
    d = surface / 0.5 - cell - 0.5 - 0.3 * np.stack([hashed(cell, 42) - 0.5, hashed(cell, 43) - 0.5], axis=1)
    turn = 2 * np.pi * hashed(cell, 44)
    x, y = d[:, 0] * np.cos(turn) - d[:, 1] * np.sin(turn), d[:, 0] * np.sin(turn) + d[:, 1] * np.cos(turn)
    leaf = np.abs(y) < 0.16 * np.clip(1 - (x / 0.34) ** 2, 0, 1)
    colour = np.array([[0.33, 0.45, 0.36], [0.75, 0.52, 0.35], [0.40, 0.50, 0.58]])[(hashed(cell, 45) * 3).astype(int)]
    paper = np.where(leaf[:, None], colour * (1 - 0.3 * (np.abs(y) < 0.015))[:, None], paper)
    panel = wood((0.60, 0.42, 0.28), (0.42, 0.27, 0.16), 2.0, 46)(np.stack([p[:, 1], along, 0 * along], axis=1), n)
    panel = panel * np.where(np.abs(along % 0.9 - 0.45) > 0.42, 0.55, 1)[:, None]
    low = p[:, 1] < 1.1
    return np.where(low[:, None], panel, paper)


def patched(seed: int, size: float) -> Paint:
    """An abstract picture: overlapping ringed discs of many colours within about `size` of the centre."""
    rng = np.random.default_rng(seed)
    centres, radii = rng.uniform(-1, 1, (22, 3)), rng.uniform(0.25, 0.75, 22)
    palette = np.array([[0.85, 0.25, 0.18], [0.95, 0.78, 0.30], [0.16, 0.40, 0.62], [0.94, 0.90, 0.80], [0.20, 0.50, 0.38]])
    colours = palette[rng.integers(0, 5, 23)] * rng.uniform(0.8, 1.05, (23, 1))

    def paint(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        q = p / size
        out = np.broadcast_to(colours[-1], p.shape).copy()
        for centre, radius, colour in zip(centres, radii, colours[:-1], strict=True):
            distance = np.linalg.norm(q - centre, axis=1)
            out = mix(out, colour, (radius - distance) / 0.02 * np.where(np.sin(distance * 30) > -0.3, 1, 0.35))
        return out * (1 + 0.12 * noise(q * 5, seed, 4))[:, None]

    return paint
