"""Text to 3D, coarse to fine: each stage adds to a `Draft` what the next one needs.

GVGEN (He et al. 2024) has two: a distance field by diffusion, then all attributes of its Gaussians. Here the field is made at
16 nodes to a side, where diffusion is cheap, and a stage between the two brings it to 32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from diffusion.field import FIELD_LIMIT, colour_of, distance_of
from diffusion.field_codec import FieldCodec
from diffusion.guidance import GuidanceSchedule, guided
from diffusion.models.attribute_predictor import AttributePredictor
from diffusion.models.latent_denoiser import LatentDenoiser
from diffusion.models.volume_unet import VolumeUNet
from diffusion.samplers.sampling import sample
from diffusion.samplers.scheduler import EIScheduler
from diffusion.text_config import TextSampleConfig
from diffusion.text_encoder import TextFeatures
from diffusion.volume import SplatVolume, node_positions
from splat.gaussians import Splats
from splat.sh import from_rgb

AGREEMENT_LEVELS = (-2.0, -1.0, 0.0, 1.0)  # ln(alpha / sigma) at which a sample is held against its text


@dataclass(frozen=True)
class Draft:
    """One object on its way."""

    text: TextFeatures  # of one sentence
    seed: int
    latent: Tensor | None = None  # [K]
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
        generator = torch.Generator().manual_seed(draft.seed)
        noise = torch.randn(1, self.codec.dimensions, generator=generator).to(draft.text.pooled.device)
        scheduler = EIScheduler(prediction_type="sample", plan=config.plan, grid="log_snr")
        scheduler.set_timesteps(config.steps)
        denoise = guided(
            self._denoiser(draft.text), self._denoiser(draft.text, without=True), GuidanceSchedule(config.guidance)
        )
        latent = sample(denoise, scheduler, noise, generator)
        return replace(draft, latent=latent[0], field=self.codec.decode(latent), limit=self.codec.limit)

    @torch.no_grad()
    def agreement(self, draft: Draft) -> float:
        """How much better the text explains the shape than no text: higher is better (Li et al. 2023, diffusion classifier).

        The mean over noise levels of the relative drop of the denoising error; the same noise for every candidate.
        """
        noise = torch.randn(1, self.codec.dimensions, generator=torch.Generator().manual_seed(0)).to(draft.latent)
        drops = []
        for level in AGREEMENT_LEVELS:
            alpha, sigma = 1 / math.sqrt(1 + math.exp(-2 * level)), 1 / math.sqrt(1 + math.exp(2 * level))
            x = alpha * draft.latent + sigma * noise
            errors = [(self._denoiser(draft.text, w)(x, alpha, sigma) - draft.latent).square().mean() for w in (False, True)]
            drops.append(1 - float(errors[0] / errors[1].clamp_min(1e-12)))
        return sum(drops) / len(drops)

    def _denoiser(self, text: TextFeatures, without: bool = False):
        def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
            a, s, w = (torch.full((len(x),), v, device=x.device) for v in (alpha, sigma, without))
            return self.denoiser(x, a, s, text.tokens, text.mask, text.pooled, w)

        return denoise


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

    predictor: AttributePredictor
    name: str = "attributes"

    @torch.no_grad()
    def __call__(self, draft: Draft, config: TextSampleConfig) -> Draft:
        out = self.predictor(draft.field, draft.text.pooled)
        volume = out.volume(1, self.predictor.config.resolution, self.predictor.config.max_offset)
        return replace(draft, volume=volume)


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
