"""Stands in for the network of the image job: a ball whose front half wears the picture, as Gaussians."""

import dataclasses
import sys
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from diffusion.data.object_views import DISTANCE
from diffusion.generated import Generated
from diffusion.subject import Subject
from splat.gaussians import Splats
from splat.progress import Progress
from splat.render import RenderOptions, render
from splat.sh import from_rgb
from splat.views import Views


def card(subject: Subject, thickness: float = 0.1) -> Splats:
    """The picture as a card facing its camera, and a grey back behind it."""
    camera = subject.cameras()
    shown = subject.alpha > 0.5
    pixels = camera.pixel_centers[shown]
    footprint = DISTANCE / float(camera.K[0, 0, 0])
    parts = []
    for depth, colour in ((DISTANCE, subject.image[shown]), (DISTANCE + thickness, torch.full((len(pixels), 3), 0.5))):
        points = camera.unproject(pixels[None], torch.full((1, len(pixels)), depth))[0]
        quats = F.pad(torch.ones(len(pixels), 1), (0, 3))
        logits = torch.full((len(pixels),), 3.0)
        log_scales = torch.full((len(pixels), 3), 0.6 * footprint).log()
        parts.append(Splats(points, quats, log_scales, logits, from_rgb(colour)[:, None]))
    return Splats.cat(parts)


@dataclass
class StandIn:
    """Counts what was asked of it. Pictures that are all green give an error, all magenta ones nothing that can be seen."""

    licences = ("Stand-in: CC0-1.0",)
    side = 48

    def __post_init__(self) -> None:
        self.made: list[tuple[tuple[Subject, ...], int]] = []
        self.configs = []

    def generate(self, subjects, seed, config) -> Generator[Progress, None, Generated]:
        self.made.append((tuple(subjects), seed))
        self.configs.append(config)
        yield Progress("views", 1, 2, preview=subjects[0].on())
        colour = subjects[0].image[subjects[0].alpha > 0.5].mean(0)
        if float(colour[1]) > 0.9 and float(colour[0]) < 0.1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        splats = card(subjects[0])
        if float(colour[1]) < 0.05 and float(colour[0]) > 0.9:
            splats = dataclasses.replace(splats, opacity_logits=torch.full((len(splats),), -9.0))
        yield Progress("views", 2, 2)
        cameras = subjects[0].cameras()
        drawn = render(splats, cameras, RenderOptions(background=torch.ones(3), threads=1))
        return Generated(splats, Views(drawn.rgb, ("view_000",), cameras, drawn.alpha))


def load(folder, device) -> StandIn:
    return StandIn()


if __name__ == "__main__":  # the command line as a process, with the stand-in
    from app import __main__ as entry
    from app import image_pipeline

    image_pipeline.load_generator = load
    sys.exit(entry.main(sys.argv[1:]))
