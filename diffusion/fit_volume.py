"""Fitting a `SplatVolume` to pictures of an object: GVGEN's offline stage (He et al. 2024, section 3.1).

The volume starts from the object's surface rather than from a full grid of equal Gaussians, which leaves the optimiser
hundreds of steps to do in place of GVGEN's 20,000. `fit_volume` fits one object; `diffusion.fit_volumes` many.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.candidate_pool import Grid, pool_edit, reactivation
from diffusion.data.object_views import DISTANCE, FOV_DEG
from diffusion.volume import ACTIVE_LOGIT, SCALES, SplatVolume
from splat.cameras import Cameras, intrinsics
from splat.densify import Edit, apply_edit, error_shares
from splat.errors import InputError, StoppedLate
from splat.gaussians import Splats
from splat.losses import photometric
from splat.metrics import psnr
from splat.progress import Progress
from splat.render import RenderOptions, native, render
from splat.views import Views

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VolumeFitConfig:
    """Every knob of the fit of one volume."""

    resolution: int = 32  # nodes to a side, 16 to 64
    max_offset: float = 1.5  # spacings a Gaussian may be from its node, per axis; 0 keeps it on the node
    steps: int = 300  # optimiser steps, one view each
    views: int = 40  # pictures the object is fitted to, all around it
    view_side: int = 128  # px of those pictures
    pool: bool = True  # the Candidate Pool Strategy; False keeps the nodes that the surface gave
    edit_from: float = 0.03  # fraction of the fit before the first edit
    edit_until: float = 0.15  # fraction of the fit after which nodes stay
    edits: int = 2  # in all
    error_views: int = 6  # pictures whose error decides where Gaussians are split
    growth: float = 0.1  # share of the Gaussians that one edit may split
    clone_below: float = 0.2  # spacings: smaller Gaussians are cloned, not split
    reactivate: float = 0.0  # opacity that free nodes beside taken ones get after the last edit; 0 leaves them free
    lr_means: float = 0.08  # spacings
    lr_quats: float = 0.03
    lr_log_scales: float = 0.06
    lr_opacity_logits: float = 0.1
    lr_colour: float = 0.03
    lr_final: float = 0.1  # the share of every rate that is left at the end, reached exponentially
    ssim_weight: float = 0.2  # share of (1 - SSIM) in the photometric loss
    random_background: bool = True  # a new colour behind the object at each step, so that nothing see-through passes
    seed: int = 0
    report_every: int = 50  # steps between progress events
    backend: str = "auto"  # renderer
    threads: int | None = None  # CPU threads of the renderer

    def __post_init__(self) -> None:
        if not 16 <= self.resolution <= 64:
            raise InputError(f"A volume of {self.resolution} nodes to a side was asked for; choose 16 to 64.")
        if self.steps < 0 or self.views < 1 or not 16 <= self.view_side <= 1024:
            raise InputError(
                f"{self.steps} steps on {self.views} views of {self.view_side} px cannot be fitted; "
                "choose steps >= 0, views >= 1 and 16 to 1024 px."
            )


def fitting_cameras(count: int, side: int, seed: int = 0) -> Cameras:
    """`count` cameras of the object protocol's lens and distance, evenly over the sphere, turned at random by `seed`."""
    i = torch.arange(count, dtype=torch.float64)
    y = 1 - (2 * i + 1) / count  # a Fibonacci sphere
    turn = float(torch.rand(1, generator=torch.Generator().manual_seed(seed))) * 2 * math.pi
    azimuth = turn + i * math.pi * (3 - 5**0.5)
    ring = (1 - y * y).sqrt()
    eyes = DISTANCE * torch.stack([ring * azimuth.sin(), y, ring * azimuth.cos()], dim=-1)
    K = intrinsics(0.5 * side / math.tan(math.radians(FOV_DEG) / 2), side, side)
    return Cameras.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]), K, side, side)


def fit_volume(initial: SplatVolume, views: Views, config: VolumeFitConfig) -> Generator[Progress, None, SplatVolume]:
    """Fit the one cube of `initial` to posed, masked `views` on white (all on one device, which decides where it runs).

    Yields `Progress("volume", ...)` with `values` psnr (running mean, dB) and gaussians; returns the fitted volume, with
    at most one Gaussian to a node and every one within `config.max_offset` of its own. Deterministic under `config.seed` on
    CPU. Raises `InputError` for an empty volume, `StoppedLate` when the numbers diverge.
    """
    assert len(initial) == 1 and initial.resolution == config.resolution, (len(initial), initial.resolution)
    assert views.cameras is not None and views.masks is not None, "fitting needs cameras and masks"
    device = views.images.device
    grid = Grid(initial.resolution, initial.side, config.max_offset)
    nodes = initial.active[0].flatten().nonzero().squeeze(-1).to(device)
    if len(nodes) == 0:
        raise InputError("There is no Gaussian in the volume to fit; start from a mesh with a visible surface.")
    parameters = _parameters(initial.to_splats().to(device))
    optimiser = _optimiser(parameters, config, grid)
    rates = {group["name"]: group["lr"] for group in optimiser.param_groups}
    generator = torch.Generator().manual_seed(config.seed)
    edit_steps = _edit_steps(config)
    order, running = [], None
    _keep_within(parameters, nodes, grid)

    def draw(splats: Splats, view: int, backdrop: Tensor) -> tuple[Tensor, Tensor]:
        truth = views.images[view, None] + (1 - views.masks[view, None, ..., None]) * (backdrop - 1)
        options = RenderOptions(background=backdrop, threads=config.threads)
        return render(splats, views.cameras[view], options, config.backend).rgb, truth

    for step in range(1, config.steps + 1):
        if not order:  # every view once, in a new order
            order = torch.randperm(len(views), generator=generator).tolist()
        view = order.pop()
        fraction = (step - 1) / config.steps
        for group in optimiser.param_groups:
            group["lr"] = rates[group["name"]] * config.lr_final**fraction
        backdrop = torch.rand(3, generator=generator) if config.random_background else torch.ones(3)
        try:
            image, truth = draw(_splats(parameters), view, backdrop.to(device))
        except InputError as error:  # the last step's gradient made numbers that the renderer refuses
            raise StoppedLate(f"The volume's fit diverged at step {step} of {config.steps}; try another seed.") from error
        loss = photometric(image, truth, config.ssim_weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        _keep_within(parameters, nodes, grid)

        if step in edit_steps:
            edited = _edit(parameters, nodes, grid, config, draw, generator, len(views), last=step == max(edit_steps))
            if edited is not None:
                apply_edit(edited[0], parameters, optimiser)
                nodes = edited[1]
                _keep_within(parameters, nodes, grid)
        if step % config.report_every == 0 or step == config.steps:
            value = float(psnr(image.detach().clamp(0, 1), truth).mean())
            running = value if running is None else 0.8 * running + 0.2 * value
            preview = image[0].detach().clamp(0, 1)
            yield Progress("volume", step, config.steps, preview=preview, values={"psnr": running, "gaussians": len(nodes)})

    splats = _splats(parameters).detach()
    finite = all(bool(x.isfinite().all()) for x in parameters.values())
    if not finite:
        raise StoppedLate("The volume's fit ended with numbers that are not finite; try another seed.")
    seen = splats.opacity_logits > ACTIVE_LOGIT
    return SplatVolume.from_splats(splats[seen], nodes[seen], grid.resolution, grid.side, config.max_offset)


def _edit(parameters, nodes, grid, config, draw, generator, views: int, last: bool) -> tuple[Edit, Tensor] | None:
    splats = _splats(parameters).detach()
    if last and config.reactivate > 0:
        return reactivation(splats, nodes, grid, config.reactivate)
    chosen = torch.randperm(views, generator=generator)[: config.error_views].tolist()
    white = torch.ones(3, device=nodes.device)
    score = error_shares(splats, lambda s, view: draw(s, view, white), chosen)
    reach = Grid(grid.resolution, grid.side, max(grid.reach, 0.5))  # without offsets, to the node nearest to the half
    return pool_edit(splats, nodes, score, int(config.growth * len(nodes)), reach, config.clone_below)


def _edit_steps(config: VolumeFitConfig) -> set[int]:
    if not config.pool or config.edits < 1:
        return set()
    first, last = config.edit_from * config.steps, config.edit_until * config.steps
    return {max(round(first + (last - first) * i / max(config.edits - 1, 1)), 1) for i in range(config.edits)}


@torch.no_grad()
def _keep_within(parameters: dict[str, Tensor], nodes: Tensor, grid: Grid) -> None:
    """Means to their nodes' surroundings, scales to what a volume holds: a projection after each step, so bounds are exact."""
    home, bound = grid.positions(nodes), grid.reach * grid.spacing
    parameters["means"].copy_(torch.minimum(torch.maximum(parameters["means"], home - bound), home + bound))
    low, high = (math.log(s * grid.spacing) for s in SCALES)
    parameters["log_scales"].clamp_(low, high)


def _parameters(splats: Splats) -> dict[str, Tensor]:
    leaves = {
        "means": splats.means,
        "quats": splats.quats,
        "log_scales": splats.log_scales,
        "opacity_logits": splats.opacity_logits,
        "sh": splats.sh,
    }
    return {name: x.detach().float().contiguous().clone().requires_grad_() for name, x in leaves.items()}


def _splats(p: dict[str, Tensor]) -> Splats:
    return Splats(p["means"], p["quats"], p["log_scales"], p["opacity_logits"], p["sh"])


def _optimiser(parameters: dict[str, Tensor], config: VolumeFitConfig, grid: Grid) -> torch.optim.Adam:
    rates = {
        "means": config.lr_means * grid.spacing,
        "quats": config.lr_quats,
        "log_scales": config.lr_log_scales,
        "opacity_logits": config.lr_opacity_logits,
        "sh": config.lr_colour,
    }
    groups = [{"params": [x], "lr": rates[name], "name": name} for name, x in parameters.items()]
    if parameters["means"].device.type == "cpu" and native.available():
        from splat.render.native.adam import NativeAdam

        return NativeAdam(groups, eps=1e-15, threads=config.threads)
    return torch.optim.Adam(groups, eps=1e-15, fused=parameters["means"].is_cuda)
