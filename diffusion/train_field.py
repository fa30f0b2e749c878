"""Training of text-to-3D's dense first stage: diffusion of the distance field on the grid's nodes by a 3-D U-Net.

GVGEN (He et al. 2024, section 3.2) trains x_0 with its plain squared error over the VP schedule's even times, and never without
the text. Here noise levels are normally distributed in ln(alpha / sigma), lower for larger grids, because noise hides less of
what many nodes show together; the error counts more where little noise leaves little to find, up to a limit (min-SNR, Hang et
al. 2023); and texts are left out now and then, so that samples can be guided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.field import FIELD_CHANNELS
from diffusion.models.field_denoiser import FieldDenoiser
from diffusion.text_features import StoredText
from diffusion.text_stages import LEVELS_OF, level_shift
from diffusion.train_attributes import FineExamples
from diffusion.train_latents import balanced_weights
from diffusion.training import TrainConfig, half_precision, train
from splat.progress import Progress


@dataclass(frozen=True)
class UNetConfig:
    """Size of a 3-D U-Net on the dense grid."""

    channels: int = 32  # at the finest level
    multipliers: tuple[int, ...] = (1, 2, 4)  # of each level, the finest first
    blocks: int = 1  # residual blocks to a level
    attention: tuple[bool, ...] = (False, False, True)  # which levels look at each other and at the text
    head_dim: int = 32

    def made(self, kind: type[nn.Module], **rest) -> nn.Module:
        """A network of this size, with fresh weights."""
        return kind(
            channels=self.channels,
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention=self.attention,
            head_dim=self.head_dim,
            **rest,
        )


@dataclass(frozen=True)
class FieldTrainConfig:
    """The dense first stage's own knobs."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    field_channels: int = FIELD_CHANNELS  # 1: the distance alone, as GVGEN has it
    batch: int = 8
    text_dropout: float = 0.1  # share of samples without their text, for guidance
    balance: float = 0.5  # objects of a noun of n count n^-balance as often: rare nouns are seen more
    log_snr_mean: float = -0.5  # of the training noise levels, ln(alpha / sigma), as meant for a latent of `levels_of` numbers
    log_snr_std: float = 1.8
    levels_of: int = LEVELS_OF  # levels lie lower by ln sqrt(D / levels_of) for fields of D numbers
    snr_limit: float = 5.0  # the error of x_0 weighs 1 + min(snr, snr_limit)
    loop: TrainConfig = field(default_factory=lambda: TrainConfig(steps=20000, lr=1e-3, average=0.998, bf16=True))


@dataclass
class FieldLoss:
    """Denoising loss over examples that are drawn by weight."""

    fields: Callable[[Sequence[int]], Tensor]  # examples -> [B, 4, R, R, R]
    text: StoredText
    captions: Tensor  # [M, S] rows of `text`
    weights: Tensor  # [M]
    config: FieldTrainConfig

    def __call__(self, network: FieldDenoiser, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        c, n = self.config, self.config.batch
        device = next(network.parameters()).device
        rows = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        sentence = torch.randint(self.captions.shape[1], (n, 1), generator=generator)
        text = self.text.features(self.captions[rows].gather(1, sentence)[:, 0]).to(device)
        x0 = network.encode(self.fields(rows.tolist()).to(device))
        level = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n  # stratified
        shift = level_shift(x0.shape[1:]) + 0.5 * math.log(c.levels_of / LEVELS_OF)
        log_snr = c.log_snr_mean + c.log_snr_std * torch.special.ndtri(level.clamp(1e-4, 1 - 1e-4)) + shift
        alpha, sigma = torch.sigmoid(2 * log_snr).sqrt().to(device), torch.sigmoid(-2 * log_snr).sqrt().to(device)
        without = (torch.rand(n, generator=generator) < c.text_dropout).to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        a, s = (v[:, None, None, None, None] for v in (alpha, sigma))
        with half_precision(c.loop, network):
            predicted = network(a * x0 + s * noise, alpha, sigma, text.tokens, text.mask, text.pooled, without)
        error = (predicted.float() - x0).square().mean((1, 2, 3, 4))
        weight = 1 + (alpha / sigma).square().clamp(max=c.snr_limit)
        return (weight * error).mean(), {"error": float(error.mean().detach())}


def fit_statistics(network: FieldDenoiser, fields: Tensor) -> None:
    """Give `network` the mean of fields [N, 4, R, R, R], node by node, and each channel's deviation from it."""
    own = fields[:, : len(network.std)].to(network.mean)
    mean = own.mean(0)
    network.mean.copy_(mean)
    network.std.copy_((own - mean).square().mean((0, 2, 3, 4)).sqrt().clamp_min(1e-3))


def train_field(
    examples: FineExamples, config: FieldTrainConfig, folder: Path, sheet=None, device: str = "cpu"
) -> Generator[Progress, None, FieldDenoiser]:
    """Train on the fields of fitted volumes, made as they are drawn; `folder` as in `training.train`."""
    bank, c = examples.bank, config
    resolution = examples.fine(0).shape[-1]
    torch.manual_seed(c.loop.seed)
    network = c.unet.made(
        FieldDenoiser, resolution=resolution, field_channels=c.field_channels, text_dim=bank.text.tokens.shape[1]
    )
    step = max(len(examples) // 200, 1)
    fit_statistics(network, torch.stack([examples.fine(i) for i in range(0, len(examples), step)]))
    captions = torch.tensor([bank.captions[row] for row in examples.rows])
    weights = balanced_weights(bank, np.array(examples.rows), c.balance)
    loss = FieldLoss(lambda rows: torch.stack([examples.fine(i) for i in rows]), bank.text, captions, weights, c)
    return (yield from train(network.to(device), loss, c.loop, folder, sheet))
