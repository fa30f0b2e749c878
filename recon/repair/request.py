"""What a repairer is told of views that nobody took: their render, the photos carried into them, how far both can be trusted.

Everything follows from the depth that the splats themselves show: a pixel's surface is known where a photo sees the same
surface at the same place, and unknown where the photo looks at something before it, or past it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.render import RenderOptions, render
from splat.repair_request import RepairRequest
from splat.views import Views


@dataclass(frozen=True)
class RequestConfig:
    """How photos and renders are compared."""

    references: int = 2  # photos that are carried into each view
    tolerance: float = 0.02  # relative difference of depth up to which two views see one surface; doubtful up to twice that
    solid: float = 0.5  # alpha from which a render shows a surface
    one_photo: float = 0.7  # trust in what a single photo saw: its depth is the fit's own guess until a second photo agrees


@dataclass(frozen=True)
class SeenPhoto:
    """A photo with the depth that the splats give it."""

    camera: Cameras  # a batch of one
    image: Tensor  # [H, W, 3]
    depth: Tensor  # [H, W], 0 where the splats are not solid or the mask leaves out


@torch.no_grad()
def seen_photos(
    splats: Splats, views: Sequence[Views], config: RequestConfig, backend: str = "auto", threads: int | None = None
) -> list[SeenPhoto]:
    """All photos of posed `views`, in order."""
    photos = []
    for view in views:
        for i in range(len(view)):
            camera = view.cameras[i]
            drawn = render(splats, camera, RenderOptions(threads=threads), backend)
            solid = drawn.alpha[0] > config.solid
            if view.masks is not None:
                solid &= view.masks[i] > 0.5
            photos.append(SeenPhoto(camera, view.images[i], torch.where(solid, drawn.expected_depth[0], 0.0)))
    return photos


@torch.no_grad()
def repair_request(
    splats: Splats,
    views: Sequence[Views],
    cameras: Cameras,
    background: Tensor,
    seed: int = 0,
    config: RequestConfig | None = None,
    backend: str = "auto",
    threads: int | None = None,
    seen: Sequence[SeenPhoto] | None = None,
) -> RepairRequest:
    """What is known of `cameras` [V], which took no photo; `views` are the posed photos that the splats were fitted to.

    All on one device; `background` [3] sRGB is what photos and renders stand on. Photos should be about as large as the
    cameras' pictures: they are sampled bilinearly. Where all photos are masked, what a render leaves empty is trusted to be
    background. `seen` is what `seen_photos` gives of the same, for those who ask several times of splats that stay.
    """
    config = config or RequestConfig()
    photos = seen_photos(splats, views, config, backend, threads) if seen is None else seen
    masked = all(v.masks is not None for v in views)
    options = RenderOptions(background=background, threads=threads)
    parts = []
    for i in range(len(cameras)):
        camera = cameras[i]
        drawn = render(splats, camera, options, backend)
        image, alpha = drawn.rgb[0].clamp(0, 1), drawn.alpha[0]
        carried, known, facing = zip(*(carry(p, camera, alpha, drawn.expected_depth[0], config) for p in photos))
        known, facing = torch.stack(known), torch.stack(facing)
        empty = 1 - alpha if masked else torch.zeros_like(alpha)
        trust = (alpha * trusted(known, config.one_photo) + empty).clamp(0, 1)
        best = nearest_photos(known, facing, config.references)
        warped = torch.stack([carried[k] * known[k, ..., None] for k in best])
        shown = known[best]
        lacking = config.references - len(best)
        if lacking > 0:  # a single photo
            warped = torch.cat([warped, warped.new_zeros(lacking, *warped.shape[1:])])
            shown = torch.cat([shown, shown.new_zeros(lacking, *shown.shape[1:])])
        parts.append((image, alpha, trust, warped, shown))
    return RepairRequest(*(torch.stack(column) for column in zip(*parts)), seed=seed)


def carry(
    photo: SeenPhoto, camera: Cameras, alpha: Tensor, depth: Tensor, config: RequestConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """A photo in the view of `camera` (a batch of one), whose surface lies at `depth` [H, W] where `alpha` [H, W] is solid.

    Returns its colours [H, W, 3]; where they hold, [H, W] in [0, 1]: the photo looks at that surface, nothing stands before it;
    and the cosine between the two lines of sight, mean over where they hold.
    """
    height, width = depth.shape
    points = camera.unproject(camera.pixel_centers, depth)  # [H, W, 3]
    pixels, z = photo.camera.project(points.reshape(-1, 3))
    pixels, z = pixels[0].view(height, width, 2), z[0].view(height, width)
    size = torch.tensor([photo.camera.width, photo.camera.height], dtype=pixels.dtype, device=pixels.device)
    grid = (2 * pixels / size - 1)[None]  # grid_sample's -1 and 1 are the outer edges of the outermost pixels
    inside = (z > 0) & (grid[0].abs() < 1).all(-1)
    grid = torch.where(inside[None, ..., None], grid, torch.full_like(grid, 2.0))

    def sampled(x: Tensor, mode: str) -> Tensor:  # [K, h, w] -> [K, H, W]
        return torch.nn.functional.grid_sample(x[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]

    colour = sampled(photo.image.permute(2, 0, 1), "bilinear").permute(1, 2, 0)
    there = sampled(photo.depth[None], "nearest")[0]  # depths of two surfaces have no mean
    apart = (there - z).abs() / (config.tolerance * z.clamp_min(1e-12))
    known = (2 - apart).clamp(0, 1) * (inside & (there > 0) & (alpha > config.solid))
    ours, theirs = (torch.nn.functional.normalize(points - c.centers[0], dim=-1) for c in (camera, photo.camera))
    facing = ((ours * theirs).sum(-1) * known).sum() / known.sum().clamp_min(1e-6)
    return colour, known, facing


def trusted(known: Tensor, one_photo: float) -> Tensor:
    """[P, H, W] what each photo knows -> [H, W]: 0 by none, `one_photo` by one, 1 by two."""
    if len(known) == 1:
        return one_photo * known[0]
    first, second = known.topk(2, dim=0).values
    return one_photo * first + (1 - one_photo) * second


def nearest_photos(known: Tensor, facing: Tensor, count: int) -> list[int]:
    """The `count` photos that say most of a view: much of it (`known` [P, H, W]) and from nearly its side (`facing` [P])."""
    score = known.mean((1, 2)) * facing.clamp_min(0)
    return score.argsort(descending=True, stable=True)[:count].tolist()
