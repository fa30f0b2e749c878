"""Many pictures, one result folder each, made by worker processes or on a Ray cluster: `app.batch` with the image job in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from app import image_pipeline
from app.batch import Batch, BatchConfig, replaced_so_far, run_batch
from app.batch_inputs import find_files
from app.commands import Image
from app.estimate import memory_budget
from app.image_pipeline import SUFFIXES, ImageGenerator, ImagePlan, Load, check_text, image_to_scene, plan_images
from app.jobs import Outcome
from app.machine import pick_place
from app.workers import Crew, Item, LocalCrew, Make
from splat.errors import InputError
from splat.progress import Progress

MOST_JOBS = 256


@dataclass(frozen=True)
class MakeImages:
    """What each worker runs first: loads the network, and returns the maker of one object."""

    plan: ImagePlan  # of the share of the machine that a worker has
    load: Load

    def __call__(self) -> Make:
        options = self.plan.options
        place = pick_place(options.device, self.plan.place.threads, draw_on_cpu=True)  # of the machine that it runs on
        plan = dataclasses.replace(self.plan, place=place)
        generator = self.load(options.weights, place.device)
        check_text(options, generator)
        return partial(_make, plan, generator)


def makes_batch(options: Image) -> bool:
    """Whether `options` ask for more than one object, or for workers, so that `image_batch` is what they need."""
    if options.jobs not in (None, 1) or options.cluster is not None:
        return True
    return not options.views and len(find_files(options.inputs, SUFFIXES).files) > 1


def image_batch(options: Image, load: Load | None = None) -> Generator[Progress, None, Batch]:
    """Pictures to one result folder each, with batch.json and index.html beside them, by `options.jobs` workers.

    Yields notices, the estimate, and the events of `run_batch`. The workers share the threads and the memory budget evenly.
    `load` gives the network, by default `load_generator` of the image job, and must pickle. Raises `InputError` before
    anything is written, and what `run_batch` raises.
    """
    if options.jobs is not None and not 1 <= options.jobs <= MOST_JOBS:
        raise InputError(f"--jobs {options.jobs} is out of range; give 1 to {MOST_JOBS}.")
    if options.item_seconds is not None and not options.item_seconds > 0:
        raise InputError(f"--item-seconds {options.item_seconds:g} is no time; give more than 0.")
    if options.cluster is not None:  # not this machine's, whose number of cores says nothing about the workers
        options = dataclasses.replace(options, threads=options.threads or 1)
    plan, out = plan_images(options), Path(options.out)
    if options.resume and options.overwrite:
        plan = dataclasses.replace(plan, complete=plan.complete | replaced_so_far(out))
    jobs, share, crew = (_on_machine if options.cluster is None else _on_cluster)(
        options, plan, load or image_pipeline.load_generator
    )
    for sentence in plan.notices:
        yield Progress("notice", 1, 1, sentence)
    if plan.todo:
        yield _estimated(plan, jobs, on_cluster=options.cluster is not None)
    items = [Item(item.out.name, item.out, ", ".join(map(str, item.pictures)), item) for item in plan.items]
    stored = {name: _plain(value) for name, value in dataclasses.asdict(options).items()} | {
        "jobs": jobs,
        "threads_each": share.place.threads,
    }
    config = BatchConfig(jobs=jobs, item_seconds=options.item_seconds)
    return (yield from run_batch(out, items, crew, config, complete=plan.complete, options=stored))


def _on_machine(options: Image, plan: ImagePlan, load: Load) -> tuple[int, ImagePlan, Callable[[], Crew]]:
    """Workers, the plan of each, and how to come by them."""
    jobs = min(options.jobs or 1, max(len(plan.todo), 1))
    budget = memory_budget(options.memory_budget)
    if plan.todo and plan.estimate.memory * jobs > budget:
        raise InputError(
            f"{jobs} jobs need about {plan.estimate.memory / 1e9:.1f} GB of memory each, more than --memory-budget "
            f"{options.memory_budget} in all; give more, or at most --jobs {int(budget // plan.estimate.memory)}."
        )
    share = _share(plan, max(plan.place.threads // jobs, 1), budget // jobs)
    return jobs, share, partial(LocalCrew, MakeImages(share, load), share.place.threads)


def _on_cluster(options: Image, plan: ImagePlan, load: Load) -> tuple[int, ImagePlan, Callable[[], Crew]]:
    from app.cluster import RayCrew, connect, places

    threads, gpus = options.threads, 1.0 if options.device == "cuda" else 0.0
    room = places(connect(options.cluster), threads, gpus)
    jobs = min(options.jobs or room, room, max(len(plan.todo), 1))
    share = _share(plan, threads, memory_budget(options.memory_budget))
    return jobs, share, partial(RayCrew, MakeImages(share, load), threads, gpus)


def _share(plan: ImagePlan, threads: int, budget: int) -> ImagePlan:
    """The plan for one of several workers, without the items: it gets them one by one."""
    return dataclasses.replace(
        plan,
        options=dataclasses.replace(plan.options, inputs=(), memory_budget=f"{budget / 1e6:.0f}MB", threads=threads),
        place=dataclasses.replace(plan.place, threads=threads),
        sample=dataclasses.replace(plan.sample, threads=threads),
        items=(),
        complete=frozenset(),
    )


def _make(plan: ImagePlan, generator: ImageGenerator, item: Item, attempt: int) -> Generator[Progress, None, Outcome]:
    if attempt > 1:  # what the worker that died had finished is used
        plan = dataclasses.replace(plan, options=dataclasses.replace(plan.options, resume=True))
    return (yield from image_to_scene(plan, item.task, generator))


def _estimated(plan: ImagePlan, jobs: int, on_cluster: bool) -> Progress:
    """Of `jobs` workers: those of one machine share its threads, those of a cluster each have as many as the plan was for."""
    one = plan.estimate
    seconds = one.seconds * math.ceil(len(plan.todo) / jobs) / len(plan.todo) if on_cluster else one.seconds
    return dataclasses.replace(plan, estimate=dataclasses.replace(one, seconds=seconds, memory=one.memory * jobs)).estimated()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
