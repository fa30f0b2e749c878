"""Stands in for the networks of the text job: boxes on legs in the colour that the prompt names, different for each seed."""

import sys
from collections.abc import Generator
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from diffusion.data.colours import TARGETS
from diffusion.rank_candidates import colour_words
from diffusion.surface_volume import surface_volume
from diffusion.volume import CHANNELS, EMPTY, SplatVolume
from splat.mesh import Mesh
from splat.progress import Progress

RESOLUTION = 16
FACES = [[0, 2, 1], [1, 2, 3], [4, 5, 6], [5, 7, 6], [0, 1, 4], [1, 5, 4], [2, 6, 3], [3, 6, 7], [0, 4, 2], [2, 4, 6],
         [1, 3, 5], [3, 7, 5]]  # fmt: skip


def box(low: list[float], high: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    corners = torch.tensor([[(low, high)[i >> a & 1][a] for a in range(3)] for i in range(8)])
    return corners, torch.tensor(FACES)


def table(rgb: tuple[int, int, int], height: float) -> Mesh:
    """A board on four legs in the unit cube."""
    legs = [box([x - 0.05, -height / 2, z - 0.05], [x + 0.05, height / 2, z + 0.05]) for x in (-0.4, 0.4) for z in (-0.4, 0.4)]
    parts = [box([-0.45, height / 2 - 0.1, -0.45], [0.45, height / 2, 0.45]), *legs]
    vertices = torch.cat([v for v, _ in parts])
    faces = torch.cat([f + 8 * i for i, (_, f) in enumerate(parts)])
    return Mesh(vertices, faces, (torch.tensor(rgb) / 255).expand(len(vertices), 3).contiguous())


EMPTY_VOLUME = SplatVolume(EMPTY.reshape(1, CHANNELS, 1, 1, 1).repeat(1, 1, *[RESOLUTION] * 3))


@dataclass
class StandIn:
    """Counts what was asked of it. Prompts with "nothing" give empty volumes, those with "fails" an error."""

    licences = ("Stand-in: CC0-1.0",)
    blur = 0.0
    vocabulary = SimpleNamespace(nearest=lambda encoder, prompt, count=3: [("table", 0.1 if "dragon" in prompt else 0.9)])
    encoder = SimpleNamespace(
        config=SimpleNamespace(max_tokens=77), token_counts=lambda prompts: [len(p.split()) + 2 for p in prompts]
    )

    def __post_init__(self) -> None:
        self.made: list[tuple[str, int]] = []
        self.configs = []

    def generate(self, prompts, seeds, config) -> Generator[Progress, None, SimpleNamespace]:
        self.made += zip(prompts, seeds)
        self.configs.append(config)
        volumes = []
        for i, (prompt, seed) in enumerate(zip(prompts, seeds)):
            yield Progress("shape", i + 1, len(prompts), preview=torch.rand(8, 8, 3))
            if "fails" in prompt:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            colours = colour_words(prompt) or ("grey",)
            height = 0.3 + 0.6 * float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))
            volumes.append(
                EMPTY_VOLUME if "nothing" in prompt else surface_volume(table(TARGETS[colours[0]], height), RESOLUTION)
            )
        return SimpleNamespace(volumes=SplatVolume.cat(volumes), agreement=torch.tensor([float(s % 7) for s in seeds]))


if __name__ == "__main__":  # the command line as a process, with the stand-in
    from app import __main__ as entry
    from app import text_pipeline

    text_pipeline.load_generator = lambda folder, device: StandIn()
    sys.exit(entry.main(sys.argv[1:]))
