"""Pictures of an object to Gaussians by released LGM weights: the same contract as the networks that ship with us.

Four pictures a quarter turn apart go in as they are. From a single one, a multiview pipeline on disk first makes the four.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion.generated import Generated
from diffusion.image_config import ImageSampleConfig
from diffusion.lgm import SIDE, VIEWS, reconstruct
from diffusion.lgm_checkpoint import LICENCE, load_lgm
from diffusion.models.lgm import LGM
from diffusion.multiview_pipeline import MultiviewPipeline, load_multiview_pipeline
from diffusion.subject import Subject
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.progress import Progress
from splat.views import Views

PIPELINE = "multiview"  # folder beside the weights
QUARTERS_DEG = (0.0, 90.0, 180.0, 270.0)
TOLERANCE_DEG = 20.0  # a picture may be this far off its quarter; its rays say so


@dataclass(frozen=True)
class LgmTo3D:
    """The network, and the pipeline for single pictures where there is one."""

    model: LGM
    pipeline: MultiviewPipeline | None
    licences: tuple[str, ...]  # "name: licence"

    @staticmethod
    def load(folder: Path | None, device: torch.device | str = "cpu") -> LgmTo3D:
        """From a folder with LGM's safetensors and, if single pictures are to do, a pipeline in its subfolder `multiview`.

        Raises InputError, with the remedy, where files are missing, damaged or not what they should be.
        """
        if folder is None:
            raise InputError("No LGM weights ship with splatsmith; fetch them yourself and give their folder with --weights.")
        folder = Path(folder)
        model = load_lgm(folder, device)
        beside = multiview_folder(folder)
        if not beside.is_dir():
            return LgmTo3D(model, None, (LICENCE,))
        pipeline = load_multiview_pipeline(beside, device)
        return LgmTo3D(model, pipeline, (LICENCE, f"multiview pipeline {beside.name}: {pipeline.description.licence}"))

    @property
    def side(self) -> int:
        """Pixels along the side of the pictures that the network reads."""
        return SIDE

    def generate(
        self, subjects: Sequence[Subject], seed: int, config: ImageSampleConfig
    ) -> Generator[Progress, None, Generated]:
        """One object from its pictures, the main one at azimuth 0. `seed` is the pipeline's; of `config`, `threads` counts.

        Yields Progress("views", ...) after a pipeline and Progress("splats", ...), with a preview. Raises InputError for
        pictures that are not a quarter turn apart, or a single one without a pipeline.
        """
        if len(subjects) == 1 and self.pipeline is not None:
            subject = subjects[0]
            made = self.pipeline(subject.on(), seed, subject.elevation_deg)
            yield Progress("views", 1, 1, f"{len(made)} views from one picture", made.images[0])
            views = quarter_views(made, _seen([subject]))
        else:
            views = quarter_views(_seen(subjects))
        splats = reconstruct(self.model, views)
        drawn = _rendered(splats, views, config.threads)
        yield Progress("splats", 1, 1, f"{len(splats):,} Gaussians", drawn.images[0])
        return Generated(splats, drawn)


def multiview_folder(weights: Path) -> Path:
    """Where the pipeline for single pictures lies, beside the weights or in their folder; it may not exist."""
    return (weights if weights.is_dir() else weights.parent) / PIPELINE


def quarter_views(views: Views, instead: Views | None = None) -> Views:
    """The four of `views` (with cameras, +Y up) nearest to azimuth 0, 90, 180 and 270 degrees, in that order, at `SIDE` px.

    A quarter that `views` lack is taken from `instead`. Raises InputError when one is nowhere within `TOLERANCE_DEG`.
    """
    views = views.resized(SIDE, SIDE)
    pool = views if instead is None else _joined(views, instead.resized(SIDE, SIDE))
    x, _, z = pool.cameras.centers.unbind(1)
    azimuths = torch.rad2deg(torch.atan2(x, z))
    chosen = []
    for quarter in QUARTERS_DEG:
        off = ((azimuths - quarter + 180) % 360 - 180).abs()
        own = off[: len(views)]
        row = int(own.argmin()) if float(own.min()) <= TOLERANCE_DEG else int(off.argmin())
        if float(off[row]) > TOLERANCE_DEG:
            have = ", ".join(f"{a:.0f}" for a in (azimuths % 360).tolist())
            raise InputError(
                f"LGM wants {VIEWS} pictures at azimuths 0, 90, 180 and 270 degrees, and none of those at {have} is near "
                f"{quarter:.0f}; give all four with their azimuths, or one picture and a multiview pipeline in {PIPELINE}/."
            )
        chosen.append(row)
    return pool[chosen]


def _seen(subjects: Sequence[Subject]) -> Views:
    """The pictures on white, at `SIDE` px, with their cameras."""
    if not subjects:
        raise InputError(f"LGM wants {VIEWS} pictures of an object and got none.")
    small = [s.view(f"picture_{i}").resized(SIDE, SIDE) for i, s in enumerate(subjects)]
    images, cameras = torch.cat([v.images for v in small]), Cameras.cat([v.cameras for v in small])
    return Views(images, tuple(v.names[0] for v in small), cameras)


def _joined(a: Views, b: Views) -> Views:
    return Views(torch.cat([a.images, b.images]), a.names + b.names, Cameras.cat([a.cameras, b.cameras]))


def _rendered(splats: Splats, views: Views, threads: int | None) -> Views:
    from splat.render import RenderOptions, render

    with torch.no_grad():
        out = render(splats, views.cameras, RenderOptions(background=torch.ones(3), threads=threads))
    return Views(out.rgb.clamp(0, 1), views.names, views.cameras, out.alpha.clamp(0, 1))
