"""Training of the multiview splat denoiser on a bank of views: every prediction is rendered, and the renders are compared.

The x_0 prediction of a view is the render of the Gaussians (DSplats, Miao et al. 2024; DFM, Tewari et al. 2023), compared on
the views that were denoised and on others that the network never saw.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffusion.data.captions import with_article
from diffusion.models.multiview import MultiviewDenoiser
from diffusion.objective.losses import min_snr_weight
from diffusion.splat_maps import depth_of, ray_features, to_pictures, to_splats
from diffusion.text_encoder import TextEncoder, load_text_encoder
from diffusion.train_latents import balanced_weights
from diffusion.training import TrainConfig, half_precision, train
from diffusion.view_bank import FAR, NEAR, ViewBank, cameras_at
from diffusion.view_space import PixelSpace, ViewSpace
from splat.cameras import Cameras
from splat.errors import InputError
from splat.metrics import ssim
from splat.progress import Progress
from splat.render import RenderOptions, render

RELATIVE_TO = 0.1  # error that keeps its weight where errors are taken relative to themselves: that of a trained network
PURE_NOISE = -5.0  # ln(alpha / sigma) where samplers start


@dataclass(frozen=True)
class MultiviewTrainConfig:
    """What the denoiser is and what a step sees."""

    width: int = 256
    blocks: int = 6
    batch: int = 8  # objects a step
    views: int = 4  # of every object, the input among them
    extra: int = 2  # further views of every object that the renders are compared on
    more_clean: float = 0.15  # chance of each further view to be known too
    no_clean: float = 0.05  # share of the objects without any known view, for guidance
    anywhere: float = 0.25  # share of the objects whose further views are not at right angles to the input
    pure: float = 0.35  # share of the objects whose unknown views are nothing but noise
    log_snr_mean: float = -1.5  # of ln(alpha / sigma) of the others
    log_snr_std: float = 1.5
    own: float = 0.0  # share of the others that are denoised from the network's own first answer, as a sampler does
    own_noise: float = 0.35  # how much of its deviation the noise has then: the sampler's temperature
    turn_hues: float = 0.3  # share of the objects whose colours are turned round the grey axis
    depth_weight: float = 0.1
    alpha_weight: float = 0.5
    ssim_weight: float = 0.0  # of 1 - SSIM beside the squared error
    text: bool = False  # the network also sees a sentence about the object, its noun
    no_text: float = 0.4  # share of the objects whose sentence it does not see
    relative: float = 1.0  # 1 divides each object's error by itself, as PSNR judges, 0 leaves it: what is between is its power
    seen_weight: float = 1.0  # of the views that are denoised, against 1 of the extra ones
    bottleneck: Literal["splats", "none"] = "splats"  # none is the control without Gaussians: every view by itself
    loop: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=7300, lr=6e-4, warmup=100, average=0.997, bf16=True, weight_decay=0.02)
    )


@dataclass(frozen=True)
class ViewBatch:
    """B objects, V views that the network sees and then E that it does not, azimuth 0 at the first view."""

    pictures: Tensor  # [B, V + E, 4, S, S] premultiplied sRGB and coverage
    depth: Tensor  # [B, V + E, S, S] world units, 0 where nothing is hit
    cameras: tuple[Cameras, ...]  # B of V + E
    is_clean: Tensor  # [B, V] bool


def draw_batch(bank: ViewBank, rows: Tensor, config: MultiviewTrainConfig, generator: torch.Generator) -> ViewBatch:
    """Random inputs, further views and augmentations of the examples `rows` [B] of a bank."""
    c, ring = config, bank.config.ring
    rand = lambda: float(torch.rand((), generator=generator))  # noqa: E731
    integer = lambda n: int(torch.randint(n, (), generator=generator))  # noqa: E731
    pictures, depths, cameras, known = [], [], [], []
    for row in rows.tolist():
        first = integer(ring)
        others = [(first + k * ring // c.views) % ring for k in range(1, c.views)]
        if rand() < c.anywhere:
            others = [(first + int(k)) % ring for k in 1 + torch.randperm(ring - 1, generator=generator)[: c.views - 1]]
            others = [k + ring * (rand() < 0.5) for k in others]
        free = [*range(2 * ring, 2 * ring + bank.config.extra), *sorted(set(range(ring)) - {first, *others})]
        unseen = [free[int(k)] for k in torch.randperm(len(free), generator=generator)[: c.extra]]
        chosen = [first + ring * (rand() < 0.6), *others, *unseen]
        views = torch.from_numpy(bank.views[row, chosen]).float()
        azimuth, elevation = torch.from_numpy(bank.angles[row, chosen]).unbind(-1)
        azimuth = azimuth - azimuth[0]
        colours = views[..., :4] / 255
        if rand() < c.turn_hues:
            colours = torch.cat([hues_turned(colours[..., :3], colours[..., 3:], 2 * math.pi * rand()), colours[..., 3:]], -1)
        depth = (NEAR + (views[..., 4] - 1) / 254 * (FAR - NEAR)) * (views[..., 4] > 0)
        if rand() < 0.5:  # the mirrored object, seen by the mirrored cameras
            colours, depth, azimuth = colours.flip(2), depth.flip(2), -azimuth
        pictures.append(colours.permute(0, 3, 1, 2))
        depths.append(depth)
        cameras.append(cameras_at(azimuth, elevation, bank.config.size))
        clean = [True, *(rand() < c.more_clean for _ in range(c.views - 1))]
        known.append([False] * c.views if rand() < c.no_clean else clean)
    return ViewBatch(torch.stack(pictures), torch.stack(depths), tuple(cameras), torch.tensor(known))


def hues_turned(premultiplied: Tensor, coverage: Tensor, angle: float) -> Tensor:
    """Colours [..., 3] turned by `angle` round the grey axis and kept between 0 and their coverage [..., 1]."""
    third, c, s = 1 / 3, math.cos(angle), math.sin(angle) / math.sqrt(3)
    turn = torch.full((3, 3), (1 - c) * third) + c * torch.eye(3) + s * torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return torch.minimum((premultiplied @ turn.T).clamp(min=0), coverage)


def drawn(splats, cameras: Cameras) -> Tensor:
    """Premultiplied colour and coverage [C, 4, H, W] of the Gaussians through every camera."""
    out = render(splats, cameras, RenderOptions(background=torch.zeros(3, device=splats.means.device), threads=1))
    return torch.cat([out.rgb, out.alpha[..., None]], dim=-1).permute(0, 3, 1, 2)


def picture_error(made: Tensor, true: Tensor, alpha_weight: float) -> Tensor:
    """Premultiplied pictures [C, 4, H, W] -> [C]: squared error on white and on black, and of the coverage."""
    black = (made[:, :3] - true[:, :3]).square().mean((1, 2, 3))
    white = ((made[:, :3] - made[:, 3:]) - (true[:, :3] - true[:, 3:])).square().mean((1, 2, 3))
    return 0.75 * white + 0.25 * black + alpha_weight * (made[:, 3] - true[:, 3]).square().mean((1, 2))


@dataclass
class MultiviewLoss:
    """Of `training.train`: mean loss over a batch drawn from the bank."""

    bank: ViewBank
    space: ViewSpace
    weights: Tensor  # [K]
    rows: Tensor  # [K] examples
    config: MultiviewTrainConfig
    text: Tensor | None = None  # [objects, text_channels]: of the bank's objects

    def __call__(self, network: MultiviewDenoiser, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        c, n = self.config, self.config.batch
        device = next(network.parameters()).device
        rows = self.rows[torch.multinomial(self.weights, n, replacement=True, generator=generator)]
        batch = draw_batch(self.bank, rows, c, generator)
        pictures, is_clean = batch.pictures.to(device), batch.is_clean.to(device)
        log_snr = c.log_snr_mean + c.log_snr_std * torch.randn(n, generator=generator)
        pure = torch.rand(n, generator=generator) < c.pure
        log_snr = torch.where(pure, torch.tensor(PURE_NOISE), log_snr.clamp(PURE_NOISE, 4.0)).to(device)
        alpha, sigma = torch.sigmoid(2 * log_snr).sqrt(), torch.sigmoid(-2 * log_snr).sqrt()
        seen = pictures[:, : c.views]
        with torch.no_grad():
            x0 = self.space.encode(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
        noise = torch.randn(x0.shape, generator=generator).to(device)
        a, s = (v[:, None, None, None, None] for v in (alpha, sigma))
        own = (~pure & (torch.rand(n, generator=generator) < c.own)).to(device) if c.own else None
        cameras = [cams.to(device) for cams in batch.cameras]
        half = seen.shape[-1] // 2
        rays = torch.stack(
            [ray_features(p, k, cams[: c.views], half) for p, k, cams in zip(seen, is_clean, cameras, strict=True)]
        )
        told = {}
        if self.text is not None:
            heard = torch.rand(n, 1, generator=generator) >= c.no_text
            told["text"] = (self.text[torch.from_numpy(self.bank.objects[rows.numpy()])] * heard).to(device)
        if own is not None and bool(own.any()):
            first = self._first_answer(network, noise[own], [v[own] for v in (seen, is_clean, rays)], told, own, cameras)
            x0, noise = x0.clone(), noise.clone()
            x0[own], noise[own] = first, c.own_noise * noise[own]
        with half_precision(c.loop, network):
            maps = network(a * x0 + s * noise, seen, is_clean, alpha, sigma, rays, **told).float()
        total, errors = torch.zeros((), device=device), []
        weight = min_snr_weight(16 * (2 * log_snr).exp(), "sample", 5.0, 1.0)  # 16: what the pixels of a patch share
        for b, cams in enumerate(cameras):
            if c.bottleneck == "splats":
                made, true = drawn(to_splats(maps[b], cams[: c.views], seen[b], is_clean[b]), cams), pictures[b]
            else:
                made, true = to_pictures(maps[b]), seen[b]
            share = true[:, 3].mean() + 0.03
            each = picture_error(made, true, c.alpha_weight)
            if c.ssim_weight:
                each = each + c.ssim_weight * share * _dissimilarity(made, true)
            error = (c.seen_weight * each[: c.views].sum() + each[c.views :].sum()) / len(each) / share
            errors.append(float(error.detach()))
            if c.relative:
                error = error * (RELATIVE_TO / (error.detach() + 0.1 * RELATIVE_TO)) ** c.relative
            hit = (batch.depth[b, : c.views] > 0).to(device)
            off = (depth_of(maps[b, :, 0]) - batch.depth[b, : c.views].to(device)).abs() * hit
            total = total + weight[b] * (error + c.depth_weight * off.sum() / hit.sum().clamp(min=1))
        e = torch.tensor(errors)
        figures = {"pure": float(e[pure].mean()) if bool(pure.any()) else math.nan}
        figures["noisy"] = float(e[~pure].mean()) if bool((~pure).any()) else math.nan
        return total / n, {k: v for k, v in figures.items() if math.isfinite(v)}

    @torch.no_grad()
    def _first_answer(
        self, network, noise: Tensor, given: list[Tensor], told: dict, own: Tensor, cameras: list[Cameras]
    ) -> Tensor:
        """x_0 [K, V, C, h, w] of the objects `own` [B] after a sampler's first call, from pure noise [K, V, C, h, w].

        Later calls see what the earlier ones made, not the truth with noise; without such examples they make it worse.
        """
        c = self.config
        seen, is_clean, rays = given
        level = torch.full((len(noise),), PURE_NOISE, device=noise.device)
        alpha, sigma = torch.sigmoid(2 * level).sqrt(), torch.sigmoid(-2 * level).sqrt()
        with half_precision(c.loop, network):
            heard = {name: value[own] for name, value in told.items()}
            maps = network(c.own_noise * noise, seen, is_clean, alpha, sigma, rays, **heard).float()
        made = []
        for i, b in enumerate(own.nonzero().flatten().tolist()):
            if c.bottleneck == "splats":
                made.append(drawn(to_splats(maps[i], cameras[b][: c.views], seen[i], is_clean[i]), cameras[b][: c.views]))
            else:
                made.append(to_pictures(maps[i]))
        pictures = torch.stack(made)
        return self.space.encode(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])


def _dissimilarity(made: Tensor, true: Tensor) -> Tensor:
    """1 - SSIM over white, [C]."""
    white = [(p[:, :3] + 1 - p[:, 3:]).permute(0, 2, 3, 1) for p in (made, true)]
    return torch.stack([1 - ssim(m, t) for m, t in zip(*white, strict=True)])


def sentences(bank: ViewBank, encoder: TextEncoder) -> Tensor:
    """[objects, channels] pooled features of what each object of the bank is: "a chair"."""
    nouns = sorted(set(bank.nouns))
    pooled = encoder.encode([with_article(noun) for noun in nouns]).pooled.cpu()
    return pooled.clone()[[nouns.index(noun) for noun in bank.nouns]]


def new_multiview(bank: ViewBank, space: ViewSpace, config: MultiviewTrainConfig, text_channels: int = 0) -> MultiviewDenoiser:
    """Fresh, for the bank's pictures in `space`; the same for one seed."""
    torch.manual_seed(config.loop.seed)
    rows = bank.examples("train")[:200]
    pictures = torch.from_numpy(bank.views[rows, 0, ..., :4]).float().permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        x0 = space.encode(pictures)
    return MultiviewDenoiser(
        bank.config.size,
        space.name,
        x0.shape[1],
        config.width,
        config.blocks,
        variance=round(float(x0.square().mean()), 4),
        bottleneck=config.bottleneck,
        text_channels=text_channels,
    )


def train_multiview(
    bank: ViewBank, config: MultiviewTrainConfig, folder: Path, sheet=None, device: str = "cpu", space: ViewSpace | None = None
) -> Generator[Progress, None, MultiviewDenoiser]:
    """Train on the bank's training examples; `folder` as in `training.train`. Returns the averaged network.

    Sentences, where the config wants them, are read by the text encoder that comes with the package.
    """
    if bank.config.extra < config.extra:
        raise InputError(f"The bank has {bank.config.extra} extra views of an object and training compares {config.extra}.")
    space = PixelSpace() if space is None else space
    rows = bank.examples("train")
    text = sentences(bank, load_text_encoder()) if config.text else None
    loss = MultiviewLoss(bank, space, balanced_weights(bank, rows, 0.5), torch.from_numpy(rows), config, text)
    network = (
        new_multiview(bank, space, config, 0 if text is None else text.shape[1])
        .to(device)
        .to(memory_format=torch.channels_last)
    )
    return (yield from train(network, loss, config.loop, folder, sheet))
