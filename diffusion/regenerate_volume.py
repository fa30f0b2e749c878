"""An object again from the text model: its surface as a coarse distance field, partly noised, denoised, and made Gaussians.

SDEdit (Meng et al. 2022) on the latent of the field: the stronger the noise, the less of the object is left. The model's later
stages, detail and attributes, follow as for a sentence.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from diffusion.fit_volume import fitting_cameras
from diffusion.text_config import TextSampleConfig
from diffusion.text_to_volume import TextToVolume
from splat.errors import StoppedLate
from splat.gaussians import Splats
from splat.progress import Progress
from splat.prune import visibility
from splat.render import RenderOptions

ANYTHING = "an object"  # what the later stages are told where there is no prompt; they were never trained without
CAMERAS, SIDE = 24, 96  # pictures and px from which the surface is told from what lies inside
LEAST_SEEN = 0.5  # px of a Gaussian in the best of those pictures


def surface_of(splats: Splats, threads: int | None = None) -> Splats:
    """The Gaussians that are seen from anywhere around, of an object in the networks' frame.

    Raises `StoppedLate` where there are none.
    """
    cameras = fitting_cameras(CAMERAS, SIDE)
    seen = visibility(splats, [cameras], RenderOptions(threads=threads)) > LEAST_SEEN
    inside = (splats.means.abs() < 0.75).all(-1)  # what floats outside of the cube would move no node of the field
    if not bool((seen & inside).any()):
        raise StoppedLate("Nothing of the object is seen from around, so it has no surface to put into a volume.")
    return splats[seen & inside]


def regenerated_volume(
    model: TextToVolume, splats: Splats, prompt: str, seed: int, config: TextSampleConfig
) -> Generator[Progress, None, Splats]:
    """`splats` of an object in the networks' frame -> the model's Gaussians of it, there too.

    Without a prompt the shape is denoised without guidance by words. Yields the events of `TextToVolume.generate`;
    the same for the same seed on CPU.
    """
    config = config if prompt else replace(config, guidance=0.0)
    samples = yield from model.generate([prompt or ANYTHING], [seed], config, surface_of(splats, config.threads))
    made = samples.volumes.to_splats(0)
    return made.widened(model.blur) if model.blur else made
