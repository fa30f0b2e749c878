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

DENSE = ("dense-field", "dense-attributes")  # networks of which there are sizes
NETWORKS = {  # steps that train one
    "text": ("shape", "detail", "attributes", *DENSE), "image": ("autoencoder", "denoiser"), "repair": ("network",),
    "pointmap": ("network",),
}  # fmt: skip
DRAWING = ("attributes", "dense-attributes", "denoiser", "pairs")  # that draw splats, which a GPU needs gsplat for
MOST_IN_A_BATCH = 4096
SEEDS = 2**31
MOST_ACCUMULATED = 64  # diffusion.training draws the batches of a step from so many seeds


def train(options: Train) -> Generator[Progress, None, Path]:
    """Run one step in the work folder; returns what it wrote. Raises InputError for options that cannot work."""
    kind, step = options.step.split("-", 1)
    _check(options, kind, step)
    place = pick_place(options.device, options.threads, draw_on_cpu=step not in DRAWING)
    torch.set_num_threads(place.threads)
    for sentence in place.fallbacks:
        yield Progress("notice", 1, 1, sentence)
    job = {"text": _text_step, "image": _image_step, "repair": _repair_step, "pointmap": _pointmap_step}[kind]
    return (yield from _told(job(options, step, place.device)))


def _text_step(options: Train, step: str, device: str) -> Generator[Progress, None, Path]:
    if options.space != "pixel" or options.text or options.own:
        raise InputError(f"{options.step} denoises no pictures; --space, --text and --own are for image-denoiser.")
    from diffusion.text_encoder import ClipConfig
    from diffusion.train_dense import SIZES
    from diffusion.train_text import TextTrainConfig, train_text

    size = SIZES[options.size]
    config = TextTrainConfig(
        minutes=options.minutes, workers=options.workers, device=device, presumed_licences=options.presumed_licences,
        text=None if options.clip is None else ClipConfig(options.clip), dense_field=size.field,
        dense_attributes=size.attributes,
    )  # fmt: skip
    return train_text(step, options.work, options.objects, _with_own(config, options, "text", step))


def _image_step(options: Train, step: str, device: str) -> Generator[Progress, None, Path]:
    from diffusion.train_image import ImageTrainConfig, train_image
    from diffusion.train_multiview import MultiviewTrainConfig

    if options.clip is not None:
        raise InputError(f"{options.step} reads no sentences; --clip is for the steps of text to 3-D.")
    if (options.space != "pixel" or options.text or options.own) and step != "denoiser":
        raise InputError(f"{options.step} denoises nothing; --space, --text and --own are for image-denoiser.")
    if not 0 <= options.own <= 1:
        raise InputError(f"--own {options.own:g} is no share; give 0 to 1.")
    config = ImageTrainConfig(
        minutes=options.minutes, workers=options.workers, device=device, space=options.space,
        presumed_licences=options.presumed_licences, denoiser=MultiviewTrainConfig(text=options.text, own=options.own),
    )  # fmt: skip
    return train_image(step, options.work, options.objects, _with_own(config, options, "image", step))


def _repair_step(options: Train, step: str, device: str) -> Generator[Progress, None, Path]:
    from app.train_repair import train_repair_step

    if options.clip is not None or options.space != "pixel" or options.text or options.own:
        raise InputError(
            f"{options.step} reads no sentences and has one space; --clip, --space, --text and --own are for others."
        )
    own = {name: getattr(options, name) for name in ("steps", "lr", "accumulate", "batch")}
    return train_repair_step(
        step, options.work, options.objects, options.minutes, options.seed, options.presumed_licences, device,
        torch.get_num_threads(), own,
    )  # fmt: skip


def _pointmap_step(options: Train, step: str, device: str) -> Generator[Progress, None, Path]:
    from app.train_pointmap import PointmapTrainConfig, train_pointmap

    if options.clip is not None or options.space != "pixel" or options.text or options.own:
        raise InputError(f"{options.step} knows neither sentences nor spaces; leave --clip, --space, --text and --own out.")
    config = PointmapTrainConfig(workers=options.workers, device=device, presumed_licences=options.presumed_licences)
    config = replace(config, loop=replace(config.loop, minutes=options.minutes))
    config = replace(config, views=replace(config.views, seed=options.seed))
    asked = {"seed": options.seed, "steps": options.steps, "lr": options.lr, "accumulate": options.accumulate}
    loop = replace(config.loop, **{knob: value for knob, value in asked.items() if value is not None})
    batch = config.batch if options.batch is None else options.batch
    return train_pointmap(step, options.work, options.objects, replace(config, loop=loop, batch=batch))


def _with_own(config, options: Train, kind: str, step: str):
    """`config` with what the options say of its own part for this step."""
    name = step.replace("-", "_")
    own = getattr(config, name, None)
    if step in NETWORKS[kind]:
        asked = {"seed": options.seed, "steps": options.steps, "lr": options.lr, "accumulate": options.accumulate}
        loop = replace(own.loop, **{knob: value for knob, value in asked.items() if value is not None})
        batch = own.batch if options.batch is None else options.batch
        return replace(config, **{name: replace(own, loop=loop, batch=batch)})
    return config if own is None else replace(config, **{name: replace(own, seed=options.seed)})


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
    if options.batch is not None and not 1 <= options.batch <= MOST_IN_A_BATCH:
        raise InputError(f"--batch {options.batch} is out of range; give 1 to {MOST_IN_A_BATCH}.")
    knobs = (options.steps, options.lr, options.accumulate, options.batch)
    if step not in NETWORKS[kind] and any(knob is not None for knob in knobs):
        networks = ", ".join(f"{kind}-{name}" for name in NETWORKS[kind])
        raise InputError(f"{options.step} trains no network; --steps, --lr, --accumulate and --batch are for {networks}.")
    if options.size != "small" and step not in (*DENSE, "dense-pack"):
        raise InputError(f"{options.step} has one size; --size is for the steps text-dense-... alone.")


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
