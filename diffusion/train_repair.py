"""Training of the network that mends renders, on pairs of our own fits' renders and the truth (`diffusion.repair_bank`).

pairs/     1 pairs: fits to few photos of known scenes (made by the command, which reconstructs)
network/   2 network: `RepairUNet`, on crops of the pairs
weights/   3 pack: in half precision, as `small_repairer` reads it
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.attribution import attribution
from diffusion.data.object_set import ObjectFacts
from diffusion.models.from_disk import load_network
from diffusion.models.repair import RepairUNet
from diffusion.objective.bridges import bridge_state
from diffusion.repair import RepairConfig, mended, save_repair_weights
from diffusion.repair_bank import FIELDS, PairFile, from_bytes, open_pairs
from diffusion.training import Sheet, TrainConfig, half_precision, train
from splat.errors import InputError
from splat.losses import photometric
from splat.metrics import psnr, ssim
from splat.progress import Progress
from splat.repair_request import RepairRequest

STEPS = ("pairs", "network", "pack")
CANDIDATES = 3  # crops that are drawn, of which the most damaged one is learnt from
SHEET_SCENES = 6


@dataclass(frozen=True)
class RepairTrainConfig:
    """The network's own knobs, and the loop's."""

    references: int = 2
    widths: tuple[int, ...] = (48, 72, 96)
    blocks: tuple[int, ...] = (1, 2, 3)
    noise: float = 0.2  # deviation of the bridge at its middle is half of it
    batch: int = 8
    crop: int = 128  # px
    start: float = 0.5  # share of examples at the bridge's beginning, from where one call leads to the end
    unseen: float = 0.15  # chance of a photo that is not shown, for each
    similarity: float = 0.3  # share of 1 - SSIM in the loss beside the absolute error
    loop: TrainConfig = field(default_factory=lambda: TrainConfig(steps=2200, lr=1.5e-3, warmup=100, average=0.995, bf16=True))


def new_network(config: RepairTrainConfig) -> RepairUNet:
    """Fresh; the same for one seed."""
    torch.manual_seed(config.loop.seed)
    return RepairUNet(config.references, config.widths, config.blocks, noise=config.noise)


@dataclass(frozen=True)
class LoadedPairs:
    """Pairs of scenes, by size of their pictures; bytes, channels first."""

    stacks: list[Tensor]  # [N, 5 + 4 R + 3, H, W] uint8: conditions as the network reads them, then the truth

    @staticmethod
    def of(files: Sequence[PairFile], references: int) -> LoadedPairs:
        found: dict[tuple[int, int], list[Tensor]] = {}
        for file in files:
            given, truth = file.load()
            r = given["warped"].shape[1]
            if r < references:
                raise InputError(f"{file.path} was made with {r} photos a view and the network wants {references}.")
            photos = torch.cat([given["warped"], given["known"][..., None]], dim=-1)[:, :references]
            parts = [given["images"], given["alpha"][..., None], given["trust"][..., None]]
            first = torch.cat(parts, dim=-1).permute(0, 3, 1, 2)
            photos = photos.permute(0, 1, 4, 2, 3).flatten(1, 2)
            found.setdefault(tuple(truth.shape[1:3]), []).append(torch.cat([first, photos, truth.permute(0, 3, 1, 2)], dim=1))
        return LoadedPairs([torch.cat(parts) for _, parts in sorted(found.items())])

    def crops(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """[count, C, side, side] in [0, 1]: of a few random places in a random pair the one that is damaged most."""
        sizes = torch.tensor([float(len(s)) for s in self.stacks])
        chosen = []
        for _ in range(count):
            stack = self.stacks[int(torch.multinomial(sizes, 1, generator=generator))]
            pair = stack[int(torch.randint(len(stack), (1,), generator=generator))]
            height, width = pair.shape[-2:]
            tries = []
            for _ in range(CANDIDATES):
                top, left = (int(torch.randint(n - side + 1, (1,), generator=generator)) for n in (height, width))
                part = pair[:, top : top + side, left : left + side]
                tries.append((float((part[:3].float() - part[-3:].float()).abs().mean()), part))
            chosen.append(max(tries, key=lambda found: found[0])[1])
        return from_bytes(torch.stack(chosen))


@dataclass(frozen=True)
class RepairLoss:
    """The distance of the network's answer from the truth, from places along the bridge."""

    pairs: LoadedPairs
    config: RepairTrainConfig

    def __call__(self, network: RepairUNet, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        c, device = self.config, next(network.parameters()).device
        given, truth = augmented(self.pairs.crops(c.batch, c.crop, generator), c, generator)
        n = len(truth)
        t = torch.rand(n, generator=generator) * (torch.rand(n, generator=generator) >= c.start)
        state = bridge_state(given[:, :3], truth, t, torch.randn(truth.shape, generator=generator), c.noise)
        given, truth, state, t = (x.to(device) for x in (given, truth, state, t))
        with half_precision(c.loop, network):
            made = network(state, t, given)
        made = made.float()
        pictures = (x.permute(0, 2, 3, 1).contiguous() for x in (made, truth))
        loss = photometric(*pictures, c.similarity)
        with torch.no_grad():
            squared = (made - truth).square().mean((1, 2, 3)).clamp_min(1e-8)
            before = (given[:, :3] - truth).square().mean((1, 2, 3)).clamp_min(1e-8)
            first = t == 0
            gain = (10 * (before / squared).log10())[first].mean() if bool(first.any()) else torch.zeros(())
            figures = {"psnr": -10 * float(squared.log10().mean()), "gain": float(gain)}
        return loss, figures


def augmented(crops: Tensor, config: RepairTrainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(conditions, truth) of `crops` [B, C, S, S]: turned, mirrored, recoloured, photos exchanged and some of them hidden."""
    conditions, truths = [], []
    for x in crops:
        turns, mirrored = (int(torch.randint(n, (1,), generator=generator)) for n in (4, 2))
        x = x.rot90(turns, (-2, -1))
        x = x.flip(-1) if mirrored else x
        colours = torch.randperm(3, generator=generator)
        photos = x[5:-3].unflatten(0, (config.references, 4))[torch.randperm(config.references, generator=generator)]
        shown = torch.rand(config.references, 1, 1, 1, generator=generator) >= config.unseen
        photos = torch.cat([photos[:, colours], photos[:, 3:]], dim=1) * shown
        conditions.append(torch.cat([x[colours], x[3:5], photos.flatten(0, 1)]))
        truths.append(x[-3:][colours])
    return torch.stack(conditions), torch.stack(truths)


def request_of(file: PairFile, rows: Sequence[int] | None = None) -> tuple[RepairRequest, Tensor]:
    """The request of a scene's pairs and the truth [V, H, W, 3]; `rows` of them."""
    given, truth = file.load()
    rows = list(range(len(truth))) if rows is None else list(rows)
    return RepairRequest(*(from_bytes(given[name][rows]) for name in FIELDS), seed=0), from_bytes(truth[rows])


@torch.no_grad()
def measure(network: RepairUNet, files: Sequence[PairFile], config: RepairConfig) -> dict[str, float]:
    """Mean PSNR and SSIM of the renders and of the mended renders of all pairs in `files`."""
    values = []
    for file in files:
        request, truth = request_of(file)
        made = mended(network, request, config)
        for images in (request.images, made):
            values.append(torch.stack([psnr(images, truth), ssim(images, truth)]))
    before, after = (torch.cat(values[k::2], dim=1).mean(1) for k in (0, 1))
    names = ("psnr_before", "ssim_before", "psnr", "ssim")
    return dict(zip(names, (float(x) for x in (*before, *after))))


def validation_sheet(files: Sequence[PairFile]) -> Sheet | None:
    """For `training.train`: by row a damaged render, mended in one call and in four, the truth; and `measure`."""
    if not files:
        return None

    def sheet(network: nn.Module) -> tuple[Tensor, dict[str, float]]:
        lines = []
        for file in files[:SHEET_SCENES]:
            request, truth = request_of(file, [0, -1])
            made = [mended(network, request, RepairConfig(steps)) for steps in (1, 4)]
            lines += [torch.cat([x[k] for x in (request.images, *made, truth)], dim=1) for k in range(2)]
        side = [max(x.shape[k] for x in lines) for k in (0, 1)]
        lines = [nn.functional.pad(x, (0, 0, 0, side[1] - x.shape[1], 0, side[0] - x.shape[0]), value=1.0) for x in lines]
        return torch.cat(lines), measure(network, files, RepairConfig(1))

    return sheet


def train_repair(step: str, work: Path, config: RepairTrainConfig, device: str = "cpu") -> Generator[Progress, None, Path]:
    """The steps "network" and "pack" in the folder `work`; returns what they wrote. Raises `InputError` without pairs."""
    files = open_pairs(work / "pairs")
    val = [f for f in files if f.split == "val"]
    if step == "pack":
        return _pack(work, files, val)
    learnt = [f for f in files if f.split == "train"]
    network = new_network(config).to(device, memory_format=torch.channels_last)
    loss = RepairLoss(LoadedPairs.of(learnt, config.references), config)
    network = yield from train(network, loss, config.loop, work / "network", validation_sheet(val))
    network.to("cpu").save_pretrained(work / "network" / "network", safe_serialization=True)
    return work / "network" / "network"


def _pack(work: Path, files: Sequence[PairFile], val: Sequence[PairFile]) -> Path:
    if not (work / "network" / "network").is_dir():
        raise InputError(f"{work} has no network/network; run the step 'network' to the end of a sitting.")
    network = load_network(work / "network" / "network", (RepairUNet,))
    learnt = [f for f in files if f.split == "train"]
    objects = {o["key"]: o for f in learnt for o in f.facts["objects"]}
    folder = work / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    told = attribution(_Learnt.of(list(objects.values())), "photographed in made-up rooms")
    (folder / "ATTRIBUTION.md").write_text(told, encoding="utf-8")
    licences = ", ".join(sorted({o["licence"] for o in objects.values()}))
    facts = {"scenes": len(learnt), "objects": len(objects), "pairs": sum(int(f.facts["pairs"]) for f in learnt)}
    figures = {"validation": {str(n): measure(network, val, RepairConfig(n)) for n in (1, 4)}} if val else {}
    save_repair_weights(folder, network, [f"repair of renders, objects learnt from: {licences}"], facts | figures)
    return folder


@dataclass(frozen=True)
class _Learnt:
    """The objects of the pairs, as `attribution` reads a bank."""

    splits: list[str]
    sources: list[str]
    licences: list[str]
    authors: list[str]
    names: list[str]

    @staticmethod
    def of(objects: Sequence[dict]) -> _Learnt:
        columns = ("source", "licence", "author", "name")
        return _Learnt(["train"] * len(objects), *([o[c] for o in objects] for c in columns))


def settings(config: RepairTrainConfig, minutes: float, seed: int, changes: dict) -> RepairTrainConfig:
    """`config` with this sitting's length, and `changes` (None: as it is) of its loop and, named batch, of its own."""
    asked = {name: value for name, value in changes.items() if value is not None}
    own = {"batch": asked.pop("batch")} if "batch" in asked else {}
    return replace(config, loop=replace(config.loop, minutes=minutes, seed=seed, **asked), **own)


def told_of(facts: ObjectFacts) -> dict[str, str]:
    """What a file of pairs keeps of an object."""
    return {name: getattr(facts, name) for name in ("key", "name", "author", "licence", "source")}
