"""A finished result made better: its state -> a longer fit -> a result folder of its own, with the better of both splats.

`refine_result` is a plain generator of `Progress` like the other jobs. What it can do depends on what the result was made
from: `app.refine_photos` fits on to the photos, `app.refine_image` to the cut-out pictures.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from app.commands import Refine
from app.estimate import Estimate, memory_budget
from app.jobs import Outcome, check_disk, costs_so_far, late_errors, noted
from app.machine import Place, pick_place
from app.notices import Notices
from app.report import InputFile, Licence, Quality, Report, read_report
from app.result_folder import WorkFolder, begin, check_out, disk_errors_as_sentences
from app.saved_stages import load_stage
from app.stopwatch import Stopwatch
from splat.errors import InputError
from splat.progress import Progress
from splat.similarity import Similarity

REMEDY = "end other programs or give fewer --steps"
MOST_STEPS = 100_000
SEEDS = 2**31
LEAST_GAIN = 0.05  # dB by which splats must be better to take the old ones' place; less is chance
Kept = Literal["refined", "unrefined"]


@dataclass(frozen=True)
class RefinePlan:
    """Everything known about a refine job before its work starts."""

    options: Refine
    of: str  # "photos" or "image": the command that made the first result
    report: dict[str, Any]  # of the result that is refined
    config: dict[str, Any]  # its config.json
    place: Place
    steps: int
    strength: float | None  # of the noise, for the ways that have one
    estimate: Estimate
    ready: Any  # what `work` begins with: the state of the result, as its module reads it
    work: Callable[[RefinePlan, WorkFolder, Stopwatch, Notices], Generator[Progress, None, Outcome]]

    @property
    def source(self) -> Path:
        return Path(self.options.result)

    @property
    def job(self) -> dict[str, Any]:
        """What two runs must share to be one run that continues."""
        options = self.options
        return {
            "command": "refine",
            "version": importlib.metadata.version("splatsmith"),
            "result": hashlib.sha256((self.source / "report.json").read_bytes()).hexdigest(),
            "way": options.way,
            "steps": self.steps,
            "strength": self.strength,
            "prompt": options.prompt,
            "repairer": options.repairer,
            "lora_steps": options.lora_steps,
            "seed": options.seed,
            "preset": options.preset,
            "memory_budget": options.memory_budget,
            "device": self.place.device,
            "renderer": self.place.renderer,
        }


@dataclass(frozen=True)
class Comparison:
    """How well the splats did before and after, on what was fitted to and on what was held out."""

    train: tuple[Quality, Quality]
    holdout: tuple[Quality, Quality] | None
    left_out: tuple[Quality, Quality] | None = None  # every photo in turn, by splats made the same way without it
    by: Literal["psnr", "ssim"] = "psnr"  # what must be better; ssim as `recon.repair.judge.helps` has it
    invented: float | None = None  # share of repaired pictures that no photo vouches for
    # The judged photos after as many further steps without repaired views or grafts, which these must beat.
    control: Quality | None = None

    @property
    def judged_by(self) -> str:
        return "holdout" if self.holdout is not None else "left_out" if self.left_out is not None else "train"

    @property
    def judged(self) -> tuple[Quality, Quality]:
        return self.holdout or self.left_out or self.train

    @property
    def kept(self) -> Kept:
        before, after = self.judged
        if self.by == "ssim":
            from recon.repair.judge import repair_helps

            return "refined" if repair_helps(before, self.control or before, after) else "unrefined"
        return "refined" if after.psnr - max(before.psnr, (self.control or before).psnr) >= LEAST_GAIN else "unrefined"


def refine_result(options: Refine) -> Generator[Progress, None, Outcome]:
    """`options.result` to a result folder at `options.out`; closing the generator leaves a resumable state.

    Yields first the estimate, then the stages fit, measure, mesh, turntable and files. Raises `InputError` before anything
    is written, `StoppedLate` after that, with the state kept in OUT.partial.
    """
    out = Path(options.out)
    if check_out(out, resume=options.resume, overwrite=options.overwrite):
        yield Progress("notice", 1, 1, f"{out} is complete already; it is left as it is.")
        return Outcome(out, read_report(out), skipped=True)
    notices, watch = Notices(), Stopwatch("fit")
    try:
        with notices:
            plan = plan_refine(options)
            notices.add(*plan.place.fallbacks)
            what = "" if plan.strength is None else f"{options.way} with noise of {plan.strength:g}, then "
            what += f"{plan.steps} steps more on {plan.place.device} with the {plan.place.renderer} renderer"
            values = {"seconds": plan.estimate.seconds, "memory": plan.estimate.memory}
            yield Progress("estimate", 1, 1, plan.estimate.sentence(what), values=values)
            work = begin(out, plan.job, resume=options.resume)
            watch.go_on_from(costs_so_far(work))
            job = plan.work(plan, work, watch, notices)
            try:
                with disk_errors_as_sentences(out), late_errors(REMEDY):
                    return (yield from noted(job, watch, notices))
            finally:
                work.close()
    finally:
        watch.stop()


def plan_refine(options: Refine) -> RefinePlan:
    """Judge the options and the result, and read its state. Raises `InputError`; writes nothing."""
    source, out = Path(options.result), Path(options.out)
    if options.steps is not None and not 1 <= options.steps <= MOST_STEPS:
        raise InputError(f"--steps {options.steps} is out of range; give 1 to {MOST_STEPS}.")
    if not 0 <= options.seed < SEEDS:
        raise InputError(f"--seed {options.seed} is out of range; give 0 to {SEEDS - 1}.")
    budget = memory_budget(options.memory_budget)
    report = read_report(source)
    if out.absolute().resolve() == source.absolute().resolve():
        raise InputError(f"--out {out} is the result itself, which stays as it is; give another --out.")
    of = report.get("refine", {}).get("of", report["command"])
    if of not in ("photos", "image"):
        raise InputError(f"{source} was made by the {of} command, so there are no pictures to fit it to; make it from photos.")
    config = _config(source)
    if not (source / "state").is_dir():
        raise InputError(
            f"{source} has no state/ (--compact leaves it out), and with it no pictures to fit to; make it again without it."
        )
    part = _module(of, options)
    place = pick_place(options.device, options.threads, draw_on_cpu=of == "image")
    steps = options.steps or part.further_steps(options.preset)
    found, estimate = part.ready(options, report, config, place, steps, budget)
    check_disk(out, estimate.disk)
    strength = getattr(part, "STRENGTH", None) if options.strength is None else options.strength
    return RefinePlan(options, of, report, config, place, steps, strength, estimate, found, part.refine)


def _module(of: str, options: Refine) -> ModuleType:
    """What refines results of the command `of` in the way of `options`: `further_steps`, `ready` and `refine`."""
    way = options.way
    generates = way in ("multiview", "volume")
    if options.strength is not None and not generates:
        raise InputError(f"--strength is the noise of --with multiview and --with volume; --with {way} has none.")
    if options.repairer != "small" and way != "repair":
        raise InputError(f"--repairer mends renders for --with repair; --with {way} has none.")
    if options.lora_steps and way != "repair":
        raise InputError(f"--lora-steps trains the repairer of --with repair; --with {way} has none.")
    reads = way == "volume" or (way == "repair" and options.repairer != "small")
    if options.prompt and not reads:
        raise InputError(f"--prompt is for --with volume and for checkpoints of a --repairer; --with {way} takes none.")
    if of == "image" and way != "steps":
        raise InputError(
            f"{options.result} was made from pictures, and nothing would tell whether --with {way} made the sides better that "
            "they do not show; refine results of photos so."
        )
    names = {"steps": f"app.refine_{of}"}
    return importlib.import_module(names.get(way, f"app.refine_{way}"))


def _config(source: Path) -> dict[str, Any]:
    try:
        found = json.loads((source / "config.json").read_text())
        assert isinstance(found, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise InputError(f"{source / 'config.json'} is missing or damaged; make the result again.") from error
    return found


def read_state(source: Path, name: str, types: tuple[type, ...]) -> Any:
    """A stage of the result that is refined. Raises `InputError` where it is missing, damaged or of another version."""
    path = source / "state" / f"{name}.safetensors"
    if not path.is_file():
        raise InputError(f"{path} is missing, so there is nothing to fit to; make the result again.")
    try:
        return load_stage(path, types)
    except InputError as error:
        raise InputError(f"{path} is damaged or was written by another version; make the result again.") from error


def copy_state(source: Path, work: WorkFolder, *names: str) -> None:
    """Stages that the refined result shares with its source, so that it can be refined in turn."""
    for name in names:
        target = work.state / f"{name}.safetensors"
        if not target.exists():
            temporary = target.with_suffix(".tmp")
            shutil.copyfile(source / "state" / target.name, temporary)
            temporary.replace(target)


def told(plan: RefinePlan, compared: Comparison) -> dict[str, Any]:
    """What report.json says about it."""
    from dataclasses import asdict

    def pair(qualities: tuple[Quality, Quality] | None) -> dict[str, Any] | None:
        if qualities is None:
            return None
        control = {"control": asdict(compared.control)} if compared.control and qualities is compared.judged else {}
        return {"before": asdict(qualities[0]), **control, "after": asdict(qualities[1])}

    earlier = invented_earlier(plan.report)
    return {
        "of": plan.of,
        "way": plan.options.way,
        "steps": plan.steps,
        **({} if plan.strength is None else {"strength": plan.strength}),
        **({"prompt": plan.options.prompt} if plan.options.prompt else {}),
        **({} if compared.invented is None else {"repairer": plan.options.repairer, "invented": compared.invented}),
        **({"invented_earlier": earlier} if earlier else {}),
        "judged_by": compared.judged_by,
        "kept": compared.kept,
        "train": pair(compared.train),
        "holdout": pair(compared.holdout),
        **({} if compared.left_out is None else {"left_out": pair(compared.left_out)}),
        "source": hashlib.sha256((plan.source / "scene.ply").read_bytes()).hexdigest(),
    }


def invented_earlier(report: dict[str, Any]) -> list[float]:
    """What a result's splats hold of earlier `refine --with repair`, the newest first: the share that no photo vouches for."""
    told = report.get("refine", {})
    newest = [told["invented"]] if "invented" in told and told["kept"] == "refined" else []
    return [*newest, *told.get("invented_earlier", [])]


def verdict(compared: Comparison, way: str) -> tuple[str, ...]:
    """Sentences for the user about what the comparison can and cannot say."""
    before, after = compared.judged
    what = "Fitting longer" if way == "steps" else f"--with {way}"
    sentences, control = [], compared.control

    def said(quality: Quality) -> str:
        return f"SSIM {quality.ssim:.4f} and {quality.psnr:.2f} dB" if compared.by == "ssim" else f"{quality.psnr:.2f} dB"

    alone = "" if control is None else f"{said(control)} after as many further steps without it, "
    figures = f"{said(before)} before, {alone}{said(after)} after"
    if compared.kept == "unrefined":
        sentences.append(f"{what} did not help ({figures}), so the splats are the unrefined ones.{_longer(compared)}")
    elif control is not None:
        sentences.append(f"{what} helped ({figures}).")
    if compared.kept == "refined" and compared.invented is not None:
        sentences.append(
            f"{100 * compared.invented:.0f} % of the pictures that repair drew was seen by no photo and is invented; invented/ "
            "shows where."
        )
    if compared.judged_by == "train":
        sentences.append(
            "Nothing was held out, so the splats are judged by the pictures that they are fitted to, which says little about "
            "other views."
        )
    return tuple(sentences)


def _longer(compared: Comparison) -> str:
    """What to do instead, where further steps alone make the splats better."""
    control, (before, after) = compared.control, compared.judged
    if control is None:
        return ""
    if compared.by == "ssim":
        from recon.repair.judge import helps

        return " The further steps alone help: --with steps makes them." if helps(before, control) else ""
    if control.psnr - before.psnr < LEAST_GAIN:
        return ""
    return f" --with steps would do {'more' if control.psnr >= after.psnr else 'about as much'}."


def report_of(plan: RefinePlan, compared: Comparison, licences: Sequence[Licence] = (), **values: Any) -> Report:
    """The report of the refined result: facts about the inputs are those of its source. `licences` of the way's own weights."""
    old, kept = plan.report, int(compared.kept == "refined")
    licences = dict.fromkeys([*(Licence(**row) for row in old["licences"]), *(licences if kept else ())])
    return Report(
        command="refine",
        inputs=[InputFile(**row) for row in old["inputs"]],
        scale=old["scale"],
        result_from_input=_similarity(old["result_from_input"]),
        seed=plan.options.seed,
        device=plan.place.device,
        backend=plan.place.renderer,
        train=compared.train[kept],
        holdout=None if compared.holdout is None else compared.holdout[kept],
        licences=list(licences),
        facts=old["facts"],
        image=old.get("image"),
        repair=old.get("repair"),
        next_photo=old.get("next_photo"),
        refine=told(plan, compared),
        **values,
    )


def _similarity(rows: list[list[float]]) -> Similarity:
    import torch

    return Similarity.from_matrix(torch.tensor(rows, dtype=torch.float64))
