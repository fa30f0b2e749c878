"""The pairs that a repair network learns from, on disk: one safetensors file for each scene, everything as bytes.

Files are written whole or not at all, so that making them can be cut and gone on with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from splat.errors import InputError
from splat.io.atomic import atomically
from splat.repair_request import RepairRequest

FIELDS = ("images", "alpha", "trust", "warped", "known")
VAL_EVERY = 10  # every so many scenes are kept for validation; no object is in two scenes


@dataclass(frozen=True)
class PairFile:
    """The pairs of one scene."""

    path: Path
    split: str  # train or val
    facts: dict  # keys, names, authors and licences of the objects, seed

    def load(self) -> tuple[dict[str, Tensor], Tensor]:
        """(fields of the request, truth), all uint8."""
        with safe_open(str(self.path), framework="pt") as f:
            return {name: f.get_tensor(name) for name in FIELDS}, f.get_tensor("truth")


def scene_path(folder: Path, number: int) -> Path:
    return folder / f"scene-{number:04d}.safetensors"


def split_of(number: int) -> str:
    return "val" if number % VAL_EVERY == VAL_EVERY - 1 else "train"


def save_pairs(path: Path, request: RepairRequest, truth: Tensor, facts: dict) -> None:
    tensors = {name: as_bytes(getattr(request, name)) for name in FIELDS} | {"truth": as_bytes(truth)}
    with atomically(path) as temporary:
        save_file(tensors, str(temporary), metadata={"facts": json.dumps(facts)})


def open_pairs(folder: Path) -> list[PairFile]:
    """All scenes in order. Raises `InputError` where there are none, or one is damaged."""
    found = []
    for path in sorted(folder.glob("scene-*.safetensors")):
        try:
            with safe_open(str(path), framework="pt") as f:
                missing = {*FIELDS, "truth"} - set(f.keys())
                if missing:
                    raise ValueError(f"no {', '.join(sorted(missing))}")
                facts = json.loads(f.metadata()["facts"])
            found.append(PairFile(path, split_of(int(path.stem.split("-")[1])), facts))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no pairs ({error}); remove it and run the step 'pairs' again.") from error
    if not found:
        raise InputError(f"{folder} has no pairs; run the step 'pairs' first.")
    return found


def as_bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous()


def from_bytes(x: Tensor) -> Tensor:
    return x.float() / 255
