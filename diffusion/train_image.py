"""Every weight of image to 3-D, rebuilt from a folder of objects: four steps in one work folder, which can be cut and resumed.

    views/        1 views: small pictures of every object (`view_bank`)
    autoencoder/  2 autoencoder: latents of pictures; only for a denoiser of latents
    denoiser/     3 denoiser: the multiview splat denoiser
    weights/      4 pack: the networks in half precision, as `ImageTo3D.load` reads them

Step 1 needs the objects, and draws them on processor cores or on a GPU; steps 2 and 3 train on any device and need the work
folder alone.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffusion.attribution import attribution
from diffusion.data.object_set import licensed
from diffusion.image_config import ImageSampleConfig
from diffusion.image_to_3d import save_image_weights
from diffusion.models.autoencoder import Autoencoder, load_autoencoder
from diffusion.models.from_disk import load_network
from diffusion.models.multiview import MultiviewDenoiser
from diffusion.sample_views import KnownViews, sample_splats
from diffusion.train_autoencoder import AutoencoderTrainConfig, train_autoencoder, validation_sheet
from diffusion.train_multiview import MultiviewTrainConfig, drawn, train_multiview
from diffusion.training import Sheet
from diffusion.view_bank import ViewBank, ViewBankConfig, build_view_bank, cameras_at, open_view_bank
from diffusion.view_space import LatentSpace, PixelSpace, ViewSpace
from splat.errors import InputError
from splat.progress import Progress

STEPS = ("views", "autoencoder", "denoiser", "pack")
SHEET_OBJECTS = 12


@dataclass(frozen=True)
class ImageTrainConfig:
    """What all steps share, and the configs of each."""

    minutes: float = 0.0  # of this sitting; 0 has no limit
    workers: int = 1  # processes of step 1
    device: str = "cpu"
    space: Literal["pixel", "latent"] = "pixel"  # what is denoised: pictures, or the autoencoder's latents
    presumed_licences: bool = False  # also learn from objects whose licence is missing or only presumed
    views: ViewBankConfig = field(default_factory=ViewBankConfig)
    autoencoder: AutoencoderTrainConfig = field(default_factory=AutoencoderTrainConfig)
    denoiser: MultiviewTrainConfig = field(default_factory=MultiviewTrainConfig)


def train_image(step: str, work: Path, objects: Path | None, config: ImageTrainConfig) -> Generator[Progress, None, Path]:
    """Run one of `STEPS` in the folder `work` and return what it wrote. `objects` as for `open_objects`; step 1 needs it.

    Raises InputError when an earlier step's result is missing, with its name.
    """
    if step not in STEPS:
        raise InputError(f"There is no step {step!r}; choose one of {', '.join(STEPS)}.")
    if step == "views":
        if objects is None:
            raise InputError("The step 'views' draws the objects; give their folder.")
        chosen = licensed(objects, config.presumed_licences)
        yield from build_view_bank(chosen, work / "views", config.views, config.workers, config.device)
        return work / "views"
    bank = open_view_bank(work / "views")
    if step == "autoencoder":
        own = replace(config.autoencoder, loop=replace(config.autoencoder.loop, minutes=config.minutes))
        network = yield from train_autoencoder(bank, own, work / step, validation_sheet(bank), config.device)
        network.to("cpu").save_pretrained(work / step / "network", safe_serialization=True)
        return work / step / "network"
    if step == "pack":
        return _pack(bank, work)
    space = _space(config.space, work, config.device)
    own = replace(config.denoiser, loop=replace(config.denoiser.loop, minutes=config.minutes))
    network = yield from train_multiview(bank, own, work / step, sample_sheet(bank, space), config.device, space)
    network.to("cpu").save_pretrained(work / step / "network", safe_serialization=True)
    return work / step / "network"


def sample_sheet(bank: ViewBank, space: ViewSpace, count: int = SHEET_OBJECTS) -> Sheet | None:
    """For `training.train`: validation objects by row: the input, one call seen from four sides, eight calls, the truth."""
    rows = bank.examples("val")[:count]
    if not len(rows):
        return None
    ring = bank.config.ring
    sides = [k * ring // 4 for k in range(4)]

    def sheet(network: MultiviewDenoiser) -> tuple[Tensor, dict[str, float]]:
        device = next(network.parameters()).device
        lines, errors = [], {1: [], 8: []}
        for seed, row in enumerate(rows):
            truth = torch.from_numpy(bank.views[row, sides, ..., :4]).permute(0, 3, 1, 2).float() / 255
            azimuth, elevation = torch.from_numpy(bank.angles[row, sides]).unbind(-1)
            cameras = cameras_at(azimuth - azimuth[0], elevation, bank.config.size)
            pictures = torch.cat([truth[:1], torch.zeros_like(truth[1:])])
            given = KnownViews(pictures, torch.arange(4) == 0, cameras)
            shown = [truth[:1]]
            for steps, found in errors.items():
                made = drawn(sample_splats(network, space, given, seed, ImageSampleConfig(steps)), cameras.to(device)).cpu()
                found.append(float((made[1:] - truth[1:]).square().mean()))
                shown.append(made)
            pictures = torch.cat([*shown, truth[1:]])
            lines.append(torch.cat(list((pictures[:, :3] + 1 - pictures[:, 3:]).clamp(0, 1)), dim=-1))
        figures = {f"error_{steps}": sum(found) / len(found) for steps, found in errors.items()}
        return torch.cat(lines, dim=-2).permute(1, 2, 0), figures

    return sheet


def _space(name: str, work: Path, device: str) -> ViewSpace:
    if name == "pixel":
        return PixelSpace()
    if not (work / "autoencoder" / "network").is_dir():
        raise InputError(f"{work} has no autoencoder/network; run the step 'autoencoder' first.")
    return LatentSpace(load_autoencoder(work / "autoencoder" / "network", device))


def _pack(bank: ViewBank, work: Path) -> Path:
    network = load_network(work / "denoiser" / "network", (MultiviewDenoiser,))
    autoencoder: Autoencoder | None = None
    if network.config.space == "latent":
        autoencoder = load_autoencoder(work / "autoencoder" / "network")
    learnt = [i for i, split in enumerate(bank.splits) if split == "train"]
    facts = {"objects": len(learnt), "examples": len(bank.examples("train"))}
    folder = work / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ATTRIBUTION.md").write_text(attribution(bank, "drawn from all sides"), encoding="utf-8")
    licences = [f"image to 3-D, objects learnt from: {', '.join(sorted({bank.licences[i] for i in learnt}))}"]
    save_image_weights(folder, network, None if autoencoder is None else autoencoder.network, licences, facts)
    return folder
