"""Which network mends damaged renders: ours, or Stable Diffusion or a video network from a folder on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from app.object_files import stated_licences
from app.report import Licence
from splat.errors import InputError
from splat.progress import Progress
from splat.repair_request import Repairer

if TYPE_CHECKING:
    from diffusion.sd_repair import RepairCost

SMALL = "small"  # the one that comes with splatsmith


@dataclass(frozen=True)
class ChosenRepairer:
    """A repairer and what to say about it."""

    repair: Repairer
    name: str
    licences: tuple[Licence, ...]
    kind: Literal["small", "views", "video"]  # a video network takes the frames of a path, in order


def chosen_repairer(option: str, *, device: str = "cpu", prompt: str = "", video_too: bool = False) -> ChosenRepairer:
    """`option` is "small" or a folder: ours trained anew, Stable Diffusion with a ControlNet, with `video_too` a video network.

    `prompt` says what the scene shows; only networks that read text use it. Raises `InputError`, one sentence, for a folder
    that will not do; nothing has been computed or written then.
    """
    if option == SMALL:
        return _own(None, device)
    folder = Path(option)
    if not os.path.isdir(folder):  # False for what no system takes for a name, where Path.is_dir raises
        raise InputError(
            f"--repairer {option[:200]} is neither {SMALL} nor a folder; give a checkpoint's folder as docs/repair-public.md "
            "says."
        )
    if (folder / "weights.json").is_file():
        return _own(folder, device)
    if _holds_video(folder):
        if not video_too:
            raise InputError(f"{folder} holds a video network, which repairs no single views; use it with render --enhance.")
        from diffusion.video_repair import VideoRepairConfig, load_video_repairer

        video = load_video_repairer(folder, VideoRepairConfig(prompt=prompt), device)
        return ChosenRepairer(video, folder.name, _licences(video.licences, folder.name), "video")
    from diffusion.sd_repair import SdRepairConfig, load_sd_repairer

    repairer = load_sd_repairer(folder, SdRepairConfig(prompt=prompt), device)
    return ChosenRepairer(repairer, folder.name, _licences(repairer.licences, folder.name), "views")


def _own(folder: Path | None, device: str) -> ChosenRepairer:
    from diffusion.repair import repair_licences, small_repairer

    name = SMALL if folder is None else folder.name
    return ChosenRepairer(small_repairer(folder, device=device), name, _licences(repair_licences(folder), name), "small")


def _licences(told: Sequence[str], name: str) -> tuple[Licence, ...]:
    return tuple(stated_licences(told, name))


def _holds_video(folder: Path) -> bool:
    try:
        config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        return config.get("_class_name") == "UNet3DConditionModel"
    except (OSError, ValueError, AttributeError):
        return False  # what is wrong with it is said where it is loaded


def cost_of(chosen: ChosenRepairer, views: int, size: tuple[int, int], lora_steps: int = 0) -> RepairCost:
    """Of repairing `views` of this size (width, height) by a checkpoint of Stable Diffusion, and of training its LoRA first."""
    from diffusion.sd_repair import repair_cost
    from diffusion.train_lora import lora_cost

    repair = repair_cost(chosen.repair, views, *size)
    if not lora_steps:
        return repair
    lora = lora_cost(chosen.repair, lora_steps)
    return replace(repair, seconds=repair.seconds + lora.seconds, memory=max(repair.memory, lora.memory))


def check_lora(chosen: ChosenRepairer, steps: int, heldout: bool) -> None:
    """Raises `InputError` where a LoRA of the scene cannot be trained, or nothing could say whether it helps."""
    if steps == 0:
        return
    from diffusion.train_lora import MOST_STEPS

    if not 0 <= steps <= MOST_STEPS:
        raise InputError(f"--lora-steps {steps} is out of range; give 0 to {MOST_STEPS}.")
    if chosen.kind != "views":
        raise InputError(f"--lora-steps {steps} needs a checkpoint of Stable Diffusion, which --repairer {chosen.name} is not.")
    if not heldout:
        raise InputError(
            "--lora-steps teaches the repairer all photos that were fitted, and then only held-out ones can say whether it "
            "helps; make the result with --holdout."
        )


def with_scene_lora(
    chosen: ChosenRepairer, renders: Sequence[Tensor], photos: Sequence[Tensor], steps: int, seed: int, kept: Path
) -> Generator[Progress, None, ChosenRepairer]:
    """The repairer after `steps` steps on pairs of this scene (`recon.repair.left_out`).

    `kept` is a .safetensors file: the LoRA is written there, and read where it is there already. Yields stage "lora".
    """
    from diffusion.lora import load_lora, save_lora
    from diffusion.train_lora import LoraConfig, train_lora

    if kept.is_file():
        return replace(chosen, repair=chosen.repair.with_lora(load_lora(kept)))
    lora = yield from train_lora(chosen.repair, renders, photos, LoraConfig(steps=steps, seed=seed))
    save_lora(lora, kept)
    return replace(chosen, repair=chosen.repair.with_lora(lora))
