"""Training of text-to-3D's first stage: the codec of the fields, then the denoiser of their latents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.field_bank import FieldBank
from diffusion.field_codec import FieldCodec
from diffusion.models.latent_denoiser import LatentDenoiser
from diffusion.text_features import StoredText
from diffusion.training import TrainConfig, half_precision, train
from splat.progress import Progress


@dataclass(frozen=True)
class LatentTrainConfig:
    """The first stage's own knobs."""

    dimensions: int = 384
    width: int = 512
    blocks: int = 5
    hidden: int = 1024
    conditioning: int = 224
    dropout: float = 0.1
    batch: int = 128
    text_dropout: float = 0.1  # share of samples without their text, for guidance
    balance: float = 0.5  # objects of a noun of n count n^-balance as often: rare nouns are seen more
    log_snr_mean: float = -0.5  # of the training noise levels, ln(alpha / sigma), normally distributed
    log_snr_std: float = 1.8
    jitter: float = 0.05  # noise added to clean latents, in their standard deviations: neighbours blend
    loop: TrainConfig = field(default_factory=lambda: TrainConfig(steps=24000, lr=1e-3, average=0.999, bf16=True))


def learn_codec(bank: FieldBank, dimensions: int, seed: int = 0, most: int = 9000) -> FieldCodec:
    """From at most `most` training examples, the first of every object always among them."""
    examples = bank.examples("train")
    firsts = np.unique(bank.objects[examples], return_index=True)[1]
    others = np.setdiff1d(np.arange(len(examples)), firsts)
    others = np.random.default_rng(seed).permutation(others)[: max(most - len(firsts), 0)]
    chosen = np.sort(examples[np.concatenate([firsts, others])])
    fields = torch.from_numpy(np.ascontiguousarray(bank.fields[chosen]))
    return FieldCodec.learn(fields, dimensions, bank.limit, seed)


def latents_of(bank: FieldBank, codec: FieldCodec, examples: np.ndarray, chunk: int = 512) -> Tensor:
    """[len(examples), K] float32."""
    parts = [bank.fields[examples[i : i + chunk]] for i in range(0, len(examples), chunk)]
    return torch.cat([codec.encode(torch.from_numpy(np.ascontiguousarray(p))) for p in parts])


def balanced_weights(bank: FieldBank, examples: np.ndarray, balance: float) -> Tensor:
    """[len(examples)] how often each is drawn: objects of a noun of n objects weigh n^-balance, their examples share it."""
    owners = bank.objects[examples]
    of_noun = Counter(bank.nouns[o] for o in np.unique(owners))
    of_object = Counter(owners.tolist())
    return torch.tensor([of_noun[bank.nouns[o]] ** -balance / of_object[o] for o in owners.tolist()])


@dataclass
class LatentLoss:
    """Denoising loss over a bank's examples, drawn by weight; preconditioned units, component k weighing sqrt(variance_k)."""

    latents: Tensor  # [M, K]
    text: StoredText
    captions: Tensor  # [M, S] rows of `text`
    weights: Tensor  # [M]
    config: LatentTrainConfig

    def __call__(self, network: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        c, n = self.config, self.config.batch
        device = next(network.parameters()).device
        rows = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        sentence = torch.randint(self.captions.shape[1], (n, 1), generator=generator)
        text = self.text.features(self.captions[rows].gather(1, sentence)[:, 0]).to(device)
        x0 = self.latents[rows].to(device)
        v = network.variances
        noise = torch.randn(2, *x0.shape, generator=generator).to(device)
        x0 = x0 + c.jitter * v.sqrt() * noise[1]
        level = (torch.arange(n) + torch.rand(n, generator=generator)) / n  # stratified: less noise in the loss
        log_snr = c.log_snr_mean + c.log_snr_std * torch.special.ndtri(level.clamp(1e-4, 1 - 1e-4))
        log_snr = log_snr[torch.randperm(n, generator=generator)].to(device)
        alpha, sigma = torch.sigmoid(2 * log_snr).sqrt(), torch.sigmoid(-2 * log_snr).sqrt()
        without = (torch.rand(n, generator=generator) < c.text_dropout).to(device)
        x = alpha[:, None] * x0 + sigma[:, None] * noise[0]
        with half_precision(c.loop, network):
            predicted = network(x, alpha, sigma, text.tokens, text.mask, text.pooled, without)
        power = (alpha**2)[:, None] * v + (sigma**2)[:, None]
        error = (predicted.float() - x0).square() * power / (v * (sigma**2)[:, None])  # of the network's own output
        weight = v.sqrt() / v.sqrt().mean()
        each = (error * weight).mean(1)
        figures = {"noisy": float(each[log_snr < -1].mean().detach()), "clean": float(each[log_snr > 1].mean().detach())}
        return each.mean(), figures


def new_denoiser(latents: Tensor, config: LatentTrainConfig, text: StoredText) -> LatentDenoiser:
    """Fresh, with the variances of the training latents [M, K]; the same for one seed."""
    torch.manual_seed(config.loop.seed)
    network = LatentDenoiser(
        latents.shape[1], config.width, config.blocks, config.hidden, text.tokens.shape[1], text.pooled.shape[1],
        conditioning=config.conditioning, dropout=config.dropout,
    )  # fmt: skip
    network.variances.copy_(latents.square().mean(0))
    return network


def train_latents(
    bank: FieldBank, codec: FieldCodec, config: LatentTrainConfig, folder: Path, sheet=None, device: str = "cpu"
) -> Generator[Progress, None, LatentDenoiser]:
    """Train on the bank's training examples; `folder` as in `training.train`. Returns the averaged network."""
    examples = bank.examples("train")
    latents = latents_of(bank, codec, examples)
    captions = torch.tensor([bank.captions[i] for i in examples])
    loss = LatentLoss(latents, bank.text, captions, balanced_weights(bank, examples, config.balance), config)
    network = new_denoiser(latents, config, bank.text).to(device)
    return (yield from train(network, loss, config.loop, folder, sheet))
