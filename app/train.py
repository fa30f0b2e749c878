"""`splatsmith train`: rebuild the weights that ship with the package, or make others from one's own objects."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from app.commands import Train
from app.machine import pick_place
from splat.errors import InputError
from splat.progress import Progress


def train(options: Train) -> Generator[Progress, None, Path]:
    """Run one step in the work folder; returns what it wrote. Raises InputError for options that cannot work."""
    from diffusion.train_text import TextTrainConfig, train_text

    if options.minutes < 0 or options.workers < 1 or (options.steps is not None and options.steps < 1):
        raise InputError(
            f"--minutes {options.minutes:g}, --workers {options.workers} and --steps {options.steps} cannot be trained with; "
            "minutes are 0 or more, workers and steps 1 or more."
        )
    place = pick_place(options.device, options.threads)
    config = TextTrainConfig(
        minutes=options.minutes, workers=options.workers, device=place.device, presumed_licences=options.presumed_licences
    )
    step = options.step.removeprefix("text-")
    if step in ("shape", "detail", "attributes"):
        own = getattr(config, step)
        changed = {"seed": options.seed} | ({} if options.steps is None else {"steps": options.steps})
        config = replace(config, **{step: replace(own, loop=replace(own.loop, **changed))})
    return (yield from train_text(step, options.work, options.objects, config))
