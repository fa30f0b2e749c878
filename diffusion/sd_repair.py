"""Stable Diffusion as a repairer of damaged renders: img2img of low strength, held to the render by a ControlNet for tiles.

LM-Gaussian (Yu et al. 2024, stage 4; after GaussianObject): a render is carried a fifth of the way into noise and back, with
the render itself as the ControlNet's picture. All views of a request get the same noise, so that they are repaired alike. The
checkpoint is a folder on this machine (docs/repair-public.md).
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion.lora import Lora, attached
from diffusion.models.stable_diffusion import StableDiffusion, decoded, encoded, hushed, load_stable_diffusion
from diffusion.samplers.plan import PRESETS, Plan
from diffusion.trusted_pixels import keep_trusted
from splat.errors import InputError
from splat.repair_request import RepairRequest

MOST_CALLS = 100
# Per megapixel, a multiply-add counted twice: of Stable Diffusion 1.5 and a ControlNet of its size at 512 to 1024 px.
TFLOP_CALL = 3.5  # U-Net and ControlNet together, and for attention, which grows with the square of the pixels,
TFLOP_CALL_ATTENTION = 2.5  # times the megapixels
TFLOP_AUTOENCODER = 14.0  # there and back
NUMBERS, NUMBERS_AUTOENCODER = 1_220_800_084, 83_653_863  # in these networks; smaller ones take their share
BYTES_PER_PIXEL = 128 * 4 * 8  # the widest layers of the autoencoder's decoder, and room


@dataclass(frozen=True)
class SdRepairConfig:
    """How a view is repaired. `PUBLISHED` has LM-Gaussian's values."""

    strength: float = 0.2  # share of the way into noise; 0 changes nothing
    calls: int = 5  # of the network, for a view
    sampler: str = "ddim"  # one of diffusion.samplers.plan.PRESETS that is one repeated step
    eta: float = 0.0  # 0 deterministic, 1 as much fresh noise as DDPM; only for samplers of the data kind
    guidance: float = 1.0  # classifier-free; 1 is plain, any other doubles the calls
    control: float = 0.8  # strength of the ControlNet
    prompt: str = ""  # what the scene shows
    quality: str = "best quality, sharp"  # goes behind the prompt; "" leaves it out
    least_side: int = 512  # px: pictures whose short side is smaller are enlarged for the network, which knows no smaller ones
    keep_px: float = 8.0  # standard deviation of the low frequencies that trusted pixels keep; 0 keeps none

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or not 1 <= self.calls <= MOST_CALLS:
            raise InputError(f"strength {self.strength} must be 0 to 1 and calls {self.calls} 1 to {MOST_CALLS}.")
        if not (
            1 <= self.guidance <= 30 and 0 <= self.control <= 2 and 0 <= self.keep_px <= 1000 and 8 <= self.least_side <= 4096
        ):
            raise InputError(
                f"guidance {self.guidance} must be 1 to 30, control {self.control} 0 to 2, keep_px {self.keep_px} 0 to 1000 "
                f"and least_side {self.least_side} 8 to 4096."
            )

    @property
    def text(self) -> str:
        return ", ".join(part for part in (self.prompt.strip(), self.quality) if part)

    def steps(self, trained: int) -> int:
        """Steps of the whole way from noise to data, of which the last `calls` are taken; at most one for each of the network's
        `trained` noise levels. 0 where the strength is less than one level."""
        calls = min(self.calls, int(self.strength * trained + 1e-6))
        return calls and min(math.ceil(calls / self.strength - 1e-6), trained)

    @property
    def plan(self) -> Plan:
        plan = PRESETS.get(self.sampler)
        if plan is None or plan.needs_mean or plan.steps[0].calls != 1:
            raise InputError(f"sampler {self.sampler!r} is none for repairs; use ddim, dpmpp2 or unipc2.")
        return Plan((dataclasses.replace(plan.steps[0], eta=self.eta),), repeat=True) if self.eta else plan


PUBLISHED = SdRepairConfig(calls=10, eta=1.0)


@dataclass(frozen=True)
class SdRepairer:
    """A `splat.repair_request.Repairer`."""

    pipeline: Any  # diffusers.StableDiffusionControlNetImg2ImgPipeline, on its device
    config: SdRepairConfig
    licences: tuple[str, ...]  # "name: licence"
    lora: Lora | None = None  # of the scene

    @property
    def steps(self) -> int:
        return self.config.steps(self.pipeline.scheduler.config.num_train_timesteps)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What a LoRA may change."""
        return {"unet": self.pipeline.unet, "controlnet": self.pipeline.controlnet}

    def with_lora(self, lora: Lora | None) -> SdRepairer:
        return dataclasses.replace(self, lora=lora)

    @torch.no_grad()
    def __call__(self, request: RepairRequest) -> Tensor:
        """Views of any size, one after the other, on their own device and in their own size. Not differentiable."""
        if not self.steps:
            return request.images
        with attached(self.lora, self.networks):
            words = self.encoded_text()
            made = [self._repaired(image, words, request.seed) for image in request.images]
        repaired = torch.stack(made) if made else request.images
        return keep_trusted(repaired, request.images, request.trust, request.alpha, self.config.keep_px)

    def encoded_text(self) -> Tensor:
        """[1, T, D] features of the prompt."""
        return self.pipeline.encode_prompt(self.config.text, self.pipeline.device, 1, False)[0]

    def _repaired(self, image: Tensor, words: Tensor, seed: int) -> Tensor:
        """[H, W, 3] -> [H, W, 3] on its device."""
        pipe, config = self.pipeline, self.config
        picture, inner = framed(image, config.least_side, pipe.vae_scale_factor)
        picture = picture.to(pipe.device)
        latents = pipe(
            prompt_embeds=words,
            image=encoded(pipe.vae, picture),
            control_image=picture,
            strength=config.strength,
            num_inference_steps=self.steps,
            guidance_scale=config.guidance,
            controlnet_conditioning_scale=config.control,
            generator=torch.Generator().manual_seed(seed),  # each view's own, and the same
            output_type="latent",
        ).images
        return unframed(decoded(pipe.vae, latents).to(image), inner, image.shape[:2])


def framed(image: Tensor, least_side: int, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """[H, W, 3] -> [1, 3, h, w] as a network wants it, and the size (h', w') of the picture in its upper left corner.

    The short side is enlarged to `least_side`; then the border pixels go on to multiples of `multiple`.
    """
    height, width = image.shape[:2]
    x = image.permute(2, 0, 1)[None]
    scale = max(least_side / min(height, width), 1.0)
    inner = round(height * scale), round(width * scale)
    if inner != (height, width):
        x = functional.interpolate(x, inner, mode="bicubic", align_corners=False).clamp(0, 1)
    h, w = (math.ceil(n / multiple) * multiple for n in inner)
    return functional.pad(x, (0, w - inner[1], 0, h - inner[0]), mode="replicate"), inner


def unframed(picture: Tensor, inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse: [1, 3, h, w] -> [H, W, 3] in [0, 1]."""
    x = picture[:, :, : inner[0], : inner[1]]
    if inner != tuple(size):
        x = functional.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)
    return x[0].permute(1, 2, 0).clamp(0, 1)


def load_sd_repairer(
    folder: Path,
    config: SdRepairConfig | None = None,
    device: torch.device | str = "cpu",
    lora: Lora | None = None,
    dtype: torch.dtype | None = None,
) -> SdRepairer:
    """From a checkpoint's folder (`diffusion.models.stable_diffusion`).

    `dtype` is that of the networks, by default bfloat16 on a GPU and float32 elsewhere; the autoencoder is always float32.
    Raises InputError for a folder that will not do, before anything is computed.
    """
    config = config or SdRepairConfig()
    parts = load_stable_diffusion(folder)
    dtype = dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    repairer = SdRepairer(pipeline_of(parts, config, device, dtype), config, parts.licences, lora)
    with attached(lora, repairer.networks):  # refused here, and not after the first fit
        return repairer


def pipeline_of(parts: StableDiffusion, config: SdRepairConfig, device: torch.device | str, dtype: torch.dtype) -> Any:
    with hushed():
        from diffusers import StableDiffusionControlNetImg2ImgPipeline

    from diffusion.samplers.scheduler import EIScheduler

    pipeline = StableDiffusionControlNetImg2ImgPipeline(
        parts.vae,
        parts.text_encoder,
        parts.tokenizer,
        parts.unet,
        parts.controlnet,
        # "trailing": the way into noise is the same for any number of calls
        EIScheduler.from_config(parts.noise.config, timestep_spacing="trailing", plan=config.plan),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    for network in (parts.vae, parts.text_encoder, parts.unet, parts.controlnet):
        network.requires_grad_(False)
        network.to(device)
        if network is not parts.vae and dtype != torch.float32:
            nn.Module.to(network, dtype)  # the library's own to() warns about networks that keep some of their parts in float32
    return pipeline


@dataclass(frozen=True)
class RepairCost:
    """Of repairing views, roughly."""

    seconds: float
    memory: float  # bytes at the peak

    def __str__(self) -> str:
        return f"about {self.seconds:.0f} s and {self.memory / 1e9:.1f} GB"


def repair_cost(repairer: SdRepairer, views: int, width: int, height: int) -> RepairCost:
    """What `views` of this size will take on the pipeline's device, from a short matrix product timed there."""
    pipe, config = repairer.pipeline, repairer.config
    enlarged = max(config.least_side / min(width, height), 1.0) ** 2
    megapixels = width * height * enlarged / 1e6
    calls = config.calls * (2 if config.guidance > 1 else 1)
    call = TFLOP_CALL + TFLOP_CALL_ATTENTION * megapixels
    size = (_numbers(pipe.unet) + _numbers(pipe.controlnet)) / NUMBERS, _numbers(pipe.vae) / NUMBERS_AUTOENCODER
    work = views * megapixels * (size[0] * calls * call + size[1] * TFLOP_AUTOENCODER) * 1e12
    networks = (pipe.unet, pipe.controlnet, pipe.vae, pipe.text_encoder)
    stored = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    return RepairCost(work / _speed(pipe.unet.device, pipe.unet.dtype), stored + megapixels * 1e6 * BYTES_PER_PIXEL)


def _numbers(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a matrix product."""
    side = 512 if device.type == "cpu" else 4096
    a = torch.ones(side, side, device=device, dtype=dtype)
    a @ a
    started = time.perf_counter()
    for _ in range(4):
        float((a @ a)[0, 0])
    return 4 * 2 * side**3 / max(time.perf_counter() - started, 1e-9)
