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

NETWORKS = {"text": ("shape", "detail", "attributes"), "image": ("autoencoder", "denoiser")}  # the steps that train one
SEEDS = 2**31
MOST_ACCUMULATED = 64  # diffusion.training draws the batches of a step from so many seeds


def train(options: Train) -> Generator[Progress, None, Path]:
    """Run one step in the work folder; returns what it wrote. Raises InputError for options that cannot work."""
    kind, step = options.step.split("-", 1)
    _check(options, kind, step)
    place = pick_place(options.device, options.threads, draw_on_cpu=step not in ("attributes", "denoiser"))
    torch.set_num_threads(place.threads)
    for sentence in place.fallbacks:
        yield Progress("notice", 1, 1, sentence)
    job = _text_step if kind == "text" else _image_step
    return (yield from _told(job(options, step, place.device)))


def _text_step(options: Train, step: str, device: str) -> Generator[Progress, None, Path]:
    if options.space != "pixel":
        raise InputError(f"{options.step} denoises no pictures; --space is for image-denoiser.")
    from diffusion.text_encoder import ClipConfig
    from diffusion.train_text import TextTrainConfig, train_text

    config = TextTrainConfig(
        minutes=options.minutes, workers=options.workers, device=device, presumed_licences=options.presumed_licences,
        text=None if options.clip is None else ClipConfig(options.clip),
    )  # fmt: skip
    return train_text(step, options.work, options.objects, _with_own(config, options, "text", step))


def _image_step(options: Train, step: str, device: str) -> Generator[Progress, None, Path]:
    from diffusion.train_image import ImageTrainConfig, train_image

    if options.clip is not None:
        raise InputError(f"{options.step} reads no sentences; --clip is for the steps of text to 3-D.")
    if options.space != "pixel" and step != "denoiser":
        raise InputError(f"{options.step} denoises nothing; --space is for image-denoiser.")
    config = ImageTrainConfig(
        minutes=options.minutes, workers=options.workers, device=device, space=options.space,
        presumed_licences=options.presumed_licences,
    )  # fmt: skip
    return train_image(step, options.work, options.objects, _with_own(config, options, "image", step))


def _with_own(config, options: Train, kind: str, step: str):
    """`config` with what the options say of its own part for this step."""
    own = getattr(config, step, None)
    if step in NETWORKS[kind]:
        asked = {"seed": options.seed, "steps": options.steps, "lr": options.lr, "accumulate": options.accumulate}
        loop = replace(own.loop, **{name: value for name, value in asked.items() if value is not None})
        return replace(config, **{step: replace(own, loop=loop)})
    return config if own is None else replace(config, **{step: replace(own, seed=options.seed)})


def _check(options: Train, kind: str, step: str) -> None:
    if not 0 <= options.minutes < math.inf or options.workers < 1 or (options.steps is not None and options.steps < 1):
        raise InputError(
            f"--minutes {options.minutes:g}, --workers {options.workers} and --steps {options.steps} cannot be trained with; "
            "minutes are 0 or more, workers and steps 1 or more."
        )
    if not 0 <= options.seed < SEEDS:
        raise InputError(f"--seed {options.seed} is out of range; give 0 to {SEEDS - 1}.")
    if options.lr is not None and not 0 < options.lr <= 1:
        raise InputError(f"--lr {options.lr:g} is no learning rate; give more than 0, at most 1.")
    if options.accumulate is not None and not 1 <= options.accumulate <= MOST_ACCUMULATED:
        raise InputError(f"--accumulate {options.accumulate} is out of range; give 1 to {MOST_ACCUMULATED}.")
    if step not in NETWORKS[kind] and (options.steps, options.lr, options.accumulate) != (None, None, None):
        networks = ", ".join(f"{kind}-{name}" for name in NETWORKS[kind])
        raise InputError(f"{options.step} trains no network; --steps, --lr and --accumulate are for {networks}.")


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
