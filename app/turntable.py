"""A camera path that suits the captured scene, and the video along it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from splat.cameras import Cameras, intrinsics, nearest_to_axes
from splat.gaussians import Splats
from splat.render import RenderOptions, render

FRAMES_PER_SECOND = 24
FULL_TURN_GAP_DEG = 120.0  # a wider gap between neighbouring photos, seen from the subject, is unobserved: sway, don't orbit
BANDWIDTH_DEG = 25.0  # how far a photo's distance and elevation reach along the path
NEARER, FARTHER = 0.8, 1.25  # than the median camera: the path follows the photos' distances no further than this
SWAY_START = math.radians(15)  # six frames spread over a sway show six different sides
LEAST_SWAY_DEG = 4.0  # to either side, so that depth shows even where all photos look the same way
ARC_SHARE = 0.85  # of the captured arc, so that the path stays inside it
WALK_BANDWIDTH = 0.08  # of the walked distance: how far a photo's position and direction reach along the walk


def suited_path(captured: Sequence[Cameras], splats: Splats, frames: int, side: int) -> Cameras:
    """`frames` cameras on a closed path that shows what the `captured` cameras saw.

    Round the subject, at the distance and elevation of the cameras near each azimuth: a full turn from azimuth 0 where they
    surround it, else a gentle sway inside the captured arc. Photos taken while walking ahead, as down a street, have nothing
    to turn round: they are walked through and back.
    Long side `side` px, even sizes, the captured aspect and field of view; up is +Y. `splats` tell where the subject is.
    """
    return _along(captured, frames, side) if _walked(captured) else _around(captured, splats, frames, side)


def _around(captured: Sequence[Cameras], splats: Splats, frames: int, side: int) -> Cameras:
    centers = torch.cat([c.centers for c in captured]).double().cpu()
    focus = subject(captured, splats)
    offset = centers - focus
    distance = offset.norm(dim=-1).clamp_min(1e-6)
    azimuth = torch.atan2(offset[:, 0], offset[:, 2])
    elevation = torch.asin((offset[:, 1] / distance).clamp(-0.999, 0.999))

    turn = torch.arange(frames, dtype=torch.float64) * (2 * math.pi / frames)
    gap, middle = _widest_gap(azimuth)
    if math.degrees(gap) < FULL_TURN_GAP_DEG:
        along = turn
    else:
        half = max(ARC_SHARE * (math.pi - gap / 2), math.radians(LEAST_SWAY_DEG))
        along = middle + math.pi + half * (turn + SWAY_START).sin()
    away = torch.remainder(along[:, None] - azimuth + math.pi, 2 * math.pi) - math.pi  # [frames, C]
    weight = torch.exp(-0.5 * (away / math.radians(BANDWIDTH_DEG)).square()) + 1e-3
    weight = weight / weight.sum(-1, keepdim=True)
    path_elevation, usual = weight @ elevation, float(distance.median())
    path_distance = (weight @ distance.log()).exp().clamp(NEARER * usual, FARTHER * usual)
    direction = torch.stack(
        [
            along.sin() * path_elevation.cos(),
            path_elevation.sin(),
            along.cos() * path_elevation.cos(),
        ],
        dim=-1,
    )
    width, height, K = _picture(captured, side)
    return Cameras.look_at(focus + path_distance[:, None] * direction, focus, torch.tensor([0.0, 1, 0]), K, width, height)


def _walked(captured: Sequence[Cameras]) -> bool:
    """Were the photos taken one behind the other, looking the way they went?"""
    forward = torch.cat([c.forward for c in captured]).double().cpu().mean(0)
    centers = torch.cat([c.centers for c in captured]).double().cpu()
    _, extent, axes = torch.linalg.svd(centers - centers.mean(0))
    one_line = len(centers) >= 3 and float(extent[1]) < 0.5 * float(extent[0])
    return one_line and float(forward @ axes[0]) ** 2 > 0.8**2


def _along(captured: Sequence[Cameras], frames: int, side: int) -> Cameras:
    """Through the photos' positions along their longest extent and back, looking as the photos nearby did."""
    centers = torch.cat([c.centers for c in captured]).double().cpu()
    forward = torch.cat([c.forward for c in captured]).double().cpu()
    middle = centers.mean(0)
    axis = torch.linalg.svd(centers - middle)[2][0]
    if float(axis @ forward.mean(0)) < 0:
        axis = -axis  # set out in the direction of the view
    at = (centers - middle) @ axis
    length = (at.max() - at.min()).clamp_min(1e-9)
    turn = torch.arange(frames, dtype=torch.float64) * (2 * math.pi / frames)
    walked = at.min() + length * (0.5 - 0.5 * turn.cos())  # slow at both ends
    weight = torch.exp(-0.5 * ((walked[:, None] - at) / (WALK_BANDWIDTH * length)).square()) + 1e-12
    weight = weight / weight.sum(-1, keepdim=True)
    eyes = weight @ centers
    width, height, K = _picture(captured, side)
    return Cameras.look_at(eyes, eyes + weight @ forward, torch.tensor([0.0, 1, 0]), K, width, height)


def subject(captured: Sequence[Cameras], splats: Splats) -> Tensor:
    """[3] float64: the point that the cameras look at.

    Least squares to the optical axes, drawn gently to the typical depth of the splats in the middle of the pictures, which
    alone decides where the axes are parallel.
    """
    centers = torch.cat([c.centers for c in captured]).double().cpu()
    forward = torch.cat([c.forward for c in captured]).double().cpu()
    guess = (centers + forward * middle_depth(captured, splats)).mean(0)
    point = nearest_to_axes(centers, forward, guess, pull=0.02)
    in_front = ((point - centers) * forward).sum(-1).median() > 0
    return point if in_front else guess  # cameras that look outwards have no common point


def render_frames(splats: Splats, cameras: Cameras, background: Tensor, threads: int | None = None) -> Iterator[Tensor]:
    """Each camera's picture [H, W, 3] sRGB in [0, 1] on the CPU, one at a time."""
    device = splats.means.device
    # The near cut follows the scene's scale, so that a scene in metres of something tiny is drawn whole.
    reach = (cameras.centers.cpu() - splats.means.detach().cpu().median(0).values).norm(dim=-1).median()
    near = min(0.01, 0.01 * float(reach))
    options = RenderOptions(background=background.to(device), near=near, threads=threads)
    with torch.no_grad():
        for i in range(len(cameras)):
            yield render(splats, cameras[i].to(device), options).rgb[0].clamp(0, 1).cpu()


@contextmanager
def video(path: Path, frames_per_second: int = FRAMES_PER_SECOND) -> Iterator[Callable[[Tensor], None]]:
    """Yields a function that adds a frame, [H, W, 3] sRGB of one even size, to an MP4 (H.264, yuv420p: it plays everywhere)."""
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second), options={"crf": "18"})
        stream.pix_fmt = "yuv420p"
        sized = False

        def add(image: Tensor) -> None:
            nonlocal sized
            pixels = (image.clamp(0, 1) * 255).round().byte().contiguous().numpy()
            if not sized:
                stream.height, stream.width = pixels.shape[:2]
                sized = True
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

        yield add
        container.mux(stream.encode())


def _widest_gap(azimuth: Tensor) -> tuple[float, float]:
    """The widest angle without a camera, and its middle; radians. One camera leaves the full turn, opposite to it."""
    around = azimuth.sort().values
    following = torch.cat([around[1:], around[:1] + 2 * math.pi])
    gaps = following - around
    widest = int(gaps.argmax())
    return float(gaps[widest]), float(around[widest] + gaps[widest] / 2)


def middle_depth(captured: Sequence[Cameras], splats: Splats) -> float:
    """Median depth of the solid splats in the middle half of the pictures."""
    solid = splats.means[splats.opacities > 0.3]
    solid = (solid if len(solid) else splats.means).cpu()
    depths = []
    for cameras in captured:
        pixels, depth = cameras.to("cpu").project(solid)
        off_centre = (pixels / torch.tensor([cameras.width, cameras.height]) - 0.5).abs().amax(-1)
        depths.append(depth[(off_centre < 0.25) & (depth > 0)])
    found = torch.cat(depths)
    return float(found.median()) if len(found) else 1.0


def _picture(captured: Sequence[Cameras], side: int) -> tuple[int, int, Tensor]:
    """Width, height and K of the median aspect and field of view, long side `side`."""
    aspect = torch.tensor([c.width / c.height for c in captured for _ in range(len(c))]).median().item()
    focal = torch.cat([c.K[:, 0, 0].cpu() / max(c.width, c.height) for c in captured]).median().item()
    long, short = side // 2 * 2, round(side * min(aspect, 1 / aspect) / 2) * 2
    width, height = (long, short) if aspect >= 1 else (short, long)
    return width, height, intrinsics(focal * long, width, height)
