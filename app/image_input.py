"""One picture of an object as the user gives it: read safely, its subject cut out and framed, and what is reported of it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.data.object_views import DISTANCE
from diffusion.subject import ELEVATION_DEG, Framing, Subject
from splat.cameras import Cameras
from splat.errors import InputError

PHOTO_SIDE = 1024  # px, long side at which pictures are read; the network and the fit see a part of it
LEAST_SIDE = 16  # px, short side of a picture
MOST_ASPECT = 8  # longer pictures are strips, of which nothing would be left at PHOTO_SIDE
SHOWN_SIDE = 320  # px, long side in preview.png
MASK_ASPECT = 0.02  # by how much the shape of a mask may differ from its picture's


@dataclass(frozen=True)
class Picture:
    """A picture with its subject."""

    name: str
    sha256: str
    mask_sha256: str | None
    image: Tensor  # [H, W, 3] sRGB, straight, long side at most PHOTO_SIDE
    mask: Tensor  # [H, W] coverage in [0, 1]
    framing: Framing
    subject: Subject  # at the side of the fit
    shown: Tensor  # [h, w, 3] the picture as given, small
    way: str
    warnings: tuple[str, ...]
    facts: dict[str, Any]  # for report.json

    @property
    def camera(self) -> Cameras:
        """The picture's own, a batch of one, in its framing and aspect."""
        return self.framing.camera(self.subject)

    def framed(self, side: int) -> Subject:
        """For a network, which takes every picture to be from the protocol's distance."""
        from diffusion.subject import framed

        return framed(self.image, self.mask, self.framing, side, self.subject.azimuth_deg, self.subject.elevation_deg)


def mask_of(picture: Path, masks: Path | None) -> Path | None:
    """The mask for `picture`: `masks` itself, or the file in that folder with its name, whatever the suffix."""
    if masks is None:
        return None
    if not masks.is_dir():
        return masks
    found = sorted(path for path in masks.iterdir() if path.stem == picture.stem and path.is_file())
    if not found:
        raise InputError(f"--mask {masks} has no file {picture.stem}.*, the mask of {picture.name}; add one.")
    return found[0]


def read_picture(
    path: Path,
    mask: Path | None,
    azimuth_deg: float,
    elevation_deg: float | None,
    model: Path | None,
    *,
    side: int,
    max_pixels: int,
    fov_deg: float | None = None,
    alone: bool = True,
) -> Picture:
    """Read, cut out and frame. `elevation_deg` None is assumed; `model` is a matting model's file or None.

    `fov_deg`, across the width, None is what EXIF says, or the network's where it says nothing or the picture is not `alone`:
    of several pictures of one object the network takes all to be from one distance.

    Raises `InputError`, the sentence naming the file, for what is no picture and for one without a subject.
    """
    from diffusion.cut_out import cut_out
    from diffusion.subject import distance_of, find_framing, framed
    from splat.io.images import read_image, read_meta

    path = Path(path)
    meta = read_meta(path)
    small, large = sorted((meta.width, meta.height))
    if small < LEAST_SIDE or large > MOST_ASPECT * small:
        raise InputError(
            f"{path.name} has {meta.width} x {meta.height} pixels, of which no object can be made; give a picture of at "
            f"least {LEAST_SIDE} x {LEAST_SIDE} whose sides differ at most {MOST_ASPECT}-fold, cropped to its subject."
        )
    image, alpha, meta = read_image(path, max_pixels=max_pixels, max_side=PHOTO_SIDE)
    given = None if mask is None else _read_mask(Path(mask), image, max_pixels)
    try:
        found = cut_out(image, alpha, given, model)
        framing = find_framing(found.mask)
    except InputError as error:
        raise InputError(f"{path.name} cannot be used: {error}") from error
    elevation = ELEVATION_DEG if elevation_deg is None else elevation_deg
    width = image.shape[1]
    focal, told = None, "assumed"
    if fov_deg is not None:
        focal, told = 0.5 * width / math.tan(math.radians(fov_deg) / 2), "given"
    elif alone and meta.focal_px is not None:
        focal, told = meta.focal_px * width / meta.width, "exif"
    distance = DISTANCE if focal is None else distance_of(focal, framing)
    subject = framed(found.image, found.mask, framing, side, azimuth_deg, elevation, distance)
    fov = 2 * math.degrees(math.atan(0.5 * width / framing.camera(subject).K[0, 0, 0]))
    warnings = []
    if meta.animated:
        many = "has several pages" if meta.format == "TIFF" else "is animated"
        warnings.append(f"{path.name} {many}; the first picture is used.")
    if found.doubts:
        warnings.append(
            f"{path.name}: the cut-out by {found.way} may be wrong ({'; '.join(found.doubts)}); see input.png, and give --mask "
            "or a picture with a transparent background."
        )
    facts = {
        "name": path.name,
        "way": found.way,
        "detail": found.detail,
        "doubts": list(found.doubts),
        **found.facts,
        "azimuth_deg": azimuth_deg,
        "elevation_deg": elevation,
        "elevation_given": elevation_deg is not None,
        "fov_deg": round(fov, 2),
        "fov_from": told,
        "frame": asdict(framing),
    }
    return Picture(
        name=path.name,
        sha256=_digest(path),
        mask_sha256=None if mask is None else _digest(Path(mask)),
        image=found.image,
        mask=found.mask,
        framing=framing,
        subject=subject,
        shown=_small(image if alpha is None else image * alpha[..., None] + 1 - alpha[..., None]),
        way=found.way,
        warnings=tuple(warnings),
        facts=facts,
    )


def _read_mask(path: Path, image: Tensor, max_pixels: int) -> Tensor:
    """[H, W] in the pixels of `image`: the brightness of a mask, or its alpha where it has one."""
    from splat.io.images import read_image

    mask, alpha, _ = read_image(path, max_pixels=max_pixels, max_side=2 * PHOTO_SIDE)
    values = mask.mean(-1) if alpha is None else alpha * (mask.mean(-1) if float(mask.std()) > 0.01 else 1)
    (height, width), (mask_height, mask_width) = image.shape[:2], values.shape
    if abs(mask_width / mask_height / (width / height) - 1) > MASK_ASPECT:
        raise InputError(
            f"the mask {path.name} has {mask_width} x {mask_height} pixels, another shape than its picture of {width} x "
            f"{height}; make it of the same size."
        )
    size = (height, width)
    return torch.nn.functional.interpolate(values[None, None], size, mode="bilinear", antialias=True)[0, 0].clamp(0, 1)


def _small(image: Tensor) -> Tensor:
    height, width = image.shape[:2]
    scale = min(1.0, SHOWN_SIDE / max(height, width))
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    return torch.nn.functional.interpolate(image.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)[0].permute(
        1, 2, 0
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
