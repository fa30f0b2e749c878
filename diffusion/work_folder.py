"""The folder in which training is done: one sub-folder to a step, each network beside a note of the bank it learnt from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import nn

from diffusion.field_bank import FieldBank
from diffusion.weights_folder import FROM_DISK
from splat.errors import InputError
from splat.io.atomic import atomically

LEARNT_FROM = "learnt_from.json"  # in the networks' folders: which bank


def made(work: Path, step: str) -> Path:
    """The folder of a step that has been run. Raises InputError where it is missing."""
    if not (work / step).is_dir():
        raise InputError(f"{work} has no {step}/; run the step {step!r} first.")
    return work / step


def check_bank(bank: FieldBank, work: Path, steps: Sequence[str]) -> None:
    """Raises InputError where one of `steps` learnt from another bank."""
    for name in steps:
        path = work / name / LEARNT_FROM
        if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["bank"] != bank.fingerprint:
            raise InputError(
                f"{work / 'bank'} was built again, with other contents, after {work / name} had learnt from it; "
                f"remove {work / name} and run the step {name!r} again."
            )


def begun(bank: FieldBank, work: Path, step: str) -> Path:
    """The folder of a step that learns from this bank from now on."""
    (work / step).mkdir(parents=True, exist_ok=True)
    with atomically(work / step / LEARNT_FROM) as temporary:
        temporary.write_text(json.dumps({"bank": bank.fingerprint}), encoding="utf-8")
    return work / step


def saved(network: nn.Module, folder: Path) -> Path:
    """Write what a step has learnt; returns where."""
    network.to("cpu").save_pretrained(folder / "network", safe_serialization=True)
    return folder / "network"


def network_of(kind: type[ModelMixin], work: Path, step: str) -> ModelMixin:
    """What the last sitting of `step` wrote at its end; one that was cut before wrote its state alone."""
    folder = made(work, step) / "network"
    try:
        return kind.from_pretrained(folder, **FROM_DISK).eval()
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        told = f"{folder} holds no network that loads ({reason})"
        raise InputError(f"{told}; run the step {step!r} to the end of a sitting.") from error
