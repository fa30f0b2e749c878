"""The frames of a rendered path, repaired and then made steady: for video only, nothing goes back into the splats.

LM-Gaussian (Yu et al. 2024, stage 5) hands the whole video to a video network. Here any repairer will do, also one that knows
of single views: where the camera and every surface are is known, so that what a repair added to one frame can be carried into
its neighbours exactly, and what it added to one frame alone is averaged away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recon.repair.request import RequestConfig, SeenPhoto, carry, repair_request, seen_photos
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.progress import Progress
from splat.render import RenderOptions, render
from splat.repair_request import Repairer, RepairRequest
from splat.views import Views

EDGE = 0.1  # of the depth, between neighbouring pixels: more is a step from one surface to another


@dataclass(frozen=True)
class EnhanceConfig:
    """How frames are repaired and steadied."""

    chunk: int = 12  # frames that the repairer is given at a time
    overlap: int = 0  # of them given twice, and crossfaded: for networks that see frames together
    reach: int = 2  # neighbouring frames to either side that a repair is averaged over; 0 averages none
    likeness: float = 0.1  # difference of colour between renders of one surface beyond which they say nothing of each other
    seed: int = 0  # of the repairer: one noise for the whole path
    request: RequestConfig = field(default_factory=RequestConfig)

    def __post_init__(self) -> None:
        assert self.chunk > self.overlap >= 0 and self.reach >= 0, (self.chunk, self.overlap, self.reach)


@dataclass(frozen=True)
class Frame:
    """One frame of the path, on one device."""

    camera: Cameras  # a batch of one
    render: Tensor  # [H, W, 3]
    alpha: Tensor  # [H, W]
    depth: Tensor  # [H, W], where alpha is solid, else 0
    change: Tensor  # [H, W, 3] what the repair added to the render


@dataclass(frozen=True)
class Steadiness:
    """Mean absolute difference of neighbouring frames along surfaces: flicker. Of frames as rendered, repaired and steadied."""

    rendered: float
    repaired: float
    steadied: float


@torch.no_grad()
def enhance_path(
    splats: Splats,
    cameras: Cameras,
    photos: Sequence[Views],
    background: Tensor,
    repairer: Repairer,
    config: EnhanceConfig,
    add: Callable[[Tensor], None],
    backend: str = "auto",
) -> Generator[Progress, None, Steadiness]:
    """Give `add` the enhanced frames [H, W, 3] in [0, 1] of `cameras` [T] on the CPU, one after the other.

    `photos` are the posed photos that the splats were fitted to, on their device, empty where they are gone; then the render is
    trusted where it is solid. Only a chunk of frames is held at a time. Yields Progress("enhance", frame, frames, preview).
    """
    flicker: list[tuple[float, float, float]] = []
    previous: tuple[Frame, Tensor] | None = None
    total = len(cameras)
    yield Progress("enhance", 0, total)
    repaired = _repaired(splats, cameras, photos, background, repairer, config, backend)
    for step, (frame, change) in enumerate(_steadied(repaired, config), 1):
        image = (frame.render + change).clamp(0, 1)
        if previous is not None:
            before, shown = previous
            pictures = (
                (before.render, frame.render),
                (before.render + before.change, frame.render + frame.change),
                (shown, image),
            )
            flicker.append(tuple(flicker_of(before, frame, *pair, config.request) for pair in pictures))
        previous = frame, image
        image = image.cpu()
        add(image)
        yield Progress("enhance", step, total, preview=image)
    means = (sum(column) / len(flicker) for column in zip(*flicker)) if flicker else (0.0, 0.0, 0.0)
    return Steadiness(*means)


def _repaired(
    splats: Splats,
    cameras: Cameras,
    photos: Sequence[Views],
    background: Tensor,
    repairer: Repairer,
    config: EnhanceConfig,
    backend: str,
) -> Generator[Frame, None, None]:
    """Frames in order. Where chunks overlap, one's repair fades into the next one's."""
    total, fading = len(cameras), None
    seen = seen_photos(splats, photos, config.request, backend)  # once: the splats stay
    for first in range(0, max(total - config.overlap, 1), config.chunk - config.overlap):
        rows = range(first, min(first + config.chunk, total))
        part = cameras[list(rows)].to(splats.means.device)
        request, depth = path_request(splats, part, photos, seen, background, config, backend)
        made = repairer(request)
        assert made.shape == request.images.shape, (tuple(made.shape), tuple(request.images.shape))
        change = made.to(request.images).clamp(0, 1) - request.images
        if fading is not None:
            shared = len(fading)
            share = (torch.arange(1, shared + 1).to(change) / (shared + 1))[:, None, None, None]
            change[:shared] = (1 - share) * fading + share * change[:shared]
        last = rows[-1] == total - 1
        whole = len(rows) if last else len(rows) - config.overlap
        for i in range(whole):
            yield Frame(part[i], request.images[i], request.alpha[i], depth[i], change[i])
        fading = change[whole:]
        if last:
            return


def path_request(
    splats: Splats,
    cameras: Cameras,
    photos: Sequence[Views],
    seen: Sequence[SeenPhoto],
    background: Tensor,
    config: EnhanceConfig,
    backend: str = "auto",
) -> tuple[RepairRequest, Tensor]:
    """What a repairer is told of these frames, and their depth [V, H, W], 0 where the splats are not solid.

    `seen` are the `photos` with the depth that the splats give them (`recon.repair.request.seen_photos`).
    """
    drawn = [render(splats, cameras[i], RenderOptions(background=background), backend) for i in range(len(cameras))]
    alpha = torch.cat([d.alpha for d in drawn])
    depth = torch.where(alpha > config.request.solid, torch.cat([d.expected_depth for d in drawn]), 0.0)
    if photos:
        return repair_request(splats, photos, cameras, background, config.seed, config.request, backend, seen=seen), depth
    images = torch.cat([d.rgb for d in drawn]).clamp(0, 1)
    nothing = images.new_zeros(len(images), config.request.references, *images.shape[1:])
    return RepairRequest(images, alpha, torch.ones_like(alpha), nothing, nothing[..., 0], config.seed), depth


def _steadied(frames: Generator[Frame, None, None], config: EnhanceConfig) -> Generator[tuple[Frame, Tensor], None, None]:
    """Every frame with its change averaged over its neighbours."""
    window: deque[Frame] = deque()
    at = 0  # of the frame in `window` whose turn it is
    ended = False
    while not ended or at < len(window):
        while not ended and len(window) - at <= config.reach:
            following = next(frames, None)
            if following is None:
                ended = True
            else:
                window.append(following)
        if at == len(window):
            return
        frame = window[at]
        yield frame, steadied_change(frame, [f for k, f in enumerate(window) if 0 < abs(k - at) <= config.reach], config)
        at += 1
        if at > config.reach:
            window.popleft()
            at -= 1


def steadied_change(frame: Frame, neighbours: Sequence[Frame], config: EnhanceConfig) -> Tensor:
    """[H, W, 3] mean of the change and of those of `neighbours` that show the same surfaces alike.

    The render itself is the same from frame to frame and stays sharp: what is carried over is the change alone.
    """
    total, weight = frame.change.clone(), torch.ones_like(frame.alpha)
    for other in neighbours:
        both = torch.cat([other.change, other.render], dim=-1)
        seen = SeenPhoto(other.camera, both, without_edges(other.depth))
        carried, known, _ = carry(seen, frame.camera, frame.alpha, frame.depth, config.request)
        unlike = (carried[..., 3:] - frame.render).abs().amax(-1) / config.likeness
        share = known * (1 - unlike).clamp(0, 1)
        total += share[..., None] * carried[..., :3]
        weight += share
    return total / weight[..., None]


def without_edges(depth: Tensor) -> Tensor:
    """[H, W] `depth`, 0 beside steps of it: colours are sampled between four pixels, which must be of one surface."""
    pool = torch.nn.functional.max_pool2d
    far, near = pool(depth[None], 3, 1, 1)[0], -pool(-depth[None], 3, 1, 1)[0]
    return torch.where(far - near < EDGE * depth, depth, 0.0)


def flicker_of(first: Frame, second: Frame, shown: Tensor, following: Tensor, config: RequestConfig | None = None) -> float:
    """Mean absolute difference between two frames' pictures [H, W, 3] where the `second` shows a surface that `first` saw."""
    config = config or RequestConfig()
    carried, known, _ = carry(SeenPhoto(first.camera, shown, first.depth), second.camera, second.alpha, second.depth, config)
    return float(((carried - following).abs().mean(-1) * known).sum() / known.sum().clamp_min(1e-6))
