"""Networks of diffusers from folders on this machine: strictly, from safetensors, without the network."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

from splat.errors import InputError


def load_network(folder: Path, kinds: tuple[type[ModelMixin], ...]) -> ModelMixin:
    """What `save_pretrained` wrote into `folder`, one of `kinds`, in float32 and evaluating.

    Files in half precision as hubs keep them (`*.fp16.safetensors`) are taken where there are no others. Raises InputError
    where the folder holds something else, a pickle, or weights that are not exactly those of its config.
    """
    names = {kind.__name__: kind for kind in kinds}
    wanted = " or ".join(names)
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder} has no readable config.json; give the folder that diffusers' save_pretrained wrote for {wanted}."
        ) from error
    if name not in names:
        raise InputError(f"{folder} holds a {name}, not {wanted}; give the folder of that network.")
    found = [p for p in folder.iterdir() if p.name.endswith((".safetensors", ".safetensors.index.json"))]
    if not found:
        raise InputError(
            f"{folder} has no .safetensors; pickled weights are not read, "
            "save them with save_pretrained(safe_serialization=True)."
        )
    variant = "fp16" if all(".fp16." in p.name for p in found) else None
    try:
        network, report = names[name].from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            variant=variant,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{folder} holds no whole {name} ({reason}); copy it again.") from error
    wrong = {
        what: sorted(map(str, report[what])) for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[what]
    }
    if wrong:
        told = "; ".join(f"{len(keys)} {what.removesuffix('_keys')}, such as {keys[0]}" for what, keys in wrong.items())
        raise InputError(f"The weights in {folder} are not those of its config ({told}); copy both from one place.")
    return network.eval()
