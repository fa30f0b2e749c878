"""Sampling through the splats: every step's x_0 is the render of Gaussians, so that every step is consistent in 3-D (A3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.guidance import GuidanceSchedule, guided
from diffusion.image_config import ImageSampleConfig
from diffusion.models.multiview import MultiviewDenoiser
from diffusion.samplers.sampling import sample
from diffusion.samplers.scheduler import EIScheduler
from diffusion.splat_maps import plucker_rays, to_splats
from diffusion.train_multiview import drawn
from diffusion.view_space import ViewSpace
from splat.cameras import Cameras
from splat.gaussians import Splats


@dataclass(frozen=True)
class KnownViews:
    """What is given of one object: V views, of which some are known."""

    pictures: Tensor  # [V, 4, S, S] premultiplied sRGB and coverage; zero where not known
    is_clean: Tensor  # [V] bool
    cameras: Cameras  # V


@torch.no_grad()
def sample_splats(
    network: MultiviewDenoiser,
    space: ViewSpace,
    given: KnownViews,
    seed: int,
    config: ImageSampleConfig,
    told: Callable[[int, Splats], None] | None = None,
) -> Splats:
    """Gaussians of one object: those behind the last x_0 prediction. `told` hears of every call's, counted from 1.

    The views that are not known start as noise; known ones stay as they are and are never denoised.
    """
    device = next(network.parameters()).device
    rays = plucker_rays(given.cameras, network.config.side // 2).to(device)[None]
    pictures, cameras = given.pictures.to(device), given.cameras.to(device)
    calls: list[Splats] = []

    def denoiser(is_clean: Tensor):
        def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
            a, s = (torch.full((1,), v, device=device) for v in (alpha, sigma))
            maps = network(x, pictures[None], is_clean[None], a, s, rays)[0]
            splats = to_splats(maps, cameras, pictures, is_clean)
            if bool((is_clean == given.is_clean).all()):
                calls.append(splats)
                if told is not None:
                    told(len(calls), splats)
            return space.encode(drawn(splats, cameras))[None]

        return denoise

    known, free = given.is_clean.to(device), torch.zeros_like(given.is_clean).to(device)
    denoise = denoiser(known)
    if config.guidance != 1:
        denoise = guided(denoise, denoiser(free), GuidanceSchedule(config.guidance))
    generator = torch.Generator().manual_seed(seed)
    shape = space.encode(pictures[:1]).shape[1:]
    noise = torch.randn(1, len(pictures), *shape, generator=generator).to(device)
    scheduler = EIScheduler(prediction_type="sample", plan=config.plan, grid="log_snr")
    scheduler.set_timesteps(config.steps)
    sample(denoise, scheduler, noise, generator)
    return calls[-1]
