"""Stages come back from disk with the same bits, and nothing else does."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from app.saved_stages import load_stage, save_stage
from splat.cameras import Cameras
from splat.errors import InputError
from splat.similarity import Similarity
from splat.views import Views


@dataclass(frozen=True)
class Stage:
    views: list[Views]
    similarity: Similarity
    reasons: dict[str, str]
    words: tuple[str, ...]
    number: float
    nothing: None
    path: Path


def example() -> Stage:
    torch.manual_seed(0)
    cameras = Cameras.orbit(2, 2.0, 10.0, 50.0, 4, 3)
    return Stage(
        [Views(torch.rand(2, 3, 4, 3), ("a", "b"), cameras, torch.rand(2, 3, 4))],
        Similarity(torch.eye(3), torch.rand(3), 2.0),
        {"c.jpg": "too few matches"},
        ("x",),
        0.1,
        None,
        Path("a/b"),
    )


def test_round_trip_is_exact(tmp_path):
    stage = example()
    save_stage(tmp_path / "s.safetensors", stage)
    back = load_stage(tmp_path / "s.safetensors", (Stage, Views, Cameras, Similarity))
    assert torch.equal(back.views[0].images, stage.views[0].images)
    assert torch.equal(back.views[0].cameras.cam_from_world, stage.views[0].cameras.cam_from_world)
    assert torch.equal(back.similarity.matrix(), stage.similarity.matrix())
    assert (back.reasons, back.words, back.number, back.nothing, back.path) == (
        stage.reasons, stage.words, stage.number, stage.nothing, stage.path,
    )  # fmt: skip
    assert back.views[0].names == ("a", "b")


def test_only_the_expected_types_are_made(tmp_path):
    save_stage(tmp_path / "s.safetensors", example())
    with pytest.raises(InputError, match="cannot be read"):
        load_stage(tmp_path / "s.safetensors", (Stage, Views, Cameras))


def test_a_damaged_file_is_one_sentence(tmp_path):
    path = tmp_path / "s.safetensors"
    save_stage(path, example())
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match="--resume"):
        load_stage(path, (Stage, Views, Cameras, Similarity))
