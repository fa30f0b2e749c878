"""Pairwise pointmaps to cameras: poses, pair scales and one focal length that explain all predictions together.

DUSt3R's global alignment (Wang et al., CVPR 2024, section 3.4) as a small robust least-squares problem instead of gradient
descent over every pixel: each prediction says where a photo's pixels lie, so a pair is tied to its photos by reprojection
and by the logarithm of depth, which all pairs of one photo must agree on.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from recon.priors import DepthMap, StereoPrediction
from splat.cameras import Cameras
from splat.progress import Progress


@dataclass(frozen=True)
class PairPrediction:
    """What a pair prior said about photos `first` and `second`; its points lie in the camera frame of `first`.

    Confidence is in [0, 1]: 0 is not used at all. Predictions of both orders of a pair are two predictions.
    """

    first: int
    second: int
    prediction: StereoPrediction


@dataclass(frozen=True)
class Window:
    """The part of a photo that a prediction's pixel grid covers, in pixels of the photo; may reach outside (letterbox)."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class AlignPairsConfig:
    """How pairwise predictions are brought together."""

    samples: int = 600  # pixels of each photo that poses are refined with: memory grows with pairs times samples
    focal: float | None = None  # in long sides, where it is known; None estimates it from the pointmaps
    refine_focal: bool = True  # with the poses
    iterations: int = 40  # of the refinement, at most
    min_confidence: float = 0.05  # pixels below are not used
    tolerance: float = 0.05  # two depths agree when they differ by less than this share
    seed: int = 0


@dataclass(frozen=True)
class AlignedPairs:
    """Cameras in one world (that of a central photo's camera, median depth 1) and what is known of each photo's depth.

    A photo that no trusted pair ties to the largest group has None and a reason.
    """

    cameras: tuple[Cameras | None, ...]  # batches of one, pinhole, in the pixels of the photos
    reasons: tuple[str | None, ...]
    depths: tuple[DepthMap | None, ...]  # on the predictions' pixel grid, `name` is the photo's number as text
    focal: float  # in long sides, shared by all
    scales: tuple[float, ...]  # world units per unit of each prediction; 0 where it was not believed
    error: float  # median reprojection error, pixels of the photos
    facts: dict[str, float] = field(default_factory=dict)


def align_pairs(
    photo_sizes: Sequence[tuple[int, int]],
    pairs: Sequence[PairPrediction],
    config: AlignPairsConfig | None = None,
    windows: Sequence[Window] | None = None,
) -> Generator[Progress, None, AlignedPairs]:
    """Cameras and depth maps of photos of `photo_sizes` (width, height) from predictions of some of their pairs.

    All predictions have one pixel grid, which covers each photo's window (None: the whole photo). Principal points are the
    photos' middles. Raises `InputError` for predictions that cannot work, `StoppedLate` when fewer than two photos are tied
    together. Deterministic; not differentiable; float64 inside.
    """
    raise NotImplementedError
    yield
