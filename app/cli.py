"""What each command does once its options are parsed, and how errors become exit statuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from app import commands
from app.batch import was_cancelled
from app.console import Talk, complain, emit, follow, say, stop_talking
from app.estimate import clock
from app.result_folder import FULL_DISK, resume_flags
from splat.errors import BackendUnavailable, InputError, StoppedLate

if TYPE_CHECKING:
    from app.batch import Batch

DONE, BAD_INPUT, PARTIAL, STOPPED_LATE, CANCELLED = 0, 2, 3, 4, 130


def run(command: commands.Command) -> int:
    """Carry out `command`; returns its exit status. Every expected failure is one sentence on stderr."""
    talk = _talk(command)
    try:
        return _COMMANDS[type(command)](command, talk)
    except (InputError, BackendUnavailable) as error:
        return _failed(str(error), BAD_INPUT, talk)
    except StoppedLate as error:
        return _failed(str(error), STOPPED_LATE, talk)
    except KeyboardInterrupt:
        flags = _flags_to_continue(command)
        return _failed(f"Cancelled; run again with {flags} to continue." if flags else "Cancelled.", CANCELLED, talk)
    except BrokenPipeError:  # the reader has gone, after the work was done: `follow` makes it an interrupt before
        stop_talking()
        return DONE
    except (MemoryError, RuntimeError) as error:
        from app.machine import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _failed("The machine ran out of memory; give less or smaller input.", STOPPED_LATE, talk)
    except OSError as error:
        where = error.filename or getattr(command, "to", None) or "The output"
        # A job that has begun turns its own into `StoppedLate`; what comes here and is no full disk is a path that cannot work.
        status = STOPPED_LATE if error.errno in FULL_DISK else BAD_INPUT
        return _failed(f"{where} cannot be written or read ({error.strerror or error}); mend that and try again.", status, talk)


def photos(options: commands.Photos, talk: Talk) -> int:
    from app.pipelines import photos_to_scene

    outcome = follow(photos_to_scene(options), talk)
    say(_summary(outcome.out, outcome.report), talk)
    if "next_photo" in outcome.report:
        say(f"To make it better: {outcome.report['next_photo']['text']}", talk)
    emit("done", talk, out=str(outcome.out), skipped=outcome.skipped, report=outcome.report)
    return DONE


def image(options: commands.Image, talk: Talk) -> int:
    from app.image_batch import image_batch, makes_batch
    from app.image_pipeline import picture_to_scene

    if makes_batch(options):
        return _batch(follow(image_batch(options), talk), talk)
    outcome = follow(picture_to_scene(options), talk)
    say(_object_summary(outcome.out, outcome.report), talk)
    emit("done", talk, out=str(outcome.out), skipped=outcome.skipped, report=outcome.report)
    return DONE


def text(options: commands.Text, talk: Talk) -> int:
    from app.text_pipeline import text_to_scenes

    batch = follow(text_to_scenes(options), talk)
    for outcome in batch.outcomes:
        say(_object_summary(outcome.out, outcome.report), talk)
    for out, sentence in batch.failed:
        complain(f"{out.name} is missing: {sentence}")
    results = [{"out": str(o.out), "skipped": o.skipped, "report": o.report} for o in batch.outcomes]
    failed = [{"out": str(out), "message": sentence} for out, sentence in batch.failed]
    emit("done", talk, out=str(batch.out), results=results, failed=failed)
    return PARTIAL if batch.failed else DONE


def _batch(batch: Batch, talk: Talk) -> int:
    """Tell what became of many objects; the exit status."""
    counts, failed = batch.counts, batch.failed
    made = f"{counts['done']} of {len(batch.records)} made"
    others = [f"{n} {word}" for word, n in (("made before", counts["skipped"]), ("failed", counts["failed"])) if n]
    say(f"{batch.out}: {', '.join([made, *others, clock(batch.seconds)])}; see {batch.out / 'index.html'}", talk)
    for record in failed:
        complain(f"{record.item.name} is missing: {record.error}")
    missing = [{"out": str(r.item.out), "input": r.item.source, "message": r.error} for r in failed]
    emit("done", talk, out=str(batch.out), counts=dict(counts), seconds=batch.seconds, failed=missing)
    return PARTIAL if failed else DONE


def refine(options: commands.Refine, talk: Talk) -> int:
    from app.refine import refine_result

    outcome = follow(refine_result(options), talk)
    say(_refined_summary(outcome.out, outcome.report), talk)
    emit("done", talk, out=str(outcome.out), skipped=outcome.skipped, report=outcome.report)
    return DONE


def demo(options: commands.Demo, talk: Talk) -> int:
    from app.demo import example_photos

    shared = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    return photos(commands.Photos(inputs=(example_photos(),), **shared), talk)


def export(options: commands.Export, talk: Talk) -> int:
    from app.textured_mesh import export_mesh, exports_mesh

    if exports_mesh(options):
        follow(export_mesh(options), talk)
    else:
        from app.scenes import export_scene

        export_scene(options.scene, options.to, options.convention, options.sh_degree)
    say(f"{options.to} written", talk)
    emit("done", talk, out=str(options.to))
    return DONE


def render(options: commands.Render, talk: Talk) -> int:
    from app.scenes import render_scene

    written = follow(render_scene(options), talk)
    say(", ".join(map(str, written)) + " written", talk)
    emit("done", talk, out=[str(path) for path in written])
    return DONE


def check(options: commands.Check, talk: Talk) -> int:
    from app.checkup import check_photos, where_next

    verdict = follow(check_photos(options), talk)
    say(verdict.text, talk)
    if verdict.open_question:
        verdict = follow(where_next(verdict, options), talk)
        say(verdict.text, talk)
    emit("verdict", talk, **verdict.values)
    return DONE


def evaluate(options: commands.Eval, talk: Talk) -> int:
    from app.pose_quality import pose_quality
    from app.scenes import evaluate_result

    quality = follow(evaluate_result(options), talk)
    poses = pose_quality(options.result, options.against)
    if poses is not None:
        say(
            f"Poses: AUC@5/10/20 {100 * poses.auc5:.1f} / {100 * poses.auc10:.1f} / {100 * poses.auc20:.1f}, "
            f"{poses.placed} of {poses.photos} photos placed",
            talk,
        )
        emit("poses", talk, **dataclasses.asdict(poses))
    lpips = "" if quality.lpips is None else f", LPIPS {quality.lpips:.4f}"
    say(f"PSNR {quality.psnr:.2f} dB, SSIM {quality.ssim:.4f}{lpips} over {quality.n} photos", talk)
    emit("quality", talk, **dataclasses.asdict(quality))
    return DONE


def train(options: commands.Train, talk: Talk) -> int:
    from app.train import train

    made = follow(train(options), talk)
    say(f"{made} written", talk)
    emit("done", talk, out=str(made))
    return DONE


def info(options: commands.Info, talk: Talk) -> int:
    from app.info import facts

    found = facts()
    emit("info", talk, **found)
    say(_told(found), talk)
    return DONE


def ui(options: commands.Ui, talk: Talk) -> int:
    from app.studio.page import serve

    serve(options)
    return DONE


_COMMANDS = {
    commands.Photos: photos,
    commands.Image: image,
    commands.Text: text,
    commands.Demo: demo,
    commands.Refine: refine,
    commands.Export: export,
    commands.Render: render,
    commands.Check: check,
    commands.Eval: evaluate,
    commands.Train: train,
    commands.Info: info,
    commands.Ui: ui,
}


def _flags_to_continue(command: commands.Command) -> str:
    """The options that continue what `command` left unfinished; "" when it left nothing."""
    out = getattr(command, "out", None)
    if out is None:
        return ""
    if isinstance(command, commands.Image | commands.Text):
        unfinished = out.is_dir() and (any(path.is_dir() for path in out.glob("*.partial")) or was_cancelled(out))
        return ("--overwrite --resume" if command.overwrite else "--resume") if unfinished else ""
    return resume_flags(out) if Path(f"{out}.partial").is_dir() else ""


def _talk(command: commands.Command) -> Talk:
    if command.json:
        return "json"
    return "quiet" if command.quiet else "bars"


def _failed(sentence: str, status: int, talk: Talk) -> int:
    try:
        complain(sentence)
        emit("error", talk, status=status, message=sentence)
    except BrokenPipeError:
        stop_talking()
    return status


def _summary(out: Path, report: dict) -> str:
    placed = sum(i["placed"] for i in report["inputs"])
    parts = [f"{out}: {placed} of {len(report['inputs'])} photos placed, {report['gaussians']:,} Gaussians"]
    for name, quality in report["metrics"].items():
        if quality is not None:
            parts.append(f"{name} {quality['psnr']:.2f} dB / SSIM {quality['ssim']:.3f}")
    parts.append(clock(sum(stage["seconds"] for stage in report["stages"])))
    return ", ".join(parts)


def _object_summary(out: Path, report: dict) -> str:
    parts = [f"{out}: {report['gaussians']:,} Gaussians, {report['mesh_faces']:,} triangles"]
    if "text" in report and len(report["text"]["candidates"]) > 1:
        parts.append(f"best of {len(report['text']['candidates'])}")
    if "image" in report:
        parts.append(f"front view {report['metrics']['train']['psnr']:.2f} dB")
    parts.append(clock(sum(stage["seconds"] for stage in report["stages"])))
    return ", ".join(parts)


def _refined_summary(out: Path, report: dict) -> str:
    told = report["refine"]
    figures = [
        f"{told[name]['before']['psnr']:.2f} -> {told[name]['after']['psnr']:.2f} dB {name.replace('_', ' ')}"
        + _alone(told[name])
        for name in ("train", "holdout", "left_out")
        if told.get(name)
    ]
    verdict = "the refined splats are kept" if told["kept"] == "refined" else "that did not help, the splats are the old ones"
    return f"{out}: {', '.join(figures)}; {verdict}"


def _alone(compared: dict) -> str:
    """Beside what a way of refining did, as many steps without it."""
    return f" ({compared['control']['psnr']:.2f} by as many steps alone)" if compared.get("control") else ""


def _prior(prior: dict) -> str:
    """Whether a learned prior can take part, and on what terms."""
    if prior["found"]:
        state = "; ".join(f"{w['name']} ({w['licence']}): {w['path']}" for w in prior["found"])
    else:
        licences = ", ".join(dict.fromkeys(prior["licences"].values()))
        state = f"no weights in {prior['looked_in']} (published: {licences})" if licences else "weights of your own training"
    return state if prior["installed"] else f"{state}; needs the package {prior['package']}"


def _told(found: dict) -> str:
    lines = [f"device     {found['gpu'] or found['device']}, {found['cores']} cores, {found['memory_gb']} GB"]
    lines += [f"renderer   {name}: {state}" for name, state in found["renderers"].items()]
    lines += [f"weights    {w['name']} ({w['licence']}): {w['path']}" for w in found["weights"]]
    lines += [f"prior      {p['name']}: {_prior(p)}" for p in found["priors"]]
    lines += [f"version    {name} {version}" for name, version in found["versions"].items()]
    return "\n".join(lines)
