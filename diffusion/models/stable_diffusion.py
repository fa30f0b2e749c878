"""Stable Diffusion's networks from a folder on this machine: strictly, from safetensors, without the network.

"High-Resolution Image Synthesis with Latent Diffusion Models", Rombach et al., CVPR 2022, and "Adding Conditional Control to
Text-to-Image Diffusion Models", Zhang et al., ICCV 2023, in the folders that diffusers writes and hubs keep:

    unet/  vae/  text_encoder/  tokenizer/  scheduler/     a checkpoint of the family of Stable Diffusion 1.5
    controlnet/                                            the ControlNet, put there by the user
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from diffusion.licence_notice import licence_of
from diffusion.models.from_disk import load_network
from splat.errors import InputError

NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "steps_offset")


@dataclass(frozen=True)
class StableDiffusion:
    """A checkpoint's parts, float32 on the CPU, evaluating."""

    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    vae: AutoencoderKL
    text_encoder: Any  # transformers.CLIPTextModel
    tokenizer: Any
    noise: DDIMScheduler  # the noise schedule that the U-Net was trained with
    licences: tuple[str, ...]  # "name: licence"


def load_stable_diffusion(folder: Path) -> StableDiffusion:
    """Raises InputError, with the remedy, for parts that are missing, damaged, pickled, of another kind, or of two families."""
    folder = Path(folder)
    require_parts(folder, ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "controlnet"))
    unet = load_network(folder / "unet", (UNet2DConditionModel,))
    controlnet = load_network(folder / "controlnet", (ControlNetModel,))
    vae = load_network(folder / "vae", (AutoencoderKL,))
    text_encoder, tokenizer = load_clip(folder)
    width = text_encoder.config.hidden_size
    if (unet.config.in_channels, vae.config.latent_channels) != (4, 4) or unet.config.addition_embed_type is not None:
        raise InputError(
            f"The unet in {folder} reads {unet.config.in_channels} channels, or more than latents and text; give a plain "
            "checkpoint of the family of Stable Diffusion 1.5, none for inpainting and no SDXL."
        )
    for name, network in (("unet", unet), ("controlnet", controlnet)):
        if network.config.cross_attention_dim != width:
            raise InputError(
                f"The {name} in {folder} reads text features of {network.config.cross_attention_dim} numbers and its text "
                f"encoder gives {width}; put parts of one family together."
            )
    if tuple(controlnet.config.block_out_channels) != tuple(unet.config.block_out_channels):
        raise InputError(
            f"The controlnet in {folder} has blocks of {list(controlnet.config.block_out_channels)} channels and the unet "
            f"{list(unet.config.block_out_channels)}; put a ControlNet of the same family there."
        )
    licences = (f"{folder.name}: {licence_of(folder)}", f"{folder.name}/controlnet: {licence_of(folder / 'controlnet')}")
    return StableDiffusion(unet, controlnet, vae, text_encoder, tokenizer, load_noise(folder), licences)


def encoded(vae: AutoencoderKL, picture: Tensor) -> Tensor:
    """[B, 3, h, w] sRGB in [0, 1] -> [B, 4, h / 8, w / 8]: the most probable latents, without the autoencoder's noise."""
    return vae.encode(2 * picture - 1).latent_dist.mode() * vae.config.scaling_factor


def decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The inverse, float32; some values lie outside [0, 1]."""
    return (vae.decode(latents.float() / vae.config.scaling_factor).sample + 1) / 2


@contextmanager
def hushed() -> Iterator[None]:
    """The libraries say nothing about what is as it should be here: no torchvision, pipelines that are no longer cared for."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    levels = [(module, module.get_verbosity()) for module in (of_diffusers, of_transformers)]
    for module, _ in levels:
        module.set_verbosity_error()
    try:
        yield
    finally:
        for module, level in levels:
            module.set_verbosity(level)


def require_parts(folder: Path, names: tuple[str, ...]) -> None:
    """Raises InputError naming the subfolders that are not there."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one with {', '.join(names)} as docs/repair-public.md describes.")
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}; docs/repair-public.md says what must be there.")


def load_clip(folder: Path) -> tuple[Any, Any]:
    """Text encoder and tokenizer of a checkpoint."""
    import transformers
    from safetensors import SafetensorError

    from diffusion.text_encoder import clip_text_network

    words = folder / "tokenizer"
    if not (words / "tokenizer.json").is_file() and not all((words / n).is_file() for n in ("vocab.json", "merges.txt")):
        raise InputError(f"{words} has neither tokenizer.json nor vocab.json and merges.txt; copy it again.")
    try:
        encoder = clip_text_network(folder / "text_encoder")
        tokenizer = transformers.CLIPTokenizer.from_pretrained(words, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"text_encoder and tokenizer in {folder} are no CLIP model that loads from safetensors ({first}); copy them again."
        ) from error
    known = encoder.config.vocab_size
    if len(tokenizer) > known:
        raise InputError(
            f"The tokenizer in {folder} knows {len(tokenizer)} words and its text encoder {known}; put parts of one checkpoint "
            "together."
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    return encoder, tokenizer


def load_noise(folder: Path) -> DDIMScheduler:
    """The noise schedule of a checkpoint, whichever sampler it names."""
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        known = {name: config[name] for name in NOISE if config.get(name) is not None}
        return DDIMScheduler(**known, clip_sample=False, set_alpha_to_one=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} tells no noise schedule ({reason}); copy it again.") from error
