"""A page that shows splats: one HTML file that opens from the disk, with nothing beside it and no network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from html import escape
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.io.atomic import atomically

POSTER_SIDE = 640  # px, long side of the still picture shown until the splats are drawn
PART = 12_000_000  # bytes of the packed splats in each <script>, a multiple of 3: base64 of parts then joins up
LARGE = 50_000_000  # bytes of a page that phones may not open
LARGEST = 1_000_000_000  # bytes of packed splats; browsers hold no such page

log = logging.getLogger(__name__)


def save_view_page(splats: Splats, path: Path, view: Cameras, title: str, background: Tensor | None = None) -> None:
    """Write the page: `splats` with orbit controls, opened at the first camera of `view`, as our own renders show it.

    The world is ours, +Y up; `view` is a level pinhole with square pixels and its centre in the middle, as
    `Cameras.look_at` and `Cameras.orbit` make them, and its whole picture stays in sight whatever the window's shape.
    `title` may hold anything: it is shown as text. `background` is sRGB [3], white by default; who looks may change it.
    The splats are embedded as a compressed PLY (`splat.io.compressed_ply` tells what it keeps), packed by gzip. Same splats,
    view and title, same bytes. Raises `InputError` for an empty scene and for one too large for any browser, `StoppedLate`
    for values that are no numbers and for a full disk. Logs a warning for a page that phones may not open.
    """
    path, background = Path(path), torch.ones(3) if background is None else background
    packed = _packed(splats)
    if len(packed) > LARGEST:
        size = f"{len(packed) / 1e6:,.0f} MB"
        raise InputError(
            f"The page would hold {size} of splats, more than browsers read; {_remedy(splats, packed)}, or export a .ply."
        )
    script, style = _part("viewer.min.js"), _part("page.css")
    told = f"{len(splats):,} splats"
    facts = json.dumps(_facts(splats, view[0], background)).replace("<", "\\u003c")
    head = (_text(_policy(script, style)), _text(_generator()), _text(title), style)
    body = (_text(f"{title}, the first view"), _poster(splats, view[0], background), _text(title), told)
    values = (*head, *body, facts, _blocks(packed), script)
    # A template of plain words in braces: what users wrote is put in last and never read as template again.
    parts = _part("page.html").split("{{}}")
    assert len(parts) == len(values) + 1, len(parts)
    page = parts[0] + "".join(value + part for value, part in zip(values, parts[1:]))
    with atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # names of files need not be valid text
    if len(page) > LARGE:
        log.warning(
            "%s is %.0f MB (%s), which phones and old laptops may not open; %s.",
            path.name,
            len(page) / 1e6,
            told,
            _remedy(splats, packed),
        )


def orbit_of(view: Cameras, splats: Splats) -> dict[str, float | list[float]]:
    """The first camera of `view` as an orbit: target [3] in front of it amid the splats, azimuth and elevation in degrees.

    Azimuth 0 looks from +Z and grows towards +X, elevation grows upwards.
    """
    from app.turntable import middle_depth

    eye, forward = view.centers[0].double().cpu(), view.forward[0].double().cpu()
    distance = middle_depth([view[0]], splats)
    x, y, z = (-forward).tolist()
    return {
        "target": (eye + distance * forward).tolist(),
        "distance": distance,
        "azimuth": math.degrees(math.atan2(x, z)),
        "elevation": math.degrees(math.asin(max(-1.0, min(1.0, y)))),
    }


def _facts(splats: Splats, view: Cameras, background: Tensor) -> dict:
    """What the script reads; `fov` is the vertical angle of the picture in degrees."""
    fov = 2 * math.degrees(math.atan(0.5 * view.height / float(view.K[0, 1, 1])))
    colour = "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in background.clamp(0, 1))
    return {
        **orbit_of(view, splats), "fov": fov, "aspect": view.width / view.height, "background": colour, "count": len(splats),
    }  # fmt: skip


def _packed(splats: Splats) -> bytes:
    from splat.io.compressed_ply import save_compressed_ply

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "scene.compressed.ply")
        save_compressed_ply(splats, file)
        return gzip.compress(file.read_bytes(), mtime=0)


def _blocks(packed: bytes) -> str:
    """Blocks of data that no browser runs; several, since a string of a browser has a largest length."""

    def each() -> Iterator[str]:
        for start in range(0, len(packed), PART):
            text = base64.b64encode(packed[start : start + PART]).decode()
            yield f'<script type="application/octet-stream" class="part">{text}</script>'

    return "\n".join(each())


def _poster(splats: Splats, view: Cameras, background: Tensor) -> str:
    """Our own render of the first view, as a data URL."""
    from app.turntable import render_frames
    from splat.io.images import save_image

    scale = POSTER_SIDE / max(view.width, view.height)
    small = view.resized(max(round(view.width * scale), 1), max(round(view.height * scale), 1))
    (picture,) = render_frames(splats, small, background)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "poster.jpg")
        save_image(file, picture, quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()


def _policy(script: str, style: str) -> str:
    """Content-Security-Policy: the page's own script and style, a worker it makes itself, embedded pictures, no network."""

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {hashed(script)}; style-src {hashed(style)}; img-src data:; worker-src blob:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def _part(name: str) -> str:
    return resources.files("app.viewer").joinpath(name).read_text(encoding="utf-8")


def _generator() -> str:
    from app.report import versions

    return f"splatsmith {versions()['splatsmith']}"


def _remedy(splats: Splats, packed: bytes) -> str:
    if splats.sh_degree == 0:
        return "fit with --preset draft for fewer splats"
    share = len(_packed(splats.with_sh_degree(0))) / len(packed)
    return f"export with --sh-degree 0 for {share:.0%} of the size, without view-dependent colour"


def _text(words: str) -> str:
    return escape(words, quote=True)
