"""`render --enhance`: the frames of a video repaired and made steady."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Generator
from pathlib import Path

import torch
from torch import Tensor

from app.machine import Place
from app.repairers import ChosenRepairer
from recon.enhance_path import EnhanceConfig, enhance_path
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.progress import Progress
from splat.views import Views


def enhanced_frames(
    result: Path,
    splats: Splats,
    cameras: Cameras,
    background: Tensor,
    chosen: ChosenRepairer,
    place: Place,
    add: Callable[[Tensor], None],
) -> Generator[Progress, None, None]:
    """Give `add` the frames of `cameras`, one after the other, told of the photos where `result` still has them.

    Says first by what the frames are repaired, and at the end how much they flicker.
    """
    torch.set_num_threads(place.threads)
    photos = [v.limited(max(cameras.width, cameras.height)).to(place.device) for v in photos_of(result)]
    told = "; ".join(f"{row.name}: {row.licence}" for row in chosen.licences)
    yield Progress(
        "notice", 1, 1, f"Frames are repaired by {chosen.name}{f' ({told})' if told else ''}; what they add is a guess."
    )
    if chosen.kind == "views":
        from diffusion.sd_repair import repair_cost

        cost = repair_cost(chosen.repair, len(cameras), cameras.width, cameras.height)
        yield Progress("estimate", 1, 1, f"Repair of {len(cameras)} frames: {cost}.")
    config = EnhanceConfig()
    if chosen.kind == "video":
        config = EnhanceConfig(chunk=chosen.repair.config.frames, overlap=chosen.repair.config.overlap)
    flicker = yield from enhance_path(
        splats, cameras, photos, background.to(place.device), chosen.repair, config, add, place.renderer
    )
    rendered, repaired, steadied = (255 * x for x in (flicker.rendered, flicker.repaired, flicker.steadied))
    sentence = f"{rendered:.2f} as rendered, {repaired:.2f} repaired, {steadied:.2f} in the video"
    yield Progress("notice", 1, 1, f"Flicker along surfaces, in levels of 255: {sentence}.")


def photos_of(result: Path) -> list[Views]:
    """The posed photos that a photos result was fitted to, as if exposed alike; none where they are gone or never were.

    Raises `InputError` for a state that is damaged.
    """
    from app.refine import read_state
    from app.refine_photos import types_of_state, unexposed
    from app.report import read_report

    if not result.is_dir():
        return []
    report = read_report(result)
    of = report.get("refine", {}).get("of", report["command"])
    if of != "photos" or not (result / "state" / "fit.safetensors").is_file():
        return []
    scene, _ = read_state(result, "reconstruction", types_of_state())
    fitted, _ = read_state(result, "fit", types_of_state())
    posed = [dataclasses.replace(v, cameras=c) for v, c in zip(scene.train, fitted.cameras)]
    return unexposed(posed, fitted.exposures, background_of(result))


def background_of(result: Path) -> tuple[float, ...]:
    """What masked photos stand on, by a result's config.json; white where it does not say."""
    try:
        red, green, blue = json.loads((result / "config.json").read_text(encoding="utf-8"))["fit"]["background"]
        return float(red), float(green), float(blue)
    except (OSError, ValueError, KeyError, TypeError):
        return 1.0, 1.0, 1.0
