"""Sharp frames of a video, spread over its length."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splat.errors import InputError

log = logging.getLogger(__name__)

FRAMES_PER_SECOND = 4.0  # closer frames hardly differ: a short clip gives fewer frames than asked
SHARPNESS_SIDE = 480  # pixels; sharpness is compared at this long side


@dataclass(frozen=True)
class Frame:
    """One frame of a video."""

    index: int  # of all frames, from 0
    seconds: float
    image: Tensor  # [H, W, 3] sRGB, upright
    original_size: tuple[int, int]  # (width, height) upright, before scaling


def sharp_frames(path: Path, count: int, max_side: int, max_pixels: int) -> list[Frame]:
    """The video cut into `count` equal spans (fewer when it is short), the sharpest frame of each, in order.

    Sharpness is the variance of the Laplacian of the grey picture. Raises `InputError` when nothing can be decoded.
    """
    import av

    try:
        with av.open(str(path)) as container:
            frames = _best_of_spans(container, path, count, max_side, max_pixels)
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path.name} cannot be decoded as a video ({error.strerror or error}); convert it to MP4.") from error
    if not frames:
        raise InputError(f"{path.name} holds no frame that can be decoded; convert it to MP4.")
    return frames


def _best_of_spans(container: Any, path: Path, count: int, max_side: int, max_pixels: int) -> list[Frame]:
    if not container.streams.video:
        raise InputError(f"{path.name} has no video track; give a film of the subject.")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    if stream.codec_context.width * stream.codec_context.height > max_pixels:
        raise InputError(
            f"{path.name} has {stream.codec_context.width} x {stream.codec_context.height} pixels, more than the memory budget "
            f"allows; scale it to 4K or below."
        )
    first, last = _time_range(container, stream)
    spans = max(1, min(count, int((last - first) * FRAMES_PER_SECOND) + 1))
    best: dict[int, tuple[float, Frame]] = {}
    for index, (frame, seconds) in enumerate(_decoded(container, stream, path)):
        span = min(spans - 1, max(0, int((seconds - first) / max(last - first, 1e-9) * spans)))
        sharpness = _sharpness(frame)
        if span not in best or sharpness > best[span][0]:
            best[span] = (sharpness, Frame(index, seconds, *_upright(frame, max_side)))
    return [best[span][1] for span in sorted(best)]


def _time_range(container: Any, stream: Any) -> tuple[float, float]:
    """First and last presentation time in seconds; reads packets without decoding them."""
    times = [packet.pts * packet.time_base for packet in container.demux(stream) if packet.pts is not None]
    if not times:
        return 0.0, 0.0
    container.seek(int(min(times) / stream.time_base), stream=stream)
    return float(min(times)), float(max(times))


def _decoded(container: Any, stream: Any, path: Path) -> Iterator[tuple[Any, float]]:
    """Frames with their times, up to the first that is damaged."""
    import av

    try:
        for frame in container.decode(stream):
            yield frame, float(frame.time or 0.0)
    except av.FFmpegError as error:
        log.warning("%s is damaged (%s); the frames before that are used", path.name, error)


def _sharpness(frame: Any) -> float:
    import cv2

    scale = min(1.0, SHARPNESS_SIDE / max(frame.width, frame.height))
    grey = frame.reformat(int(frame.width * scale), int(frame.height * scale), format="gray").to_ndarray()
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def _upright(frame: Any, max_side: int) -> tuple[Tensor, tuple[int, int]]:
    """(image [H, W, 3], original upright size)."""
    import cv2

    pixels = frame.to_ndarray(format="rgb24")
    quarter_turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise, from the display matrix
    pixels = np.ascontiguousarray(np.rot90(pixels, quarter_turns))
    height, width = pixels.shape[:2]
    scale = min(1.0, max_side / max(width, height))
    if scale < 1:
        pixels = cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(pixels).float() / 255, (width, height)
