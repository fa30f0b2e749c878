"""Training of what turns a field into Gaussians: the upsampler of coarse fields, and the attribute predictors.

All learn from fitted volumes (`fit_volumes`). The upsampler sees coarse fields that have been through the codec and noise,
as those of the first stage will be; a predictor sees true fields and fields that the stage before it made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.data.object_views import DISTANCE, FOV_DEG
from diffusion.field import Nearest, nearest_centres
from diffusion.field_bank import FieldBank
from diffusion.field_codec import FieldCodec
from diffusion.fit_volumes import volume_path
from diffusion.models.attribute_predictor import AttributePredictor, Attributes
from diffusion.models.dense_attributes import DenseAttributes
from diffusion.models.volume_unet import VolumeUNet
from diffusion.text_config import VIEW_SIDE
from diffusion.text_encoder import TextFeatures
from diffusion.text_stages import interpolated, upsampled
from diffusion.train_latents import balanced_weights, latents_of
from diffusion.training import TrainConfig, half_precision, train
from diffusion.volume import (
    ACTIVE_LOGIT,
    COLOUR,
    OPACITY,
    ChannelStatistics,
    SplatVolume,
    canonical_nodes,
    load_volume,
)
from splat.cameras import Cameras, intrinsics
from splat.losses import photometric
from splat.progress import Progress
from splat.render import RenderOptions, render
from splat.sh import from_rgb, to_rgb

MAX_OFFSET = 1.5  # spacings, of the volumes that are learnt from
# (examples [B], their texts, randomness) -> [B, 4, R, R, R] fields as the stage before makes them, on the texts' device
MadeBefore = Callable[[list[int], TextFeatures, torch.Generator], Tensor]


class FineExamples:
    """The bank's examples with their fields at the resolution of the volumes, made on demand.

    Searches are kept in memory, and of volumes the rows of their Gaussians: a tenth of the grid.
    """

    def __init__(self, bank: FieldBank, volumes: Path, split: str) -> None:
        self.bank, self.volumes = bank, volumes
        self.rows = [int(i) for i in bank.examples(split) if bank.variants[i].stretch == (1.0, 1.0)]
        self.kept: dict[int, tuple[Tensor, Tensor, Nearest]] = {}  # flat nodes [N], channels [13, N]

    def __len__(self) -> int:
        return len(self.rows)

    def object(self, owner: int) -> tuple[Tensor, Tensor, Nearest]:
        """Of an object's canonical volume the nodes [N] and channels [13, N], and which Gaussian is nearest to each node."""
        if owner not in self.kept:
            fitted = load_volume(volume_path(self.volumes, self.bank.keys[owner]))[0]
            splats, nodes = fitted.to_splats(), fitted.active[0].flatten().nonzero().squeeze(-1)
            nodes = canonical_nodes(splats.means, nodes, fitted.resolution)
            volume = SplatVolume.from_splats(splats, nodes, fitted.resolution, max_offset=MAX_OFFSET)
            found = nearest_centres(volume.to_splats().means, fitted.resolution)
            nodes = volume.active[0].flatten().nonzero().squeeze(-1)
            self.kept[owner] = (
                nodes.int(),
                volume.features[0].flatten(1)[:, nodes],
                replace(found, distance=found.distance.astype(np.float16), index=found.index.astype(np.int32)),
            )
        return self.kept[owner]

    def volume(self, i: int) -> SplatVolume:
        """The Gaussians of example i: one cube."""
        row = self.rows[i]
        nodes, channels, found = self.object(int(self.bank.objects[row]))
        variant = self.bank.variants[row]
        channels = channels.clone()
        channels[COLOUR] = from_rgb(variant.colours(to_rgb(channels[COLOUR].T).clamp(0, 1))).T
        made = Attributes(torch.zeros(len(nodes), dtype=torch.int64), nodes.long(), channels.T)
        volume = made.volume(1, found.resolution, MAX_OFFSET)
        return volume.mirrored() if variant.mirrored else volume

    def fine(self, i: int) -> Tensor:
        """[4, R, R, R]"""
        row = self.rows[i]
        _, channels, found = self.object(int(self.bank.objects[row]))
        variant = self.bank.variants[row]
        field = found.field(variant.colours(to_rgb(channels.T.contiguous()[:, COLOUR]).clamp(0, 1)))
        return field.flip(-1) if variant.mirrored else field

    def coarse(self, i: int) -> Tensor:
        """[4, r, r, r]"""
        return torch.from_numpy(self.bank.fields[self.rows[i]].astype(np.float32))

    def text(self, chosen: list[int], generator: torch.Generator) -> TextFeatures:
        """One of the sentences of each."""
        options = torch.tensor([self.bank.captions[self.rows[i]] for i in chosen])
        which = torch.randint(options.shape[1], (len(chosen), 1), generator=generator)
        return self.bank.text.features(options.gather(1, which)[:, 0])


@dataclass(frozen=True)
class UpsamplerTrainConfig:
    """Of the field upsampler."""

    channels: int = 28
    multipliers: tuple[int, ...] = (1, 2, 3)
    batch: int = 8
    noise: float = 0.15  # largest standard deviation of noise on the latents, in theirs; drawn evenly from 0
    as_encoded: float = 0.15  # share of the examples whose coarse field is the true one
    loop: TrainConfig = field(default_factory=lambda: TrainConfig(steps=2500, lr=1.5e-3, average=0.995, bf16=True))


@dataclass(frozen=True)
class AttributeTrainConfig:
    """Of the attribute predictor."""

    width: int = 192
    batch: int = 4
    views: int = 2  # rendered per object and step
    view_side: int = VIEW_SIDE  # px
    render_weight: float = 1.0  # of the photometric loss, beside the squared error of the channels
    structure: float = 0.2  # share of 1 - SSIM in the photometric loss, the rest is L1
    channel_weight: float = 0.1
    upsampled: float = 0.5  # share of the examples whose field the stage before made
    noise: float = 0.2  # largest standard deviation of noise on the latents behind those, in theirs; drawn evenly from 0
    loop: TrainConfig = field(default_factory=lambda: TrainConfig(steps=4000, lr=2e-3, average=0.995, bf16=True))


def field_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Fields [B, 4, R, R, R] -> [B]: squared error, nodes near a surface counting ten times, colours half."""
    near = torch.maximum(true[:, :1], predicted[:, :1].detach()).clamp(0, 1)
    weight = 1 + 9 * ((near - 0.5) / 0.3).clamp(0, 1)
    error = (predicted - true).square()
    return (weight * (error[:, :1] + 0.25 * error[:, 1:].sum(1, keepdim=True))).mean((1, 2, 3, 4))


def train_upsampler(
    examples: FineExamples,
    codec: FieldCodec,
    config: UpsamplerTrainConfig,
    folder: Path,
    sheet=None,
    device: str = "cpu",
) -> Generator[Progress, None, VolumeUNet]:
    """Train the field upsampler; `folder` as in `training.train`."""
    c, bank = config, examples.bank
    weights = balanced_weights(bank, np.array(examples.rows), 0.5)

    def loss(network: VolumeUNet, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.multinomial(weights, c.batch, c.batch > len(weights), generator=generator).tolist()
        text = examples.text(chosen, generator).to(device)
        fine = torch.stack([examples.fine(i) for i in chosen]).to(device)
        coarse = torch.stack([examples.coarse(i) for i in chosen])
        seen = codec.decode(codec.encode(coarse) + latent_noise(len(chosen), c.noise, deviations, generator))
        true = torch.rand(len(chosen), generator=generator) < c.as_encoded
        seen = torch.where(true[:, None, None, None, None], coarse, seen).to(device)
        with half_precision(c.loop, network):
            made = upsampled(network, seen, bank.limit, text)
        each = field_loss(made, fine)
        with torch.no_grad():
            start = field_loss(interpolated(seen, bank.limit, fine.shape[-1]), fine).mean()
        return each.mean(), {"interpolated": float(start)}

    deviations = deviations_of_latents(bank, codec)
    torch.manual_seed(config.loop.seed)
    network = VolumeUNet(
        4,
        4,
        c.channels,
        c.multipliers,
        attention=(False, False, True),
        text_dim=bank.text.tokens.shape[1],
        timed=False,
        finer=2,
    )
    return (yield from train(network.to(device), loss, config.loop, folder, sheet))


def train_attributes(
    examples: FineExamples,
    network: AttributePredictor | DenseAttributes,
    made_before: MadeBefore | None,
    config: AttributeTrainConfig,
    folder: Path,
    sheet=None,
    device: str = "cpu",
) -> Generator[Progress, None, AttributePredictor | DenseAttributes]:
    """Train a fresh attribute predictor on true fields and on those `made_before`; `folder` as in `training.train`."""
    c, bank = config, examples.bank
    weights = balanced_weights(bank, np.array(examples.rows), 0.5)
    resolution = network.config.resolution
    step = max(len(examples) // 200, 1)
    statistics = ChannelStatistics.of(examples.volume(i) for i in range(0, len(examples), step))
    network.mean.copy_(statistics.mean)
    network.std.copy_(statistics.std)

    def loss(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.multinomial(weights, c.batch, c.batch > len(weights), generator=generator).tolist()
        text = examples.text(chosen, generator).to(device)
        volumes = [examples.volume(i).to(device) for i in chosen]
        fields = torch.stack([examples.fine(i) for i in chosen]).to(device)
        use = torch.rand(len(chosen), generator=generator) < c.upsampled
        if made_before is not None and bool(use.any()):
            with torch.no_grad():
                made = made_before(chosen, text, generator)
            fields = torch.where(use[:, None, None, None, None].to(device), made, fields)
        with half_precision(c.loop, network):
            out = network(fields, text.tokens, text.mask, text.pooled)
        total, channels, picture = 0.0, 0.0, 0.0
        made = out.volume(len(chosen), resolution, network.config.max_offset)
        for b, volume in enumerate(volumes):
            mine = out.batch == b
            true = volume.features[0].flatten(1).T[out.nodes[mine]]
            own = channel_loss(out.rows[mine], true, network.std)
            views = random_cameras(c.views, c.view_side, generator).to(device)
            options = RenderOptions(background=torch.rand(3, generator=generator).to(device), threads=1)
            with torch.no_grad():
                truth = render(volume.to_splats(), views, options).rgb
            drawn = photometric(render(made.to_splats(b), views, options).rgb, truth, c.structure)
            total = total + c.channel_weight * own + c.render_weight * drawn
            channels, picture = channels + float(own.detach()), picture + float(drawn.detach())
        return total / len(chosen), {"channels": channels / len(chosen), "picture": picture / len(chosen)}

    return (yield from train(network.to(device), loss, config.loop, folder, sheet))


def new_predictor(examples: FineExamples, config: AttributeTrainConfig) -> AttributePredictor:
    """Fresh, for these examples; the same for one seed."""
    torch.manual_seed(config.loop.seed)
    return AttributePredictor(examples.volume(0).resolution, width=config.width, pooled_dim=examples.bank.text.pooled.shape[1])


def through_upsampler(
    examples: FineExamples, codec: FieldCodec, upsampler: VolumeUNet, noise: float, device: str = "cpu"
) -> MadeBefore:
    """Coarse fields through codec and `upsampler`, with up to `noise` deviations of noise on the latents."""
    deviations = deviations_of_latents(examples.bank, codec)
    upsampler.to(device)

    def made(chosen: list[int], text: TextFeatures, generator: torch.Generator) -> Tensor:
        coarse = torch.stack([examples.coarse(i) for i in chosen])
        coarse = codec.decode(codec.encode(coarse) + latent_noise(len(chosen), noise, deviations, generator))
        return upsampled(upsampler, coarse.to(device), examples.bank.limit, text)

    return made


def deviations_of_latents(bank: FieldBank, codec: FieldCodec) -> Tensor:
    """[K] of some 5,000 training examples."""
    examples = bank.examples("train")
    return latents_of(bank, codec, examples[:: max(len(examples) // 5000, 1)]).std(0, correction=0)


def latent_noise(count: int, most: float, deviations: Tensor, generator: torch.Generator) -> Tensor:
    """[count, K]: as far from true latents as those of the first stage may be, each by its own amount up to `most`."""
    amount = most * torch.rand(count, 1, generator=generator)
    return amount * deviations * torch.randn(count, len(deviations), generator=generator)


def channel_loss(rows: Tensor, true: Tensor, std: Tensor) -> Tensor:
    """Rows [M, 13] against the fitted volume's at the same nodes: who is there, what those who are look like; 0 if M is 0."""
    if len(rows) == 0:  # a made field without a surface; the mean of nothing is not a number
        return rows.sum()
    there = true[:, OPACITY] > ACTIVE_LOGIT
    presence = nn.functional.binary_cross_entropy_with_logits(rows[:, OPACITY], true[:, OPACITY].sigmoid() * there)
    if not bool(there.any()):
        return presence
    error = ((rows - true) / std)[there]
    return presence + nn.functional.smooth_l1_loss(error[:, :OPACITY], torch.zeros_like(error[:, :OPACITY]))


def random_cameras(count: int, side: int, generator: torch.Generator) -> Cameras:
    """Of the object protocol's lens and distance, from directions drawn evenly over the sphere."""
    directions = nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    K = intrinsics(0.5 * side / math.tan(math.radians(FOV_DEG) / 2), side, side)
    return Cameras.look_at(DISTANCE * directions, torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]), K, side, side)
