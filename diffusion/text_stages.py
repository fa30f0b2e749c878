"""Text to 3D, coarse to fine: each stage adds to a `Draft` what the next one needs.

GVGEN (He et al. 2024) has two: a distance field by diffusion, then all attributes of its Gaussians (`FieldStage`, then
`AttributeStage`). What ships makes the field at 16 nodes to a side, where diffusion is cheap, and a stage between the two
brings it to 32 (`ShapeStage`, `DetailStage`, `AttributeStage`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from diffusion.field import FIELD_LIMIT, colour_of, distance_of, field_of
from diffusion.field_codec import FieldCodec
from diffusion.guidance import GuidanceSchedule, guided
from diffusion.models.attribute_predictor import AttributePredictor
from diffusion.models.dense_attributes import DenseAttributes
from diffusion.models.field_denoiser import FieldDenoiser
from diffusion.models.latent_denoiser import LatentDenoiser
from diffusion.models.volume_unet import VolumeUNet
from diffusion.samplers.sampling import Denoiser, sample, start_of
from diffusion.samplers.scheduler import EIScheduler
from diffusion.text_config import TextSampleConfig
from diffusion.text_encoder import TextFeatures
from diffusion.volume import SplatVolume, node_positions
from splat.gaussians import Splats
from splat.sh import from_rgb

AGREEMENT_LEVELS = (-2.0, -1.0, 0.0, 1.0)  # ln(alpha / sigma) at which a sample is held against its text
LEVELS_OF = 384  # numbers in a latent for which levels are meant


@dataclass(frozen=True)
class Draft:
    """One object on its way."""

    text: TextFeatures  # of one sentence
    seed: int
    latent: Tensor | None = None  # x_0 of the diffusion, before it what to start from: [K], or [C, R, R, R] of a dense field
    field: Tensor | None = None  # [1, 4, R, R, R], the finest so far
    limit: float = FIELD_LIMIT  # world units at which it is cut off
    volume: SplatVolume | None = None

    def splats(self) -> Splats:
        """What there is so far, as Gaussians to look at."""
        return self.volume.to_splats() if self.volume is not None else field_splats(self.field, self.limit)


class Stage(Protocol):
    """One step from coarse to fine; `name` is shown."""

    name: str

    def __call__(self, draft: Draft, config: TextSampleConfig) -> Draft: ...


@dataclass(frozen=True)
class ShapeStage:
    """Diffusion: noise and a sentence -> the coarse field."""

    denoiser: LatentDenoiser
    codec: FieldCodec
    name: str = "shape"

    @torch.no_grad()
    def __call__(self, draft: Draft, config: TextSampleConfig) -> Draft:
        latent = _sampled(self.denoiser, (self.codec.dimensions,), draft, config)
        return replace(draft, latent=latent[0], field=self.codec.decode(latent), limit=self.codec.limit)

    @torch.no_grad()
    def agreement(self, draft: Draft) -> float:
        return _agreement(self.denoiser, draft)

    def started_from(self, draft: Draft, centres: Tensor, rgb: Tensor) -> Draft:
        """`draft` as a shape to change: centres [N, 3] of Gaussians in the unit cube and their sRGB [N, 3]."""
        field = field_of(centres, rgb, self.codec.resolution, self.codec.limit)[None].to(self.codec.mean)
        return replace(draft, latent=self.codec.encode(field)[0])


@dataclass(frozen=True)
class FieldStage:
    """Diffusion on the dense grid, as GVGEN has it: noise and a sentence -> the fine field at once."""

    denoiser: FieldDenoiser
    name: str = "field"

    @torch.no_grad()
    def __call__(self, draft: Draft, config: TextSampleConfig) -> Draft:
        x0 = _sampled(self.denoiser, self.denoiser.mean.shape, draft, config)
        return replace(draft, latent=x0[0], field=self.denoiser.decode(x0), limit=FIELD_LIMIT)

    @torch.no_grad()
    def agreement(self, draft: Draft) -> float:
        return _agreement(self.denoiser, draft)

    def started_from(self, draft: Draft, centres: Tensor, rgb: Tensor) -> Draft:
        """As `ShapeStage.started_from`."""
        field = field_of(centres, rgb, self.denoiser.config.resolution)[None].to(self.denoiser.mean)
        return replace(draft, latent=self.denoiser.encode(field)[0])


@dataclass(frozen=True)
class DetailStage:
    """One pass: the coarse field and the sentence -> a field twice as fine."""

    upsampler: VolumeUNet
    name: str = "detail"

    @torch.no_grad()
    def __call__(self, draft: Draft, config: TextSampleConfig) -> Draft:
        return replace(draft, field=upsampled(self.upsampler, draft.field, draft.limit, draft.text), limit=FIELD_LIMIT)


@dataclass(frozen=True)
class AttributeStage:
    """One pass: the fine field and the sentence -> Gaussians."""

    predictor: AttributePredictor | DenseAttributes
    name: str = "attributes"

    @torch.no_grad()
    def __call__(self, draft: Draft, config: TextSampleConfig) -> Draft:
        out = self.predictor(draft.field, draft.text.tokens, draft.text.mask, draft.text.pooled)
        volume = out.volume(1, self.predictor.config.resolution, self.predictor.config.max_offset)
        return replace(draft, volume=volume)


def level_shift(shape: Sequence[int]) -> float:
    """What to add to ln(alpha / sigma) meant for a short latent, so that x_0 of `shape` is as well known at that level."""
    return -0.5 * math.log(math.prod(shape) / LEVELS_OF) if len(shape) > 1 else 0.0


def _sampled(denoiser: nn.Module, shape: Sequence[int], draft: Draft, config: TextSampleConfig) -> Tensor:
    """[1, *shape] x_0 from noise, or from a latent with noise of `config.strength`, guided by the text."""
    generator = torch.Generator().manual_seed(draft.seed)
    noise = torch.randn(1, *shape, generator=generator).to(draft.text.pooled.device)
    start = None if draft.latent is None else start_of(config.strength)
    scheduler = EIScheduler(prediction_type="sample", plan=config.plan, grid="log_snr", log_snr_start=start)
    scheduler.set_timesteps(config.steps)
    if start is not None:
        node = scheduler.current_node()
        noise = node.alpha * draft.latent[None] + node.sigma * noise
    denoise = guided(_of(denoiser, draft.text), _of(denoiser, draft.text, without=True), GuidanceSchedule(config.guidance))
    return sample(denoise, scheduler, noise, generator)


def _agreement(denoiser: nn.Module, draft: Draft) -> float:
    """How much better the text explains the shape than no text: higher is better (Li et al. 2023, diffusion classifier).

    The mean over noise levels of the relative drop of the denoising error; the same noise for every candidate.
    """
    x0 = draft.latent[None]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0)
    drops = []
    for level in AGREEMENT_LEVELS:
        level = level + level_shift(draft.latent.shape)
        alpha, sigma = 1 / math.sqrt(1 + math.exp(-2 * level)), 1 / math.sqrt(1 + math.exp(2 * level))
        x = alpha * x0 + sigma * noise
        errors = [(_of(denoiser, draft.text, w)(x, alpha, sigma) - x0).square().mean() for w in (False, True)]
        drops.append(1 - float(errors[0] / errors[1].clamp_min(1e-12)))
    return sum(drops) / len(drops)


def _of(denoiser: nn.Module, text: TextFeatures, without: bool = False) -> Denoiser:
    """A network as a function of x and the noise level, with a text or told to do without."""

    def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
        a, s, w = (torch.full((len(x),), v, device=x.device) for v in (alpha, sigma, without))
        return denoiser(x, a, s, text.tokens, text.mask, text.pooled, w)

    return denoise


def interpolated(coarse: Tensor, limit: float, resolution: int, fine_limit: float = FIELD_LIMIT) -> Tensor:
    """Fields [B, 4, r, r, r] cut off at `limit` -> [B, 4, R, R, R]: trilinear, and distances cut off at `fine_limit`."""
    grid = torch.nn.functional.interpolate(coarse, size=[resolution] * 3, mode="trilinear", align_corners=False)
    near = grid[:, :1].clamp(0, 1)
    finer = (1 - (1 - near) * limit / fine_limit).clamp_min(0)
    return torch.cat([finer, grid[:, 1:] * (finer / near.clamp_min(0.05))], dim=1)


def upsampled(network: VolumeUNet, coarse: Tensor, limit: float, text: TextFeatures) -> Tensor:
    """Fields [B, 4, r, r, r] cut off at `limit` -> [B, 4, R, R, R] cut off at `FIELD_LIMIT`: a correction of `interpolated`."""
    guess = interpolated(coarse, limit, coarse.shape[-1] * network.config.finer)
    return guess + network(coarse, text.tokens, text.mask).float()


def field_splats(field: Tensor, limit: float) -> Splats:
    """A field [1, 4, R, R, R] as round Gaussians on the nodes within 0.7 spacings of a centre: for previews."""
    r = field.shape[-1]
    nodes = (distance_of(field, limit)[0].flatten() < 0.7 / r).nonzero().squeeze(-1)
    rgb = colour_of(field)[0].flatten(1).T[nodes]
    n = len(nodes)
    return Splats(
        node_positions(nodes.cpu(), r).to(field),
        torch.tensor([1.0, 0, 0, 0]).repeat(n, 1).to(field),
        torch.full((n, 3), math.log(0.45 / r)).to(field),
        torch.full((n,), 3.0).to(field),
        from_rgb(rgb)[:, None],
    )
