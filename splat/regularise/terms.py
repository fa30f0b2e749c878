"""The terms of `RegulariserConfig`, made ready once and asked for at every step of the fit."""

from __future__ import annotations

from dataclasses import replace

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
from splat.regularise.virtual_views import virtual_loss, virtual_views
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
        assert priors is None or priors.fits(views), "one prior map per photo, of its size"
        self.config, self.priors, self.backend = config, priors, backend
        self.cameras = [v.cameras for v in views]
        self.photos = [(v, i) for v in range(len(views)) for i in range(len(views[v]))]
        self.normals: dict[int, tuple[Tensor, Tensor]] = {}
        self.virtual: list[tuple[float, list[VirtualView]]] = []  # with their weights
        if config.virtual_views:
            drawn = virtual_views(views, priors, config.virtual_per_pair, config.virtual_scale, backend)
            self.virtual.append((config.virtual_views, drawn))
        if config.consensus:
            self.virtual.append((config.consensus, list(priors.pictures)))

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
        prior = self._prior(photo, camera)
        depth = rendering.expected_depth[0]
        seen = rendering.alpha[0].detach() > SEEN
        known = (prior > 0) & seen
        loss = torch.zeros((), device=depth.device)
        if c.depth:
            loss = loss + c.depth * pearson_loss(depth.flatten(), prior.flatten(), known.flatten())
        if c.local_depth:
            corner = tuple(torch.randint(1 << 16, (2,), generator=generator).tolist())
            loss = loss + c.local_depth * local_pearson_loss(depth, prior, known, c.depth_tile, corner)
        if c.absolute_depth:
            loss = loss + c.absolute_depth * absolute_loss(depth, prior, known)
        if c.normals:
            wanted, told = self._normals(photo, camera, prior)
            normals, sure = normals_from_depth(torch.where(seen, depth, 0.0), camera)
            loss = loss + c.normals * normal_loss(normals, wanted, told & sure)
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
            image = render(splats, target.camera, replace(options, background=backdrop), self.backend).rgb
            loss = loss + weight * virtual_loss(image, target, backdrop)
        return loss

    def _prior(self, photo: int, camera: Cameras) -> Tensor:
        v, i = self.photos[photo]
        depth = self.priors.depths[v][i]
        if depth.shape == (camera.height, camera.width):
            return depth
        size = (camera.height, camera.width)  # the photo is drawn smaller in this step
        return torch.nn.functional.interpolate(depth[None, None], size, mode="nearest-exact")[0, 0]

    def _normals(self, photo: int, camera: Cameras, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Prior normals [H, W, 3] and whether they are known [H, W]; of given ones, else of the prior depth."""
        key = (photo, camera.width)
        if key not in self.normals:
            v, i = self.photos[photo]
            if self.priors.normals is None:
                self.normals[key] = normals_from_depth(prior, camera)
            else:
                size = (camera.height, camera.width)
                given = self.priors.normals[v][i].permute(2, 0, 1)[None]
                given = torch.nn.functional.interpolate(given, size, mode="nearest-exact")[0].permute(1, 2, 0)
                self.normals[key] = given.contiguous(), given.norm(dim=-1) > 0.5
        return self.normals[key]
