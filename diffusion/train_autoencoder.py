"""Training of the latent autoencoder, which makes pictures with coverage into latents.

It learns premultiplied cut-outs, which the renderer makes and the denoiser sees, and the same objects opaque over random
backgrounds. Latents have mean 0 and variance 1 in every channel because the loss asks for it; the rest is in the config.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.models.autoencoder import Autoencoder
from diffusion.models.patch_autoencoder import PatchAutoencoder
from diffusion.training import Sheet, TrainConfig, half_precision, train
from diffusion.view_bank import ViewBank
from splat.errors import InputError
from splat.metrics import psnr
from splat.progress import Progress


@dataclass(frozen=True)
class AutoencoderTrainConfig:
    """The autoencoder's own knobs."""

    channels: int = 16  # of the latents
    patch: int = 4  # pixels along the side of the finest stage's cells
    widths: tuple[int, ...] = (48, 96)  # of the stages; latents are a (patch * 2^(stages - 1))th of the pictures
    blocks: tuple[int, ...] = (1, 2)  # residual blocks of each stage, on either way
    batch: int = 16
    opaque: float = 0.25  # share of pictures over a background, coverage 1; below 1
    recoloured: float = 0.5  # share with their colour channels permuted
    noise: float = 0.2  # largest deviation of the noise on latents that the decoder must bear, drawn evenly for each picture
    moments: float = 0.02  # weight of the latents' divergence from mean 0 and variance 1
    absolute: float = 0.02  # weight of the absolute error beside the squared one: edges
    loop: TrainConfig = field(default_factory=lambda: TrainConfig(steps=4000, lr=2e-3, warmup=100, average=0.998, bf16=True))


def new_autoencoder(config: AutoencoderTrainConfig) -> PatchAutoencoder:
    """Fresh; the same for one seed."""
    torch.manual_seed(config.loop.seed)
    if len(config.widths) != len(config.blocks):
        raise InputError(f"{len(config.widths)} widths and {len(config.blocks)} numbers of blocks; give one of each a stage.")
    return PatchAutoencoder(4, 4, config.channels, config.patch, config.widths, config.blocks)


def pictures_of(bank: ViewBank, examples: np.ndarray, views: np.ndarray) -> Tensor:
    """Premultiplied colour and coverage [B, 4, S, S] in [0, 1] of views [B] of examples [B]."""
    return torch.from_numpy(bank.views[examples, views][..., :4]).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class AutoencoderLoss:
    """Reconstruction from noisy latents, and moments of the cut-outs' latents, of random views of `examples`."""

    bank: ViewBank
    examples: np.ndarray
    config: AutoencoderTrainConfig

    def __call__(self, network: PatchAutoencoder, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        c, device = self.config, next(network.parameters()).device
        x, opaque = self._draw(generator)
        noise = torch.rand(len(x), 1, 1, 1, generator=generator) * c.noise
        x = x.to(device).contiguous(memory_format=torch.channels_last)
        with half_precision(c.loop, network):
            z = network.encoder(2 * x - 1)
            z = z + noise.to(z) * torch.randn(z.shape, generator=generator).to(z)
            made = network.decoder(z)
        error = (made.float() + 1) / 2 - x
        squared = error.square().mean()
        moments = divergence(z[~opaque].float())
        loss = squared + c.absolute * error.abs().mean() + c.moments * moments
        return loss, {"psnr": -10 * math.log10(float(squared.detach())), "moments": float(moments.detach())}

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures [B, 4, S, S], and which are opaque [B]."""
        c, n = self.config, self.config.batch
        rows = torch.randint(len(self.examples), (n,), generator=generator).numpy()
        views = torch.randint(self.bank.views.shape[1], (n,), generator=generator).numpy()
        x = pictures_of(self.bank, self.examples[rows], views)
        mirrored, recoloured = torch.rand(2, n, generator=generator) < torch.tensor([[0.5], [c.recoloured]])
        opaque = torch.arange(n) < int(c.opaque * n)  # never all of them: moments are those of cut-outs
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        order = torch.stack([torch.randperm(3, generator=generator) for _ in range(n)])
        order = torch.where(recoloured[:, None], order, torch.arange(3))
        rgb = x[:, :3].gather(1, order[:, :, None, None].expand(-1, -1, *x.shape[-2:]))
        behind = _backgrounds(n, x.shape[-1], generator)
        rgb = torch.where(opaque[:, None, None, None], rgb + (1 - x[:, 3:]) * behind, rgb)
        return torch.cat([rgb, torch.where(opaque[:, None, None, None], 1.0, x[:, 3:])], dim=1), opaque


def _backgrounds(count: int, side: int, generator: torch.Generator) -> Tensor:
    """[count, 3, side, side]: white, one colour, or colours that run into each other, a third of each."""
    corners = torch.rand(count, 3, 3, 3, generator=generator)
    kind = torch.randint(3, (count, 1, 1, 1), generator=generator)
    corners = torch.where(kind == 0, 1.0, torch.where(kind == 1, corners[:, :, :1, :1], corners))
    return F.interpolate(corners, size=(side, side), mode="bilinear", align_corners=True)


def divergence(latents: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each channel of latents [B, C, h, w], as if normal, from mean 0 and variance 1; mean."""
    mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3)) + 1e-6
    return 0.5 * (mean.square() + variance - 1 - variance.log()).mean()


def train_autoencoder(
    bank: ViewBank, config: AutoencoderTrainConfig, folder: Path, sheet: Sheet | None = None, device: str = "cpu"
) -> Generator[Progress, None, PatchAutoencoder]:
    """Train on the bank's training examples; `folder` as in `training.train`. Returns the averaged network, normalised."""
    examples = bank.examples("train")
    network = new_autoencoder(config).to(device, memory_format=torch.channels_last)
    loss = AutoencoderLoss(bank, examples, config)
    network = yield from train(network, loss, config.loop, folder, sheet)
    normalise(network, bank, examples, config.loop.seed)
    return network


@torch.no_grad()
def normalise(network: PatchAutoencoder, bank: ViewBank, examples: np.ndarray, seed: int, count: int = 512) -> None:
    """Write shift and scale of the latents of `count` random views into the config, as diffusers pipelines read them."""
    x = some_views(bank, examples, count, seed).to(next(network.parameters()).device)
    latents = torch.cat([network.encode(2 * part - 1).latents.float() for part in x.split(64)])
    shift, deviation = float(latents.mean()), float(latents.std())
    network.register_to_config(shift_factor=shift, scaling_factor=1 / deviation)


def some_views(bank: ViewBank, examples: np.ndarray, count: int, seed: int) -> Tensor:
    """[count, 4, S, S] random views of random ones of `examples`."""
    rng = np.random.default_rng(seed)
    return pictures_of(bank, rng.choice(examples, count), rng.integers(bank.views.shape[1], size=count))


@torch.no_grad()
def measure(autoencoder: Autoencoder, pictures: Tensor) -> dict[str, float]:
    """Of pictures [B, 4, S, S]: PSNR on white, mean and median over pictures, and within the coverage; PSNR of the coverage;
    PSNR of the pictures given opaque; mean and deviation of the latents over all and by channel, and their largest."""
    latents = torch.cat([autoencoder.encode(part) for part in pictures.split(64)])
    made = torch.cat([autoencoder.decode(part) for part in latents.split(64)]).clamp(0, 1)
    white, white_made = (on_white(x).movedim(1, -1) for x in (pictures, made))
    opaque = white.movedim(-1, 1)
    solid = torch.cat([autoencoder.decode(autoencoder.encode(part))[:, :3] for part in opaque.split(64)]).clamp(0, 1)
    each = psnr(white_made, white)
    coverage = psnr(made[:, 3:].expand(-1, 3, -1, -1).movedim(1, -1), pictures[:, 3:].expand(-1, 3, -1, -1).movedim(1, -1))
    by_channel = latents.std((0, 2, 3))
    return {
        "psnr": float(each.mean()), "psnr_median": float(each.median()),
        "psnr_inside": float(psnr(white_made, white, pictures[:, 3]).mean()), "psnr_coverage": float(coverage.mean()),
        "psnr_opaque": float(psnr(solid.movedim(1, -1), white).mean()),
        "mean": float(latents.mean()), "deviation": float(latents.std()), "largest": float(latents.abs().max()),
        "least_deviation": float(by_channel.min()), "most_deviation": float(by_channel.max()),
    }  # fmt: skip


def on_white(pictures: Tensor) -> Tensor:
    """Premultiplied colour and coverage [B, 4, H, W] -> [B, 3, H, W]."""
    return pictures[:, :3] + 1 - pictures[:, 3:]


def sheet_of(pictures: Tensor, made: Tensor, columns: int = 12) -> Tensor:
    """Pictures and what was made of them [B, 4, S, S] in rows under each other on white: [H, W, 3]."""
    rows = []
    for i in range(0, len(pictures), columns):
        rows += [torch.cat(list(on_white(x[i : i + columns]).clamp(0, 1)), dim=-1) for x in (pictures, made)]
    width = max(row.shape[-1] for row in rows)
    return torch.cat([F.pad(row, (0, width - row.shape[-1]), value=1.0) for row in rows], dim=-2).permute(1, 2, 0)


def validation_sheet(bank: ViewBank, count: int = 24, seed: int = 1) -> Sheet | None:
    """For `training.train`: validation views above their reconstructions, and `measure`; None without such views."""
    examples = bank.examples("val")
    if not len(examples):
        return None
    pictures = some_views(bank, examples, count, seed)

    def sheet(network: nn.Module) -> tuple[Tensor, dict[str, float]]:
        autoencoder = Autoencoder.of(network)
        with torch.no_grad():
            made = autoencoder.decode(autoencoder.encode(pictures.to(autoencoder.device))).cpu()
        return sheet_of(pictures, made), measure(autoencoder, pictures.to(autoencoder.device))

    return sheet
