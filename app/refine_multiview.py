"""`refine --with multiview`: renders of an object, partly noised, denoised through the splats beside its photos."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from app.commands import Refine
from app.estimate import BYTES_IMAGE_MODEL, SECONDS_IMAGE_MODEL, SECONDS_PER_IMAGE_STEP, Estimate
from app.jobs import Outcome
from app.machine import Place
from app.notices import Notices
from app.object_files import stated_licences
from app.refine import RefinePlan
from app.refine_generated import WHITE, Generated, Generator3D, further_steps, generated_ready, generated_work
from app.refine_photos import Ready
from app.result_folder import WorkFolder
from app.stopwatch import Stopwatch
from diffusion.image_config import LEAST_STRENGTH, ImageSampleConfig
from splat.progress import Progress

if TYPE_CHECKING:
    from splat.gaussians import Splats
    from splat.views import Views

__all__ = ["STRENGTH", "further_steps", "ready", "refine"]

STRENGTH = 0.6


def ready(
    options: Refine, report: dict[str, Any], config: dict[str, Any], place: Place, steps: int, budget: int
) -> tuple[Ready, Estimate]:
    seconds = SECONDS_IMAGE_MODEL + ImageSampleConfig.steps * SECONDS_PER_IMAGE_STEP
    return generated_ready(options, report, config, place, steps, budget, seconds, BYTES_IMAGE_MODEL)


def refine(plan: RefinePlan, work: WorkFolder, watch: Stopwatch, notices: Notices) -> Generator[Progress, None, Outcome]:
    return (yield from generated_work(plan, work, watch, notices, load))


def load(plan: RefinePlan) -> Generator3D:
    from diffusion.image_to_3d import ImageTo3D
    from diffusion.object_frame import framed_photos, object_frame
    from diffusion.regenerate_views import known_views, regenerated_views

    model = ImageTo3D.load(None, plan.place.device)
    config = ImageSampleConfig(strength=max(plan.strength, LEAST_STRENGTH), threads=plan.place.threads)

    def generate(splats: Splats, views: list[Views]) -> Generator[Progress, None, Generated]:
        frame = object_frame(views, splats.means.median(0).values)
        photos = framed_photos(views, frame, model.side, WHITE)
        given = known_views(splats.transformed(frame), *photos, plan.place.threads)
        made = yield from regenerated_views(model, given, plan.options.seed, config)
        return Generated(made.transformed(frame.inverse()), frame)

    return Generator3D(generate, stated_licences(model.licences, "image to 3-D, objects learnt from"))
