"""The terms of `RegulariserConfig`, made ready once and asked for at every step of the fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.regularise.config import Priors, RegulariserConfig, VirtualView
from splat.regularise.depth import absolute_loss, local_pearson_loss, pearson_loss
from splat.regularise.drop import thinned
from splat.regularise.normals import normal_loss, normals_from_depth
from splat.regularise.smoothing import filter_widths, smoothed
from splat.regularise.virtual_views import repaired_loss, virtual_loss, virtual_views
from splat.render import Rendering, RenderOptions, render
from splat.views import Views

SEEN = 0.5  # alpha of a render from which its depth is that of a surface


class Regulariser:
    """What the fit does to the splats before it draws them, and what it adds to the loss.

    `views` are the training views at full size. Raises `InputError` when a term needs priors and there are none.
    """

    def __init__(self, config: RegulariserConfig, views: list[Views], priors: Priors | None, backend: str = "auto") -> None:
        if config.needs_priors and priors is None:
            raise InputError("depth, normal and virtual-view terms need depth maps of the photos; give priors or weights of 0.")
        if config.consensus and not priors.pictures:
            raise InputError("the consensus term needs pictures of several fits; give them or a weight of 0.")
        if config.repaired and not priors.repaired:
            raise InputError("the term of repaired views needs such views; give them or a weight of 0.")
        assert priors is None or priors.fits(views), "one prior map per photo, of its size"
        self.config, self.priors, self.backend = config, priors, backend
        self.cameras = [v.cameras for v in views]
        self.photos = [(v, i) for v in range(len(views)) for i in range(len(views[v]))]
        self.known: dict[tuple[int, int], Known | None] = {}
        self.virtual: list[tuple[float, list[VirtualView]]] = []  # with their weights
        if config.virtual_views:
            drawn = virtual_views(views, priors, config.virtual_per_pair, config.virtual_scale, backend)
            self.virtual.append((config.virtual_views, drawn))
        if config.consensus:
            self.virtual.append((config.consensus, list(priors.pictures)))
        if config.repaired:
            self.virtual.append((config.repaired, list(priors.repaired)))

    def drawn(self, splats: Splats, progress: float, generator: torch.Generator) -> Splats:
        """The splats as a step of the fit draws them, `progress` [0, 1) through the fit."""
        return thinned(self.finished(splats), self.config.drop * progress, generator)

    def finished(self, splats: Splats) -> Splats:
        """The splats as everybody else sees them: filtered where that is asked for."""
        if not self.config.smoothing:
            return splats
        return smoothed(splats, filter_widths(splats.means.detach(), self.cameras))

    def of_photo(self, photo: int, camera: Cameras, rendering: Rendering, generator: torch.Generator) -> Tensor | float:
        """The terms about the geometry of the photo with this number, which `rendering` shows through `camera`."""
        c = self.config
        if not (c.depth or c.local_depth or c.absolute_depth or c.normals):
            return 0.0
        known = self._known(photo, camera)
        if known is None:
            return 0.0
        prior, window = known.depth, known.window
        alpha, depth = rendering.alpha[0][window], rendering.depth[0][window]
        seen = alpha.detach() > SEEN
        depth = depth / torch.where(seen, alpha, 1.0)
        both = (prior > 0) & seen
        # Means are over the photo, of which the window is a share.
        share = prior.numel() / (camera.width * camera.height)
        loss = torch.zeros((), device=depth.device)
        if c.depth:
            loss = loss + c.depth * pearson_loss(depth.flatten(), prior.flatten(), both.flatten())
        if c.local_depth:
            corner = tuple(torch.randint(1 << 16, (2,), generator=generator).tolist())
            loss = loss + c.local_depth * local_pearson_loss(depth, prior, both, c.depth_tile, corner)
        if c.absolute_depth:
            loss = loss + c.absolute_depth * share * absolute_loss(depth, prior, both)
        if c.normals:
            normals, sure = normals_from_depth(torch.where(seen, depth, 0.0), known.camera)
            loss = loss + c.normals * share * normal_loss(normals, known.normals, known.told & sure)
        return loss

    def of_virtual_view(
        self, splats: Splats, step: int, options: RenderOptions, backdrop: Tensor, generator: torch.Generator
    ) -> Tensor | float:
        """The term of one virtual view of each kind, on a `backdrop` [3] that shows through what is not solid."""
        loss = 0.0
        for weight, targets in self.virtual:
            if not targets or step % self.config.virtual_every:
                continue
            target = targets[int(torch.randint(len(targets), (1,), generator=generator))]
            behind = backdrop if target.backdrop is None else target.backdrop
            image = render(splats, target.camera, replace(options, background=behind), self.backend).rgb
            if target.backdrop is None:
                loss = loss + weight * virtual_loss(image, target, behind)
            else:
                loss = loss + weight * repaired_loss(image, target, self.config.repaired_ssim)
        return loss

    def _known(self, photo: int, camera: Cameras) -> Known | None:
        """The prior of a photo at the size of `camera`; None where it says nothing. Kept: the same at every step."""
        key = (photo, camera.width)
        if key not in self.known:
            v, i = self.photos[photo]
            given = None if self.priors.normals is None else self.priors.normals[v][i]
            self.known[key] = known_part(self.priors.depths[v][i], given, camera)
        return self.known[key]


@dataclass(frozen=True)
class Known:
    """The part of a photo's pixels that has all that is known of its geometry."""

    window: tuple[slice, slice]  # rows, columns
    camera: Cameras  # of the window
    depth: Tensor  # [h, w], 0 where unknown
    normals: Tensor  # [h, w, 3]
    told: Tensor  # [h, w] bool: the normal is known


def known_part(depth: Tensor, normals: Tensor | None, camera: Cameras) -> Known | None:
    """Prior depth [H, W] and normals [H, W, 3] (None: those of the depth) on the pixels of `camera`, cut to what is known."""
    size = (camera.height, camera.width)
    depth = torch.nn.functional.interpolate(depth[None, None], size, mode="nearest-exact")[0, 0]
    if normals is not None:
        normals = torch.nn.functional.interpolate(normals.permute(2, 0, 1)[None], size, mode="nearest-exact")[0].permute(
            1, 2, 0
        )
        told = normals.norm(dim=-1) > 0.5
    else:
        normals, told = normals_from_depth(depth, camera)
    anything = (depth > 0) | told
    if not anything.any():
        return None
    rows, columns = (anything.any(axis).nonzero().flatten() for axis in (1, 0))
    # One pixel more on each side, for the differences that normals are made of.
    top, left = max(int(rows[0]) - 1, 0), max(int(columns[0]) - 1, 0)
    bottom, right = min(int(rows[-1]) + 2, size[0]), min(int(columns[-1]) + 2, size[1])
    window = slice(top, bottom), slice(left, right)
    part = camera.cropped(left, top, right - left, bottom - top)
    return Known(window, part, *(x[window].contiguous() for x in (depth, normals, told)))
