"""Does text to 3-D make what was asked for? Nouns and colours by a judge that knows no text, and how near it stays to its data.

    python benchmarks/text_agreement.py --objects DIR --rows real retrieval
    python benchmarks/text_agreement.py --objects DIR --gallery-volumes DIR --samples DIR --sheet nearest.png --json text.json

real        ceiling: training objects judged by the others, without themselves, and without their recolours
retrieval   training objects whose name is nearest to the prompt for MiniLM, judged by the rest: what looking up scores
samples     --seeds volumes of "a <noun>" for every noun with 8 training objects; any of 5 neighbours; shuffled text; chance
colours     "a <colour> <noun>": is the colour among the two that cover most of what is seen (the second from a fifth on)?
shapes      Chamfer distance of samples to the nearest training object, beside validation and training objects

`--objects` is a packed object set or a folder of meshes. Judge: `diffusion/judge.py`; galleries of 8 objects a noun, mean over
--draws of them. With --gallery-volumes (volumes fitted to the training objects) real objects and samples are drawn by one
renderer, else real ones are ray cast. With --samples the volumes are kept there, one folder for one set of weights and
settings, and a run that was cut goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import kernels  # beside this file
import torch
from text_samples import Asked, Spent, load_single, pictures, splats_of, volumes_for
from text_shapes import TrainingShapes, nearest_geometries, nearest_sheet, shape_rows, training_shapes
from text_sheet import setting
from torch import Tensor

from diffusion.data.captions import with_article
from diffusion.data.colours import COLOUR_WORDS, palette
from diffusion.data.nouns import common_nouns
from diffusion.data.object_set import ObjectSet, open_objects, rows_of
from diffusion.data.surface import surface_samples
from diffusion.data.words import singular
from diffusion.fit_volumes import volume_path
from diffusion.judge import (
    balanced_gallery,
    features,
    geometry_key,
    judge_cameras,
    noun_agreement,
    shuffled,
    visible_palette,
)
from splat.errors import InputError
from splat.gaussians import Splats
from splat.mesh import Mesh

ROWS = ("real", "retrieval", "samples", "colours", "shapes")
COLOURED = ("armchair", "car", "chair", "door", "house", "lamp", "sofa", "table")  # nouns that come in any colour
POINTS = 2048  # of a surface, for its colours


@dataclass
class Real:
    """The training objects of the judged nouns; each is drawn once, when first needed."""

    objects: ObjectSet
    rows: list[int]  # into objects
    nouns: list[str]
    geometries: list[str]
    volumes: Path | None
    known: dict[int, Tensor] = field(default_factory=dict)  # features
    colours: dict[int, tuple[str, ...]] = field(default_factory=dict)  # as seen in the judge's views

    def features(self, chosen: Sequence[int]) -> Tensor:
        for i in chosen:
            if i not in self.known:
                self.known[i], self.colours[i] = seen(self.thing(i))
        return torch.stack([self.known[i] for i in chosen])

    def thing(self, i: int) -> Splats | Mesh:
        if self.volumes is None:
            return self.objects[self.rows[i]]
        return load_single(volume_path(self.volumes, self.objects.facts[self.rows[i]].key)).to_splats()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    machine = kernels.machine()
    print("  ".join(f"{k} {v}" for k, v in machine.items()))
    objects = open_objects(args.objects)
    nouns = common_nouns(objects.facts)
    if not nouns:
        raise SystemExit(f"No noun has 8 training objects in {args.objects}; nothing can be judged.")
    if args.limit:
        count = min(args.limit, len(nouns))
        nouns = tuple(nouns[i * len(nouns) // count] for i in range(count))
    try:
        real = real_objects(objects, nouns, args.gallery_volumes)
    except InputError as error:
        raise SystemExit(str(error)) from error
    drawn_by = "volumes fitted to them, drawn as splats" if args.gallery_volumes else "ray cast meshes"
    print(f"{len(nouns)} nouns, {len(real.rows)} training objects: {drawn_by}; {args.draws} galleries of 8 a noun", flush=True)
    draws = [balanced_gallery(real.nouns, real.geometries, seed=seed) for seed in range(args.draws)]

    table: list[dict] = []
    with tempfile.TemporaryDirectory() as scratch:
        kept, spent = args.samples or Path(scratch), Spent()
        if "real" in args.rows:
            table += shown(real_rows(real, draws))
        if "retrieval" in args.rows:
            table += shown(retrieval_rows(real, draws, nouns, args.seeds))
        asked = [Asked(prompt_of(noun), seed) for noun in nouns for seed in range(args.seeds)]
        wanted = [noun for noun in nouns for _ in range(args.seeds)]
        if {"samples", "shapes"} & set(args.rows):
            volumes_for(asked, args.weights, dict(args.set), kept, spent, args.batch)
        training = training_shapes(objects) if "shapes" in args.rows else None
        if "samples" in args.rows:
            table += shown(sample_rows(real, draws, asked, wanted, kept, training))
        if "colours" in args.rows:
            chosen = [n for n in COLOURED if n in nouns] or list(nouns[: len(COLOURED)])
            coloured = [Asked(with_article(f"{c} {singular(n)}"), s) for s, n in enumerate(chosen) for c in COLOUR_WORDS]
            volumes_for(coloured, args.weights, dict(args.set), kept, spent, args.batch)
            table += shown(colour_rows(real, draws[0], coloured, list(COLOUR_WORDS) * len(chosen), kept))
        if training:
            table += shown(shape_rows(objects, training, nouns, args.gallery_volumes, asked, wanted, kept))
            if args.sheet:
                nearest_sheet(objects, training, asked, kept, args.sheet)
    if spent.made:
        wall, cpu = spent.wall_seconds / spent.made, spent.cpu_seconds / spent.made
        table += shown([{"row": "making one sample", "wall seconds": wall, "CPU seconds": cpu, "n": spent.made}])
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        args.json.write_text(json.dumps({"machine": machine, "settings": settings, "rows": table}, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, required=True, help="packed object set or folder of meshes")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--weights", type=Path, help="folder of weights; default: those that come with the package")
    parser.add_argument("--seeds", type=int, default=4, help="samples of every noun, seeds from 0")
    parser.add_argument("--limit", type=int, default=0, help="nouns, evenly over all; 0 takes all")
    parser.add_argument("--gallery-volumes", type=Path, help="folder of volumes fitted to the training objects")
    parser.add_argument("--samples", type=Path, help="folder that keeps the volumes made")
    parser.add_argument(
        "--set", type=setting, nargs="*", default=[], metavar="FIELD=VALUE", help="fields of the sampling config"
    )
    parser.add_argument("--batch", type=int, default=8, help="samples at a time")
    parser.add_argument("--draws", type=int, default=4, help="galleries, drawn with seeds from 0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="a .png: 16 samples and the 5 nearest training objects of each")
    parser.add_argument("--json", type=Path, help="file for the rows")
    return parser.parse_args()


def prompt_of(noun: str) -> str:
    return with_article(singular(noun))


def real_objects(objects: ObjectSet, nouns: Sequence[str], volumes: Path | None) -> Real:
    rows = rows_of(objects, lambda facts: facts.split == "train" and facts.noun in set(nouns))
    if volumes is not None:
        there = [r for r in rows if volume_path(volumes, objects.facts[r].key).is_file()]
        if {objects.facts[r].noun for r in there} != set(nouns):
            raise InputError(
                f"{volumes} has volumes of {len(there)} of {len(rows)} objects, and of some nouns none; fit the rest."
            )
        rows = there
    return Real(objects, rows, [objects.facts[r].noun for r in rows], [geometry_key(objects[r]) for r in rows], volumes)


def seen(thing: Splats | Mesh) -> tuple[Tensor, tuple[str, ...]]:
    """What the judge's views show: features [D] and the dominant colours."""
    images, masks = pictures(thing, judge_cameras())
    return features(images[None], masks[None])[0], visible_palette(images, masks).dominant()


def real_rows(real: Real, draws: list[list[int]]) -> list[dict]:
    """The ceiling, by what an object may not be compared with."""
    themselves = [str(i) for i in range(len(real.nouns))]
    recolours_too = [balanced_gallery(real.nouns, themselves, seed=seed) for seed in range(len(draws))]
    rows = []
    for row, galleries, same in (
        ("real, without themselves", recolours_too, themselves),
        ("real, without their geometry", draws, real.geometries),
    ):
        results = []
        for gallery in galleries:
            nouns, known = [real.nouns[i] for i in gallery], real.features(gallery)
            results.append(
                noun_agreement(known, nouns, known, nouns, equal([same[i] for i in gallery], [same[i] for i in gallery]))
            )
        rows.append(agreement(row, results))
    return rows


def retrieval_rows(real: Real, draws: list[list[int]], nouns: Sequence[str], seeds: int) -> list[dict]:
    """For each noun's prompt the `seeds` objects with the nearest names, no geometry twice, judged without their geometry."""
    from diffusion.text_encoder import MiniLMConfig, load_text_encoder

    encoder = load_text_encoder(MiniLMConfig())
    names = [with_article(real.objects.facts[r].name) for r in real.rows]
    unique = sorted(set(names))
    closeness = encoder.encode([prompt_of(n) for n in nouns]).pooled @ encoder.encode(unique).pooled.T
    closeness = closeness[:, torch.tensor([unique.index(name) for name in names])]  # [nouns, objects]
    found: list[int] = []
    for order in closeness.argsort(dim=1, descending=True, stable=True).tolist():
        first = {real.geometries[i]: i for i in reversed(order)}  # of each geometry the nearest
        found += sorted(first.values(), key=order.index)[:seeds]
    wanted = [noun for noun in nouns for _ in range(seeds)]
    samples, results = real.features(found), []
    for gallery in draws:
        left_out = equal([real.geometries[i] for i in found], [real.geometries[g] for g in gallery])
        results.append(noun_agreement(samples, wanted, real.features(gallery), [real.nouns[g] for g in gallery], left_out))
    return [agreement("retrieval by name", results)]


def sample_rows(
    real: Real, draws: list[list[int]], asked: list[Asked], wanted: list[str], kept: Path, training: TrainingShapes | None
) -> list[dict]:
    """Also with the object that each sample is nearest to in shape, and its recolours, left out: what a copy scores is then
    what its original scores."""
    start = time.process_time()
    samples = torch.stack([seen(splats_of(a, kept))[0] for a in asked])
    seconds = (time.process_time() - start) / len(asked)
    nearest = nearest_geometries(training, asked, kept) if training else None
    results, control, without = [], [], []
    for seed, gallery in enumerate(draws):
        known, nouns = real.features(gallery), [real.nouns[g] for g in gallery]
        results.append(noun_agreement(samples, wanted, known, nouns))
        control.append(noun_agreement(samples, shuffled(wanted, seed), known, nouns))
        if nearest:
            left_out = equal(nearest, [real.geometries[g] for g in gallery])
            without.append(noun_agreement(samples, wanted, known, nouns, left_out))
    chance = 1 / len(set(wanted))
    return [
        agreement("samples", results, wanted) | {"judge CPU seconds": seconds, "nouns": by_noun(results, wanted)},
        *([agreement("samples, without the nearest shape", without, wanted)] if nearest else []),
        agreement("samples, shuffled text", control, wanted),
        {"row": "chance", "NN@1": chance, "any of 5": 1 - (1 - chance) ** 5, "n": len(wanted)},
    ]


def agreement(row: str, results: list, groups: list[str] | None = None) -> dict:
    """Means over the galleries; the standard error is that of the samples, each with its mean over the galleries.

    Samples of one group, the seeds of a noun, are no independent witnesses: with `groups` the error is that of their means.
    """
    hits = torch.stack([r.agrees[:, 0].double() for r in results])  # [draws, N]
    each = hits.mean(0) if len({len(r.agrees) for r in results}) == 1 else hits[0]
    if groups is not None:
        each = torch.stack([each[[i for i, g in enumerate(groups) if g == group]].mean() for group in dict.fromkeys(groups)])
    return {
        "row": row,
        "NN@1": float(hits.mean()),
        "standard error": float(each.std() / len(each) ** 0.5),
        "any of 5": sum(r.any_of for r in results) / len(results),
        "n": hits.shape[1],
    }


def by_noun(results: list, wanted: list[str]) -> dict[str, float]:
    hits = torch.stack([r.agrees[:, 0].double() for r in results]).mean(0)
    return {noun: float(hits[[i for i, w in enumerate(wanted) if w == noun]].mean()) for noun in dict.fromkeys(wanted)}


def colour_rows(real: Real, gallery: list[int], asked: list[Asked], colours: list[str], kept: Path) -> list[dict]:
    """Is the word asked for (real objects: the word that covers most of the surface) among those of what is seen?"""
    real.features(gallery)
    largest = [palette(surface_samples(real.objects[real.rows[i]], POINTS).colors).words[0] for i in gallery]
    found = [seen(splats_of(a, kept))[1] for a in asked]
    right = [c in f for c, f in zip(colours, found, strict=True)]
    by_colour = {c: mean([r for r, own in zip(right, colours, strict=True) if own == c]) for c in COLOUR_WORDS}
    first = mean([c == f[0] for c, f in zip(colours, found, strict=True)])
    other = mean([c in f for c, f in zip(shuffled(colours), found, strict=True)])
    return [
        {
            "row": "colour, real",
            "colour word": mean([w in real.colours[i] for w, i in zip(largest, gallery)]),
            "n": len(gallery),
        },
        {"row": "colour, samples", "colour word": mean(right), "covers most": first, "n": len(right), "colours": by_colour},
        {"row": "colour, shuffled text", "colour word": other, "n": len(right)},
    ]


def equal(a: Sequence[str], b: Sequence[str]) -> Tensor:
    """[N], [M] -> [N, M] bool."""
    return torch.tensor([[x == y for y in b] for x in a])


def shown(rows: list[dict]) -> list[dict]:
    """`rows`, printed."""
    for row in rows:
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
        figures = "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
        print(f"{row['row']:40} {figures}", flush=True)
    return rows


def mean(values: Sequence[bool]) -> float:
    return sum(values) / max(len(values), 1)


if __name__ == "__main__":
    main()
