"""Finished stages on disk, for --resume: a tree of our dataclasses as one JSON text and one safetensors file, no pickle.

The run itself goes on from what `load_stage` returns, so that a resumed run and an undisturbed one compute with the same bits.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from splat.checkpoint import load_state, save_state
from splat.errors import InputError


def save_stage(path: Path, value: Any) -> None:
    """Write `value`: dataclasses, tensors, lists, tuples, dicts with text keys, numbers, text, None. Atomic."""
    tensors: dict[str, Tensor] = {}
    tree = _encode(value, tensors)
    save_state(path, tensors, {"tree": tree})


def load_stage(path: Path, types: tuple[type, ...]) -> Any:
    """Read what `save_stage` wrote; only dataclasses among `types` are made. Raises `InputError` for a damaged file."""
    tensors, facts = load_state(path)
    try:
        return _decode(facts["tree"], tensors, {t.__name__: t for t in types})
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        raise InputError(f"{path} cannot be read ({error}); run without --resume to start over.") from error


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if is_dataclass(value):
        return {
            "type": type(value).__name__,
            "fields": {f.name: _encode(getattr(value, f.name), tensors) for f in fields(value) if f.init},
        }
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), list(value)
        return {"dict": {key: _encode(item, tensors) for key, item in value.items()}}
    assert value is None or isinstance(value, bool | int | float | str), type(value)
    return value


def _decode(tree: Any, tensors: dict[str, Tensor], types: dict[str, type]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors, types) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "path" in tree:
        return Path(tree["path"])
    if "tuple" in tree:
        return tuple(_decode(item, tensors, types) for item in tree["tuple"])
    if "dict" in tree:
        return {key: _decode(item, tensors, types) for key, item in tree["dict"].items()}
    return types[tree["type"]](**{key: _decode(item, tensors, types) for key, item in tree["fields"].items()})
