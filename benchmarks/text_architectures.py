"""Which network should diffuse the coarse field of text to 3-D, on the compute there is? Equal CPU time, one seed, one table.

    python benchmarks/text_architectures.py --work WORK --json rows.json                 all three, 10 CPU-minutes each
    python benchmarks/text_architectures.py --work WORK --rows tokens --minutes 3

components   the network that ships: principal components of the fields and a residual MLP; its minutes include the components
unet         GVGEN's kind: a dense 3-D U-Net on the field's nodes (`train_field`)
tokens       a transformer over the field's patches of 4^3 nodes, with cross-attention to the sentence

WORK is a training folder with its bank (`splatsmith train text-bank`). Every network learns to predict x_0 from the same
examples, drawn alike, in bfloat16, text dropped in a tenth; the rate falls along a cosine in CPU time. Noise levels of the two
networks on nodes lie lower by ln sqrt(D / K), where white noise disturbs a principal component as much as it does the
first network's latent: the rows then know about as much of the object.

error        of x_0 on validation objects, field space, relative to that of the mean training field; at rising noise
swapped      the same with another object's sentence: what the words are worth
NN@1         "a NOUN" for every noun with 8 training objects, 10 calls at guidance 3: is the nearest real field of that noun?
             Nearness channel alone, dot products, 8 objects a noun; the row "real" leaves the object and its recolours out
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import kernels  # beside this file
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.data.captions import with_article
from diffusion.field import FIELD_CHANNELS
from diffusion.field_bank import FieldBank, open_bank
from diffusion.guidance import GuidanceSchedule, guided
from diffusion.judge import balanced_gallery, noun_agreement, shuffled
from diffusion.models.field_denoiser import FieldDenoiser
from diffusion.objective.average import WeightAverage
from diffusion.objective.paths import per_sample
from diffusion.samplers.sampling import sample
from diffusion.samplers.scheduler import EIScheduler
from diffusion.text_config import TextSampleConfig
from diffusion.text_encoder import load_text_encoder
from diffusion.train_field import FieldLoss, FieldTrainConfig, UNetConfig, fit_statistics
from diffusion.train_latents import LatentLoss, LatentTrainConfig, balanced_weights, latents_of, learn_codec, new_denoiser

LEVELS = (-4.0, -2.0, 0.0)  # ln(alpha / sigma) of the latents at which errors are measured
LEAST = 8  # training objects of a noun that is judged
PATCH = 4  # nodes to a side of a token
NEARLY_THE_SAME = 0.999  # cosine between fields of an object and its recolour


@dataclass(frozen=True)
class Candidate:
    """An architecture at work on fields x [B, 4, R, R, R] in a space of its own."""

    network: nn.Module  # (x, alpha, sigma [B], tokens, mask, pooled, without [B]) -> x_0, in the space
    batch: int
    lr: float
    average: float
    shift: float  # added to every log-SNR
    loss: Callable[[nn.Module, torch.Generator], Tensor]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


class TokenDenoiser(nn.Module):
    """As `FieldDenoiser`, with a transformer in place of the U-Net: patches as tokens, that look at each other and the text."""

    encode = FieldDenoiser.encode

    def __init__(self, resolution: int, text_dim: int, pooled_dim: int, width: int = 256, depth: int = 6) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FIELD_CHANNELS, *[resolution] * 3))
        self.register_buffer("std", torch.ones(FIELD_CHANNELS))
        self.cells = resolution // PATCH
        self.enter = nn.Linear(FIELD_CHANNELS * PATCH**3, width)
        self.place = nn.Parameter(0.02 * torch.randn(self.cells**3, width))
        self.level = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled = nn.Linear(pooled_dim, width)
        self.words = nn.Linear(text_dim, width)
        self.nothing = nn.Parameter(torch.zeros(width))
        layer = nn.TransformerDecoderLayer(width, 8, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, depth, nn.LayerNorm(width))
        self.leave = nn.Linear(width, FIELD_CHANNELS * PATCH**3)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, tokens: Tensor, mask: Tensor, pooled: Tensor, without: Tensor):
        b, n = len(x), self.cells
        patches = x.reshape(b, FIELD_CHANNELS, n, PATCH, n, PATCH, n, PATCH).permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        rates = (alpha / sigma).log()[:, None] * 0.25 * 1.35 ** torch.arange(16)
        level = self.level(torch.cat([rates.sin(), rates.cos()], dim=-1))
        pooled = torch.where(without[:, None], self.nothing, self.pooled(pooled * pooled.shape[1] ** 0.5))
        words = torch.where(without[:, None, None], self.nothing, self.words(tokens))
        h = self.enter(patches.flatten(1, 3)) + self.place + (level + pooled)[:, None]
        h = self.leave(self.layers(h, words, memory_key_padding_mask=~mask))
        h = h.reshape(b, n, n, n, FIELD_CHANNELS, PATCH, PATCH, PATCH).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return per_sample(alpha, x) * x + per_sample(sigma, x) * h.reshape(x.shape).float()


def components(bank: FieldBank, args: argparse.Namespace) -> Candidate:
    """What ships, with the codec learnt here."""
    config = LatentTrainConfig(dimensions=args.dimensions)
    config = replace(config, loop=replace(config.loop, seed=args.seed))
    codec = learn_codec(bank, args.dimensions, args.seed)
    examples = bank.examples("train")
    latents = latents_of(bank, codec, examples)
    captions = torch.tensor([bank.captions[i] for i in examples])
    loss = LatentLoss(latents, bank.text, captions, balanced_weights(bank, examples, config.balance), config)
    network = new_denoiser(latents, config, bank.text)

    own = lambda network, generator: loss(network, generator)[0]  # noqa: E731
    return Candidate(network, config.batch, config.loop.lr, 0.999, 0.0, own, codec.encode, codec.decode)


def on_nodes(bank: FieldBank, args: argparse.Namespace, network: nn.Module, batch: int, lr: float) -> Candidate:
    """A network on the field itself, with the loss of `train_field`, its errors in units of the network's own output."""
    examples = bank.examples("train")
    fields = lambda rows: torch.from_numpy(bank.fields[examples[rows]].astype(np.float32))  # noqa: E731
    fit_statistics(network, fields(slice(None, None, max(len(examples) // 2000, 1))))
    captions = torch.tensor([bank.captions[i] for i in examples])
    config = FieldTrainConfig(batch=batch, levels_of=args.dimensions, snr_limit=math.inf)
    config = replace(config, loop=replace(config.loop, lr=lr, bf16=True))
    loss = FieldLoss(fields, bank.text, captions, balanced_weights(bank, examples, config.balance), config)
    shift = -0.5 * math.log(network.mean.numel() / args.dimensions)
    own = lambda network, generator: loss(network, generator)[0]  # noqa: E731
    decode = lambda x: x * network.std[:, None, None, None] + network.mean  # noqa: E731 (nothing cut off)
    return Candidate(network, batch, lr, 0.995, shift, own, network.encode, decode)


def unet(bank: FieldBank, args: argparse.Namespace) -> Candidate:
    size = UNetConfig(channels=args.channels)
    network = size.made(FieldDenoiser, resolution=bank.fields.shape[-1], text_dim=bank.text.tokens.shape[1])
    return on_nodes(bank, args, network, 8, 1e-3)


def tokens(bank: FieldBank, args: argparse.Namespace) -> Candidate:
    network = TokenDenoiser(bank.fields.shape[-1], bank.text.tokens.shape[1], bank.text.pooled.shape[1], args.width)
    return on_nodes(bank, args, network, 16, 5e-4)


ROWS = {"components": components, "unet": unet, "tokens": tokens}


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def trained(make: Callable, bank: FieldBank, args: argparse.Namespace) -> tuple[Candidate, dict[str, float]]:
    """A candidate with its averaged weights once `args.minutes` of CPU time are spent, its preparations among them."""
    start = time.process_time()
    torch.manual_seed(args.seed)
    candidate = make(bank, args)
    network, prepared = candidate.network, time.process_time() - start
    average = WeightAverage.of(network, candidate.average)
    optimiser = torch.optim.AdamW(network.parameters(), candidate.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    step, spent, running, told = 0, prepared, 0.0, 0.0
    network.train()
    while spent < 60 * args.minutes:
        share = (spent - prepared) / max(60 * args.minutes - prepared, 1e-9)
        rate = candidate.lr * min((step + 1) / 50, 1.0) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        with half():
            loss = candidate.loss(network, torch.Generator().manual_seed(args.seed * 1_000_003 + step))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        average.update(network)
        value = float(loss.detach())
        running = value if step == 0 else 0.98 * running + 0.02 * value
        step, spent = step + 1, time.process_time() - start
        if spent - told > 20:
            told = spent
            print(f"  {spent:5.0f} CPU-s  step {step:6d}  loss {running:.4f}", flush=True)
    average.copy_to(network.eval())
    seen = step * candidate.batch
    facts = {
        "parameters": sum(p.numel() for p in network.parameters()), "prepared": prepared, "samples": seen,
        "samples_per_cpu_second": seen / (spent - prepared), "loss": running,
    }  # fmt: skip
    return candidate, facts


@torch.no_grad()
def errors(candidate: Candidate, bank: FieldBank, rows: np.ndarray, mean: Tensor) -> dict[str, list[float]]:
    """Of x_0 at `LEVELS`, with the objects' own plain captions and with those of others, relative to the mean field's."""
    fields = torch.from_numpy(bank.fields[rows].astype(np.float32))
    x0 = candidate.encode(fields)
    nouns = [bank.nouns[bank.objects[r]] for r in rows]
    other = dict(zip(sorted(set(nouns)), shuffled(sorted(set(nouns))), strict=True))
    first = {noun: bank.captions[rows[i]][0] for i, noun in reversed(list(enumerate(nouns)))}
    captions = {"error": [bank.captions[r][0] for r in rows], "swapped": [first[other[noun]] for noun in nouns]}
    found: dict[str, list[float]] = {name: [] for name in captions}
    for level in LEVELS:
        log_snr = torch.full((len(rows),), level + candidate.shift)
        alpha, sigma = torch.sigmoid(2 * log_snr).sqrt(), torch.sigmoid(-2 * log_snr).sqrt()
        shape = (-1, *[1] * (x0.ndim - 1))
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(int(10 * level)))
        x = alpha.reshape(shape) * x0 + sigma.reshape(shape) * noise
        for name, sentences in captions.items():
            wrong = 0.0
            for i in range(0, len(rows), 16):
                part = slice(i, i + 16)
                text, with_text = bank.text.features(sentences[part]), torch.zeros(len(x[part]), dtype=torch.bool)
                with half():
                    made = candidate.network(x[part], alpha[part], sigma[part], text.tokens, text.mask, text.pooled, with_text)
                wrong += float((candidate.decode(made.float()) - fields[part]).square().sum())
            found[name].append(wrong / float((fields - mean).square().sum()))
    return found


@dataclass(frozen=True)
class Judge:
    """Real fields of 8 training objects a noun, as directions."""

    nouns: tuple[str, ...]  # that are asked for
    gallery: Tensor  # [G, R^3] unit length
    gallery_nouns: list[str]

    @staticmethod
    def of(bank: FieldBank) -> Judge:
        examples = bank.examples("train")
        firsts = examples[np.unique(bank.objects[examples], return_index=True)[1]]  # each object as it is
        called = np.array([bank.nouns[o] for o in bank.objects[firsts]])
        common = tuple(n for n in sorted(set(called)) if (called == n).sum() >= LEAST)
        firsts = firsts[np.isin(called, common)]
        near = torch.from_numpy(bank.fields[firsts][:, 0])
        rows = balanced_gallery([bank.nouns[o] for o in bank.objects[firsts]], list(map(str, firsts)), LEAST)
        return Judge(common, described(near[rows].float()), [bank.nouns[bank.objects[firsts[r]]] for r in rows])

    def agreement(self, near: Tensor, nouns: tuple[str, ...]) -> float:
        return noun_agreement(described(near), nouns, self.gallery, self.gallery_nouns).nearest

    def ceiling(self) -> float:
        same = self.gallery @ self.gallery.T > NEARLY_THE_SAME
        return noun_agreement(self.gallery, self.gallery_nouns, self.gallery, self.gallery_nouns, same).nearest


def described(near: Tensor) -> Tensor:
    """Nearness [N, R, R, R] -> [N, R^3] unit length."""
    return F.normalize(near.clamp(0, 1).flatten(1), dim=1)


@torch.no_grad()
def generated(candidate: Candidate, nouns: tuple[str, ...], shape: torch.Size, seed: int) -> Tensor:
    """[N, 4, R, R, R] one field of "a NOUN" each, as the product samples them."""
    encoder, config, made = load_text_encoder(), TextSampleConfig(), []
    for i in range(0, len(nouns), 16):
        text = encoder.encode([with_article(noun) for noun in nouns[i : i + 16]])
        n = len(text.pooled)

        def at(without: bool, text=text, n=n):
            def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
                a, s, w = (torch.full((n,), v) for v in (alpha, sigma, without))
                with half():
                    return candidate.network(x, a, s, text.tokens, text.mask, text.pooled, w).float()

            return denoise

        generator = torch.Generator().manual_seed(seed + i)
        scheduler = EIScheduler(prediction_type="sample", plan=config.plan, grid="log_snr")
        scheduler.set_timesteps(config.steps)
        noise = torch.randn((n, *shape), generator=generator)
        made.append(sample(guided(at(False), at(True), GuidanceSchedule(config.guidance)), scheduler, noise, generator))
    return candidate.decode(torch.cat(made))


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    facts = kernels.machine()
    print("  ".join(f"{k} {v}" for k, v in facts.items()))
    bank = open_bank(args.work / "bank")
    examples, val = bank.examples("train"), bank.examples("val")
    mean = torch.from_numpy(bank.fields[examples[:: max(len(examples) // 2000, 1)]].astype(np.float32)).mean(0)
    rows = val[:: max(len(val) // args.count, 1)][: args.count]
    judge = Judge.of(bank)
    print(f"{len(examples)} examples; {len(rows)} validation objects; {len(judge.nouns)} nouns; seed {args.seed}")
    print(f"real fields of the gallery, without themselves and their recolours: NN@1 {judge.ceiling():.3f}")
    results = []
    for name in args.rows:
        print(name, flush=True)
        candidate, row = trained(ROWS[name], bank, args)
        start = time.process_time()
        row = {"name": name, **row, **errors(candidate, bank, rows, mean)}
        shape = candidate.encode(torch.from_numpy(bank.fields[rows[:1]].astype(np.float32))).shape[1:]
        near = generated(candidate, judge.nouns, shape, args.seed)[:, 0]
        row["agreement"] = judge.agreement(near, judge.nouns)
        row["agreement_shuffled"] = judge.agreement(near, tuple(shuffled(judge.nouns)))
        row["measured_in_cpu_seconds"] = time.process_time() - start
        results.append(row)
        if args.json:
            told = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
            rest = {"levels": LEVELS, "real": judge.ceiling(), "rows": results}
            args.json.write_text(json.dumps({"machine": facts, "settings": told, **rest}, indent=1))
        print(json.dumps(row), flush=True)
    levels = " ".join(f"{level:+.0f}" for level in LEVELS)
    print(
        f"{'row':11} {'params':>8} {'samples':>8} {'/CPU-s':>7} {'NN@1':>5} {'other':>5}  error (with other words) at {levels}"
    )
    for r in results:
        pairs = "  ".join(f"{e:.3f} ({s:.3f})" for e, s in zip(r["error"], r["swapped"], strict=True))
        print(
            f"{r['name']:11} {r['parameters'] / 1e6:7.1f}M {r['samples']:8d} {r['samples_per_cpu_second']:7.1f} "
            f"{r['agreement']:5.3f} {r['agreement_shuffled']:5.3f}  {pairs}"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="training folder with bank/")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU time of each network, on one thread")
    parser.add_argument("--count", type=int, default=64, help="validation objects, evenly over the split")
    parser.add_argument("--dimensions", type=int, default=384, help="principal components")
    parser.add_argument("--channels", type=int, default=32, help="of the U-Net at its finest")
    parser.add_argument("--width", type=int, default=256, help="of the tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
