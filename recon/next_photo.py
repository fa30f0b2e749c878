"""The camera from which one more photo would help most: where several quick fits to the same photos disagree.

What to measure next is asked as in "Active Diffusion Subsampling" (Nolan et al. 2024): draw K hypotheses of what is there, and
take the measurement whose outcome they agree on least, that is the largest entropy of the mixture of what they predict,

    H = - 1/K sum_i log 1/K sum_j exp(-|y_i - y_j|^2 / (2 sigma^2)).

The hypotheses are quick fits, each without some of the photos, and y_i what fit i sees from a camera that took no photo.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon.standpoints import (
    Around,
    StandpointConfig,
    overlap,
    sized,
    solid_points,
    standpoints,
    stands_free,
    subject_of,
    surfaces,
)
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.optimise import FitConfig, fit
from splat.progress import Progress, told_as
from splat.render import RenderOptions, render
from splat.views import Views

SOLID = 0.5  # alpha from which something is known to be there
SAME_DEG = 4.0  # a smaller turn round the subject is none
BESIDE_DEG = 60.0  # between two photos, not merely with others somewhere on the other side
# Behind each hypothesis: where nobody has looked, each sees a colour of its own, so that not knowing counts as disagreeing.
# Not farther apart than this, or a surface of alpha 0.95 would count as unknown too.
BACKDROPS = ((0.3, 0.3, 0.7), (0.7, 0.7, 0.3), (0.7, 0.3, 0.3), (0.3, 0.7, 0.7), (0.3, 0.7, 0.3), (0.7, 0.3, 0.7))


@dataclass(frozen=True)
class NextPhotoConfig:
    """How much is spent on the question."""

    members: int = 4  # quick fits; the first sees all photos, each other is without some of them
    steps: int = 250  # of each
    side: int = 160  # px, long side of the photos they see
    look: int = 96  # px, long side of the pictures that are compared
    show: int = 480  # px, long side of the picture of the chosen place
    keep: float = 0.7  # share of the first Gaussians that a fit starts from, drawn anew for each
    max_gaussians: int = 8000
    least_sigma: float = 0.03  # of a colour; smaller differences are nobody's
    standpoints: StandpointConfig = field(default_factory=StandpointConfig)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # sRGB behind masked subjects
    seed: int = 0
    backend: str = "auto"  # renderer
    threads: int | None = None

    def __post_init__(self) -> None:
        assert 2 <= self.members <= len(BACKDROPS), f"{self.members} fits; one cannot disagree, more would share a backdrop"
        assert self.steps >= 1 and min(self.side, self.look, self.show) >= 8, (self.steps, self.side, self.look, self.show)
        assert 0 < self.keep <= 1 and self.max_gaussians >= 1 and self.least_sigma > 0, (
            self.keep, self.max_gaussians, self.least_sigma,
        )  # fmt: skip


@dataclass(frozen=True)
class NextPhoto:
    """Where to take it from, and how that was found."""

    camera: Cameras  # a batch of one, with the lens and size of the nearest photo
    nearest: str  # name of the photo nearest in direction
    other_side: str | None  # name of a photo on the other side, where the place is between two
    azimuth_deg: float  # from there round the subject; positive to the photographer's right
    elevation_deg: float  # from there; positive is higher up
    distance: float  # from the subject, in shares of that photo's
    gain: float  # `Candidate.gain`, 0 to 1
    overlap: float  # share of the picture that shows what a photo shows
    candidates: int  # places compared
    focus: Tensor  # [3] what the photos look at together
    expected: Tensor  # [H, W, 3] what the fit to all photos sees from there, sRGB on white
    disagreement: Tensor  # [H, W] 0 to 1


@dataclass(frozen=True)
class Candidate:
    """A place that would do."""

    camera: Cameras  # at the size of a photo
    overlap: float
    entropy: float  # mean over the picture, 0 to 1

    @property
    def gain(self) -> float:
        """What the photo would tell, times how sure it is to be of use, 0 to 1.

        Overlap counts twice: a photo is placed by what it shares with others, and what it shows gets its depth from where
        another photo shows it too. Without that the answer is the view of least overlap, such as into an unseen corner.
        """
        return self.entropy * self.overlap**2


@dataclass(frozen=True)
class Survey:
    """All that the choice is made from; candidates in the order of their grid."""

    members: list[Splats]
    sigma: float  # of a colour: what the fits do not explain of the photos they have seen
    masked: bool  # all photos are: what is behind the subject is known
    focus: Tensor  # [3] what the photos look at together
    photos: list[Cameras]  # batches of one
    names: tuple[str, ...]
    candidates: list[Candidate]


def next_photo(
    views: list[Views], initial: Splats, config: NextPhotoConfig | None = None, splats: Splats | None = None
) -> Generator[Progress, None, NextPhoto | None]:
    """The place worth a photo; None where no other place would do. World +Y up. Yields stage "next photo".

    `expected` is drawn from `splats`, a better fit to the same photos, where there is one. Raises `InputError` for fewer than
    two posed photos. Deterministic on a CPU.
    """
    config = config or NextPhotoConfig()
    found = yield from survey(views, initial, config)
    if not found.candidates:
        return None
    best = max(found.candidates, key=lambda c: c.gain)  # the first of equals
    return _described(best, found, config, splats or found.members[0])


def survey(views: list[Views], initial: Splats, config: NextPhotoConfig) -> Generator[Progress, None, Survey]:
    """See `Survey`; `next_photo` says what is raised."""
    photos = [view.cameras[i] for view in views for i in range(len(view))] if all(v.cameras for v in views) else []
    if len(photos) < 2:
        raise InputError(f"{len(photos)} posed photo shows no depth, at least 2 are needed to say where the next one helps.")
    small = [view.limited(config.side) for view in views]
    focus = subject_of(photos, initial.means)
    members = yield from _members(small, initial, focus, config)
    masked = all(view.masks is not None for view in views)
    sigma = _residual(members, small, config)
    candidates = [
        _candidate(place, members, sigma, masked, config)
        for place in _usable(standpoints(photos, focus, config.standpoints), photos, members[0], focus, config)
    ]
    names = tuple(name for view in views for name in view.names)
    return Survey(members, sigma, masked, focus, photos, names, candidates)


# --- hypotheses ------------------------------------------------------------------------------------------------------


def _members(
    small: list[Views], initial: Splats, focus: Tensor, config: NextPhotoConfig
) -> Generator[Progress, None, list[Splats]]:
    """Fits of other beginnings to other photos: the first has all, the others share out which ones they are without.

    They take turns round the subject: without neighbours, a fit would lack a side that is well photographed.
    """
    count = sum(len(view) for view in small)
    order = Around.of(torch.cat([view.cameras.centers for view in small]), focus).azimuth_deg.argsort(stable=True).tolist()
    members, total = [], config.members * config.steps
    for k in range(config.members):
        without = set(order[k - 1 :: config.members - 1]) if k and count > 2 else set()
        without = set(sorted(without)[: count - 2])
        seed = config.seed + 1000 * (k + 1)
        generator = torch.Generator().manual_seed(seed)
        part = initial[torch.rand(len(initial), generator=generator).to(initial.means.device) < config.keep]
        job = fit(_without(small, without), part if len(part) else initial, _fit_config(count, seed, config))
        done = k * config.steps
        fitted = yield from told_as(
            job, lambda e, done=done: dataclasses.replace(e, stage="next photo", step=done + e.step, total=total, note="")
        )
        members.append(fitted.splats)
    return members


def _fit_config(count: int, seed: int, config: NextPhotoConfig) -> FitConfig:
    return FitConfig.for_photos(
        count,
        steps=config.steps,
        sh_degree=0,
        lr_means=4.8e-4,  # few steps: surfaces must find their place in them
        lr_means_final=4.8e-6,
        max_gaussians=config.max_gaussians,
        background=config.background,
        seed=seed,
        backend=config.backend,
        threads=config.threads,
    )


def _without(views: list[Views], left_out: set[int]) -> list[Views]:
    parts, first = [], 0
    for view in views:
        rows = [i for i in range(len(view)) if first + i not in left_out]
        first += len(view)
        if rows:
            parts.append(view[rows])
    return parts


@torch.no_grad()
def _residual(members: Sequence[Splats], small: list[Views], config: NextPhotoConfig) -> float:
    """Root mean square difference of a colour between the first member and the photos it has seen: what no fit explains."""
    options = RenderOptions(background=torch.tensor(config.background).to(small[0].images))
    squares = []
    for view in small:
        shown = render(members[0], view.cameras, options, config.backend).rgb
        squares.append((shown - view.images).square().flatten())
    return max(float(torch.cat(squares).mean().sqrt()), config.least_sigma)


# --- places ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _usable(
    places: Sequence[Cameras], photos: Sequence[Cameras], splats: Splats, focus: Tensor, config: NextPhotoConfig
) -> list[tuple[Cameras, float]]:
    """(place, overlap) of those that stand free and would be placed among the photos."""
    limits = config.standpoints
    seen = sized(photos, config.look)
    shown = surfaces(seen, [_depth(splats, camera, config.backend) for camera in seen], step=2)
    solid, kept = solid_points(splats), []
    for place, small in zip(places, sized(places, config.look)):
        depth = _depth(splats, small, config.backend)
        distance = float((place.centers[0].double().cpu() - focus).norm())
        common = overlap(small, depth, shown, limits)
        if common >= limits.overlap and stands_free(small, depth, distance, solid, limits):
            kept.append((place, common))
    return kept


def _depth(splats: Splats, camera: Cameras, backend: str) -> Tensor:
    """[H, W] 0 where nothing solid is."""
    drawn = render(splats, camera, RenderOptions(), backend)
    return torch.where(drawn.alpha > SOLID, drawn.expected_depth, 0.0)[0]


# --- what a photo from there would tell ------------------------------------------------------------------------------


def entropy(pictures: Tensor, sigma: float) -> Tensor:
    """[K, ..., 3] colours predicted by K hypotheses -> [...] in [0, 1]: 0 they agree within `sigma`, 1 all differ.

    Entropy of the mixture of K Gaussians at the predictions, less that of one of them, over its bound log K. It is taken a
    pixel at a time and then averaged: over a whole picture every pair of fits differs in something, and the entropy is log K
    from everywhere.
    """
    squares = (pictures[:, None] - pictures[None]).square().sum(-1)  # [K, K, ...]
    return -(-squares / (2 * sigma**2)).exp().mean(1).log().mean(0) / math.log(len(pictures))


@torch.no_grad()
def predictions(members: Sequence[Splats], camera: Cameras, masked: bool, config: NextPhotoConfig) -> Tensor:
    """[K, H, W, 3] what each member sees from `camera` (a batch of one)."""
    pictures = []
    for k, splats in enumerate(members):
        colour = config.background if masked else BACKDROPS[k % len(BACKDROPS)]
        options = RenderOptions(background=torch.tensor(colour).to(splats.means))
        pictures.append(render(splats, camera, options, config.backend).rgb[0].clamp(0, 1))
    return torch.stack(pictures)


def _candidate(
    place: tuple[Cameras, float], members: Sequence[Splats], sigma: float, masked: bool, config: NextPhotoConfig
) -> Candidate:
    camera, common = place
    (small,) = sized([camera], config.look)
    return Candidate(camera, common, float(entropy(predictions(members, small, masked, config), sigma).mean()))


@torch.no_grad()
def _described(best: Candidate, found: Survey, config: NextPhotoConfig, splats: Splats) -> NextPhoto:
    own = Around.of(torch.cat([c.centers for c in found.photos]), found.focus)
    here = Around.of(best.camera.centers, found.focus)
    apart, turns = here.angles_to(own)[0], _turn(here.azimuth_deg - own.azimuth_deg)
    nearest = int(apart.argmin())
    beside = [k for k in apart.argsort().tolist() if turns[k] * turns[nearest] < 0 and abs(turns[k]) < BESIDE_DEG]
    (camera,) = sized([best.camera], config.show)
    white = RenderOptions(background=torch.ones(3).to(splats.means))
    return NextPhoto(
        camera=best.camera,
        nearest=found.names[nearest],
        other_side=found.names[beside[0]] if beside and abs(turns[nearest]) > SAME_DEG else None,
        azimuth_deg=float(turns[nearest]),
        elevation_deg=float(here.elevation_deg[0] - own.elevation_deg[nearest]),
        distance=float(here.distance[0] / own.distance[nearest]),
        gain=best.gain,
        overlap=best.overlap,
        candidates=len(found.candidates),
        focus=found.focus,
        expected=render(splats, camera, white, config.backend).rgb[0].clamp(0, 1).cpu(),
        disagreement=entropy(predictions(found.members, camera, found.masked, config), found.sigma).cpu(),
    )


def _turn(degrees: Tensor) -> Tensor:
    """In [-180, 180)."""
    return (degrees + 180) % 360 - 180


def sentence(found: NextPhoto) -> str:
    """For the photographer: "Take one more photo from the left of b.jpg, about 35° further round the subject."."""
    side = "right" if found.azimuth_deg > 0 else "left"
    turn = round(abs(found.azimuth_deg))
    if turn <= SAME_DEG:
        where = f"from where {found.nearest} was taken"
    elif found.other_side is not None:
        where = f"from between {found.nearest} and {found.other_side}, about {turn}° to the {side} of {found.nearest}"
    else:
        where = f"from the {side} of {found.nearest}, about {turn}° further round the subject"
    rise, up = round(abs(found.elevation_deg)), "higher" if found.elevation_deg > 0 else "lower"
    height = [] if rise < 5 else [f"a little {up}"] if rise < 12 else [f"clearly {up} (by {rise}°)"]
    distance = [] if 0.87 <= found.distance <= 1.15 else [f"{found.distance:.1f} times as far away"]
    last = " and ".join(height + distance)
    joint = ", but " if turn <= SAME_DEG else ", " if height and distance else " and "
    return f"Take one more photo {where}{joint + last if last else ''}."
