"""Networks of transformers, of diffusers and of packages with the hub's mixin, from folders on this machine.

Strictly, from safetensors, without the network, and without running code that a folder brings.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from recon.priors.learned import PriorWeights
from recon.priors.offline import no_downloads
from splat.errors import BackendUnavailable, InputError

# What files raise that somebody wrote or cut; a lack of memory on the GPU is none of these.
BROKEN = (OSError, KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_strictly(kind: type, folder: Path) -> torch.nn.Module:
    """What `save_pretrained` of transformers or diffusers wrote for class `kind`, in float32 and evaluating.

    Files in half precision as hubs keep them (`*.fp16.safetensors`) are taken where there are no others. Raises `InputError`
    where the folder is missing, holds another class, a pickle, or weights that are not exactly those of its config.
    """
    from safetensors import SafetensorError

    config = read_config(folder)
    name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if name != kind.__name__:
        raise InputError(f"{folder} holds a {name}, not {kind.__name__}; give the folder of that network.")
    files = safetensors_in(folder)
    diffusers = kind.__module__.startswith("diffusers")
    try:
        with no_downloads(), silence():
            network, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant="fp16" if all(".fp16." in f.name for f in files) else None,
                output_loading_info=True,
                **({"torch_dtype": torch.float32, "low_cpu_mem_usage": False} if diffusers else {"dtype": torch.float32}),
            )
    except (*BROKEN, SafetensorError) as error:
        raise not_whole(folder, kind.__name__, error) from error
    told = {what: sorted(map(_key, report[f"{what}_keys"])) for what in ("missing", "unexpected", "mismatched")}
    # Position numbers were once stored; they are always 0, 1, 2, ...
    told = {what: keys for what, names in told.items() if (keys := [k for k in names if not k.endswith("position_ids")])}
    if told:
        words = "; ".join(f"{len(keys)} {what}, such as {keys[0]}" for what, keys in told.items())
        raise InputError(f"The weights in {folder} are not those of its config ({words}); copy both from one place.")
    return network.eval()


def package_class(weights: PriorWeights, module: str, name: str) -> type:
    """Class `name` of a package of others. Raises `BackendUnavailable` where that, or what it imports, does not work."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:  # torchvision beside another torch is a RuntimeError
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        family = weights.family
        raise BackendUnavailable(
            f"{family.title} needs the package {family.package}, which does not work here ({reason}): {family.install}."
        ) from error


def load_mixin(kind: type, folder: Path) -> torch.nn.Module:
    """The same for a class with the hub's `PyTorchModelHubMixin`: `config.json` and `model.safetensors`, strictly."""
    from safetensors import SafetensorError

    safetensors_in(folder)
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} has no model.safetensors; give the folder as it lies on the hub, with config.json.")
    read_config(folder)
    try:
        with no_downloads(), silence():
            return kind.from_pretrained(str(folder), local_files_only=True, strict=True).eval()
    except (*BROKEN, SafetensorError) as error:
        raise not_whole(folder, kind.__name__, error) from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Inside, what libraries print and draw while they work is not shown; errors are raised all the same."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Raises `InputError` when it is missing or no JSON object."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with {name} and .safetensors in it.")
    try:
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder} has no readable {name} ({str(error)[:80]}); copy the whole folder.") from error
    return config


def safetensors_in(folder: Path) -> list[Path]:
    """The weights in `folder`; raises `InputError` when there are none, with a word about pickles."""
    found = sorted(p for p in folder.iterdir() if p.name.endswith((".safetensors", ".safetensors.index.json")))
    if found:
        return found
    pickle = next((p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES), None)
    if pickle is None:
        raise InputError(f"{folder} has no .safetensors; copy the whole folder.")
    raise InputError(
        f"{folder} has {pickle} and no .safetensors; pickles can run code when they are opened and are not read: fetch the "
        ".safetensors from the same page, or write them with save_pretrained(safe_serialization=True)."
    )


def not_whole(folder: Path, what: str, error: Exception) -> InputError:
    """The sentence for a folder whose weights do not load."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{folder} holds no whole {what} ({reason}); copy it again.")


def _key(entry: Any) -> str:
    """Mismatched keys come with their shapes."""
    return str(entry[0] if isinstance(entry, tuple) else entry)
