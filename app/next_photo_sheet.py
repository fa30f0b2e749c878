"""next_photo.png: what one more photo would show, how little is known of it, and where to stand, on one page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from recon.next_photo import NextPhoto
from splat.cameras import Cameras
from splat.gaussians import Splats

WIDTH, MARGIN, GAP = 1400, 28, 20  # px
TALLEST = 420  # px, of a picture
PAPER, INK, FAINT = (250, 250, 250), (35, 35, 35), (120, 120, 120)
UNKNOWN = (255, 112, 16)  # colour of what the fits disagree on, and of the place to go
CAMERA = (70, 90, 120)
FINER = 3  # the map is drawn so many times as large and scaled down
MOST_DOTS = 20_000


def next_photo_sheet(
    found: NextPhoto, told: str, photo: Tensor, cameras: Sequence[Cameras], names: Sequence[str], splats: Splats
) -> Tensor:
    """[H, W, 3] sRGB in [0, 1]: the sentence `told`, above the expected picture, the nearest photo [H, W, 3], and a map.

    `cameras` (batches of one) and `names` are of all photos, `splats` the scene, all in the world of `found`.
    """
    expected = _overlaid(found)
    pictures = [expected, _picture(photo)]
    aspects = [p.width / p.height for p in pictures]
    room = WIDTH - 2 * MARGIN - 2 * GAP
    height = int(min(room / (sum(aspects) + 1), TALLEST))
    sizes = [(max(int(height * a), 1), height) for a in aspects]
    heading, small = ImageFont.load_default(26), ImageFont.load_default(17)
    width = sum(w for w, _ in sizes) + height + 2 * GAP + 2 * MARGIN
    lines = _wrapped(told, heading, width - 2 * MARGIN)
    top = MARGIN + 34 * len(lines) + 14
    page = Image.new("RGB", (width, top + height + 62), PAPER)
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 34 * i), line, INK, heading)
    captions = ["What it would show; orange is not known yet", f"The nearest photo: {found.nearest}", "From above"]
    panels = [p.resize(size, Image.Resampling.LANCZOS) for p, size in zip(pictures, sizes)]
    panels.append(_map(found, cameras, names, splats, height))
    left = MARGIN
    for panel, caption in zip(panels, captions):
        page.paste(panel, (left, top))
        draw.text((left, top + height + 10), _shortened(caption, small, panel.width), FAINT, small)
        left += panel.width + GAP
    return torch.from_numpy(np.asarray(page).copy()).float() / 255


def _overlaid(found: NextPhoto) -> Image.Image:
    """The expected picture, the more orange the less is known."""
    base = _picture(found.expected)
    soft = Image.fromarray((found.disagreement.clamp(0, 1) * 255).byte().numpy()).filter(
        ImageFilter.GaussianBlur(base.width / 60)
    )
    weight = torch.from_numpy(np.asarray(soft).copy()).float() / 255
    share = ((weight - 0.3) / 0.5).clamp(0, 1)  # noise of the fits is everywhere
    mask = Image.fromarray((0.72 * 255 * share * share * (3 - 2 * share)).byte().numpy())
    return Image.composite(Image.new("RGB", base.size, UNKNOWN), base, mask)


def _map(found: NextPhoto, cameras: Sequence[Cameras], names: Sequence[str], splats: Splats, side: int) -> Image.Image:
    """From above, turned so that who stands at the nearest photo looks up the page: left and right are the sentence's."""
    size = FINER * side
    nearest = cameras[list(names).index(found.nearest)]
    eyes = torch.cat([*(c.centers for c in cameras), found.camera.centers]).double().cpu()
    offset = nearest.centers[0].double().cpu() - found.focus
    angle = math.atan2(float(offset[0]), float(offset[2]))
    reach = 1.25 * float((eyes - found.focus)[:, [0, 2]].norm(dim=1).max())

    def at(points: Tensor) -> Tensor:
        """World [N, 3] -> page [N, 2]."""
        x, _, z = (points.double().cpu() - found.focus).unbind(-1)
        right, back = x * math.cos(angle) - z * math.sin(angle), x * math.sin(angle) + z * math.cos(angle)
        return size / 2 * (1 + torch.stack([right, back], dim=-1) / reach)

    page = Image.new("RGB", (size, size), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    opacities = splats.opacities.cpu()
    seen = opacities > 0.3 * opacities.max()  # first Gaussians are all faint
    means, colours = splats.means.cpu()[seen], (0.5 + 0.282 * splats.sh.cpu()[seen, 0]).clamp(0, 1)
    every = max(1, len(means) // MOST_DOTS)
    order = means[::every, 1].argsort()  # the highest are drawn last
    dots, paints = at(means[::every][order]).tolist(), (0.45 + 0.55 * colours[::every][order]).mul(255).byte().tolist()
    r = size / 220
    for (x, y), paint in zip(dots, paints):
        if 0 <= x < size and 0 <= y < size:
            draw.ellipse((x - r, y - r, x + r, y + r), tuple(paint))
    turns = torch.linspace(0, math.radians(found.azimuth_deg), 40).double() + angle
    start, end = offset[[0, 2]].norm(), (found.camera.centers[0].double().cpu() - found.focus)[[0, 2]].norm()
    radius = torch.linspace(float(start), float(end), 40).double()
    arc = found.focus + torch.stack([radius * turns.sin(), torch.zeros_like(turns), radius * turns.cos()], dim=-1)
    draw.line([tuple(p) for p in at(arc).tolist()], UNKNOWN, width=size // 160, joint="curve")
    font = ImageFont.load_default(size // 26)
    for camera, name in zip(cameras, names):
        _wedge(draw, camera, at, size, CAMERA, 0.055)
        if name == found.nearest:
            x, y = at(camera.centers)[0].tolist()
            label = _shortened(name, font, size // 2)
            half = draw.textlength(label, font) / 2
            place = (min(max(x, half + 8), size - half - 8), min(y + size * 0.03, size * 0.94))
            draw.text(place, label, CAMERA, font, anchor="ma")
    _wedge(draw, found.camera, at, size, UNKNOWN, 0.085)
    draw.rectangle((0, 0, size - 1, size - 1), outline=(205, 205, 205), width=FINER)
    return page.resize((side, side), Image.Resampling.LANCZOS)


def _wedge(draw: ImageDraw.ImageDraw, camera: Cameras, at, size: int, colour: tuple[int, int, int], length: float) -> None:
    """A camera as the piece of cake that it sees."""
    tip = at(camera.centers)[0]
    ahead = at(camera.centers + 1e-3 * camera.forward)[0] - tip
    ahead = ahead / ahead.norm().clamp_min(1e-12) * size * length
    aside = torch.stack([-ahead[1], ahead[0]]) * float(camera.width / (2 * camera.K[0, 0, 0]))
    corners = [tuple(p.tolist()) for p in (tip, tip + ahead + aside, tip + ahead - aside)]
    draw.polygon(corners, colour, outline=(255, 255, 255), width=FINER)
    r = size * length / 6
    x, y = corners[0]
    draw.ellipse((x - r, y - r, x + r, y + r), colour, outline=(255, 255, 255), width=FINER)


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().cpu().numpy())


def _wrapped(text: str, font: ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _shortened(text: str, font: ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while len(text) > 4 and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
