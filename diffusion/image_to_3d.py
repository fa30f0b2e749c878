"""Pictures of an object in, Gaussians out: the shipped network put together, and how it is kept on disk.

One picture or several become the known views of the multiview denoiser, the others start as noise, and every step of the
sampler passes through Gaussians (DSplats, Miao et al. 2024). A folder of weights (`weights_folder`) holds the denoiser and,
where it denoises latents, their autoencoder.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.generated import Generated
from diffusion.image_config import ImageSampleConfig
from diffusion.models.from_disk import load_network
from diffusion.models.multiview import MultiviewDenoiser
from diffusion.sample_views import KnownViews, sampling
from diffusion.subject import Subject
from diffusion.view_bank import cameras_at
from diffusion.view_space import LatentSpace, PixelSpace, ViewSpace
from diffusion.weights_folder import BROKEN, claim, damaged, read_about, save_network, shipped, write_about
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.progress import Progress
from splat.render import RenderOptions, render
from splat.views import Views

FORMAT = "splatsmith image 1"
WHAT = "image to 3-D"
VIEWS = 4  # of which the network was trained to make an object
MAX_VIEWS = 8  # known and unknown together
RING_ELEVATION_DEG = 20.0  # of the views that the network makes up
PREVIEW_SIDE = 192  # px


@dataclass(frozen=True)
class ImageTo3D:
    """The denoiser and the space in which it denoises."""

    network: MultiviewDenoiser
    space: ViewSpace
    licences: tuple[str, ...]  # "name: licence" of what it learnt from
    facts: dict  # of weights.json

    @property
    def side(self) -> int:
        """Pixels of a `Subject`."""
        return self.network.config.side

    @staticmethod
    def load(folder: Path | None = None, device: torch.device | str = "cpu") -> ImageTo3D:
        """From a folder that `save_image_weights` wrote; None: the weights that ship with the package.

        Raises InputError when a file is missing, damaged, altered or of another shape, with the remedy.
        """
        folder = shipped("image", WHAT) if folder is None else Path(folder)
        needed = ["denoiser/config.json", "denoiser/diffusion_pytorch_model.safetensors"]
        about = read_about(folder, FORMAT, needed, WHAT)
        try:
            network = load_network(folder / "denoiser", (MultiviewDenoiser,))
            space = _space(folder, network.config.space, device)
            shape = space.encode(torch.zeros(1, 4, network.config.side, network.config.side, device=device)).shape
            if shape[1] != network.config.channels:
                raise ValueError(f"a denoiser of {network.config.channels} channels and a space of {shape[1]}")
            licences, facts = tuple(str(x) for x in about["licences"]), about["facts"]
        except BROKEN as error:
            raise damaged(folder, WHAT, error) from error
        network = network.to(device).to(memory_format=torch.channels_last).requires_grad_(False)
        return ImageTo3D(network, space, licences, facts)

    def generate(
        self, subjects: Sequence[Subject], seed: int, config: ImageSampleConfig
    ) -> Generator[Progress, None, Generated]:
        """Pictures of one object, the main one first, to Gaussians; the same for the same seed on CPU.

        Yields `Progress("views", call, calls)` with a preview [H, W, 3] of the Gaussians so far. Raises InputError for text
        where the network takes none.
        """
        given = self.known(subjects)
        job = sampling(self.network, self.space, given, seed, config, self._sentence(config.text))
        splats, total = None, config.steps
        for done, splats in enumerate(job, start=1):
            yield Progress("views", done, total, preview=preview_of(splats.to("cpu"), config.threads))
        splats = splats.to("cpu")
        cameras = given.cameras.to("cpu")
        out = render(splats, cameras, RenderOptions(background=torch.ones(3), threads=config.threads))
        names = tuple(f"view_{i:03d}" for i in range(len(cameras)))
        return Generated(splats, Views(out.rgb.clamp(0, 1), names, cameras, out.alpha))

    @property
    def takes_text(self) -> bool:
        return bool(self.network.config.text_channels)

    def _sentence(self, text: str) -> Tensor | None:
        """[text_channels]; None for no text."""
        if not text:
            return None
        if not self.takes_text:
            raise InputError("These weights take no text; leave it out, or train some that do (train image-denoiser --text).")
        from diffusion.text_encoder import load_text_encoder

        pooled = load_text_encoder().encode([text]).pooled[0].clone()  # of inference mode, which networks cannot take
        if len(pooled) != self.network.config.text_channels:
            raise InputError(
                f"These weights take sentences of {self.network.config.text_channels} numbers and the text encoder makes "
                f"{len(pooled)}; leave the text out."
            )
        return pooled

    def known(self, subjects: Sequence[Subject]) -> KnownViews:
        """The pictures as known views, and views to make up where they leave gaps.

        Raises InputError for none, for too many, for pictures of another size, and for a main picture not at azimuth 0.
        """
        if not 1 <= len(subjects) <= MAX_VIEWS:
            raise InputError(f"{len(subjects)} pictures of one object were given; give 1 to {MAX_VIEWS}.")
        if subjects[0].azimuth_deg != 0:
            raise InputError(
                f"The main picture is at azimuth {subjects[0].azimuth_deg:g}; the others are relative to it, at 0."
            )
        if any(s.side != self.side for s in subjects):
            raise InputError(f"Subjects are {sorted({s.side for s in subjects})} px; this network takes {self.side}.")
        azimuths = [s.azimuth_deg for s in subjects]
        elevations = [s.elevation_deg for s in subjects] + [RING_ELEVATION_DEG] * max(VIEWS - len(subjects), 0)
        for _ in range(VIEWS - len(subjects)):
            azimuths.append(widest_gap(azimuths))
        pictures = torch.zeros(len(azimuths), 4, self.side, self.side)
        for i, s in enumerate(subjects):
            pictures[i] = torch.cat([s.image * s.alpha[..., None], s.alpha[..., None]], dim=-1).permute(2, 0, 1)
        radians = [torch.tensor([math.radians(d) for d in degrees]) for degrees in (azimuths, elevations)]
        return KnownViews(pictures, torch.arange(len(azimuths)) < len(subjects), cameras_at(*radians, self.side))


def save_image_weights(
    folder: Path, network: MultiviewDenoiser, autoencoder: nn.Module | None, licences: Sequence[str], facts: dict
) -> None:
    """Everything in half precision, and weights.json last. `facts` is anything that JSON holds.

    Raises InputError for a folder that holds weights of another kind.
    """
    claim(folder, FORMAT)
    parts = {"denoiser": network} | ({} if autoencoder is None else {"autoencoder": autoencoder})
    for name in ("denoiser", "autoencoder"):  # what an earlier call left would be listed, and shipped
        shutil.rmtree(folder / name, ignore_errors=True)
    for name, part in parts.items():
        save_network(part, folder / name)
    write_about(folder, FORMAT, {"licences": list(licences), "facts": facts})


def _space(folder: Path, name: str, device: torch.device | str) -> ViewSpace:
    if name == "pixel":
        return PixelSpace()
    from diffusion.models.autoencoder import load_autoencoder

    return LatentSpace(load_autoencoder(folder / "autoencoder", device))


def widest_gap(azimuths: Sequence[float]) -> float:
    """Degrees in the middle of the widest gap between directions round the object; the back where there is only the front.

    With one picture the three views made up stand at 180, 90 and 270 degrees.
    """
    turned = sorted(a % 360 for a in azimuths)
    gaps = [(b - a, a) for a, b in zip(turned, [*turned[1:], turned[0] + 360], strict=True)]
    width, start = max(gaps, key=lambda gap: (gap[0], -gap[1]))
    return (start + width / 2) % 360


@torch.no_grad()
def preview_of(splats: Splats, threads: int | None) -> Tensor:
    camera: Cameras = cameras_at(
        torch.tensor([math.radians(35.0)]), torch.tensor([math.radians(RING_ELEVATION_DEG)]), PREVIEW_SIDE
    )
    options = RenderOptions(background=torch.ones(3), threads=threads)
    return render(splats, camera, options).rgb[0].clamp(0, 1)
