"""Training examples of the first stage, computed once: fields of fitted volumes and of their variants, with captions.

A bank is a folder: `fields.npy` [M, 4, R, R, R] float16 (memory-mapped), `text.safetensors` (features of every caption) and
`bank.json`. It holds all that training needs, so that a machine without the objects can train.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from diffusion.data.augment import AugmentConfig
from diffusion.data.captions import caption, plain_caption
from diffusion.data.object_set import ObjectSet
from diffusion.data.point_variants import Variant, point_variant
from diffusion.data.words import describe
from diffusion.field import COARSE_LIMIT, FIELD_CHANNELS, nearest_centres
from diffusion.fit_volumes import volume_path
from diffusion.text_encoder import TextEncoder
from diffusion.text_features import StoredText, load_text, precompute
from diffusion.volume import load_volume
from splat.errors import InputError
from splat.io.atomic import atomically
from splat.progress import Progress
from splat.sh import to_rgb

FORMAT = "splatsmith field bank 1"
COLUMNS = ("key", "noun", "name", "split", "licence", "author", "source")


@dataclass(frozen=True)
class BankConfig:
    """What a bank holds of each object."""

    resolution: int = 16
    limit: float = COARSE_LIMIT
    variants: int = 16  # examples of a training object, the first as it is; of others that one alone
    captions: int = 3  # sentences to an example
    seed: int = 0
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(recolour=0.55, turn_hues=0.1, stretch=0.12))


@dataclass(frozen=True)
class FieldBank:
    """M examples of `len(keys)` objects."""

    fields: np.ndarray  # [M, 4, R, R, R] float16, mapped
    text: StoredText
    objects: np.ndarray  # [M] int64 row in `keys`
    captions: tuple[tuple[int, ...], ...]  # of each example, rows of `text`
    variants: tuple[Variant, ...]  # how each example's object was changed
    keys: tuple[str, ...]
    nouns: tuple[str, ...]  # of each object
    names: tuple[str, ...]
    splits: tuple[str, ...]
    licences: tuple[str, ...]
    authors: tuple[str, ...]
    sources: tuple[str, ...]
    limit: float
    fingerprint: str  # SHA-256 of bank.json, which holds one of the fields

    def examples(self, split: str) -> np.ndarray:
        """[K] int64 examples of the objects of `split`."""
        return np.array([i for i, o in enumerate(self.objects) if self.splits[o] == split], dtype=np.int64)


def build_bank(
    objects: ObjectSet, volumes: Path, folder: Path, encoder: TextEncoder, config: BankConfig, workers: int = 1
) -> Generator[Progress, None, FieldBank]:
    """Write a bank of every object of `objects` that has a volume in `volumes` (of `fit_volumes`); returns it.

    Raises InputError when there is no volume for any object.
    """
    rows = [r for r, facts in enumerate(objects.facts) if volume_path(volumes, facts.key).is_file()]
    if not rows:
        raise InputError(f"{volumes} holds no volume of any of the {len(objects)} objects; fit them first.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bank.json").unlink(missing_ok=True)  # and written last: a folder with it is whole
    counts = [config.variants if objects.facts[r].split == "train" else 1 for r in rows]
    shape = (sum(counts), FIELD_CHANNELS, *[config.resolution] * 3)
    fields = np.lib.format.open_memmap(folder / "fields.npy", mode="w+", dtype=np.float16, shape=shape)
    about = {"format": FORMAT, "limit": config.limit, "objects": [], "examples": []}
    jobs = ((objects.facts[r], objects[r], volume_path(volumes, objects.facts[r].key), n, config) for r, n in zip(rows, counts))
    place, digest = 0, hashlib.sha256()
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done, (facts, made, recipes, sentences) in enumerate(_in_order(pool, jobs, workers), start=1):
            fields[place : place + len(made)] = made
            digest.update(made.tobytes())
            about["objects"].append({k: getattr(facts, k) for k in COLUMNS})
            about["examples"] += [
                {"object": done - 1, "variant": r, "captions": s} for r, s in zip(recipes, sentences, strict=True)
            ]
            place += len(made)
            yield Progress("fields", done, len(rows), note=facts.key)
    fields.flush()
    about["fields"] = digest.hexdigest()
    yield from precompute(encoder, [s for e in about["examples"] for s in e["captions"]], folder / "text.safetensors")
    with atomically(folder / "bank.json") as temporary:
        temporary.write_text(json.dumps(about), encoding="utf-8")
    return open_bank(folder)


def open_bank(folder: Path) -> FieldBank:
    """Raises InputError when the folder holds no whole bank."""
    try:
        written = (folder / "bank.json").read_bytes()
        about = json.loads(written)
        fields = np.load(folder / "fields.npy", mmap_mode="r", allow_pickle=False)
        text = load_text(folder / "text.safetensors")
        column = {k: tuple(o[k] for o in about["objects"]) for k in COLUMNS}
        owners = np.array([e["object"] for e in about["examples"]], dtype=np.int64)
        captions = tuple(tuple(text.row_of[s] for s in e["captions"]) for e in about["examples"])
        variants = tuple(Variant.from_dict(e["variant"]) for e in about["examples"])
        fits = fields.shape == (len(owners), FIELD_CHANNELS, *[fields.shape[-1]] * 3) and fields.dtype == np.float16
        if about["format"] != FORMAT or not fits or not bool(((owners >= 0) & (owners < len(about["objects"]))).all()):
            raise ValueError("its tables do not fit each other")
        facts = (column[k] for k in COLUMNS)
        fingerprint = hashlib.sha256(written).hexdigest()
        return FieldBank(fields, text, owners, captions, variants, *facts, float(about["limit"]), fingerprint)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder} holds no field bank ({error}); build it again.") from error


def _in_order(pool: ProcessPoolExecutor, jobs, workers: int):
    """Results in the order of `jobs`, with few jobs waiting: each carries a mesh."""
    waiting = []
    for job in jobs:
        waiting.append(pool.submit(_examples, *job))
        if len(waiting) > 2 * workers:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _examples(facts, mesh, path: Path, count: int, config: BankConfig) -> tuple:
    splats = load_volume(path)[0].to_splats()
    rgb = to_rgb(splats.sh[:, 0]).clamp(0, 1)
    words = describe(facts, mesh)
    made, recipes, sentences, found = [], [], [], {}
    for i in range(count):
        rng = random.Random(f"{config.seed}/{facts.key}/{i}")
        variant, true_words = (Variant(), words) if i == 0 else point_variant(splats.means, rgb, words, config.augment, rng)
        if variant.stretch not in found:  # the search is what takes time, and most variants share it
            found[variant.stretch] = nearest_centres(variant.stretched(splats.means), config.resolution, config.limit)
        made_field = found[variant.stretch].field(variant.colours(rgb))
        made.append((made_field.flip(-1) if variant.mirrored else made_field).half().numpy())
        recipes.append(variant.to_dict())
        sentences.append([plain_caption(true_words), *(caption(true_words, rng) for _ in range(config.captions - 1))])
    return facts, np.stack(made), recipes, sentences
