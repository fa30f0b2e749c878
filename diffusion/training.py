"""One training loop for every network that we ship: averaged weights, half precision, runs that are cut and go on.

What a step sees depends on the seed and the step's number alone, so a run that was cut and resumed makes the same network
as one that was not. State, log and sample sheets lie in the run's folder:

    state.safetensors   network, averages, optimiser and step; written whole or not at all
    log.csv             step, seconds, learning rate, and what the loss reports
    sheet-000500.png    samples of the averaged network
"""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.objective.average import WeightAverage
from splat.errors import InputError, StoppedLate
from splat.io.atomic import atomically
from splat.progress import Progress

log = logging.getLogger(__name__)

Loss = Callable[[nn.Module, torch.Generator], tuple[Tensor, dict[str, float]]]  # -> mean loss, and figures for the log
Sheet = Callable[[nn.Module], tuple[Tensor | None, dict[str, float]]]  # of the averaged network: [H, W, 3], and figures


TOLD = ("lr", "warmup", "lr_final", "weight_decay", "clip", "average", "accumulate", "bf16")  # where they change in a run


@dataclass(frozen=True)
class TrainConfig:
    """Every knob of the loop."""

    steps: int = 20000  # optimiser steps of the whole run
    minutes: float = 0.0  # of this sitting, after which the state is saved and the run can be resumed; 0 has no limit
    accumulate: int = 1  # calls of the loss to a step, at most 64
    lr: float = 1e-3
    warmup: int = 200  # steps over which the rate rises from 0
    lr_final: float = 0.02  # share of the rate that is left at the end, reached along a cosine
    weight_decay: float = 0.0
    clip: float = 1.0  # largest norm of the gradient
    average: float = 0.998  # decay of the averaged weights
    bf16: bool = False  # networks compute in bfloat16 where that is safe
    log_every: int = 100
    save_every: float = 5.0  # minutes between saved states
    sheet_every: int = 0  # steps between sample sheets; 0 makes none but the last
    seed: int = 0


def train(
    network: nn.Module, loss: Loss, config: TrainConfig, folder: Path, sheet: Sheet | None = None
) -> Generator[Progress, None, nn.Module]:
    """Train `network` in place from where `folder` left off; at the end it holds the averaged weights and is returned.

    Yields `Progress("training", step, steps)`, values loss and samples of the log, and a notice where it goes on with other
    knobs than before: more steps are nothing to tell, a lower rate is. Raises StoppedLate when the loss is no longer finite,
    InputError when `folder` holds the state of another network, or of another seed.
    """
    changed = _changed(folder / "state.safetensors", config)
    if changed:
        yield Progress("notice", 1, 1, changed)
    folder.mkdir(parents=True, exist_ok=True)
    network.train()
    average = WeightAverage.of(network, config.average)
    leaves = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(leaves, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True)
    first = _restore(folder / "state.safetensors", network, average, optimiser, leaves)
    started = saved = time.monotonic()
    running: dict[str, float] = {}

    for step in range(first, config.steps):
        rate = _rate(step, config)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        for part in range(config.accumulate):
            generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * 64 + part)
            torch.manual_seed(generator.initial_seed())  # dropout
            value, figures = loss(network, generator)
            (value / config.accumulate).backward()
            for name, x in {"loss": float(value.detach()), **figures}.items():
                running[name] = x if name not in running else 0.98 * running[name] + 0.02 * x
        if not math.isfinite(running["loss"]):
            raise StoppedLate(f"The loss was no longer finite at step {step}; resume from the saved state with a lower lr.")
        norm = float(nn.utils.clip_grad_norm_(leaves, config.clip))
        if not math.isfinite(norm):  # it would be in every weight, and saved
            raise StoppedLate(f"A gradient was no longer finite at step {step}; resume from the saved state with a lower --lr.")
        optimiser.step()
        average.update(network)

        done, now = step + 1, time.monotonic()
        last = done == config.steps or (config.minutes > 0 and now - started > 60 * config.minutes)
        if done % config.log_every == 0 or last:
            _log(folder / "log.csv", {"step": done, "seconds": round(now - started, 1), "lr": rate, **running})
            yield Progress("training", done, config.steps, values=dict(running))
        if now - saved > 60 * config.save_every or last:
            _save(folder / "state.safetensors", network, average, optimiser, leaves, done, config)
            saved = time.monotonic()
        if sheet is not None and (last or (config.sheet_every and done % config.sheet_every == 0)):
            own = {k: v.clone() for k, v in network.state_dict().items()}
            average.copy_to(network.eval())
            with torch.no_grad():
                image, figures = sheet(network)
            network.load_state_dict(own)
            network.train()
            if image is not None:
                from splat.io.images import save_image

                save_image(folder / f"sheet-{done:06d}.png", image)
            yield Progress("sheet", done, config.steps, preview=image, values=figures)
        if last:
            break
    average.copy_to(network.eval())
    return network


def half_precision(config: TrainConfig, network: nn.Module) -> torch.autocast:
    """The context in which losses call `network`; what they prepare and compare stays float32."""
    return torch.autocast(next(network.parameters()).device.type, torch.bfloat16, enabled=config.bf16)


def _rate(step: int, config: TrainConfig) -> float:
    rise = min((step + 1) / max(config.warmup, 1), 1.0)
    fall = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.lr * rise * (config.lr_final + (1 - config.lr_final) * fall)


def _save(path: Path, network, average: WeightAverage, optimiser, leaves: list[Tensor], step: int, config: TrainConfig) -> None:
    from safetensors.torch import save_file

    tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v.contiguous() for k, v in average.values.items()}
    for i, leaf in enumerate(leaves):
        tensors |= {f"optimiser.{i}.{k}": v.contiguous() for k, v in optimiser.state[leaf].items() if torch.is_tensor(v)}
    about = {"step": step, "updates": average.updates, "config": asdict(config)}
    with atomically(path) as temporary:
        save_file(tensors, str(temporary), metadata={"run": json.dumps(about)})


def _changed(path: Path, config: TrainConfig) -> str:
    """What differs from the sitting that saved the state, in a sentence; empty where nothing does.

    Raises InputError for another seed, whose run this is not: the start and half of the samples would be another's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as f:
            about = json.loads(f.metadata()["run"])
            before, step = dict(about["config"]), int(about["step"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):  # no state, or one that `_restore` will judge
        return ""
    if before.get("seed") != config.seed:
        raise InputError(
            f"{path} was trained with seed {before.get('seed')}, not {config.seed}; go on with its seed, or train into "
            "another folder."
        )
    other = [name for name in TOLD if before.get(name) != getattr(config, name)]
    if not other:
        return ""
    was, now = (", ".join(f"{name} {of.get(name)}" for name in other) for of in (before, asdict(config)))
    return f"Training goes on from step {step} with {now}; up to there it was {was}."


def _restore(path: Path, network, average: WeightAverage, optimiser, leaves: list[Tensor]) -> int:
    """The step to go on with; 0 where there is no state."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return 0
    try:
        with safe_open(str(path), framework="pt") as f:
            about = json.loads(f.metadata()["run"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}
        network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
        for name, value in average.values.items():
            value.copy_(tensors[f"average.{name}"])
        for i, leaf in enumerate(leaves):
            prefix = f"optimiser.{i}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if state and state["exp_avg"].shape != leaf.shape:
                raise ValueError("an optimiser state of another shape")
            # a fused step counts on the device, and goes through moments and weights in the order in which they lie in memory
            optimiser.state[leaf] = {
                k: torch.empty_like(leaf).copy_(v) if v.shape == leaf.shape else v.to(leaf.device) for k, v in state.items()
            }
        average.updates = int(about["updates"])
        return int(about["step"])
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"{path} is not the state of this network ({str(error).splitlines()[0]}); train into another folder."
        ) from error


def _log(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, list(row), extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
