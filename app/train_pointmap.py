"""Training of the two-view pointmap network: `recon/pointmap` brings the network, this brings objects and the training loop.

WORK/rooms/    1 views: pictures of made-up rooms (`recon/pointmap/pair_bank.py`)
WORK/network/  2 network: state, log, sample sheets
WORK/weights/  3 pack: what `photos --prior pointmap --prior-weights WORK/weights` reads
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.data.object_set import ObjectSet, licensed, rows_of
from diffusion.training import Loss, Sheet, TrainConfig, half_precision, train
from recon.pointmap.network import PointmapConfig, PointmapNetwork
from recon.pointmap.objective import pointmap_loss
from recon.pointmap.pair_bank import PairBank, PairBankConfig, bank_facts, build_pair_bank, open_pair_bank
from recon.pointmap.sheet import pair_sheet
from splat.errors import InputError
from splat.mesh import Mesh
from splat.progress import Progress

STEPS = ("views", "network", "pack")
OBJECTS = (1, 6)  # in a room, from one to one less


@dataclass(frozen=True)
class PointmapTrainConfig:
    """What the steps share, and the configs of each."""

    workers: int = 1  # processes of step 1
    device: str = "cpu"
    presumed_licences: bool = False  # also learn from objects whose licence is missing or only presumed
    views: PairBankConfig = field(default_factory=PairBankConfig)
    network: PointmapConfig = field(default_factory=PointmapConfig)
    loop: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=4000, lr=1e-3, warmup=60, average=0.99, weight_decay=0.02, bf16=True)
    )
    batch: int = 4  # pairs


def train_pointmap(step: str, work: Path, objects: Path | None, config: PointmapTrainConfig) -> Generator[Progress, None, Path]:
    """Run one of `STEPS` in the folder `work` and return what it wrote. `objects` as for `open_objects`; step 1 needs it."""
    if step == "views":
        if objects is None:
            raise InputError("The step 'views' furnishes rooms with objects; give their folder with --objects.")
        every = licensed(objects, config.presumed_licences)
        return (yield from build_pair_bank(
            _furniture(every), work / "rooms", config.views, _facts(every), config.workers, [f.key for f in every.facts]
        ))  # fmt: skip
    if step == "network":
        bank = open_pair_bank(work / "rooms")
        torch.manual_seed(config.loop.seed)
        network = PointmapNetwork(config.network).to(config.device)
        loss = _loss(bank, config)
        network = yield from train(network, loss, config.loop, work / "network", _sheet(bank, config))
        network.cpu().save(work / "network" / "last")
        return work / "network" / "last"
    return _pack(work)


def _furniture(objects: ObjectSet):
    rows = {split: rows_of(objects, lambda facts, split=split: facts.split == split) for split in ("train", "val")}
    if not rows["train"]:
        raise InputError("None of the objects is of the training split; give others.")

    def chosen(split: str, rng: np.random.Generator) -> list[Mesh]:
        own = rows[split] or rows["train"]
        return [objects[own[int(k)]] for k in rng.integers(0, len(own), int(rng.integers(*OBJECTS)))]

    return chosen


def _facts(objects: ObjectSet) -> dict:
    learnt = [facts for facts in objects.facts if facts.split == "train"]
    return {
        "objects": len(learnt),
        "licences": sorted({facts.licence for facts in learnt}),
        "authors": sorted({f"{facts.author} ({facts.licence})" for facts in learnt if facts.author}),
    }


def _loss(bank: PairBank, config: PointmapTrainConfig) -> Loss:
    def loss(network: PointmapNetwork, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pair, truth = bank.batch("train", config.batch, generator)
        with half_precision(config.loop, network):
            said = network(pair.to(config.device))
        return pointmap_loss(said, truth.to(config.device))

    return loss


def _sheet(bank: PairBank, config: PointmapTrainConfig) -> Sheet:
    def sheet(network: PointmapNetwork) -> tuple[Tensor | None, dict[str, float]]:
        return pair_sheet(network, bank, config.device)

    return sheet


def _pack(work: Path) -> Path:
    last = work / "network" / "last"
    if not last.is_dir():
        raise InputError(f"{work} has no network/last; run the step 'network' to the end of a sitting.")
    facts = bank_facts(work / "rooms")
    PointmapNetwork.load(last).save(work / "weights", {k: v for k, v in facts.items() if k != "config"})
    return work / "weights"
