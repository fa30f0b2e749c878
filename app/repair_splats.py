"""Repair of fitted photos, for `photos --repair` and `refine --with repair`: the repairer, its rounds, what it made up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.report import Quality
from splat.progress import Progress
from splat.repair_request import Repairer

if TYPE_CHECKING:
    from recon.reconstruct import Reconstruction
    from recon.repair.rounds import RepairedView, RepairRound, RepairRoundsConfig
    from splat.optimise import FitConfig, FitResult
    from splat.views import Views

PICTURES = "invented"  # folder of the result


def rounds_of(steps: int) -> RepairRoundsConfig:
    """`steps` of the fit in all rounds together."""
    from recon.repair.rounds import RepairRoundsConfig

    plain = RepairRoundsConfig()
    return dataclasses.replace(plain, steps=max(round(steps / plain.rounds), 1))


def types_of_rounds() -> tuple[type, ...]:
    """What the saved stages of `repaired` are made of, beside those of a photos result."""
    from recon.repair.rounds import RepairedView, RepairRound

    return RepairRound, RepairedView, Quality


Saved = Callable[[str, Generator[Progress, None, Any]], Generator[Progress, None, Any]]


def repaired(
    scene: Reconstruction,
    fitted: FitResult,
    config: FitConfig,
    repairer: Repairer | None,
    rounds: RepairRoundsConfig,
    saved: Saved,
    state: Path,
    device: str,
) -> Generator[Progress, None, tuple[FitResult, list[RepairedView]]]:
    """All rounds, each a saved stage repair_1, repair_2, ...; the fit with the first fit's exposures, and the repaired views.

    `state` is the folder of the fits' checkpoints. Without a repairer: the same steps on the photos alone, control_1, ...
    """
    from recon.repair.rounds import repair_round

    views = as_exposed_alike(scene, fitted, config, device)
    priors = None if scene.priors is None else scene.priors.to(device)
    splats, steps, seen = fitted.splats.to(device), fitted.steps, []
    last, stage = fitted, "control" if repairer is None else "repair"
    for number in range(rounds.rounds):
        checkpoint = state / f"{stage}_{number + 1}_checkpoint.safetensors"
        job = repair_round(views, splats, config, repairer, rounds, number, priors, checkpoint)
        done: RepairRound = yield from saved(f"{stage}_{number + 1}", job)
        checkpoint.unlink(missing_ok=True)
        last, splats, steps = done.fitted, done.fitted.splats.to(device), steps + done.fitted.steps
        views = [dataclasses.replace(v, cameras=c.to(device)) for v, c in zip(views, last.cameras)]
        seen += done.views
    cameras = [c.to("cpu") for c in last.cameras]
    kept = dataclasses.replace(last, splats=splats.to("cpu"), cameras=cameras, exposures=fitted.exposures, steps=steps)
    return kept, seen


def left_out(
    scene: Reconstruction,
    fitted: FitResult,
    config: FitConfig,
    repairer: Repairer,
    rounds: RepairRoundsConfig,
    device: str,
    first: FitConfig,
) -> Generator[Progress, None, tuple[Quality, Quality, Quality]]:
    """Before, after the same steps without repair, and after repair, of photos that small fits did not see.

    `first` says how these are fitted, `config` how they are fitted on. There must be enough photos (`recon.repair.judge`).
    """
    from recon.repair.judge import left_out_scores

    views = as_exposed_alike(scene, fitted, config, device)
    priors = None if scene.priors is None else scene.priors.to(device)
    scores = yield from left_out_scores(views, scene.initial.to(device), first, repairer, rounds, priors, further=config)
    assert scores is not None, "fewer photos than the judge needs"
    before, control, after = (Quality(s.psnr, s.ssim, None, s.photos) for s in scores)
    return before, control, after


@dataclass(frozen=True)
class Tried:
    """What `photos --repair` came to: the better splats, and what is said of it."""

    fitted: FitResult
    views: list[RepairedView]
    told: dict[str, Any]  # of report.json
    sentence: str  # for the user
    kept: bool


def repair_where_it_helps(
    scene: Reconstruction, fitted: FitResult, config: FitConfig, repairer: Repairer, steps: int, saved: Saved, state: Path,
    device: str,
) -> Generator[Progress, None, Tried | None]:  # fmt: skip
    """Rounds of `steps` steps together, kept where held-out photos, or else photos left out of small fits, say that they help.

    They must help more than the same steps without repaired views; where those alone help, `sentence` says so.
    None where there is nothing to judge by; then nothing is tried.
    """
    from recon.repair.judge import LEAST_PHOTOS, helps, repair_helps

    if not scene.heldout and sum(len(v) for v in scene.train) < LEAST_PHOTOS:
        return None
    gentle = dataclasses.replace(config, lr_poses=config.lr_poses / 10)  # the cameras have found their places
    told = (scene, fitted, gentle, repairer, rounds_of(steps))
    scores = None
    if not scene.heldout:
        scores = yield from saved("left_out", left_out(*told, device, gentle))
    if scores is not None and not repair_helps(*scores):
        made, views = fitted, []  # what small fits show not to help is not tried on the whole
    else:
        made, views = yield from repaired(*told, saved, state, device)
    if scores is None:
        alone, _ = yield from repaired(scene, fitted, gentle, None, told[-1], saved, state, device)
        scores = []
        for each in (fitted, alone, made):
            scores.append((yield from held_out(scene, each, config, device)))
    before, control, after = scores
    kept = repair_helps(before, control, after)
    facts = {
        "kept": "refined" if kept else "unrefined",
        "judged_by": "holdout" if scene.heldout else "left_out",
        "before": dataclasses.asdict(before),
        "control": dataclasses.asdict(control),
        "after": dataclasses.asdict(after),
        "invented": invented(views),
    }
    figures = (
        "SSIM {:.4f} before, {:.4f} after the same steps without it, {:.4f} with it; PSNR {:.2f}, {:.2f}, {:.2f} dB".format(
            *(s.ssim for s in scores), *(s.psnr for s in scores)
        )
    )
    if kept:
        share = f"{100 * invented(views):.0f} % of what it drew was seen by no photo and is invented ({PICTURES}/ shows where)"
        sentence = f"Repair helped ({figures} on {facts['judged_by'].replace('_', ' ')} photos); {share}."
    else:
        sentence = f"Repair did not help ({figures} on {facts['judged_by'].replace('_', ' ')} photos), so it is left out."
        if helps(before, control):
            sentence += " The further steps alone help: refine --with steps makes them."
    return Tried(made if kept else fitted, views, facts, sentence, kept)


def held_out(scene: Reconstruction, fitted: FitResult, config: FitConfig, device: str) -> Generator[Progress, None, Quality]:
    """As the photos job measures: cameras that were solved are placed against the splats first."""
    from app.quality import refined
    from app.scene_files import measured

    splats, background, heldout = fitted.splats.to(device), torch.tensor(config.background), scene.heldout
    if not scene.heldout_posed:
        heldout = yield from refined(splats, heldout, background)
    quality, _ = yield from measured(splats, heldout, background, None, config.threads)
    return quality


def as_exposed_alike(scene: Reconstruction, fitted: FitResult, config: FitConfig, device: str) -> list[Views]:
    """The photos with the cameras of the fit, what it learnt of their exposure taken off."""
    from app.refine_photos import unexposed

    posed = [dataclasses.replace(v, cameras=c) for v, c in zip(scene.train, fitted.cameras)]
    return [v.to(device) for v in unexposed(posed, fitted.exposures, config.background)]


def invented(views: list[RepairedView]) -> float:
    """Mean share of the repaired pictures that no photo vouches for."""
    return sum(v.invented for v in views) / max(len(views), 1)


def write_invented(result: Path, views: list[RepairedView]) -> None:
    """For each repaired view of the last round what it was before, what it is, and both dimmed but where it was made up.

    invented/NAME.png has the three side by side, NAME_mask.png is white where no photo vouches for the picture, and
    views.json has the share of that for every view of all rounds.
    """
    from splat.io.images import save_image

    folder = result / PICTURES
    folder.mkdir(exist_ok=True)
    last = views[-1].name.split("_")[0] if views else ""
    for view in views:
        if view.name.split("_")[0] == last:
            made_up = (1 - view.trust)[..., None].cpu()
            picture = view.image.cpu()
            shown = made_up * picture + (1 - made_up) * (0.75 + 0.25 * picture.mean(-1, keepdim=True))
            save_image(folder / f"{view.name}.png", torch.cat([view.before.cpu(), picture, shown], dim=1))
            save_image(folder / f"{view.name}_mask.png", made_up.expand(-1, -1, 3))
    shares = {view.name: round(view.invented, 4) for view in views}
    (folder / "views.json").write_text(json.dumps(shares, indent=1), encoding="utf-8")
