"""Mending damaged renders with our own network: weights in, a `Repairer` out.

Steps along a Brownian bridge lead from the render to a clean picture; the first network call alone already gives the mean of
what it may have been. Noise is drawn once from the request's seed and shared by its views, so that they are mended alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusion.objective.bridges import bridge_step
from diffusion.weights_folder import BROKEN, FROM_DISK, claim, damaged, read_about, save_network, shipped, write_about
from splat.repair_request import Repairer, RepairRequest

if TYPE_CHECKING:
    from diffusion.models.repair import RepairUNet

FORMAT = "splatsmith-repair-1"
WHAT = "the repair of renders"
NETWORK = "network"
NEEDED = (f"{NETWORK}/config.json", f"{NETWORK}/diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class RepairConfig:
    """How views are mended."""

    steps: int = 1  # network calls a view
    noise: float = 1.0  # of the bridge between the calls, in shares of what the network was trained on; 0 is its mean path
    batch: int = 4  # views at a time


def small_repairer(
    folder: Path | None = None, config: RepairConfig | None = None, device: str | torch.device = "cpu"
) -> Repairer:
    """The network in `folder` of weights, None for the ones that ship. Raises `InputError` where there is none that loads."""
    network = load_repair_network(folder).to(device)
    config = config or RepairConfig()
    return lambda request: mended(network, request, config)


def load_repair_network(folder: Path | None = None) -> RepairUNet:
    """See `small_repairer`."""
    from diffusion.models.repair import RepairUNet

    folder = shipped("repair", WHAT) if folder is None else Path(folder)
    read_about(folder, FORMAT, NEEDED, WHAT)
    try:
        return RepairUNet.from_pretrained(folder / NETWORK, **FROM_DISK).float().eval()
    except BROKEN as error:
        raise damaged(folder, WHAT, error) from error


def repair_licences(folder: Path | None = None) -> list[str]:
    """ "name: licence" of the weights in `folder`, None for the ones that ship. Raises `InputError` where there are none."""
    folder = shipped("repair", WHAT) if folder is None else Path(folder)
    licences = read_about(folder, FORMAT, NEEDED, WHAT).get("licences", [])
    if not (isinstance(licences, list) and all(isinstance(text, str) for text in licences)):
        raise damaged(folder, WHAT, ValueError("its licences are no list of texts"))
    return licences


def save_repair_weights(folder: Path, network: RepairUNet, licences: Sequence[str], facts: dict[str, Any]) -> None:
    """`network` in half precision with `weights.json`; `facts` is anything that JSON holds."""
    claim(folder, FORMAT)
    save_network(network, folder / NETWORK)
    write_about(folder, FORMAT, {"licences": list(licences), **facts})


@torch.no_grad()
def mended(network: RepairUNet, request: RepairRequest, config: RepairConfig) -> Tensor:
    """What the views of `request` should have looked like: [V, H, W, 3] in [0, 1], on the request's device."""
    device = next(network.parameters()).device
    scale = config.noise * network.config.noise
    generator = torch.Generator().manual_seed(request.seed)
    shape = (1, 3, *request.images.shape[1:3])
    noises = [torch.randn(shape, generator=generator).to(device) for _ in range(config.steps - 1)]
    out = []
    for rows in torch.arange(len(request.images)).split(config.batch):
        given = conditions(request, rows, network.config.references).to(device)
        x = given[:, :3]
        for k in range(config.steps):
            t = k / config.steps
            end = network(x, torch.full((len(x),), t, device=device), given)
            last = k == config.steps - 1
            x = end if last else bridge_step(x, end, t, (k + 1) / config.steps, noises[k], scale)
        out.append(x.clamp(0, 1).permute(0, 2, 3, 1))
    return torch.cat(out).to(request.images)


def conditions(request: RepairRequest, rows: Tensor, references: int) -> Tensor:
    """[B, 5 + 4 references, H, W] of the chosen views, as the network reads them; missing photos saw nothing."""
    first = torch.cat([request.images[rows], *(x[rows][..., None] for x in (request.alpha, request.trust))], dim=-1)
    photos = torch.cat([request.warped[rows], request.known[rows][..., None]], dim=-1)[:, :references]  # [B, R, H, W, 4]
    lacking = references - photos.shape[1]
    if lacking > 0:
        photos = torch.cat([photos, photos.new_zeros(len(photos), lacking, *photos.shape[2:])], dim=1)
    return torch.cat([first.permute(0, 3, 1, 2), photos.permute(0, 1, 4, 2, 3).flatten(1, 2)], dim=1)
