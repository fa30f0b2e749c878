"""Pages of small pictures with words under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 4  # px around a picture
TEXT_PX = 11
LINE = 13  # px from one line of text to the next
INK = (40, 40, 40)


@dataclass(frozen=True)
class Cell:
    image: Tensor  # [S, S, 3] sRGB
    words: str = ""


def page(rows: Sequence[Sequence[Cell]], lines: int = 2) -> Image.Image:
    """Rows of cells of one size, each with room for `lines` lines of text below."""
    side, columns = rows[0][0].image.shape[0], max(len(r) for r in rows)
    high = side + lines * LINE + GAP
    sheet = Image.new("RGB", (columns * (side + GAP) + GAP, len(rows) * (high + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            left, top = GAP + j * (side + GAP), GAP + i * (high + GAP)
            pixels = (cell.image.clamp(0, 1) * 255).round().byte().numpy()
            sheet.paste(Image.fromarray(pixels), (left, top))
            for k, line in enumerate(_wrapped(cell.words, side, font)[:lines]):
                draw.text((left + side / 2, top + side + k * LINE), line, INK, font, anchor="ma")
    return sheet


def save_page(sheet: Image.Image, path: Path, most_bytes: int = 1_500_000) -> None:
    """As PNG; with 256 colours where all of them would take more than `most_bytes`."""
    sheet.save(path, optimize=True)
    if path.stat().st_size > most_bytes:
        sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _wrapped(words: str, width: int, font) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
