"""Poses that were given: a `transforms.json` or a COLMAP folder. And cameras written as a `transforms.json`.

Two dialects of the JSON are read: nerfstudio's (`fl_x`, `cx`, `w`, `k1`, ... for the file or per frame) and NeRF-synthetic's
(`camera_angle_x`, file names without suffix). Both hold `transform_matrix`: world_from_cam with OpenGL camera axes.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recon.photos import TRANSFORMS
from recon.poses import Poses
from recon.poses.given_cameras import GivenCamera, Lens, inverted_rigid, matched
from splat.cameras import Cameras
from splat.errors import InputError
from splat.io.atomic import atomically
from splat.io.images import SUFFIXES
from splat.points import PointCloud

if TYPE_CHECKING:
    from recon.photos import Photo

log = logging.getLogger(__name__)

MAX_BYTES = 64_000_000  # of a transforms.json; 100,000 frames fit


def load_poses(path: Path, photos: Sequence[Photo]) -> Poses:
    """The given cameras of `photos`, in the pixels of `photo.image`, in the file's own world.

    `path` is a `transforms.json`, a folder with one (or with
    NeRF-synthetic's `transforms_train.json`), or a COLMAP sparse folder (binary or text). Frames and photos are matched
    by file name without suffix, and by folders where names repeat. Lens distortion beyond k1 is approximated by k1, with a
    warning when that is off by more than a pixel. Raises `InputError` for damaged or hostile files, matrices that are not
    rigid, file names that leave the folder, and when fewer than two photos have a frame.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"the poses {path} do not exist; give a transforms.json or a COLMAP sparse folder.")
    if path.is_dir() and not _json_of(path).is_file():
        from recon.poses.colmap_folder import read_colmap_folder

        given, points = read_colmap_folder(path)
    else:
        given, points = read_transforms(path), PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    return matched(given, points, photos, path.name)


def files_of_poses(path: Path) -> list[Path]:
    """The files that `load_poses` reads for `path`, which it must accept."""
    if path.is_dir() and not _json_of(path).is_file():
        from recon.poses.colmap_folder import model_files

        return model_files(path)
    return [_json_of(path)]


def photos_of_transforms(path: Path) -> list[Path]:
    """The pictures that a `transforms.json` names, in its order; those that are missing on disk are left out with a warning.

    Raises `InputError` as `load_poses` does, and when no picture exists.
    """
    path = _json_of(Path(path))
    frames = read_transforms(path)
    found = [file for frame in frames if (file := _existing(path.parent, frame.file)) is not None]
    if not found:
        raise InputError(
            f"none of the {len(frames)} pictures that {path.name} names exists ({frames[0].file}); put them beside it."
        )
    if len(found) < len(frames):
        log.warning("%d of %d pictures that %s names do not exist", len(frames) - len(found), len(frames), path.name)
    return found


def write_transforms(path: Path, cameras: Sequence[Cameras], names: Sequence[str]) -> None:
    """All cameras in order, one name each, in nerfstudio's form with OpenGL axes; written whole or not at all."""
    single = [batch[i] for batch in cameras for i in range(len(batch))]
    assert len(single) == len(names), (len(single), len(names))
    frames = [frame_of(camera, name) for camera, name in zip(single, names)]
    with atomically(path) as temporary:
        temporary.write_text(json.dumps({"camera_model": "OPENCV", "frames": frames}, indent=1))


def frame_of(camera: Cameras, name: str) -> dict[str, Any]:
    """A camera (a batch of one) as transforms.json has it, with OpenGL axes."""
    K = camera.K[0].double()
    return {
        "file_path": name,
        "fl_x": float(K[0, 0]),
        "fl_y": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
        "w": camera.width,
        "h": camera.height,
        "transform_matrix": camera.to_opengl()[0].tolist(),
    }


# --- transforms.json -------------------------------------------------------------------------------------------------


def read_transforms(path: Path) -> list[GivenCamera]:
    """The frames of a `transforms.json`, every number checked."""
    path = _json_of(path)
    content = _parsed(path)
    model = content.get("camera_model", "OPENCV")
    if model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
        raise InputError(
            f"{path.name} has the camera model {str(model)[:40]}, which is no perspective camera; undistort the photos first."
        )
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{path.name} has no list of frames; give a file in nerfstudio's or NeRF-synthetic's form.")
    out = []
    for index, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise InputError(f"{path.name}: frame {index} is no object; give file_path and transform_matrix.")
        where = f"{path.name}: frame {index}"
        file = _safe_file(path.parent, frame.get("file_path"), where)
        out.append(GivenCamera(file, _cam_from_world(frame.get("transform_matrix"), where), _lens({**content, **frame}, where)))
    return out


def _json_of(path: Path) -> Path:
    """The file itself, or the one in a folder."""
    if not path.is_dir():
        return path
    return next((path / name for name in TRANSFORMS if (path / name).is_file()), path / TRANSFORMS[0])


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a transforms.json or a COLMAP sparse folder.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"{path.name} has {size / 1e6:.0f} MB, more than the {MAX_BYTES / 1e6:.0f} MB allowed; split it.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path.name} is not readable JSON ({str(error)[:80]}); write it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path.name} holds a {type(content).__name__} instead of an object with frames; write it again.")
    return content


def _safe_file(folder: Path, name: Any, where: str) -> PurePosixPath:
    """The file a frame names, relative to the JSON; never outside its folder."""
    if not isinstance(name, str) or not name.strip() or "\0" in name or len(name) > 1000:
        raise InputError(f"{where} has no usable file_path; name a picture relative to the file.")
    file = PurePosixPath(name.replace("\\", "/"))
    depth = 0
    for part in file.parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or file.is_absolute() or PureWindowsPath(name).drive:
            raise InputError(f"{where} names {name[:80]}, outside the folder of the file; use paths below it.")
    existing = _existing(folder, file)
    if existing is not None and not existing.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{where} names {name[:80]}, a link that leads outside the folder of the file; copy the picture there."
        )
    return file


def _existing(folder: Path, file: PurePosixPath) -> Path | None:
    """The picture on disk; NeRF-synthetic's names lack the suffix."""
    exact = folder / file
    candidates = [exact, *(exact.with_name(exact.name + suffix) for suffix in SUFFIXES)]
    try:
        return next((candidate for candidate in candidates if candidate.is_file()), None)
    except OSError:  # a part longer than the file system allows
        return None


def _cam_from_world(rows: Any, where: str) -> Tensor:
    """`transform_matrix` (world_from_cam, OpenGL axes, 4x4 or 3x4) -> cam_from_world [4, 4] float64, OpenCV axes."""
    shape_ok = isinstance(rows, list) and len(rows) in (3, 4) and all(isinstance(r, list) and len(r) == 4 for r in rows)
    if not shape_ok or not all(isinstance(x, int | float) and not isinstance(x, bool) for row in rows for x in row):
        raise InputError(f"{where} has no transform_matrix of 4 x 4 numbers; write it again.")
    try:
        matrix = torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)
    except OverflowError:
        matrix = torch.full((4, 4), math.inf, dtype=torch.float64)
    if not matrix.isfinite().all():
        raise InputError(f"{where} has NaN or infinite numbers in its transform_matrix; leave the frame out or solve it again.")
    if len(rows) == 4 and (matrix[3] - torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)).abs().max() > 1e-6:
        raise InputError(f"{where} has a transform_matrix whose last row is not 0 0 0 1; store it row by row.")
    return inverted_rigid(matrix[:3, :3] * torch.tensor([1.0, -1, -1], dtype=torch.float64), matrix[:3, 3], where)


def _lens(fields: dict[str, Any], where: str) -> Lens:
    """Intrinsics from a frame over the file's own; sizes and centre may be missing."""

    def number(key: str, low: float, high: float) -> float | None:
        value = fields.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:  # false for NaN
            raise InputError(f"{where} has {key} {str(value)[:40]}, not a number between {low:g} and {high:g}; correct it.")
        return float(value)

    width, height = number("w", 0, 1e6), number("h", 0, 1e6)
    focal_x, focal_y = number("fl_x", 0, 1e7), number("fl_y", 0, 1e7)
    angle_x, angle_y = number("camera_angle_x", 0, math.pi), number("camera_angle_y", 0, math.pi)
    if focal_x is None and angle_x is None:
        raise InputError(f"{where} has neither fl_x nor camera_angle_x; give one for the file or per frame.")
    return Lens(
        width=width,
        height=height,
        focal_x=focal_x,
        focal_y=focal_y,
        angle_x=angle_x if focal_x is None else None,
        angle_y=angle_y if focal_x is None else None,
        cx=number("cx", -1e6, 1e6),
        cy=number("cy", -1e6, 1e6),
        distortion=tuple(number(key, -1e3, 1e3) or 0.0 for key in ("k1", "k2", "p1", "p2", "k3", "k4")),
    )
