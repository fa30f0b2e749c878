"""preview.png: photos beside renders, frames of the turntable, or all sides of an object, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

PAGE_WIDTH = 1280  # px
GAP = 8  # px between pictures
LABEL = 18  # px for a line of text above a picture
PAPER = (250, 250, 250)
INK = (40, 40, 40)


@dataclass(frozen=True)
class Pair:
    """One photo and the render from its camera, [H, W, 3] sRGB each."""

    name: str
    photo: Tensor
    rendered: Tensor
    psnr: float


def contact_sheet(pairs: Sequence[Pair], orbit: Sequence[Tensor]) -> Tensor:
    """At most four pairs (two to a row) above a row of at most six turntable frames: [H, W, 3] sRGB in [0, 1]."""
    rows: list[list[tuple[str, Tensor]]] = []
    cells = [
        cell for p in pairs[:4] for cell in ((f"{p.name}", p.photo), (f"render, {p.psnr:.1f} dB", p.rendered))
    ]  # fmt: skip
    rows += [cells[i : i + 4] for i in range(0, len(cells), 4)]
    if orbit:
        chosen = [orbit[i * len(orbit) // min(len(orbit), 6)] for i in range(min(len(orbit), 6))]
        rows.append([("turntable" if i == 0 else "", frame) for i, frame in enumerate(chosen)])
    return _page(rows)


def object_sheet(rows: Sequence[tuple[str, Sequence[Tensor]]]) -> Tensor:
    """Rows of pictures [H, W, 3] of one object, each row under its label: [H, W, 3] sRGB in [0, 1]."""
    return _page([[(label if i == 0 else "", picture) for i, picture in enumerate(row)] for label, row in rows])


def _page(rows: Sequence[Sequence[tuple[str, Tensor]]]) -> Tensor:
    strips = [_strip(row) for row in rows]
    page = Image.new("RGB", (PAGE_WIDTH, sum(s.height for s in strips) + GAP), PAPER)
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    return torch.from_numpy(np.asarray(page).copy()).float() / 255


def _strip(cells: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """Pictures of one height beside each other, as wide as the page allows but no taller than a quarter of it."""
    aspects = [image.shape[1] / image.shape[0] for _, image in cells]
    height = int(min((PAGE_WIDTH - GAP * (len(cells) + 1)) / sum(aspects), PAGE_WIDTH / 4))
    strip = Image.new("RGB", (PAGE_WIDTH, height + GAP + LABEL), PAPER)
    draw, left = ImageDraw.Draw(strip), GAP
    for (label, image), aspect in zip(cells, aspects):
        width = max(int(height * aspect), 1)
        pixels = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
        strip.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS), (left, GAP + LABEL))
        draw.text((left, GAP), _fitting(label, width), fill=INK)
        left += width + GAP
    return strip


def _fitting(label: str, width: int) -> str:
    room = max(width // 7, 4)  # the built-in font is at most about 7 px wide
    return label if len(label) <= room else label[: room - 1] + "…"
