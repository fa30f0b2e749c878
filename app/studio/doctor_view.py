"""The input doctor's verdict as HTML: what it says, which photo sees what another sees, and every photo with its troubles."""

from __future__ import annotations

import base64
import json
import math
from html import escape
from pathlib import Path
from typing import Any

from app.checkup import VERDICTS
from app.estimate import clock
from app.studio.html import sentences

MIDDLE, RADIUS = 200, 158  # of the graph, in units of its picture of 400 x 400


def verdict(folder: Path) -> str:
    """Of what `app.checkup.check_photos` wrote to `folder`."""
    values = json.loads((folder / "verdict.json").read_text())
    photos = values["photos"]
    thumbs = [_picture(folder / f"thumb_{number:03d}.jpg") for number in range(len(photos))]
    alone = [photo["name"] for photo in photos if photo["group"] != 0]
    lines = [
        f'<div class="ss-verdict ss-{values["verdict"]}"><p class="ss-say"><b>{VERDICTS[values["verdict"]]}</b> '
        f"About {values['expected_placed']} of {len(photos)} photos will be placed.</p>",
        f"<p>Next photo: {escape(values['next_photo'])}</p>",
        f'<p class="ss-faint">{_times(values["seconds"])}</p>' if values["verdict"] != "impossible" else "",
        sentences([*values["problems"], *values["notices"], *(f"{name}: {why}" for name, why in values["skipped"])]),
        '<details open><summary>What overlaps</summary><div class="ss-overlap">',
        _graph(photos, values["links"], thumbs),
        '<p class="ss-faint">A line joins photos that see the same things; the darker, the more.'
        + (" Those with a red ring stand alone and will not be placed." if alone else "")
        + "</p></div></details>",
        "<details><summary>Every photo</summary>",
        f'<div class="ss-photos">{"".join(_card(photo, thumb) for photo, thumb in zip(photos, thumbs))}</div></details></div>',
    ]
    return "".join(lines)


def _times(seconds: dict[str, float]) -> str:
    return "Estimated: " + ", ".join(f"{preset} {clock(value)}" for preset, value in seconds.items()) + "."


def _graph(photos: list[dict[str, Any]], links: list[list[int]], thumbs: list[str]) -> str:
    """Photos in their order on a circle, lines for what they share."""
    count = len(photos)
    turn = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    at = [(MIDDLE + RADIUS * math.cos(angle), MIDDLE + RADIUS * math.sin(angle)) for angle in turn]
    size = max(min(0.85 * math.pi * RADIUS / count, 34.0), 8.0)
    strongest = max((shared for _, _, shared in links), default=1)
    parts = ['<svg viewBox="0 0 400 400" class="ss-graph" role="img" aria-label="Which photos overlap">']
    for i, j, shared in sorted(links, key=lambda link: link[2]):
        strength = math.sqrt(shared / strongest)
        (x1, y1), (x2, y2) = at[i], at[j]
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{0.6 + 2.4 * strength:.2f}" '
            f'stroke-opacity="{0.15 + 0.75 * strength:.2f}"/>'
        )
    for i, (photo, (x, y)) in enumerate(zip(photos, at)):
        trouble = " class='ss-alone'" if photo["group"] != 0 else " class='ss-weak'" if photo["notes"] else ""
        name, links_told = escape(photo["name"], quote=True), f"{photo['links']} links"
        parts.append(
            f'<g{trouble}><title>{name}: {links_told}</title><clipPath id="ss-clip-{i}">'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/></clipPath>'
            f'<image href="{thumbs[i]}" x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:.1f}" '
            f'height="{2 * size:.1f}" preserveAspectRatio="xMidYMid slice" clip-path="url(#ss-clip-{i})"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/></g>'
        )
    return "".join([*parts, "</svg>"])


def _card(photo: dict[str, Any], thumb: str) -> str:
    notes = ", ".join(photo["notes"])
    told = f'<span class="ss-error">{escape(notes)}</span>' if notes else "fine"
    return (
        f'<figure><img src="{thumb}" alt="" loading="lazy"><figcaption><b dir="auto">{escape(photo["name"])}</b>'
        f"<br>{photo['links']} links, {100 * photo['coverage']:.0f} % shared<br>{told}</figcaption></figure>"
    )


def _picture(file: Path) -> str:
    """As a data URL: the folder of the check is thrown away at once."""
    try:
        return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()
    except OSError:
        return ""
