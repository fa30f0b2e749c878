"""GVGEN's own two networks, on the dense grid from noise to Gaussians: beside the three of the coarse way, and like them.

    dense-field/        noise and a sentence -> the fine field, by diffusion (`train_field`)
    dense-attributes/   field and sentence -> the Gaussians (`DenseAttributes`)
    dense-weights/      both in half precision, as `TextToVolume.load` reads them

They want volumes/ and bank/ of the first two steps of `train_text`. `SMALL` trains on any machine, if slowly; `GVGEN` is the
published size, for a GPU.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.field_bank import FieldBank
from diffusion.models import volume_unet
from diffusion.models.dense_attributes import DenseAttributes
from diffusion.models.field_denoiser import FieldDenoiser
from diffusion.text_encoder import TextConfig, TextFeatures, load_text_encoder
from diffusion.text_sheets import SHEET_PROMPTS, attribute_sheet, prompt_sheet
from diffusion.text_stages import AttributeStage, FieldStage, level_shift
from diffusion.train_attributes import AttributeTrainConfig, FineExamples, MadeBefore, train_attributes
from diffusion.train_field import FieldTrainConfig, UNetConfig, train_field
from diffusion.training import TrainConfig, half_precision
from diffusion.training_memory import unet_memory
from diffusion.work_folder import begun, network_of, saved
from splat.errors import InputError
from splat.progress import Progress

STEPS = ("dense-field", "dense-attributes")  # each trains a network
PROMPTS = SHEET_PROMPTS[:8]  # of the first stage's sheet: a small network on one core takes twenty seconds for each
PARTLY_NOISED = (-3.0, 0.5)  # ln(alpha / sigma) of what the denoiser sees when it makes fields for the second stage


@dataclass(frozen=True)
class DenseAttributeTrainConfig(AttributeTrainConfig):
    """Of the second dense network; the fields that the stage before made are true ones, partly noised and denoised by it."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    loop: TrainConfig = field(default_factory=lambda: TrainConfig(steps=10000, lr=1e-3, average=0.998, bf16=True))


@dataclass(frozen=True)
class DenseConfig:
    """Both networks."""

    field: FieldTrainConfig
    attributes: DenseAttributeTrainConfig


_PUBLISHED = UNetConfig(**{k: v for k, v in volume_unet.GVGEN.items() if k != "text_dim"})
SMALL = DenseConfig(FieldTrainConfig(), DenseAttributeTrainConfig())
GVGEN = DenseConfig(  # what is published of the networks; rates, batches and steps are ours and have not been tried
    FieldTrainConfig(
        unet=_PUBLISHED,
        field_channels=1,
        batch=16,
        loop=TrainConfig(
            steps=200_000, lr=1e-4, warmup=2000, accumulate=4, average=0.9999, bf16=True, sheet_every=5000, save_every=30
        ),
    ),
    DenseAttributeTrainConfig(
        unet=_PUBLISHED,
        batch=8,
        views=1,
        view_side=256,
        structure=0.8,
        loop=TrainConfig(
            steps=100_000, lr=1e-4, warmup=2000, accumulate=2, average=0.9999, bf16=True, sheet_every=5000, save_every=30
        ),
    ),
)
SIZES = {"small": SMALL, "gvgen": GVGEN}


def train_dense(
    step: str, bank: FieldBank, work: Path, config: DenseConfig, minutes: float, text: TextConfig | None, device: str
) -> Generator[Progress, None, Path]:
    """Run one of `STEPS` in the folder `work`; returns where the network lies. `minutes` of this sitting, 0 has no limit."""
    examples = FineExamples(bank, work / "volumes", "train")
    if step == "dense-field":
        own = replace(config.field, loop=replace(config.field.loop, minutes=minutes))
        folder = begun(bank, work, step)
        text_dim = bank.text.tokens.shape[1]
        resolution = examples.fine(0).shape[-1]
        sizes = {"resolution": resolution, "field_channels": own.field_channels, "text_dim": text_dim}
        yield _told(FieldDenoiser, own.unet, own.batch, sizes)
        sheet = prompt_sheet(FieldStage, load_text_encoder(text), PROMPTS, device)
        return saved((yield from train_field(examples, own, folder, sheet, device)), folder)
    own = replace(config.attributes, loop=replace(config.attributes.loop, minutes=minutes))
    denoiser = network_of(FieldDenoiser, work, "dense-field").to(device)
    network = new_dense_predictor(examples, denoiser, own)
    sizes = {k: denoiser.config[k] for k in ("resolution", "field_channels", "text_dim")}
    yield _told(DenseAttributes, own.unet, own.batch, sizes)
    folder = begun(bank, work, step)
    sheet = attribute_sheet(bank, work / "volumes", lambda shown: through_denoiser(shown, denoiser, own.loop))
    before = through_denoiser(examples, denoiser, own.loop)
    return saved((yield from train_attributes(examples, network, before, own, folder, sheet, device)), folder)


def _told(kind: type[nn.Module], unet: UNetConfig, batch: int, sizes: dict[str, int]) -> Progress:
    return Progress("notice", 1, 1, unet_memory(kind, unet, batch, **sizes).sentence(batch))


def dense_stages(work: Path, size: UNetConfig | None = None) -> tuple[FieldStage, AttributeStage]:
    """The networks of a work folder, before they are packed. Raises InputError where the second is not of the `size` named."""
    first, second = network_of(FieldDenoiser, work, "dense-field"), network_of(DenseAttributes, work, "dense-attributes")
    if size is not None and second.config.channels != size.channels:
        raise InputError(
            f"{work / 'dense-attributes'} holds a network of {second.config.channels} channels, not {size.channels}; give the "
            "--size with which it was trained."
        )
    return FieldStage(first), AttributeStage(second)


def new_dense_predictor(examples: FineExamples, denoiser: FieldDenoiser, config: DenseAttributeTrainConfig) -> DenseAttributes:
    """Fresh, for fields with the channels that `denoiser` makes; the same for one seed."""
    torch.manual_seed(config.loop.seed)
    c = denoiser.config
    return config.unet.made(DenseAttributes, resolution=c.resolution, field_channels=c.field_channels, text_dim=c.text_dim)


def through_denoiser(examples: FineExamples, denoiser: FieldDenoiser, loop: TrainConfig) -> MadeBefore:
    """True fields, noised to an even level of `PARTLY_NOISED` (for a short latent) and denoised in one call."""

    def made(chosen: list[int], text: TextFeatures, generator: torch.Generator) -> Tensor:
        x0 = denoiser.encode(torch.stack([examples.fine(i) for i in chosen]).to(text.pooled.device))
        low, high = PARTLY_NOISED
        log_snr = low + (high - low) * torch.rand(len(chosen), generator=generator) + level_shift(x0.shape[1:])
        alpha, sigma = (torch.sigmoid(2 * s * log_snr).sqrt().to(x0) for s in (1, -1))
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        x = alpha[:, None, None, None, None] * x0 + sigma[:, None, None, None, None] * noise
        with half_precision(loop, denoiser):
            clean = denoiser(x, alpha, sigma, text.tokens, text.mask, text.pooled)
        return denoiser.decode(clean)

    return made
