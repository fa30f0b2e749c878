"""Pairs for the repair network are added only to pairs that were made alike."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "diffusion"))
from tiny_objects import box, write_packed

from app.train_repair import repair_pairs
from diffusion.data.object_set import licensed
from recon.repair.pairs import PairConfig, RepairPairs
from splat.errors import InputError
from splat.repair_request import RepairRequest


@pytest.fixture
def objects(tmp_path):
    rows = [{"id": f"own/box {k}", "name": f"box {k}", "group": "box", "license": "CC0-1.0"} for k in range(6)]
    write_packed(tmp_path / "objects", [box()] * 6, rows)
    return licensed(tmp_path / "objects", False)


def test_a_run_of_another_seed_of_other_objects_or_with_another_config_is_refused(objects, tmp_path, monkeypatch):
    def scene(meshes, seed, config):
        yield from ()
        flat = torch.zeros(1, 8, 8)
        request = RepairRequest(flat[..., None].repeat(1, 1, 1, 3), flat, flat, flat[:, None, ..., None].repeat(1, 2, 1, 1, 3),
                                flat[:, None].repeat(1, 2, 1, 1), seed=0)  # fmt: skip
        return RepairPairs(request, request.images, masked=False)

    monkeypatch.setattr("recon.repair.pairs.scene_pairs", scene)
    folder, config = tmp_path / "work" / "pairs", PairConfig(threads=1)

    def made(objects=objects, config=config, seed=0):
        return list(repair_pairs(objects, folder, config, seed))

    made()
    written = sorted(p.name for p in folder.iterdir())
    assert written == ["made_with.json", "scene-0000.safetensors", "scene-0001.safetensors"]
    assert made(config=replace(config, threads=2)) == [], "threads change nothing in the pairs"
    for change, word in (
        ({"seed": 1}, "seed"),
        ({"objects": objects.chosen([0, 1, 2])}, "objects"),
        ({"config": replace(config, early=50)}, r"early \(100, now 50\)"),
    ):
        with pytest.raises(InputError, match=f"made with another {word}.*use another work folder"):
            made(**change)
    assert sorted(p.name for p in folder.iterdir()) == written
    (folder / "made_with.json").unlink()
    assert [e.stage for e in made()] == ["notice"]
