"""`splatsmith train repair-...`: pairs of our own fits, which need recon and the objects at once; the rest is diffusion's."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from splat.errors import InputError, StoppedLate
from splat.progress import Progress

if TYPE_CHECKING:
    from diffusion.data.object_set import ObjectSet
    from recon.repair.pairs import PairConfig

SCENES = 90
OBJECTS = 3  # of a scene; none is in two scenes


def train_repair_step(
    step: str, work: Path, objects: Path | None, minutes: float, seed: int, presumed: bool, device: str, threads: int, own: dict
) -> Generator[Progress, None, Path]:
    """One of `diffusion.train_repair.STEPS` in `work`. `own` changes the network's `RepairTrainConfig` and its loop."""
    if step == "pairs":
        if objects is None:
            raise InputError("The step 'repair-pairs' photographs objects; give their folder with --objects.")
        from diffusion.data.object_set import licensed, rows_of
        from recon.repair.pairs import PairConfig

        every = licensed(objects, presumed)
        chosen = every.chosen(rows_of(every, lambda facts: facts.split == "train"))
        return (yield from repair_pairs(chosen, work / "pairs", PairConfig(threads=threads, device=device), seed, minutes))
    from diffusion.train_repair import RepairTrainConfig, settings, train_repair

    return (yield from train_repair(step, work, settings(RepairTrainConfig(), minutes, seed, own), device))


def repair_pairs(
    objects: ObjectSet, folder: Path, config: PairConfig, seed: int = 0, minutes: float = 0.0, scenes: int = SCENES
) -> Generator[Progress, None, Path]:
    """Pairs of `scenes` scenes of `objects` in `folder`, where they are missing; ends after `minutes`, 0 when all are there.

    Raises `InputError` where the ones that are there are of another seed, other objects or another config.
    """
    import time
    from dataclasses import asdict

    from diffusion.repair_bank import save_pairs, scene_path
    from diffusion.train_repair import told_of
    from recon.repair.pairs import scene_pairs
    from splat.made_with import check_made_with, digest_of

    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(objects))
    most = min(scenes, len(objects) // OBJECTS)
    if most == 0:
        raise InputError(f"{len(objects)} training objects make no scene; give at least {OBJECTS}.")
    settings = {name: value for name, value in asdict(config).items() if name not in ("threads", "device")}
    made = {"seed": seed, "objects": digest_of(facts.key for facts in objects.facts)} | settings
    notice = check_made_with(folder, made, "scene-*.safetensors")
    if notice:
        yield Progress("notice", 1, 1, notice)
    begun = time.monotonic()
    for number in range(most):
        path = scene_path(folder, number)
        if path.exists():
            continue
        if minutes > 0 and time.monotonic() - begun > 60 * minutes:
            yield Progress("notice", 1, 1, f"{number} of {most} scenes are made; run the same command again to go on.")
            return folder
        rows = [int(row) for row in order[OBJECTS * number : OBJECTS * (number + 1)]]
        try:
            pairs = yield from scene_pairs([objects[row] for row in rows], seed * 100_003 + number, config)
        except StoppedLate as error:  # a scene that stereo or the fit can make nothing of teaches nothing
            yield Progress("scenes", number + 1, most, f"scene {number} is left out: {error}")
            continue
        facts = {"objects": [told_of(objects.facts[row]) for row in rows[: 1 if pairs.masked else OBJECTS]]}
        save_pairs(path, pairs.request, pairs.truth, facts | {"pairs": len(pairs.truth), "seed": number})
        yield Progress("scenes", number + 1, most)
    return folder
