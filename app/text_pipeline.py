"""The text job: sentences -> diffusion.text_to_volume -> the best candidate -> the files of one result folder an object.

`text_to_scenes` is a plain generator of `Progress` that the command line, the page and an API all call.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from app.commands import Text
from app.estimate import Estimate, estimate_text, memory_budget
from app.jobs import Outcome, check_disk, costs_so_far, late_errors, noted, weights_of
from app.machine import Place, colour, pick_place
from app.notices import Notices
from app.object_files import SHEET_SIDE, Drawing, around, mesh_plan, object_mesh, stated_licences, write_pictures, write_scene
from app.presets import TEXT_PRESETS, TextPreset
from app.prompts import read_prompts, slug
from app.report import InputFile, Licence, Report, read_report, write_report
from app.result_folder import WorkFolder, begin, check_out, disk_errors_as_sentences, is_complete, write_atomic
from app.stopwatch import StageCost, Stopwatch
from diffusion.text_config import TextSampleConfig
from splat.errors import InputError, StoppedLate
from splat.progress import Progress
from splat.similarity import Similarity

if TYPE_CHECKING:
    from diffusion.text_encoder import TextEncoder
    from diffusion.vocabulary import Vocabulary
    from diffusion.volume import SplatVolume

REMEDY = "end other programs or give fewer --candidates"
MOST = {"variations": 1000, "candidates": 256, "steps": 1000}  # asked for in one run
MAX_GUIDANCE = 20.0
SEEDS = 2**31
CANDIDATE_STRIDE = 1_000_003  # between the seeds of one object's candidates: neighbouring seeds share none


class TextGenerator(Protocol):
    """What the job needs of `diffusion.text_to_volume.TextToVolume`."""

    vocabulary: Vocabulary
    encoder: TextEncoder
    licences: tuple[str, ...]
    blur: float  # deviation in world units that the Gaussians of its volumes lack

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], config: TextSampleConfig
    ) -> Generator[Progress, None, TextSamples]: ...


class TextSamples(Protocol):
    """What a generator returns; cube i depends on nothing but its prompt, its seed and the config."""

    volumes: SplatVolume
    agreement: Tensor | None  # [B] higher is better


Load = Callable[[Path | None, str], TextGenerator]  # folder of the weights, None for the shipped ones; device


@dataclass(frozen=True)
class Batch:
    """What became of every object."""

    out: Path
    outcomes: tuple[Outcome, ...]  # in the order of the prompts, variations of a prompt by seed
    failed: tuple[tuple[Path, str], ...] = ()  # and the sentence why


@dataclass(frozen=True)
class Item:
    """One object to make."""

    prompt: str
    seed: int
    out: Path


@dataclass(frozen=True)
class TextPlan:
    """Everything known about a text job before its work starts."""

    options: Text
    place: Place
    preset: TextPreset  # with the options that replace its values
    background: tuple[float, float, float]
    sample: TextSampleConfig
    items: tuple[Item, ...]  # each folder once
    complete: frozenset[Path]  # results that stay as they are
    notices: tuple[str, ...]
    estimate: Estimate

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.background, self.place.threads)

    @property
    def todo(self) -> list[Item]:
        return [item for item in self.items if item.out not in self.complete]


def text_to_scenes(options: Text, load: Load | None = None) -> Generator[Progress, None, Batch]:
    """Prompts to one result folder an object, `options.out`/PROMPT-SEED; closing the generator leaves resumable states.

    Yields first the estimate, then the stage model, and for each object those of the generator, rank, mesh, turntable and
    files; of several objects, `Progress("object", i, n, name)` comes before each. `load` gives the generator, by default
    `TextToVolume.load`. Raises `InputError` before anything is written, `StoppedLate` when the disk refuses or when no
    object could be made; an object that fails does not stop the others.
    """
    plan = plan_text(options)
    done = {out: Outcome(out, read_report(out), skipped=True) for out in sorted(plan.complete)}
    failed: dict[Path, str] = {}
    for sentence in plan.notices:
        yield Progress("notice", 1, 1, sentence)
    if plan.todo:
        yield from _made(plan, load or load_generator, done, failed)
    if failed and not done:
        out, sentence = next(iter(failed.items()))
        raise StoppedLate(sentence if len(failed) == 1 else f"None of {len(failed)} objects came out; {out.name}: {sentence}")
    return Batch(Path(options.out), tuple(done[i.out] for i in plan.items if i.out in done), tuple(failed.items()))


def plan_text(options: Text) -> TextPlan:
    """Read and judge everything the user gave, except the weights. Raises `InputError`; writes nothing."""
    preset = TEXT_PRESETS[options.preset]
    asked = {name: getattr(options, name) for name in ("candidates", "steps") if getattr(options, name) is not None}
    for name, value in {"variations": options.variations, **asked}.items():
        if not 1 <= value <= MOST[name]:
            raise InputError(f"--{name} {value} is out of range; give 1 to {MOST[name]}.")
    if not (options.seed >= 0 and options.seed + options.variations <= SEEDS):
        raise InputError(f"--seed {options.seed} is out of range; give 0 to {SEEDS - options.variations}.")
    if options.guidance is not None and not 0 <= options.guidance <= MAX_GUIDANCE:
        raise InputError(f"--guidance {options.guidance} is out of range; give 0 to {MAX_GUIDANCE:.0f}.")
    budget, background = memory_budget(options.memory_budget), colour(options.background)
    prompts = read_prompts(options.sentences, options.prompts)
    place = pick_place(options.device, options.threads, draw_on_cpu=True)
    preset = dataclasses.replace(preset, **asked)
    items, twice = _items(options, prompts)
    complete = _complete(options, items)
    objects = len(items) - len(complete)
    estimate = estimate_text(
        objects,
        preset.candidates,
        preset.steps,
        preset,
        renderer=place.renderer,
        threads=place.threads,
        on_gpu=place.device == "cuda",
        weights=options.weights,
    )
    if objects and estimate.memory > budget:
        raise InputError(
            f"The text job needs about {estimate.memory / 1e9:.1f} GB of memory, more than --memory-budget "
            f"{options.memory_budget}; give more."
        )
    if objects:
        check_disk(Path(options.out), estimate.disk)
    notices = [f'"{_short(prompt)}" was given more than once and is made once for each seed.' for prompt in twice]
    if complete:
        notices.append(f"{_count(len(complete), 'result')} of {len(items)} complete already and left as they are.")
    sample = TextSampleConfig(steps=preset.steps, threads=place.threads)
    if options.guidance is not None:
        sample = dataclasses.replace(sample, guidance=options.guidance)
    return TextPlan(options, place, preset, background, sample, items, complete, tuple(notices), estimate)


def candidate_seeds(seed: int, count: int) -> tuple[int, ...]:
    """Of one object's candidates: `seed` itself first, so that fewer candidates are the first of more."""
    return tuple((seed + i * CANDIDATE_STRIDE) % SEEDS for i in range(count))


def _items(options: Text, prompts: tuple[str, ...]) -> tuple[tuple[Item, ...], list[str]]:
    """One item a prompt and seed, and the prompts that came again."""
    items: dict[Path, Item] = {}
    twice = []
    for prompt in prompts:
        name = slug(prompt)
        for seed in range(options.seed, options.seed + options.variations):
            out = Path(options.out) / f"{name}-{seed}"
            if out in items:
                twice.append(prompt)
            items.setdefault(out, Item(prompt, seed, out))
    return tuple(items.values()), list(dict.fromkeys(twice))


def _complete(options: Text, items: tuple[Item, ...]) -> frozenset[Path]:
    out = Path(options.out)
    if is_complete(out):
        raise InputError(f"{out} is a result itself; give a folder for the results of this run as --out.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder as --out.")
    return frozenset(item.out for item in items if check_out(item.out, resume=options.resume, overwrite=options.overwrite))


def load_generator(folder: Path | None, device: str) -> TextGenerator:
    from diffusion.text_to_volume import TextToVolume

    return TextToVolume.load(folder, device)


def _made(plan: TextPlan, load: Load, done: dict[Path, Outcome], failed: dict[Path, str]) -> Generator[Progress, None, None]:
    """Make all that is to do, into `done` and `failed`."""
    todo, options = plan.todo, plan.options
    what = (
        f"{_count(len(todo), 'object')}, the best of {plan.preset.candidates} each, preset {options.preset}, "
        f"on {plan.place.device} with the {plan.place.renderer} renderer"
    )
    values = {"seconds": plan.estimate.seconds, "memory": plan.estimate.memory}
    yield Progress("estimate", 1, 1, plan.estimate.sentence(what), values=values)
    torch.set_num_threads(plan.place.threads)
    watch, general = Stopwatch("model"), Notices()
    try:
        with general:
            yield Progress("model", 0, 1)
            generator = load(options.weights, plan.place.device)
            warnings = {prompt: _warning(generator, prompt) for prompt in dict.fromkeys(item.prompt for item in todo)}
            watch.split()
            loading = list(watch.costs.values())
    finally:
        watch.stop()
    yield Progress("model", 1, 1)
    general.add(*plan.place.fallbacks)
    for sentence in (*general.unsaid(), *filter(None, warnings.values())):
        yield Progress("notice", 1, 1, sentence)
    for i, item in enumerate(todo):
        if len(todo) > 1:
            yield Progress("object", i + 1, len(todo), item.out.name)
        try:
            warning = warnings[item.prompt]
            done[item.out] = yield from _made_one(plan, item, generator, warning, general.sentences, [] if i else loading)
        except (InputError, StoppedLate) as error:
            nothing_begun = isinstance(error, InputError) and i == 0
            if nothing_begun or isinstance(error.__cause__, OSError):  # a disk that refuses one object refuses all
                raise
            failed[item.out] = str(error)
            if len(todo) > 1:
                yield Progress("notice", 1, 1, f"{item.out.name}: {error}")


def _made_one(
    plan: TextPlan, item: Item, generator: TextGenerator, warning: str | None, fallbacks: list[str], loading: list[StageCost]
) -> Generator[Progress, None, Outcome]:
    watch, notices = Stopwatch("shape"), Notices()
    notices.add(*fallbacks, *([warning] if warning else []))
    notices.unsaid()  # they have been said, once for all objects
    try:
        with notices:
            work = begin(item.out, _job(plan, item), resume=plan.options.resume)
            watch.go_on_from(costs_so_far(work) or loading)
            job = _object_work(plan, item, generator, warning, work, watch, notices)
            try:
                with disk_errors_as_sentences(item.out), late_errors(REMEDY):
                    return (yield from noted(job, watch, notices))
            finally:
                work.close()
    finally:
        watch.stop()


def _object_work(
    plan: TextPlan,
    item: Item,
    generator: TextGenerator,
    warning: str | None,
    work: WorkFolder,
    watch: Stopwatch,
    notices: Notices,
) -> Generator[Progress, None, Outcome]:
    preset, drawing = plan.preset, plan.drawing
    volume, ranked = yield from _volume(plan, item, generator, work, watch)
    splats = volume.to_splats()
    splats = splats.widened(generator.blur) if generator.blur else splats  # as training saw them
    mesh, no_mesh = yield from object_mesh(splats, preset)
    notices.add(*no_mesh)
    yield from write_pictures(work.result, splats, mesh, preset, drawing)
    yield Progress("files", 0, 1)
    write_scene(work.result, splats, mesh, preset.turntable_side)
    configs = {"text": _job(plan, item), "sample": plan.sample, "mesh": mesh_plan(preset)[1], "preset": preset}
    plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in configs.items()}
    write_atomic(work.result / "config.json", json.dumps(plain, indent=1).encode())
    watch.split()
    warnings = [*([warning] if warning else []), *no_mesh]
    report = write_report(
        Report(
            command="text",
            inputs=[InputFile(item.prompt, hashlib.sha256(item.prompt.encode()).hexdigest(), True, None)],
            scale="arbitrary",
            result_from_input=Similarity(torch.eye(3), torch.zeros(3), 1.0),
            seed=item.seed,
            device=plan.place.device,
            backend=plan.place.renderer,
            gaussians=len(splats),
            mesh_faces=0 if mesh is None else len(mesh.faces),
            stages=list(watch.costs.values()),
            train=None,
            holdout=None,
            warnings=warnings,
            fallbacks=[sentence for sentence in notices.sentences if sentence not in warnings],
            licences=_licences(generator.licences),
            text={"prompt": item.prompt, "steps": plan.sample.steps, "guidance": plan.sample.guidance, **ranked},
        ),
        work.result / "report.json",
    )
    work.publish(keep_state=not plan.options.compact)
    yield Progress("files", 1, 1, f"{item.out} is complete")
    return Outcome(item.out, report)


def _volume(
    plan: TextPlan, item: Item, generator: TextGenerator, work: WorkFolder, watch: Stopwatch
) -> Generator[Progress, None, tuple[SplatVolume, dict[str, Any]]]:
    """The best candidate, and what report.json says of all; always from the file, so that a resumed run has the same bits."""
    from diffusion.rank_candidates import rank_candidates
    from diffusion.volume import load_volume, save_volume

    path = work.state / "volume.safetensors"
    if path.exists():
        yield Progress("rank", 1, 1, "taken from the unfinished run")
        return load_volume(path)
    seeds = candidate_seeds(item.seed, plan.preset.candidates)
    samples = yield from generator.generate([item.prompt] * len(seeds), seeds, plan.sample)
    yield Progress("rank", 0, 1)
    ranking = rank_candidates(samples.volumes, item.prompt, samples.agreement, threads=plan.place.threads)
    best, scores = ranking.best, ranking.scores
    if not scores[best].visible:
        raise StoppedLate(
            f'Nothing that can be seen came out for "{_short(item.prompt)}" in {_count(len(seeds), "try", "tries")}; '
            "give another --seed, more --candidates or other words."
        )
    rows = [{"seed": seed, **dataclasses.asdict(score)} for seed, score in zip(seeds, scores, strict=True)]
    chosen = dataclasses.replace(samples.volumes, features=samples.volumes.features[best : best + 1].detach().cpu())
    save_volume(path, chosen, facts={"kept": best, "candidates": rows})
    watch.split()
    write_atomic(work.state / "costs.json", json.dumps([dataclasses.asdict(c) for c in watch.costs.values()]).encode())
    (preview,) = plan.drawing.of(chosen.to_splats(), around(1, SHEET_SIDE, 30.0))
    yield Progress("rank", 1, 1, f"the best of {len(seeds)}" if len(seeds) > 1 else "", preview)
    return load_volume(path)


def _job(plan: TextPlan, item: Item) -> dict[str, Any]:
    """What two runs must share to be one run that continues."""
    options = plan.options
    return {
        "command": "text",
        "version": importlib.metadata.version("splatsmith"),
        "prompt": item.prompt,
        "seed": item.seed,
        "preset": options.preset,
        "candidates": plan.preset.candidates,
        **{name: value for name, value in dataclasses.asdict(plan.sample).items() if name != "threads"},
        "background": options.background,
        "weights": weights_of(options.weights),
        "device": plan.place.device,
        "renderer": plan.place.renderer,
    }


def _warning(generator: TextGenerator, prompt: str) -> str | None:
    from diffusion.vocabulary import unknown_warning

    return unknown_warning(prompt, generator.vocabulary, generator.encoder)


def _licences(stated: Sequence[str]) -> list[Licence]:
    """Of the weights, "name: licence" as their own files state it, and of the text encoder where they do not."""
    from app.info import weights

    licences = stated_licences(stated, "text to 3-D, objects learnt from")
    encoder = [w for w in weights() if "text encoder" in w.name and "MiniLM" not in " ".join(stated)]
    return licences + [Licence(w.name, w.licence) for w in encoder]


def _count(number: int, one: str, many: str = "") -> str:
    return f"1 {one}" if number == 1 else f"{number} {many or one + 's'}"


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else prompt[:57] + "..."
