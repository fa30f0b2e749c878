"""Which rendered scenes the benchmarks of few photos use: six rooms with objects that differ in kind, shape and colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from diffusion.data.object_set import ObjectSet, open_objects
from recon.rendered_scenes import RenderedScene, SceneConfig, rendered_scene

# Name of the scene -> (keys of its objects in the packed set, the first in the middle; seed). All of the validation split.
ROOMS = {
    "castle": (("quaternius/stone_castle-01", "quaternius/pile_of_hay-01"), 1),
    "desk": (("sh3d_BlendSwap-CC-BY/school_desk_with_seat-01", "sh3d_KatorLegaz/laptop-01"), 2),
    "fruit": (("sh3d_Scopia/bowl_with_fruits-01", "sh3d_Scopia/apples-01", "quaternius/potion_bottle-06"), 3),
    "train": (("sh3d_BlendSwap-CC-BY/toy_train-01", "sh3d_BlendSwap-CC-BY/snowman-01"), 4),
    "camera": (("sh3d_Scopia/reflex_camera-01", "sh3d_BlendSwap-CC-BY/clock-01"), 5),
    "temple": (("quaternius/wooden_temple-02", "kaykit/armchair-01", "sh3d_KatorLegaz/park_trash_can-01"), 6),
}


def scenes(folder: Path, count: int, config: SceneConfig | None = None) -> Iterator[tuple[str, Callable[[], RenderedScene]]]:
    """(name, function that draws the scene with `count` photos); one object each where the named ones are not in the set."""
    objects = open_objects(folder)
    rows = {facts.key: row for row, facts in enumerate(objects.facts)}
    for number, (name, (keys, seed)) in enumerate(ROOMS.items()):
        if not all(key in rows for key in keys):
            if number >= len(objects):
                return
            keys, rows = (objects.facts[number].key,), rows
        chosen = [rows[key] for key in keys]
        yield name, lambda name=name, chosen=chosen, seed=seed: _drawn(objects, name, chosen, count, seed, config)


def _drawn(objects: ObjectSet, name: str, rows: list[int], count: int, seed: int, config: SceneConfig | None) -> RenderedScene:
    return rendered_scene(name, [objects[row] for row in rows], count, seed, config)
