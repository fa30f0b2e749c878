"""Moving one camera until the frozen splats look like its photo: how held-out photos get their exact pose."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.metrics import psnr
from splat.render import RenderOptions, render
from splat.rotations import se3_exp


def refine_camera(
    splats: Splats, camera: Cameras, image: Tensor, background: Tensor, steps: int = 60, backend: str = "auto"
) -> Cameras:
    """The camera (a batch of one) near `camera` from which `splats` match `image` [H, W, 3] best.

    Adam on an SE(3) tangent with an L1 loss, coarse (quarter resolution) then fine; keeps the best PSNR seen, so it never
    makes a camera worse. The tangent's translations count in units of the median depth. Splats are frozen.
    """
    frozen = splats.detach()
    with torch.no_grad():
        _, depth = camera.project(frozen.means)
        near = depth[0][depth[0] > 0]
    unit = float(near.median()) if len(near) else 1.0
    units = torch.tensor([unit] * 3 + [1.0] * 3).to(image)
    tangent = torch.zeros(1, 6).to(image).requires_grad_()
    for scale, rate in ((4, 2e-3), (1, 5e-4)):
        width, height = max(camera.width // scale, 16), max(camera.height // scale, 16)
        truth = _shrunk(image, width, height)
        small = camera.resized(width, height)
        optimiser = torch.optim.Adam([tangent], lr=rate)
        best, best_value = tangent.detach().clone(), -1.0
        for _ in range(steps // 2):
            moved = dataclasses.replace(small, cam_from_world=se3_exp(tangent * units) @ small.cam_from_world)
            rgb = render(frozen, moved, RenderOptions(background=background), backend).rgb[0]
            value = float(psnr(rgb.detach().clamp(0, 1), truth))
            if value > best_value:
                best, best_value = tangent.detach().clone(), value
            optimiser.zero_grad()
            (rgb - truth).abs().mean().backward()
            optimiser.step()
        with torch.no_grad():
            tangent.copy_(best)
    refined = dataclasses.replace(camera, cam_from_world=se3_exp(tangent.detach() * units) @ camera.cam_from_world)
    with torch.no_grad():
        options = RenderOptions(background=background)
        before, after = (psnr(render(frozen, c, options, backend).rgb[0].clamp(0, 1), image) for c in (camera, refined))
    return refined if after > before else camera


def _shrunk(image: Tensor, width: int, height: int) -> Tensor:
    channels_first = image.permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(channels_first, (height, width), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0)
