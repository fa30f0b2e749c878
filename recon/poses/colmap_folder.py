"""Cameras and points of a COLMAP sparse model, binary or text.

Read here and not by pycolmap, whose reader believes every count in a damaged file and then fills the memory. Since version 3.12
COLMAP also writes rigs and frames; the images still carry their whole poses.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

from recon.poses.given_cameras import GivenCamera, Lens, inverted_rigid
from splat.errors import InputError
from splat.points import PointCloud
from splat.rotations import matrix_from_quat

# COLMAP model name, its number in binary files and its parameters; only lenses that k1, k2, p1, p2 express.
MODELS = {
    "SIMPLE_PINHOLE": (0, ("f", "cx", "cy")),
    "PINHOLE": (1, ("fx", "fy", "cx", "cy")),
    "SIMPLE_RADIAL": (2, ("f", "cx", "cy", "k1")),
    "RADIAL": (3, ("f", "cx", "cy", "k1", "k2")),
    "OPENCV": (4, ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")),
}
OTHER_MODELS = ("OPENCV_FISHEYE", "FULL_OPENCV", "FOV", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE")

PoseRow = tuple[str, int, tuple[float, ...]]  # name, camera id, quaternion wxyz and translation
PointRow = tuple[tuple[float, ...], tuple[int, ...], int]  # position, colour 0-255, photos that see it


def model_files(path: Path) -> list[Path]:
    """The files that `read_colmap_folder` reads for `path`."""
    folder = _model_folder(path)
    suffix = ".bin" if (folder / "cameras.bin").is_file() else ".txt"
    return [file for name in ("cameras", "images", "points3D") if (file := folder / f"{name}{suffix}").is_file()]


def _model_folder(path: Path) -> Path:
    for below in ("", "sparse/0", "sparse", "0", "colmap/sparse/0"):
        if any((path / below / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return path / below
    raise InputError(f"{path} holds neither a transforms.json nor COLMAP's cameras.bin or cameras.txt; give one of them.")


def read_colmap_folder(path: Path) -> tuple[list[GivenCamera], PointCloud]:
    """A folder with cameras, images and points3D (.bin or .txt), or one that holds it as `sparse/0`, `sparse` or `0`.

    Confidence of a point: 1 - 1 / (photos that see it). Raises `InputError` for damaged files and lenses without a line in
    `MODELS`.
    """
    folder = _model_folder(path)
    try:
        if (folder / "cameras.bin").is_file():
            lenses = _binary_cameras((folder / "cameras.bin").read_bytes())
            images = list(_binary_images((folder / "images.bin").read_bytes()))
            points = list(_binary_points((folder / "points3D.bin").read_bytes())) if (folder / "points3D.bin").is_file() else []
        else:
            lenses = _text_cameras((folder / "cameras.txt").read_text())
            images = list(_text_images((folder / "images.txt").read_text()))
            points = list(_text_points((folder / "points3D.txt").read_text())) if (folder / "points3D.txt").is_file() else []
        given = [GivenCamera(PurePosixPath(name), _pose(name, numbers), lenses[camera]) for name, camera, numbers in images]
        cloud = _cloud(points)
    except (struct.error, ValueError, IndexError, KeyError, OSError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"the COLMAP model in {folder} is damaged ({reason}); export it again.") from error
    if not given:
        raise InputError(f"the COLMAP model in {folder} has no placed image; solve it again.")
    return given, cloud


def _pose(name: str, numbers: tuple[float, ...]) -> torch.Tensor:
    """Quaternion wxyz and translation of cam_from_world -> [4, 4] float64."""
    values = torch.tensor(numbers, dtype=torch.float64)
    if not values.isfinite().all() or values[:4].norm() < 0.5 or values[:4].norm() > 2:
        raise InputError(f"the COLMAP camera of {name} has NaN, infinite or senseless numbers; solve it again.")
    rotation = matrix_from_quat(values[:4]).T
    return inverted_rigid(rotation, -rotation @ values[4:], f"the COLMAP camera of {name}")


def _lens(model: str, width: int, height: int, values: tuple[float, ...]) -> Lens:
    parameters = dict(zip(MODELS[model][1], values))
    if not torch.tensor(values).isfinite().all() or len(values) != len(parameters):
        raise ValueError(f"camera parameters {values}")
    focal_x = parameters.get("f", parameters.get("fx", 0.0))
    if not (0 < width < 1e6 and 0 < height < 1e6 and focal_x > 0 and parameters.get("fy", focal_x) > 0):
        raise ValueError(f"a camera of {width} x {height} pixels with focal length {focal_x}")
    distortion = tuple(parameters.get(term, 0.0) for term in ("k1", "k2", "p1", "p2", "k3", "k4"))
    return Lens(width, height, focal_x, parameters.get("fy"), cx=parameters["cx"], cy=parameters["cy"], distortion=distortion)


def _known(model: str) -> str:
    if model in OTHER_MODELS:
        raise InputError(f"the COLMAP camera model {model} is not supported; undistort the photos with COLMAP first.")
    if model not in MODELS:
        raise ValueError(f"camera model {model[:40]}")
    return model


def _cloud(rows: list[PointRow]) -> PointCloud:
    xyz = torch.tensor([position for position, _, _ in rows], dtype=torch.float32).reshape(-1, 3)
    rgb = torch.tensor([colour for _, colour, _ in rows], dtype=torch.float32).reshape(-1, 3) / 255
    seen = torch.tensor([float(count) for _, _, count in rows])
    return PointCloud(xyz, rgb.clamp(0, 1), 1 - 1 / seen.clamp_min(1))[xyz.isfinite().all(dim=-1)]


# --- binary: little endian, a count of 8 bytes first; slices beyond the end raise struct.error ------------------------


def _count(data: bytes, record: int, at: int = 0) -> int:
    """The number of records announced at `at`; each has at least `record` bytes, so a damaged number shows."""
    (count,) = struct.unpack_from("<Q", data, at)
    if count * record > len(data) - at - 8:
        raise ValueError(f"{count} records announced in {len(data)} bytes")
    return count


def _binary_cameras(data: bytes) -> dict[int, Lens]:
    names = {number: name for name, (number, _) in MODELS.items()} | {5 + i: name for i, name in enumerate(OTHER_MODELS)}
    lenses, at = {}, 8
    for _ in range(_count(data, 48)):
        camera, number, width, height = struct.unpack_from("<IiQQ", data, at)
        model = _known(names.get(number, str(number)))
        parameters = len(MODELS[model][1])
        lenses[camera] = _lens(model, width, height, struct.unpack_from(f"<{parameters}d", data, at + 24))
        at += 24 + 8 * parameters
    return lenses


def _binary_images(data: bytes) -> Iterator[PoseRow]:
    at = 8
    for _ in range(_count(data, 73)):
        numbers = struct.unpack_from("<7d", data, at + 4)
        (camera,) = struct.unpack_from("<I", data, at + 60)
        end = data.index(b"\0", at + 64, at + 64 + 4096)
        yield data[at + 64 : end].decode(), camera, numbers
        at = end + 9 + 24 * _count(data, 24, end + 1)


def _binary_points(data: bytes) -> Iterator[PointRow]:
    at = 8
    for _ in range(_count(data, 51)):
        values = struct.unpack_from("<3d3B", data, at + 8)
        seen = _count(data, 8, at + 43)
        yield values[:3], values[3:], seen
        at += 51 + 8 * seen


# --- text: one record a line, two for an image; comments begin with # -------------------------------------------------


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def _text_cameras(text: str) -> dict[int, Lens]:
    lenses = {}
    for line in filter(str.strip, _lines(text)):
        camera, model, width, height, *values = line.split()
        lenses[int(camera)] = _lens(_known(model), int(width), int(height), tuple(map(float, values)))
    return lenses


def _text_images(text: str) -> Iterator[PoseRow]:
    lines = _lines(text)
    while lines and not lines[0].strip():
        del lines[0]
    for line in lines[::2]:  # the second line of each holds its keypoints and may be empty
        if line.strip():
            fields = line.split(maxsplit=9)
            yield fields[9].strip(), int(fields[8]), tuple(map(float, fields[1:8]))


def _text_points(text: str) -> Iterator[PointRow]:
    for line in filter(str.strip, _lines(text)):
        fields = line.split()
        yield tuple(map(float, fields[1:4])), tuple(map(int, fields[4:7])), (len(fields) - 8) // 2
