"""A video network as a repairer of a path's frames: LM-Gaussian's last stage (Yu et al. 2024, stage 5), from a local folder.

Networks of the build of ModelScope's ("ModelScope Text-to-Video Technical Report", Wang et al. 2023), such as Zeroscope: frames
are carried a fifth of the way into noise and back, all together. The folder is as diffusers saves it, with unet/
(UNet3DConditionModel), vae/, text_encoder/, tokenizer/ and scheduler/.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.licence_notice import licence_of
from diffusion.models.from_disk import load_network
from diffusion.models.stable_diffusion import decoded, encoded, hushed, load_clip, load_noise, require_parts
from diffusion.sd_repair import framed, unframed
from diffusion.trusted_pixels import keep_trusted
from splat.errors import BackendUnavailable, InputError
from splat.repair_request import RepairRequest


@dataclass(frozen=True)
class VideoRepairConfig:
    """How frames are repaired together."""

    strength: float = 0.2  # share of the way into noise; 0 changes nothing
    calls: int = 5  # of the network, for all frames of a request
    guidance: float = 1.0  # classifier-free; 1 is plain, any other doubles the calls
    prompt: str = ""
    quality: str = "best quality, sharp"
    least_side: int = 320  # px: frames whose short side is smaller are enlarged for the network
    keep_px: float = 8.0  # standard deviation of the low frequencies that trusted pixels keep; 0 keeps none
    frames: int = 30  # that are best given at a time, as published
    overlap: int = 6  # of them that are best given twice

    def __post_init__(self) -> None:
        if not (0 <= self.strength <= 1 and 1 <= self.calls <= 100 and 1 <= self.guidance <= 30):
            raise InputError(
                f"strength {self.strength} must be 0 to 1, calls {self.calls} 1 to 100 and guidance {self.guidance} 1 to 30."
            )

    @property
    def text(self) -> str:
        return ", ".join(part for part in (self.prompt.strip(), self.quality) if part)


@dataclass(frozen=True)
class VideoRepairer:
    """A `splat.repair_request.Repairer` whose views are frames of a video, in order."""

    pipeline: Any  # diffusers.VideoToVideoSDPipeline, on its device
    config: VideoRepairConfig
    licences: tuple[str, ...]  # "name: licence"

    @torch.no_grad()
    def __call__(self, request: RepairRequest) -> Tensor:
        config, pipe = self.config, self.pipeline
        trained = pipe.scheduler.config.num_train_timesteps
        calls = min(config.calls, int(config.strength * trained + 1e-6))
        if not calls or not len(request.images):
            return request.images
        pictures, inner = zip(*(framed(image, config.least_side, pipe.vae_scale_factor) for image in request.images))
        latents = torch.cat([encoded(pipe.vae, picture.to(pipe.device)) for picture in pictures])  # [T, 4, h, w]
        latents = pipe(
            prompt=config.text,
            video=latents[None],
            strength=config.strength,
            num_inference_steps=min(math.ceil(calls / config.strength - 1e-6), trained),
            guidance_scale=config.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="latent",
        ).frames[0]  # [4, T, h, w]
        made = [
            unframed(decoded(pipe.vae, z[None]).to(request.images), inner[0], request.images.shape[1:3])
            for z in latents.unbind(1)
        ]
        return keep_trusted(torch.stack(made), request.images, request.trust, request.alpha, config.keep_px)


def load_video_repairer(
    folder: Path,
    config: VideoRepairConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> VideoRepairer:
    """From the folder of a video network; precision as `diffusion.sd_repair.load_sd_repairer` has it.

    Raises InputError for a folder that will not do, BackendUnavailable where diffusers no longer has the pipeline.
    """
    from diffusers import AutoencoderKL, UNet3DConditionModel

    from diffusion.samplers.scheduler import EIScheduler

    config, folder = config or VideoRepairConfig(), Path(folder)
    require_parts(folder, ("unet", "vae", "text_encoder", "tokenizer", "scheduler"))
    unet = load_network(folder / "unet", (UNet3DConditionModel,))
    vae = load_network(folder / "vae", (AutoencoderKL,))
    text_encoder, tokenizer = load_clip(folder)
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise InputError(
            f"The unet in {folder} reads text features of {unet.config.cross_attention_dim} numbers and its text encoder gives "
            f"{text_encoder.config.hidden_size}; put parts of one network together."
        )
    # "trailing": the way into noise is the same for any number of calls
    scheduler = EIScheduler.from_config(load_noise(folder).config, timestep_spacing="trailing", plan="ddim")
    pipeline = _pipeline(vae, text_encoder, tokenizer, unet, scheduler)
    dtype = dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    for network in (vae, text_encoder, unet):
        network.requires_grad_(False)
        network.to(device)
        if network is not vae and dtype != torch.float32:
            nn.Module.to(network, dtype)
    return VideoRepairer(pipeline, config, (f"{folder.name}: {licence_of(folder)}",))


def _pipeline(*parts: Any) -> Any:
    """The pipeline is no longer cared for in diffusers; what it does is tested here."""
    with hushed():
        try:
            from diffusers import VideoToVideoSDPipeline
        except ImportError as error:
            raise BackendUnavailable(
                f"This diffusers has no VideoToVideoSDPipeline ({error}); run: pip install 'diffusers>=0.35,<=0.42.1'"
            ) from error
        pipeline = VideoToVideoSDPipeline(*parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
