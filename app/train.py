"""`splatsmith train`: rebuild the weights that ship with the package, or make others from one's own objects."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch

from app.commands import Train
from app.machine import pick_place
from splat.errors import InputError
from splat.progress import Progress

NETWORKS = ("shape", "detail", "attributes")  # the steps that train one
SEEDS = 2**31


def train(options: Train) -> Generator[Progress, None, Path]:
    """Run one step in the work folder; returns what it wrote. Raises InputError for options that cannot work."""
    from diffusion.text_encoder import ClipConfig
    from diffusion.train_text import TextTrainConfig, train_text

    step = options.step.removeprefix("text-")
    _check(options, step)
    place = pick_place(options.device, options.threads, draw_on_cpu=step != "attributes")  # which renders where it trains
    torch.set_num_threads(place.threads)
    for sentence in place.fallbacks:
        yield Progress("notice", 1, 1, sentence)
    config = TextTrainConfig(
        minutes=options.minutes, workers=options.workers, device=place.device, presumed_licences=options.presumed_licences,
        text=None if options.clip is None else ClipConfig(options.clip),
    )  # fmt: skip
    own = getattr(config, step, None)
    if step in NETWORKS:
        asked = {"seed": options.seed, "steps": options.steps, "lr": options.lr}
        loop = replace(own.loop, **{name: value for name, value in asked.items() if value is not None})
        config = replace(config, **{step: replace(own, loop=loop)})
    elif own is not None:
        config = replace(config, **{step: replace(own, seed=options.seed)})
    return (yield from _told(train_text(step, options.work, options.objects, config)))


def _check(options: Train, step: str) -> None:
    if not 0 <= options.minutes < math.inf or options.workers < 1 or (options.steps is not None and options.steps < 1):
        raise InputError(
            f"--minutes {options.minutes:g}, --workers {options.workers} and --steps {options.steps} cannot be trained with; "
            "minutes are 0 or more, workers and steps 1 or more."
        )
    if not 0 <= options.seed < SEEDS:
        raise InputError(f"--seed {options.seed} is out of range; give 0 to {SEEDS - 1}.")
    if options.lr is not None and not 0 < options.lr <= 1:
        raise InputError(f"--lr {options.lr:g} is no learning rate; give more than 0, at most 1.")
    if step not in NETWORKS and (options.steps, options.lr) != (None, None):
        networks = ", ".join(f"text-{name}" for name in NETWORKS)
        raise InputError(f"{options.step} trains no network; --steps and --lr are for {networks}.")


def _told(job: Generator[Progress, None, Path]) -> Generator[Progress, None, Path]:
    """`job`, and a sentence at its end where a network has steps left."""
    done = total = 0
    try:
        while True:
            try:
                event = next(job)
            except StopIteration as end:
                if done < total:
                    left = f"{done} of {total} steps are trained; run the same command again to go on."
                    yield Progress("notice", 1, 1, left)
                return end.value
            if event.stage == "training":
                done, total = event.step, event.total
            yield event
    finally:
        job.close()
