"""Fitting splats to posed views: `fit`, the training loop of 3DGS as a generator of `Progress`.

"3D Gaussian Splatting for Real-Time Radiance Field Rendering" (Kerbl et al. 2023), section 5, with the options that few
photographs need: regularisers, random background behind masked subjects, per-photo exposure, pose refinement.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.checkpoint import load_state, save_state
from splat.densify import Densify, ErrorDensify, MCMCDensify, Observations, apply_edit, error_shares
from splat.errors import InputError, StoppedLate, check_finite
from splat.gaussians import Splats
from splat.losses import photometric
from splat.metrics import psnr
from splat.moving_cameras import MovingCameras
from splat.progress import Progress
from splat.prune import visibility
from splat.regularise import Priors, Regulariser, RegulariserConfig
from splat.render import Rendering, RenderOptions, native, render
from splat.render.native.step import FusedSteps, StepsResult, Turn
from splat.views import Views

MANY_PHOTOS = 40
COARSEST = 64  # px, long side below which no photo is drawn smaller
LIMIT_EVERY = 50  # steps between two enforcements of `max_scale`
AVERAGE_EVERY = 25  # steps between two looks at the splats whose mean is the result
TOGETHER = 25  # steps in one call of the kernels, at most: Python's share is small, and Ctrl-C is still heard soon
# Bytes a Gaussian costs in training at SH degree 3: value, gradient, two Adam moments of 59 floats, and the renderer's
# records and sums (about as much again).
BYTES_PER_GAUSSIAN = 59 * 4 * 4 * 2


@dataclass(frozen=True)
class FitConfig:
    """Every knob of the fit. Learning rates are 3DGS's unless a comment says otherwise."""

    steps: int = 2500  # optimiser steps, one view each
    sh_degree: int = 3  # highest spherical-harmonics degree: how much colour may change with the viewpoint
    sh_every: float = 0.1  # fraction of the steps between unlocking one SH degree and the next
    lr_means: float = 1.6e-4  # times the scene's extent, world units
    lr_means_final: float = 1.6e-6  # reached at the last step, exponentially
    lr_quats: float = 1e-3
    lr_log_scales: float = 5e-3
    lr_opacity_logits: float = 5e-2
    lr_sh0: float = 2.5e-3
    lr_sh_rest: float = 2.5e-3 / 20
    ssim_weight: float = 0.2  # share of (1 - SSIM) in the photometric loss
    opacity_regulariser: float = 0.01  # weight of the mean opacity: lets what no photo needs fade
    scale_regulariser: float = 0.01  # weight of the mean scale in units of the scene's extent: no needless giants
    # Largest standard deviation, as a share of the distance to the nearest camera (0.05 is 3 degrees). Without it, needles
    # along the view rays and clouds under the floor look right from every photo and wrong from anywhere else.
    max_scale: float = 0.05
    # Gaussians whose blending weights never add up to this many pixels in any photo are dropped at the end: they lie under
    # the floor or behind walls, and show only from where nobody took a photo. 0 keeps all.
    min_visibility: float = 0.5
    densify: Densify = field(default_factory=MCMCDensify)  # how Gaussians are added and removed
    max_gaussians: int = 100_000  # never more than this
    memory_budget: int | None = None  # bytes the fit may use; lowers the cap on Gaussians
    # Photos drawn smaller at first: (until this fraction of the fit, at this scale), the first that holds.
    coarse: tuple[tuple[float, float], ...] = ()
    # A new colour behind the splats at each step: masked subjects get a clean outline, whole photos get no see-through holes.
    random_background: Literal["never", "masked", "always"] = "always"
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # sRGB that masked views are composited on, and renders show
    antialiased: bool = False  # compensate opacity for the pixel low-pass (Mip-Splatting)
    exposure: bool = False  # learn a colour gain and offset per photo; the average photo keeps its own
    lr_exposure: float = 2e-3
    regularise: RegulariserConfig = field(default_factory=RegulariserConfig)  # what few photos need beside that; all off
    # Fraction of the fit from which on the result is the mean of what the splats were, so that the last steps' noise is not in
    # it; 1 takes the last step alone.
    average_from: float = 1.0
    refine_poses: bool = False  # let cameras move with the fit; together they neither move, turn nor grow
    lr_poses: float = 2e-4  # radians, and units of the scene's extent
    lr_poses_final: float = 2e-6  # reached at the last step, exponentially
    seed: int = 0
    checkpoint_every: int = 250  # steps between states on disk
    report_every: int = 25  # steps between progress events
    backend: str = "auto"  # renderer
    threads: int | None = None  # CPU threads of the renderer

    @staticmethod
    def for_photos(count: int, **changes) -> FitConfig:
        """The defaults, or from `MANY_PHOTOS` on what is faster and better there; `changes` override fields of either.

        Many photos leave little to guess: splitting where the error is, weak regularisers and fast view-dependent colours
        then win, and lose with a dozen photos, where they explain each photo on its own (benchmarks/README.md).
        """
        if count < MANY_PHOTOS:
            return FitConfig(**changes)
        many = {
            "densify": ErrorDensify(),
            "coarse": ((0.15, 0.25), (0.4, 0.5)),
            "opacity_regulariser": 0.002,
            "scale_regulariser": 0.002,
            "sh_every": 0.05,
            "lr_sh0": 5e-3,
            "lr_sh_rest": 2.5e-4,
        }
        return FitConfig(**(many | changes))


@dataclass(frozen=True)
class FitResult:
    splats: Splats
    cameras: list[Cameras]  # one batch per `Views`, refined when asked
    exposures: Tensor  # [C, 2, 3] gain and offset per photo, all views in order
    train_psnr: float  # dB, mean over the training views after exposure
    steps: int


def scene_extent(views: list[Views]) -> float:
    """The cameras' spread (3DGS): 1.1 x the largest distance of a camera from their mean, world units; never 0."""
    centers = torch.cat([v.cameras.centers for v in views])
    return 1.1 * max(float((centers - centers.mean(0)).norm(dim=-1).max()), 1e-3)


def gaussian_cap(config: FitConfig, views: list[Views]) -> int:
    """`max_gaussians`, lowered to what the memory budget leaves beside the photos.

    Raises `InputError` when the photos alone do not fit.
    """
    if config.memory_budget is None:
        return config.max_gaussians
    photos = sum(v.images.numel() * 4 * 1.34 for v in views)  # image and mask
    largest = max(v.size[0] * v.size[1] for v in views)
    room = config.memory_budget - photos - largest * 3 * 4 * 40  # renders, their gradients and the SSIM maps
    cap = int(room // BYTES_PER_GAUSSIAN)
    if cap < 1000:
        raise InputError(
            f"A memory budget of {config.memory_budget / 2**30:.2f} GB leaves no room for the fit beside "
            f"{photos / 2**30:.2f} GB of photos; give a larger --memory-budget or a smaller --max-side."
        )
    return min(cap, config.max_gaussians)


def fit(
    views: list[Views], initial: Splats, config: FitConfig, state: Path | None = None, priors: Priors | None = None
) -> Generator[Progress, None, FitResult]:
    """Fit `initial` to posed `views` (all on one device, which decides where the work runs).

    Masked views must already be composited on `config.background`. Yields `Progress("fit", ...)` with `values` psnr
    (running mean, dB), loss and gaussians; returns `FitResult`. With `state` (a file path) the state is saved as the
    fit goes, and an existing state of the same inputs and config is continued: on CPU, to the same bits as an
    undisturbed run. `priors` are what some terms of `config.regularise` compare with. Raises `InputError` for a state of other
    inputs and for missing priors, `StoppedLate` when the numbers diverge.
    """
    assert views and all(v.cameras is not None for v in views), "fit needs posed views"
    device = views[0].images.device
    extent, cap = scene_extent(views), gaussian_cap(config, views)
    flat = [(v, i) for v in range(len(views)) for i in range(len(views[v]))]
    if len(initial) == 0:
        raise StoppedLate("There is no Gaussian to start from; the photos share too little for a first estimate.")
    most = max(round(config.densify.first * cap), 1)
    if len(initial) > most:
        order = torch.randperm(len(initial), generator=_generator(config.seed, -1))[:most].sort().values
        initial = initial[order.to(initial.means.device)]
    parameters = _parameters(initial.with_sh_degree(config.sh_degree).to(device))
    exposures = torch.zeros(len(flat), 2, 3, device=device, requires_grad=True)  # around gain 1, offset 0
    moving = MovingCameras(views, extent, config.lr_poses, config.lr_poses_final) if config.refine_poses else None
    optimiser = _optimiser(parameters, exposures, config, extent)
    seen = Observations.empty(len(initial), device)
    centers = torch.cat([v.cameras.centers for v in views])
    fingerprint = _fingerprint(views, initial, config, tuple(parameters), priors)
    regulariser = None
    if config.regularise.active:
        regulariser = Regulariser(config.regularise, views, priors, config.backend)
    step, running, mean = 0, None, None
    if state is not None and state.exists():
        step, running, seen, mean = _restore(state, fingerprint, parameters, exposures, moving, optimiser, device)

    @functools.lru_cache(maxsize=1)
    def order_of(epoch: int) -> list[int]:
        return torch.randperm(len(flat), generator=_generator(config.seed, -2 - epoch)).tolist()

    @functools.lru_cache(maxsize=1)
    def at_scale(scale: float) -> list[Views]:
        return views if scale == 1 else [_smaller(v, scale) for v in views]

    def turn_of(photo: int, step: int, backdrop: tuple[float, float, float]) -> Turn:
        """What step number `step`, counted from 0, does when it looks at `photo` on `backdrop`."""
        v, i = flat[photo]
        view = at_scale(next((s for until, s in config.coarse if step < until * config.steps), 1.0))[v]
        return Turn(
            photo=view.images[i],
            cam_from_world=view.cameras.cam_from_world[i],
            K=view.cameras.K[i],
            sh_degree=min(config.sh_degree, int(step / max(config.sh_every * config.steps, 1))),
            lr_means=extent * _decayed(config.lr_means, config.lr_means_final, step / config.steps),
            mask=None if view.masks is None else view.masks[i],
            backdrop=backdrop,
            tint=tuple(a - b for a, b in zip(backdrop, config.background)),
            exposure=photo,
            key=_seed(config.seed, step),
        )

    def turn_at(step: int) -> tuple[Turn, torch.Generator]:
        """The turn of a step, and where all later random numbers of this step come from."""
        photo = order_of(step // len(flat))[step % len(flat)]  # every photo once, then again in a new order
        generator = _generator(config.seed, step)
        backdrop, masked = config.background, views[flat[photo][0]].masks is not None
        if config.random_background == "always" or (config.random_background == "masked" and masked):
            backdrop = tuple(torch.rand(3, generator=generator).tolist())
        return turn_of(photo, step, backdrop), generator

    def draw(splats: Splats, turn: Turn, options: RenderOptions) -> tuple[Tensor, Tensor, Rendering]:
        """The photo as splats and exposure explain it, the photo itself [both 1, H, W, 3], and the rendering."""
        truth, pose, backdrop = turn.truth()[None], turn.cam_from_world[None], torch.tensor(turn.backdrop, device=device)
        if moving is not None:
            pose = moving.moved(turn.exposure, pose)
        cameras = Cameras(pose, turn.K[None], truth.shape[2], truth.shape[1])
        background = None if config.exposure else backdrop
        options = dataclasses.replace(options, background=background, sh_degree=turn.sh_degree)
        rendering = render(splats, cameras, options, config.backend)
        image = rendering.rgb
        if config.exposure:
            gain, offset = 1 + exposures[turn.exposure, 0], exposures[turn.exposure, 1]
            image = image * gain + offset * rendering.alpha[..., None] + (1 - rendering.alpha[..., None]) * backdrop
        return image, truth, rendering

    def draw_plainly(splats: Splats, photo: int) -> tuple[Tensor, Tensor, Rendering]:
        return draw(splats, turn_of(photo, step - 1, config.background), options)

    def step_by_autograd(turn: Turn, generator: torch.Generator) -> StepsResult:
        nonlocal seen
        drawn = splats = _splats(parameters)
        if regulariser is not None:
            drawn = regulariser.drawn(splats, step / config.steps, generator)
        image, truth, rendering = draw(drawn, turn, dataclasses.replace(options, track_means2d=config.densify.needs_means2d))
        photo_loss = loss = photometric(image, truth, config.ssim_weight)
        if regulariser is not None:
            height, width = truth.shape[1:3]
            camera = Cameras(turn.cam_from_world[None], turn.K[None], width, height)
            loss = loss + regulariser.of_photo(turn.exposure, camera, rendering, generator)
            backdrop = torch.tensor(turn.backdrop, device=device)
            between = dataclasses.replace(options, sh_degree=turn.sh_degree)
            loss = loss + regulariser.of_virtual_view(drawn, step, between, backdrop, generator)
        if config.opacity_regulariser:
            loss = loss + config.opacity_regulariser * splats.opacities.mean()
        if config.scale_regulariser:
            loss = loss + config.scale_regulariser * splats.scales.mean() / extent
        losses = torch.stack([photo_loss, loss]).detach().tolist()  # one wait for a GPU
        if not math.isfinite(losses[1]):
            return StepsResult(image, truth, *losses, done=0)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if config.densify.needs_means2d:
            seen = config.densify.observe(seen, rendering, image.shape[2], image.shape[1])
        for group in optimiser.param_groups:
            if group["name"] == "means":
                group["lr"] = turn.lr_means
        optimiser.step()
        if moving is not None:
            moving.step(step / config.steps)
        with torch.no_grad():
            if config.exposure:
                exposures.sub_(exposures.mean(0))  # the gauge: the average photo is right
            if config.densify.noise:
                jitter = config.densify.perturb(_geometry(parameters), turn.lr_means / extent**2, generator)
                if jitter is not None:
                    parameters["means"][jitter[0]] += jitter[1]
        return StepsResult(image.detach(), truth, *losses, done=1)

    def saves_at(step: int) -> bool:
        return state is not None and (step % config.checkpoint_every == 0 or step == config.steps)

    def reports_at(step: int) -> bool:
        return saves_at(step) or step % config.report_every == 0 or step == config.steps

    def pauses_at(step: int) -> bool:
        """Whether anything but the next step follows the first `step` steps."""
        return reports_at(step) or step % LIMIT_EVERY == 0 or config.densify.edits_at(step, config.steps) or averages_at(step)

    def averages_at(step: int) -> bool:
        return step > config.average_from * config.steps and (step % AVERAGE_EVERY == 0 or step == config.steps)

    options = RenderOptions(antialiased=config.antialiased, threads=config.threads)
    fused = _fused_steps(optimiser, views, exposures, options, config, extent)
    while step < config.steps:
        try:
            if fused is None:
                turn, generator = turn_at(step)
                done = step_by_autograd(turn, generator)
            else:
                end = next(k for k in itertools.count(step + 1) if pauses_at(k) or k == step + TOGETHER)
                turns, generators = zip(*map(turn_at, range(step, end)))
                generator = generators[-1]
                done = fused(_splats(parameters), turns)
        except InputError as error:  # the last step's gradient made numbers that the renderer refuses
            raise _diverged(step, config) from error
        step += done.done
        if not math.isfinite(done.loss):
            raise _diverged(step, config)

        if step % LIMIT_EVERY == 0 or step == config.steps:
            _limit_scales(parameters, centers, config.max_scale)
        if config.densify.edits_at(step, config.steps):
            if config.densify.error_views:
                photos = torch.randperm(len(flat), generator=generator)[: config.densify.error_views].tolist()
                shown = _splats(parameters) if regulariser is None else regulariser.finished(_splats(parameters))
                shares = error_shares(shown, draw_plainly, photos)
                seen = Observations(shares, torch.ones_like(shares))
            edit = config.densify.propose(step, config.steps, _geometry(parameters), seen, extent, cap, generator)
            if edit is not None:
                apply_edit(edit, parameters, optimiser)
                seen, mean = Observations.empty(len(parameters["means"]), device), None
        if averages_at(step):
            mean = _mean_with(mean, parameters)

        if reports_at(step):
            value = float(psnr(done.image, done.truth).mean())
            running = value if running is None else 0.9 * running + 0.1 * value
            values = {"psnr": running, "loss": done.photo_loss, "gaussians": len(parameters["means"])}
            if saves_at(step):
                _save(state, fingerprint, step, running, parameters, exposures, moving, optimiser, seen, mean)
            yield Progress("fit", step, config.steps, preview=done.image[0].clamp(0, 1), values=values)

    splats = _splats(parameters if mean is None else mean.parameters).detach()
    if regulariser is not None:
        splats = regulariser.finished(splats)
    fields = torch.cat(
        [
            getattr(splats, f.name).flatten(1) if f.name != "opacity_logits" else splats.opacity_logits[:, None]
            for f in dataclasses.fields(splats)
        ],
        dim=1,
    )
    broken = int((~fields.isfinite().all(-1)).sum())
    if broken:
        raise StoppedLate(f"{broken} of {len(splats)} Gaussians are not finite after the fit; try another --seed.")
    cameras = [v.cameras for v in views] if moving is None else moving.cameras(views)
    if config.min_visibility:
        options = RenderOptions(antialiased=config.antialiased, threads=config.threads)
        unphotographed = [p.camera for p in priors.repaired] if config.regularise.repaired else []
        seen_by = [*cameras, *unphotographed]
        splats = splats[visibility(splats, seen_by, options, config.backend) >= config.min_visibility]
    gains = torch.stack([1 + exposures.detach()[:, 0], exposures.detach()[:, 1]], dim=1)
    return FitResult(splats, cameras, gains, _train_psnr(splats, views, cameras, gains, config), step)


@torch.no_grad()
def _train_psnr(splats: Splats, views: list[Views], cameras: list[Cameras], gains: Tensor, config: FitConfig) -> float:
    """Mean PSNR over all training views as the user sees them: on the background, after exposure."""
    values, photo = [], 0
    for view, batch in zip(views, cameras):
        for i in range(len(view)):
            r = render(splats, batch[i], RenderOptions(antialiased=config.antialiased, threads=config.threads), config.backend)
            image = r.rgb * gains[photo, 0] + gains[photo, 1] * r.alpha[..., None]
            image = image + (1 - r.alpha[..., None]) * torch.tensor(config.background).to(image)
            values.append(float(psnr(image[0].clamp(0, 1), view.images[i])))
            photo += 1
    return sum(values) / len(values)


def _smaller(view: Views, scale: float) -> Views:
    long_side = max(view.size)
    return view.limited(max(round(scale * long_side), min(COARSEST, long_side)))


def _parameters(splats: Splats) -> dict[str, Tensor]:
    """The leaves that Adam moves. torch's Adam needs SH split in two, because its bands learn at different rates."""
    leaves = {
        "means": splats.means,
        "quats": splats.quats,
        "log_scales": splats.log_scales,
        "opacity_logits": splats.opacity_logits,
    }
    if _own_adam(splats.means.device):
        leaves["sh"] = splats.sh
    else:
        leaves |= {"sh0": splats.sh[:, :1], "sh_rest": splats.sh[:, 1:]}
    return {name: x.detach().float().contiguous().clone().requires_grad_() for name, x in leaves.items()}


def _own_adam(device: torch.device) -> bool:
    return device.type == "cpu" and native.available()


def _splats(p: dict[str, Tensor]) -> Splats:
    sh = p["sh"] if "sh" in p else torch.cat([p["sh0"], p["sh_rest"]], dim=1)
    return Splats(p["means"], p["quats"], p["log_scales"], p["opacity_logits"], sh)


def _geometry(p: dict[str, Tensor]) -> Splats:
    """The splats as densification sees them: without the higher SH bands, which are most of the memory."""
    sh0 = p["sh"][:, :1] if "sh" in p else p["sh0"]
    return Splats(p["means"], p["quats"], p["log_scales"], p["opacity_logits"], sh0).detach()


def _optimiser(parameters: dict[str, Tensor], exposures: Tensor, config: FitConfig, extent: float) -> torch.optim.Adam:
    rates = {
        "means": config.lr_means * extent,
        "quats": config.lr_quats,
        "log_scales": config.lr_log_scales,
        "opacity_logits": config.lr_opacity_logits,
        "sh0": config.lr_sh0,
        "sh_rest": config.lr_sh_rest,
        "sh": config.lr_sh0,
    }
    groups = [{"params": [x], "lr": rates[name], "name": name} for name, x in parameters.items()]
    if config.exposure:
        groups.append({"params": [exposures], "lr": config.lr_exposure, "name": "exposures"})
    # eps as in 3DGS: gradients of single Gaussians are far below Adam's default of 1e-8.
    if "sh" in parameters:
        from splat.render.native.adam import NativeAdam

        (bands,) = (group for group in groups if group["name"] == "sh")
        bands |= {"head": 3, "lr_later": config.lr_sh_rest}  # the three colours of band 0 come first in every row
        return NativeAdam(groups, eps=1e-15, threads=config.threads)
    return torch.optim.Adam(groups, eps=1e-15, fused=True)


def _fused_steps(
    optimiser: torch.optim.Adam, views: list[Views], exposures: Tensor, options: RenderOptions, config: FitConfig, extent: float
) -> FusedSteps | None:
    """The steps inside the kernels, where they are and what they do not know is not asked for."""
    if config.refine_poses or config.densify.needs_means2d or config.backend not in ("auto", "native"):
        return None
    if config.regularise.active:
        return None
    if not _own_adam(views[0].images.device):
        return None
    for view in views:
        check_finite(view.cameras.cam_from_world, "cam_from_world")
        check_finite(view.cameras.K, "K")
    return FusedSteps(
        optimiser, options, config.ssim_weight, config.opacity_regulariser, config.scale_regulariser / extent,
        exposures if config.exposure else None, config.densify.noise / extent**2,
    )  # fmt: skip


def _diverged(step: int, config: FitConfig) -> StoppedLate:
    return StoppedLate(f"The fit diverged at step {step} of {config.steps}; try --preset draft or another --seed.")


@torch.no_grad()
def _limit_scales(parameters: dict[str, Tensor], centers: Tensor, share: float) -> None:
    """No standard deviation above `share` of the distance to the nearest camera of `centers` [C, 3]."""
    x, y, z = parameters["means"].T.contiguous()  # many times faster than rows of three
    nearest = torch.full_like(x, torch.inf)  # squared
    for cx, cy, cz in centers.tolist():
        squared = (x - cx).square_().add_((y - cy).square_()).add_((z - cz).square_())
        torch.minimum(nearest, squared, out=nearest)
    limit = (share * nearest.sqrt()).clamp_min(1e-8).log()
    parameters["log_scales"].copy_(torch.minimum(parameters["log_scales"], limit[:, None]))


def _decayed(start: float, end: float, fraction: float) -> float:
    return start * (end / start) ** fraction


def _generator(seed: int, step: int) -> torch.Generator:
    """Randomness that depends on the step alone, so that a resumed fit draws what the undisturbed one drew."""
    return torch.Generator().manual_seed(_seed(seed, step))


def _seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63


def _fingerprint(views: list[Views], initial: Splats, config: FitConfig, leaves: tuple[str, ...], priors: Priors | None) -> str:
    """SHA-256 of everything that decides the result, so that a state of other inputs is never continued."""
    decisive = dataclasses.asdict(config) | {"leaves": leaves}  # a state of a GPU has other ones
    for name in ("threads", "report_every", "checkpoint_every"):  # these change when and where, not what
        del decisive[name]
    sha = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode())
    for f in dataclasses.fields(initial):
        sha.update(getattr(initial, f.name).detach().cpu().contiguous().numpy().tobytes())
    for view in views:
        for x in (view.images, view.cameras.cam_from_world, view.cameras.K, view.masks):
            if x is not None:
                sha.update(x.cpu().contiguous().numpy().tobytes())
    if priors is not None and config.regularise.needs_priors:
        seen = (*priors.pictures, *priors.repaired)
        pictures = (x for p in seen for x in (p.camera.cam_from_world, p.camera.K, p.image, p.alpha, p.known))
        for x in (*priors.depths, *(priors.normals or ()), *pictures):
            sha.update(x.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


@dataclass(frozen=True)
class _Mean:
    """The mean of the parameters at `count` steps."""

    parameters: dict[str, Tensor]
    count: int


@torch.no_grad()
def _mean_with(mean: _Mean | None, parameters: dict[str, Tensor]) -> _Mean:
    if mean is None:
        return _Mean({name: x.detach().clone() for name, x in parameters.items()}, 1)
    count = mean.count + 1
    return _Mean({name: x.lerp(parameters[name], 1 / count) for name, x in mean.parameters.items()}, count)


def _save(
    state: Path, fingerprint: str, step: int, running: float, parameters, exposures, moving, optimiser, seen, mean: _Mean | None
) -> None:
    tensors = {f"parameter.{k}": v for k, v in parameters.items()}
    tensors |= {"exposures": exposures, "seen.score": seen.score, "seen.seen": seen.seen}
    tensors |= {} if moving is None else {f"cameras.{k}": v for k, v in moving.state().items()}
    for group in optimiser.param_groups:
        for key, value in optimiser.state.get(group["params"][0], {}).items():
            tensors[f"adam.{group['name']}.{key}"] = value
    tensors |= {} if mean is None else {f"mean.{k}": v for k, v in mean.parameters.items()}
    facts = {"fingerprint": fingerprint, "step": step, "running": running, "averaged": 0 if mean is None else mean.count}
    try:
        save_state(state, tensors, facts)
    except OSError as error:
        raise StoppedLate(
            f"The fit stopped at step {step}: its state could not be saved ({error.strerror}); free some space and --resume."
        ) from error


@torch.no_grad()
def _restore(
    state: Path, fingerprint: str, parameters, exposures, moving, optimiser, device
) -> tuple[int, float, Observations, _Mean | None]:
    tensors, facts = load_state(state, device)
    if facts.get("fingerprint") != fingerprint:
        raise InputError(f"{state.name} belongs to other photos or settings; run without --resume to start over.")
    for name in parameters:
        parameters[name] = tensors[f"parameter.{name}"].requires_grad_()
    exposures.copy_(tensors["exposures"])
    if moving is not None:
        moving.restore({k.removeprefix("cameras."): v for k, v in tensors.items() if k.startswith("cameras.")})
    for group in optimiser.param_groups:
        name = group["name"]
        if name in parameters:
            group["params"] = [parameters[name]]
        keys = ("step", "exp_avg", "exp_avg_sq")
        if f"adam.{name}.step" in tensors:
            optimiser.state[group["params"][0]] = {key: tensors[f"adam.{name}.{key}"] for key in keys}
    averaged = int(facts.get("averaged", 0))
    mean = _Mean({name: tensors[f"mean.{name}"] for name in parameters}, averaged) if averaged else None
    return int(facts["step"]), float(facts["running"]), Observations(tensors["seen.score"], tensors["seen.seen"]), mean
