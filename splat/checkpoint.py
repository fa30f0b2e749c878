"""The state of a fit on disk: one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from splat.errors import InputError


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
    """Write tensors and JSON-able `facts` to `path` through a temporary sibling and an atomic rename.

    Raises OSError when the disk refuses; the old file is then untouched.
    """
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"facts": json.dumps(facts)})
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_state(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, object]]:
    """What `save_state` wrote. Raises `InputError` when the file is not such a state."""
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as f:
            facts = json.loads((f.metadata() or {})["facts"])
            return {k: f.get_tensor(k) for k in f.keys()}, facts
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path.name} is not a readable state of a fit ({error}); start again without --resume.") from error
