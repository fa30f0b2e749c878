"""Which places no photo shows: behind the surface that it shows, or outside of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splat.gaussians import Splats
from splat.render import RenderOptions, render
from splat.views import Views

SURFACE = 0.5  # alpha from which a render has a surface


@torch.no_grad()
def hidden(
    points: Tensor,
    splats: Splats,
    views: Sequence[Views],
    margin: float | Tensor,
    threads: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """[N] bool: points [N, 3] that every one of the posed `views` has behind the surface of `splats`, or outside its picture.

    `margin` ([N] or one) world units behind it, and behind its neighbours' by a pixel: nearer ones are that surface. A point
    before the background is in plain sight, and so is one where the splats are too thin to hide it.
    """
    out = torch.ones(len(points), dtype=torch.bool, device=points.device)
    for view in views:
        for i in range(len(view)):
            camera = view.cameras[i]
            drawn = render(splats, camera.to(points.device), RenderOptions(threads=threads), backend)
            surface = torch.where(drawn.alpha[0] > SURFACE, drawn.expected_depth[0], torch.inf)
            surface = torch.nn.functional.max_pool2d(surface[None], 3, 1, 1)[0]
            at, depth = camera.to(points.device).project(points)
            column, row = at[0].floor().long().unbind(-1)
            inside = (row >= 0) & (row < camera.height) & (column >= 0) & (column < camera.width) & (depth[0] > 0)
            before = surface[row.clamp(0, camera.height - 1), column.clamp(0, camera.width - 1)]
            out &= ~inside | (depth[0] > before + margin)
    return out
