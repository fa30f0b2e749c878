"""From cameras as files give them to the cameras of the photos at hand: matching by name, pixels, lens distortion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recon.poses import Poses
from splat.cameras import Cameras
from splat.errors import InputError
from splat.points import PointCloud

if TYPE_CHECKING:
    from recon.photos import Photo

RIGID_TOLERANCE = 0.01  # of R^T R from the identity; files with few decimals stay below


@dataclass(frozen=True)
class Lens:
    """Intrinsics in the pixels of width x height; what is None follows from the photo."""

    width: float | None
    height: float | None
    focal_x: float | None
    focal_y: float | None = None  # None: as focal_x
    angle_x: float | None = None  # radians, the whole horizontal field of view; used without focal_x
    angle_y: float | None = None
    cx: float | None = None  # None: the middle
    cy: float | None = None
    distortion: tuple[float, ...] = (0.0,) * 6  # k1 k2 p1 p2 k3 k4 as OpenCV and nerfstudio define them


@dataclass(frozen=True)
class GivenCamera:
    """One camera of a file."""

    file: PurePosixPath  # the picture it belongs to, suffix optional
    cam_from_world: Tensor  # [4, 4] float64, OpenCV axes
    lens: Lens


def matched(given: Sequence[GivenCamera], points: PointCloud, photos: Sequence[Photo], source: str) -> Poses:
    """The cameras of `photos`; a photo without one gets a reason. Raises `InputError` when fewer than two get one."""
    _require_sane_places(given, source)
    by_stem: dict[str, list[GivenCamera]] = {}
    for camera in given:
        by_stem.setdefault(_stem(camera.file.name), []).append(camera)
    cameras: list[Cameras | None] = []
    k1s: list[float] = []
    reasons: list[str | None] = []
    worst = 0.0
    for photo in photos:
        choice = _choice(by_stem.get(_stem(photo.path.name)) or by_stem.get(_stem(photo.name)) or [], photo)
        if isinstance(choice, str):
            cameras.append(None)
            k1s.append(0.0)
            reasons.append(choice.format(name=photo.name, source=source))
            continue
        camera, k1, residual = _camera_of(choice, photo, source)
        cameras.append(camera)
        k1s.append(k1)
        reasons.append(None)
        worst = max(worst, residual)
    placed = sum(camera is not None for camera in cameras)
    if placed < 2:
        raise InputError(
            f"{source} has cameras for {placed} of the {len(photos)} photos (it names {given[0].file.name} and "
            f"{len(given) - 1} more), 2 are needed; give the photos it was made from."
        )
    warnings = []
    if placed < len(photos):
        warnings.append(f"{len(photos) - placed} of {len(photos)} photos have no camera in {source} and are left out.")
    if worst > 1:
        warnings.append(
            f"the lens distortion in {source} is more than k1 can express; up to {worst:.1f} pixels are left at the corners."
        )
    return Poses(tuple(cameras), tuple(k1s), tuple(reasons), points, tuple(warnings), {"given": float(len(given))})


def inverted_rigid(rotation: Tensor, centre: Tensor, where: str) -> Tensor:
    """world_from_cam as rotation [3, 3] and centre [3] -> cam_from_world [4, 4]; refuses what is not rigid."""
    determinant = float(torch.linalg.det(rotation))
    error = float((rotation.T @ rotation - torch.eye(3, dtype=rotation.dtype)).abs().max())
    if determinant <= 0:
        raise InputError(
            f"{where} has a mirrored rotation (determinant {determinant:.3g}); check the axes it was exported with."
        )
    if error > RIGID_TOLERANCE:
        scale = determinant ** (1 / 3)
        raise InputError(
            f"{where} has a transform_matrix that is not rigid (scale {scale:.4g}, error {error:.2g}); remove scale and shear."
        )
    u, _, vt = torch.linalg.svd(rotation)
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = (u @ vt).T  # the nearest rotation
    out[:3, 3] = -out[:3, :3] @ centre
    return out


def _stem(name: str) -> str:
    """The file name without a picture's suffix; r_0 and r_0.png are the same, frame.0001 keeps its number."""
    from splat.io.images import SUFFIXES

    return PurePath(name).stem.casefold() if PurePath(name).suffix.lower() in SUFFIXES else name.casefold()


def _choice(candidates: list[GivenCamera], photo: Photo) -> GivenCamera | str:
    """The candidate whose folders agree best with the photo's, or the reason why none does."""
    if not candidates:
        return "{name} has no camera in {source}."
    agreement = [_common_folders(camera.file, photo.path) for camera in candidates]
    best = [camera for camera, common in zip(candidates, agreement) if common == max(agreement)]
    return best[0] if len(best) == 1 else "{name} has " + str(len(best)) + " cameras in {source}."


def _common_folders(a: PurePath, b: PurePath) -> int:
    count = 0
    for one, other in zip(reversed(a.parts[:-1]), reversed(b.parts[:-1])):
        if one != other:
            break
        count += 1
    return count


def _require_sane_places(given: Sequence[GivenCamera], source: str) -> None:
    """float32 must be able to tell the cameras apart, and they must not share one place."""
    centres = torch.stack([-(c.cam_from_world[:3, :3].T @ c.cam_from_world[:3, 3]) for c in given])  # [F, 3]
    spread = float((centres - centres.median(dim=0).values).norm(dim=-1).max())
    farthest = float(centres.abs().max())
    if len(given) > 1 and spread <= 1e-9 * max(1.0, farthest):
        raise InputError(
            f"all {len(given)} cameras in {source} share one place, which shows no depth; give photos from several places."
        )
    if farthest > 1e4 * max(spread, 1e-30) and farthest > 1e3:
        raise InputError(
            f"the cameras in {source} lie {farthest:.3g} from the origin but only {spread:.3g} apart; subtract a common offset."
        )


def _camera_of(given: GivenCamera, photo: Photo, source: str) -> tuple[Cameras, float, float]:
    """(camera in the pixels of photo.image, k1, largest error in pixels that k1 alone leaves)."""
    lens = given.lens
    width, height = photo.size
    full_width, full_height = lens.width or photo.original_size[0], lens.height or photo.original_size[1]
    # A pixel of slack on each side: sizes were rounded when the photos were scaled.
    slack = 0.01 + 1 / min(width, height) + 1 / min(full_width, full_height)
    if abs(full_width * height / (full_height * width) - 1) > slack:
        turned = abs(full_height * height / (full_width * width) - 1) <= slack
        remedy = (
            "it was made without the EXIF rotation: rotate the photos and solve again"
            if turned
            else "give the photos it was made from"
        )
        raise InputError(
            f"{source} describes {given.file.name} as {full_width:.0f} x {full_height:.0f} pixels but {photo.name} has "
            f"{photo.original_size[0]} x {photo.original_size[1]}; {remedy}."
        )
    if lens.focal_x is not None:
        focal_x, focal_y = lens.focal_x, lens.focal_y or lens.focal_x
    else:
        focal_x = 0.5 * full_width / math.tan(lens.angle_x / 2)
        focal_y = focal_x if lens.angle_y is None else 0.5 * full_height / math.tan(lens.angle_y / 2)
    cx = full_width / 2 if lens.cx is None else lens.cx
    cy = full_height / 2 if lens.cy is None else lens.cy
    if not 0.05 < focal_x / full_width < 100 or not 0.5 < focal_x / focal_y < 2:
        raise InputError(
            f"{source} gives {given.file.name} focal lengths of {focal_x:.4g} and {focal_y:.4g} pixels for {full_width:.0f} "
            "pixels of width, which is no camera; correct fl_x and fl_y."
        )
    sx, sy = width / full_width, height / full_height
    K = torch.tensor([[[focal_x * sx, 0, cx * sx], [0, focal_y * sy, cy * sy], [0, 0, 1]]], dtype=torch.float64)
    k1, residual = _only_k1(lens.distortion, K[0], width, height)
    if residual > 0.03 * max(width, height):
        raise InputError(
            f"the lens distortion of {given.file.name} in {source} is too strong (error {residual:.0f} pixels); "
            "undistort the photos first."
        )
    return Cameras(given.cam_from_world.float()[None], K.float(), width, height), k1, residual


def _only_k1(distortion: tuple[float, ...], K: Tensor, width: int, height: int) -> tuple[float, float]:
    """OpenCV's k1 k2 p1 p2 k3 k4 -> (the k1 that comes nearest over the picture, its largest error in pixels).

    k4 is r^8's factor (nerfstudio), not OpenCV's rational term.
    """
    k1, k2, p1, p2, k3, k4 = distortion
    if not any(distortion[1:]):
        return k1, 0.0
    x = (torch.linspace(0, width, 33, dtype=torch.float64) - K[0, 2]) / K[0, 0]
    y = (torch.linspace(0, height, 33, dtype=torch.float64) - K[1, 2]) / K[1, 1]
    x, y = (grid.flatten() for grid in torch.meshgrid(x, y, indexing="xy"))  # [1089]
    r2 = x * x + y * y
    radial = r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    shift = torch.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y]
    )
    unit = torch.stack([x * r2, y * r2])
    best = float((unit * shift).sum() / unit.square().sum())
    error = (shift - best * unit) * K.diagonal()[:2, None]
    return best, float(error.norm(dim=0).max())
