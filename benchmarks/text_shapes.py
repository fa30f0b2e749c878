"""The rows of `text_agreement.py` about shape: how near samples come to training objects, and how much they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sheets import Cell, page, save_page
from text_samples import Asked, load_single, pictures, splats_of
from torch import Tensor

from diffusion.data.object_set import ObjectSet, rows_of
from diffusion.data.object_views import input_camera
from diffusion.data.surface import surface_samples
from diffusion.fit_volumes import volume_path
from diffusion.judge import balanced_gallery, geometry_key
from diffusion.nearest_shapes import POINTS, KnownShapes, chamfer, known_shapes, nearest_shapes
from splat.gaussians import Splats
from splat.mesh import Mesh

SHEET = 16  # samples on the sheet of nearest objects
SHEET_SIDE = 112  # px of its pictures
SOLID = 0.3  # opacity from which a Gaussian's centre counts as a point of the surface
SOME = 64  # objects for the rows that say what a distance means


@dataclass(frozen=True)
class TrainingShapes:
    """All training objects of a set, whatever their noun."""

    rows: list[int]  # of the set
    known: KnownShapes
    geometries: list[str]


def training_shapes(objects: ObjectSet) -> TrainingShapes:
    rows = rows_of(objects, lambda f: f.split == "train")
    return TrainingShapes(rows, known_shapes([surface(objects[r]) for r in rows]), [geometry_key(objects[r]) for r in rows])


def shape_rows(
    objects: ObjectSet,
    training: TrainingShapes,
    nouns: Sequence[str],
    volumes: Path | None,
    asked: list[Asked],
    wanted: list[str],
    kept: Path,
) -> list[dict]:
    """Chamfer distance to the nearest of all training objects, whatever its noun or colour, and what to compare it with."""
    train, known, geometries = training.rows, training.known, training.geometries
    held_out = rows_of(objects, lambda f: f.split != "train")
    points = [solid_points(splats_of(a, kept)) for a in asked]
    some = [i * len(train) // len(asked) for i in range(min(len(asked), len(train)))]
    itself = torch.tensor([[geometries[i] == g for g in geometries] for i in some])
    others = nearest_shapes([known.points[i] for i in some], known, 1, itself)

    rows = [summary("shape, samples to training", nearest_shapes(points, known, 1).distances)]
    if held_out:
        rows.append(
            summary(
                "shape, validation to training", nearest_shapes([surface(objects[r]) for r in held_out], known, 1).distances
            )
        )
    rows.append(summary("shape, training to other training", others.distances))
    again = [chamfer(surface(objects[train[i]], seed=1), known.points[i]) for i in some[:SOME]]
    rows.append(summary("shape, one surface sampled twice", again))
    if volumes is not None:
        files = [(volume_path(volumes, objects.facts[train[i]].key), i) for i in some[:SOME]]
        own = [chamfer(solid_points(load_single(f).to_splats()), known.points[i]) for f, i in files if f.is_file()]
        rows += [summary("shape, volume to its own object", own)] if own else []
    if len(set(wanted)) < len(wanted):
        rows.append(summary("shape, between seeds of a noun", between(points, wanted)))
    place = {row: k for k, row in enumerate(train)}
    judged = [r for r in train if objects.facts[r].noun in set(nouns)]
    names = [objects.facts[r].noun for r in judged]
    peers = balanced_gallery(names, [geometries[place[r]] for r in judged], max(len(asked) // len(set(wanted)), 2))
    same_noun = between([known.points[place[judged[i]]] for i in peers], [names[i] for i in peers])
    rows.append(summary("shape, between training objects of a noun", same_noun))
    return rows


def nearest_geometries(training: TrainingShapes, asked: list[Asked], kept: Path) -> list[str]:
    """The geometry of the training object that each sample is nearest to."""
    found = nearest_shapes([solid_points(splats_of(a, kept)) for a in asked], training.known, 1)
    return [training.geometries[i] for i in found.rows[:, 0].tolist()]


def nearest_sheet(objects: ObjectSet, training: TrainingShapes, asked: list[Asked], kept: Path, path: Path) -> None:
    """A page of columns: a sample and its five nearest training objects beneath, eight columns above eight."""
    shown = [asked[k * len(asked) // min(SHEET, len(asked))] for k in range(min(SHEET, len(asked)))]
    found = nearest_shapes([solid_points(splats_of(a, kept)) for a in shown], training.known)
    camera = input_camera(SHEET_SIDE)
    columns = []
    for a, rows in zip(shown, found.rows.tolist(), strict=True):
        column = [Cell(pictures(splats_of(a, kept), camera)[0][0], a.prompt.upper())]
        column += [Cell(pictures(objects[training.rows[j]], camera)[0][0], objects.facts[training.rows[j]].name) for j in rows]
        columns.append(column)
    half = (len(columns) + 1) // 2
    bands = [columns[:half], columns[half:]] if columns[half:] else [columns]
    save_page(page([list(row) for band in bands for row in zip(*band, strict=True)]), path)


def surface(mesh: Mesh, seed: int = 0) -> Tensor:
    return surface_samples(mesh, POINTS, seed).points


def solid_points(splats: Splats) -> Tensor:
    """[N, 3] centres of all Gaussians but the faint ones; of all where none is solid, and the origin where there are none."""
    solid = splats.opacities > SOLID
    means = splats.means[solid] if bool(solid.any()) else splats.means
    return means.detach() if len(means) else torch.zeros(1, 3)


def between(points: Sequence[Tensor], nouns: Sequence[str]) -> list[float]:
    """Chamfer distances of all pairs of one noun."""
    pairs = [(i, j) for i in range(len(nouns)) for j in range(i) if nouns[i] == nouns[j]]
    return [chamfer(points[i], points[j]) for i, j in pairs]


def summary(row: str, distances: Tensor | list[float]) -> dict:
    values = torch.as_tensor(distances).flatten()
    low, median, high = values.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    return {"row": row, "5 %": low, "median": median, "95 %": high, "least": float(values.min()), "n": len(values)}
