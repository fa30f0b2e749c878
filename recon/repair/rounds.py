"""Rounds of render, repair, fit: the splats learn from mended pictures of views that nobody took, beside their photos.

LM-Gaussian (Yu, Long, Tan 2024), stage 4: in each round cameras between the photos see the splats as they are now, the repairer
mends what they see, and a fit whose rates begin anew takes the mended pictures as further views. The photos' own terms stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from recon.repair.fill import with_holes_filled
from recon.repair.request import RequestConfig, repair_request
from splat.cameras import Cameras
from splat.consensus import cameras_between
from splat.gaussians import Splats
from splat.optimise import FitConfig, FitResult, fit
from splat.progress import Progress
from splat.regularise import Priors, VirtualView
from splat.repair_request import Repairer
from splat.views import Views


@dataclass(frozen=True)
class RepairRoundsConfig:
    """How often, from where, and how much a repaired picture counts."""

    rounds: int = 3
    steps: int = 200  # of the fit in each round
    lr_means: float = 1.6e-4  # at the beginning of each round, times the scene's extent
    partners: int = 2  # photos that each photo is joined with; repaired views lie on the arcs between
    per_pair: int = 3
    scale: float = 1.0  # size of the repaired views in photos
    # By which they reach beyond a photo's frame on every side, in shares of its width and height: what lies there nobody took
    # either. None around cut-out subjects, which have nothing there.
    margin: float = 0.12
    weight: float = 0.5  # of a repaired view beside a photo
    ssim_weight: float = 0.2  # share of 1 - SSIM in a repaired view's loss; LM-Gaussian has L1 alone
    doubt: float = 0.5  # of pixels that no photo saw, beside those that photos vouch for: there the repairer invents
    distance: bool = True  # LM-Gaussian's weights: views next to a photo count less, since the photo says it better
    fill_stride: int = 4  # px between new Gaussians in the holes of repaired views; 0 leaves holes to the Gaussians there are
    fill_most: float = 0.1  # new Gaussians in a round, in shares of all
    request: RequestConfig = field(default_factory=RequestConfig)

    def __post_init__(self) -> None:
        sizes = (self.rounds, self.steps, self.partners, self.per_pair)
        assert min(sizes) >= 1, sizes
        assert 0 < self.scale <= 1 and self.margin >= 0 and self.weight >= 0, (self.scale, self.margin, self.weight)


@dataclass(frozen=True)
class RepairedView:
    """One repaired view, for the user to see what is made up in it."""

    name: str  # "round1_view003"
    image: Tensor  # [H, W, 3] repaired
    before: Tensor  # [H, W, 3] the render that was repaired
    trust: Tensor  # [H, W] in [0, 1], see `RepairRequest`

    @property
    def invented(self) -> float:
        """Share of the picture that no photo vouches for."""
        return float((1 - self.trust).mean())


@dataclass(frozen=True)
class RepairRound:
    """The splats after a round, and the pictures that taught them."""

    fitted: FitResult
    views: tuple[RepairedView, ...]

    @property
    def invented(self) -> float:
        """Mean share of the repaired pictures that no photo vouches for."""
        return sum(v.invented for v in self.views) / max(len(self.views), 1)


def repair_rounds(
    views: list[Views],
    splats: Splats,
    fit_config: FitConfig,
    repairer: Repairer | None,
    config: RepairRoundsConfig,
    priors: Priors | None = None,
    state: Path | None = None,
) -> Generator[Progress, None, RepairRound]:
    """All rounds of `repair_round`; the last one, its fit counting the steps of all. Cameras that move keep where they went.

    Without a repairer they are the same steps on the photos alone, beside which it is seen what repaired views bring. Yields
    stages "repair" and "fit".
    """
    done, steps = None, 0
    for number in range(config.rounds):
        done = yield from repair_round(views, splats, fit_config, repairer, config, number, priors, state)
        splats, steps = done.fitted.splats, steps + done.fitted.steps
        views = [dataclasses.replace(v, cameras=c) for v, c in zip(views, done.fitted.cameras)]
    assert done is not None, "no rounds"
    return dataclasses.replace(done, fitted=dataclasses.replace(done.fitted, steps=steps))


def repair_round(
    views: list[Views],
    splats: Splats,
    fit_config: FitConfig,
    repairer: Repairer | None,
    config: RepairRoundsConfig,
    number: int = 0,
    priors: Priors | None = None,
    state: Path | None = None,
) -> Generator[Progress, None, RepairRound]:
    """One round on posed `views` and the `splats` that were fitted to them, on one device.

    `fit_config` says how photos are fitted: its terms, caps and rates; steps are `config.steps`. Photos are taken as exposed
    alike. `state` as for `fit`. `number` counts the rounds from 0: it changes the repairer's seed and where the views lie.
    Without a repairer there are no repaired views, and the fit is the same but for them.
    """
    background = torch.tensor(fit_config.background, device=splats.means.device)
    sized = _scaled(views, config.scale)
    cameras = [] if repairer is None else _arcs(sized, config, number)
    drawing = fit_config.backend, fit_config.threads
    seen: list[RepairedView] = []
    targets: list[VirtualView] = []
    yield Progress("repair", 0, len(cameras), f"round {number + 1} of {config.rounds}")
    for batch in _alike(cameras):
        request = repair_request(splats, sized, batch, background, fit_config.seed + number, config.request, *drawing)
        repaired = repairer(request)
        assert repaired.shape == request.images.shape, (tuple(repaired.shape), tuple(request.images.shape))
        repaired = repaired.to(request.images).clamp(0, 1)
        closeness = distance_weights(batch, _cameras(sized)) if config.distance else torch.ones(len(batch))
        for i in range(len(batch)):
            known = float(closeness[i]) * (config.doubt + (1 - config.doubt) * request.trust[i])
            solid = torch.ones_like(known)
            targets.append(VirtualView(batch[i], repaired[i, None], solid[None], known[None], background))
            name = f"round{number + 1}_view{len(seen):03d}"
            seen.append(RepairedView(name, repaired[i], request.images[i], request.trust[i]))
        yield Progress("repair", len(seen), len(cameras), preview=repaired[0])
    masked = all(v.masks is not None for v in views)  # then what is empty is empty
    if config.fill_stride and targets and config.weight and not masked:
        most = round(config.fill_most * len(splats))
        seeing, pictures = [t.camera for t in targets], [t.image[0] for t in targets]
        splats = with_holes_filled(splats, seeing, pictures, background, config.fill_stride, most, *drawing)
    settings = dataclasses.replace(
        fit_config,
        steps=config.steps,
        coarse=(),
        lr_means=config.lr_means,
        lr_means_final=config.lr_means / 100,
        sh_every=0.0,
        sh_degree=splats.sh_degree,
        exposure=False,
        max_gaussians=max(fit_config.max_gaussians, len(splats)),
        regularise=dataclasses.replace(
            fit_config.regularise, repaired=config.weight if targets else 0.0, repaired_ssim=config.ssim_weight
        ),
    )
    told = Priors(_nothing_known(views)) if priors is None else priors
    job = fit(views, splats, settings, state, dataclasses.replace(told, repaired=tuple(targets)))
    fitted = yield from job
    return RepairRound(fitted, tuple(seen))


def distance_weights(cameras: Cameras, photos: Sequence[Cameras]) -> Tensor:
    """[V] LM-Gaussian's w_d = min(1, 16 d_min / (1.2 d_max)).

    d_min is the distance of a camera from the nearest photo's, d_max the largest distance of a photo's camera from its
    farthest but one. From d_min = 0.075 d_max on it is 1, so it only mutes views that nearly are photos.
    """
    centers = torch.cat([c.centers for c in photos])
    between = torch.cdist(centers, centers).sort(dim=1).values
    reach = float(between[:, -2].max()) if len(centers) > 2 else float(between.max())
    nearest = torch.cdist(cameras.centers, centers).amin(1)
    return (16 * nearest / (1.2 * max(reach, 1e-12))).clamp_max(1.0).cpu()


def _arcs(views: list[Views], config: RepairRoundsConfig, number: int) -> list[Cameras]:
    """Cameras (batches of one) on the arcs between photos; those of later rounds lie between those of earlier ones."""
    parts = config.per_pair * config.rounds
    margin = 0.0 if all(v.masks is not None for v in views) else config.margin
    every = [_wider(c, margin) for c in cameras_between(views, config.partners, parts, 1.0)]  # pair by pair
    if not every:
        return []
    return [camera for k, camera in enumerate(every) if (k % parts) % config.rounds == number % config.rounds]


def _wider(camera: Cameras, margin: float) -> Cameras:
    x, y = round(margin * camera.width), round(margin * camera.height)
    return camera.cropped(-x, -y, camera.width + 2 * x, camera.height + 2 * y)


def _alike(cameras: Sequence[Cameras], most: int = 8) -> list[Cameras]:
    """Batches of cameras of one picture size."""
    sizes: dict[tuple[int, int], list[Cameras]] = {}
    for camera in cameras:
        sizes.setdefault((camera.width, camera.height), []).append(camera)
    return [Cameras.cat(group[k : k + most]) for group in sizes.values() for k in range(0, len(group), most)]


def _scaled(views: list[Views], scale: float) -> list[Views]:
    return [v.resized(*(max(round(n * scale), 16) for n in v.size)) for v in views] if scale != 1 else views


def _cameras(views: Sequence[Views]) -> list[Cameras]:
    return [v.cameras[i] for v in views for i in range(len(v))]


def _nothing_known(views: Sequence[Views]) -> list[Tensor]:
    return [torch.zeros(v.images.shape[:3], device=v.images.device) for v in views]
