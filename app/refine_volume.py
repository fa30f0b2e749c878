"""`refine --with volume`: an object put into the text model's volume, partly noised, denoised, and made Gaussians again."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from app.commands import Refine
from app.estimate import BYTES_TEXT_MODEL, SECONDS_PER_CANDIDATE, SECONDS_TEXT_MODEL, Estimate
from app.jobs import Outcome
from app.machine import Place
from app.notices import Notices
from app.object_files import stated_licences
from app.prompts import read_prompts
from app.refine import RefinePlan
from app.refine_generated import Generated, Generator3D, further_steps, generated_ready, generated_work
from app.refine_photos import Ready
from app.result_folder import WorkFolder
from app.stopwatch import Stopwatch
from diffusion.text_config import LEAST_STRENGTH, TextSampleConfig
from splat.progress import Progress

if TYPE_CHECKING:
    from splat.gaussians import Splats
    from splat.views import Views

__all__ = ["STRENGTH", "further_steps", "ready", "refine"]

STRENGTH = 0.3


def ready(
    options: Refine, report: dict[str, Any], config: dict[str, Any], place: Place, steps: int, budget: int
) -> tuple[Ready, Estimate]:
    if options.prompt:
        read_prompts((options.prompt,))  # raises for what no prompt can be
    seconds = SECONDS_TEXT_MODEL + SECONDS_PER_CANDIDATE
    return generated_ready(options, report, config, place, steps, budget, seconds, BYTES_TEXT_MODEL)


def refine(plan: RefinePlan, work: WorkFolder, watch: Stopwatch, notices: Notices) -> Generator[Progress, None, Outcome]:
    return (yield from generated_work(plan, work, watch, notices, load))


def load(plan: RefinePlan) -> Generator3D:
    from diffusion.object_frame import object_frame
    from diffusion.regenerate_volume import regenerated_volume
    from diffusion.text_to_volume import TextToVolume

    model = TextToVolume.load(None, plan.place.device)
    config = TextSampleConfig(strength=max(plan.strength, LEAST_STRENGTH), threads=plan.place.threads)
    prompt = read_prompts((plan.options.prompt,))[0] if plan.options.prompt else ""

    def generate(splats: Splats, views: list[Views]) -> Generator[Progress, None, Generated]:
        frame = object_frame(views, splats.means.median(0).values, turned=False)
        made = yield from regenerated_volume(model, splats.transformed(frame), prompt, plan.options.seed, config)
        return Generated(made.transformed(frame.inverse()), frame)

    return Generator3D(generate, stated_licences(model.licences, "text to 3-D, objects learnt from"), taught=0.0)
