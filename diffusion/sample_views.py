"""Sampling through the splats: every step's x_0 is the render of Gaussians, so that every step is consistent in 3-D (A3)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.image_config import ImageSampleConfig
from diffusion.models.multiview import MultiviewDenoiser
from diffusion.samplers.sampling import start_of
from diffusion.samplers.scheduler import EIScheduler
from diffusion.schedules import from_data
from diffusion.splat_maps import ray_features, to_splats
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
    guess: Tensor | None = None  # [V, 4, S, S] like `pictures`, of views that are not known, to be changed by `strength`


@torch.no_grad()
def sampling(
    network: MultiviewDenoiser,
    space: ViewSpace,
    given: KnownViews,
    seed: int,
    config: ImageSampleConfig,
    text: Tensor | None = None,
) -> Generator[Splats, None, None]:
    """Gaussians of one object after every network call; the last are the sample. `text` [text_channels] is `config.text`'s.

    The views that are not known start as noise, or as their guess with noise of `config.strength` (SDEdit, Meng et al. 2022:
    alpha guess + sigma n, sigma the strength); known ones are never denoised. With guidance the x_0 prediction is that of the
    renders with the picture and without, as classifier-free guidance mixes them; the Gaussians are those with it.
    """
    device = next(network.parameters()).device
    pictures, cameras, known = given.pictures.to(device), given.cameras.to(device), given.is_clean.to(device)
    cameras_on_cpu = cameras.to("cpu")

    with_picture, without = (
        (k, ray_features(pictures, k, cameras, network.config.side // 2)[None]) for k in (known, torch.zeros_like(known))
    )

    def predicted(x: Tensor, alpha: float, sigma: float, is_clean: Tensor, rays: Tensor) -> tuple[Splats, Tensor]:
        a, s = (torch.full((1,), v, device=device) for v in (alpha, sigma))
        told = {} if text is None else {"text": text[None].to(device)}
        splats = to_splats(network(x, pictures[None], is_clean[None], a, s, rays, **told)[0], cameras, pictures, is_clean)
        # A few small views, drawn by the CPU: a GPU that computes networks need not have gsplat.
        return splats, space.encode(drawn(splats.to("cpu"), cameras_on_cpu).to(device))[None]

    generator = torch.Generator().manual_seed(seed)
    shape = space.encode(pictures[:1]).shape[1:]
    x = config.temperature * torch.randn(1, len(pictures), *shape, generator=generator).to(device)
    scheduler = EIScheduler(prediction_type="sample", plan=config.plan, grid="log_snr", log_snr_start=start_of(config.strength))
    scheduler.set_timesteps(config.steps)
    if given.guess is not None and config.strength < 1:
        node = scheduler.current_node()
        x = node.alpha * space.encode(given.guess.to(device))[None] + node.sigma * x
    for t in scheduler.timesteps:
        node = scheduler.current_node()
        splats, x0 = predicted(x, node.alpha, node.sigma, *with_picture)
        yield splats
        if config.guidance != 1:
            free = predicted(x, node.alpha, node.sigma, *without)[1]
            x0 = free + config.guidance * (x0 - free)
        x = scheduler.step(from_data(x0, x, node.alpha, node.sigma, "sample"), t, x, generator=generator).prev_sample


def sample_splats(
    network: MultiviewDenoiser, space: ViewSpace, given: KnownViews, seed: int, config: ImageSampleConfig
) -> Splats:
    """The last of `sampling`."""
    *_, splats = sampling(network, space, given, seed, config)
    return splats
