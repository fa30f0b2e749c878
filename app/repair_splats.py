"""Repair of fitted photos, for `photos --repair` and `refine --with repair`: the repairer, its rounds, what it made up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Generator
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

SHARE_OF_STEPS = 0.4  # of a preset's steps that all rounds together have
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
    repairer: Repairer,
    rounds: RepairRoundsConfig,
    saved: Saved,
    state: Path,
    device: str,
) -> Generator[Progress, None, tuple[FitResult, list[RepairedView]]]:
    """All rounds, each a saved stage repair_1, repair_2, ...; the fit with the first fit's exposures, and the repaired views.

    `state` is the folder of the fits' checkpoints.
    """
    from recon.repair.rounds import repair_round

    views = as_exposed_alike(scene, fitted, config, device)
    priors = None if scene.priors is None else scene.priors.to(device)
    splats, steps, seen = fitted.splats.to(device), fitted.steps, []
    last = fitted
    for number in range(rounds.rounds):
        checkpoint = state / f"repair_{number + 1}_checkpoint.safetensors"
        job = repair_round(views, splats, config, repairer, rounds, number, priors, checkpoint)
        done: RepairRound = yield from saved(f"repair_{number + 1}", job)
        checkpoint.unlink(missing_ok=True)
        last, splats, steps = done.fitted, done.fitted.splats.to(device), steps + done.fitted.steps
        views = [dataclasses.replace(v, cameras=c.to(device)) for v, c in zip(views, last.cameras)]
        seen += done.views
    cameras = [c.to("cpu") for c in last.cameras]
    kept = dataclasses.replace(last, splats=splats.to("cpu"), cameras=cameras, exposures=fitted.exposures, steps=steps)
    return kept, seen


def left_out(
    scene: Reconstruction, fitted: FitResult, config: FitConfig, repairer: Repairer, rounds: RepairRoundsConfig, device: str
) -> Generator[Progress, None, tuple[Quality, Quality]]:
    """Before and after repair, of photos that small fits did not see (`recon.repair.judge`); there must be enough photos."""
    from recon.repair.judge import left_out_scores

    views = as_exposed_alike(scene, fitted, config, device)
    priors = None if scene.priors is None else scene.priors.to(device)
    scores = yield from left_out_scores(views, scene.initial.to(device), config, repairer, rounds, priors)
    assert scores is not None, "fewer photos than the judge needs"
    before, after = (Quality(s.psnr, s.ssim, None, s.photos) for s in scores)
    return before, after


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
