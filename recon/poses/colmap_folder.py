"""Cameras and points of a COLMAP sparse model, binary or text."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from recon.poses.given_cameras import GivenCamera, Lens
from splat.errors import InputError
from splat.points import PointCloud

# COLMAP camera model -> where its parameters stand: focal x, focal y, cx, cy, then the distortion terms by name.
MODELS = {
    "SIMPLE_PINHOLE": (0, 0, 1, 2, {}),
    "PINHOLE": (0, 1, 2, 3, {}),
    "SIMPLE_RADIAL": (0, 0, 1, 2, {"k1": 3}),
    "RADIAL": (0, 0, 1, 2, {"k1": 3, "k2": 4}),
    "OPENCV": (0, 1, 2, 3, {"k1": 4, "k2": 5, "p1": 6, "p2": 7}),
}


def read_colmap_folder(path: Path) -> tuple[list[GivenCamera], PointCloud]:
    """A folder with cameras, images and points3D (.bin or .txt), or one that holds it as `sparse/0`, `sparse` or `0`.

    Confidence of a point: 1 - 1 / (photos that see it). Raises `InputError` for damaged files and lenses without a line in
    `MODELS`.
    """
    folders = [path / below for below in ("", "sparse/0", "sparse", "0", "colmap/sparse/0")]
    folder = next((f for f in folders if (f / "cameras.bin").is_file() or (f / "cameras.txt").is_file()), None)
    if folder is None:
        raise InputError(f"{path} holds neither a transforms.json nor COLMAP's cameras.bin or cameras.txt; give one of them.")
    import zlib  # noqa: F401  (before pycolmap, whose own copy corrupts the heap otherwise)

    import pycolmap

    try:
        model = pycolmap.Reconstruction(str(folder))
        given = [_camera(image) for image in model.images.values() if image.has_pose]
        points = _points(model)
    except InputError:
        raise
    except Exception as error:  # COLMAP's checks arrive as many types
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"the COLMAP model in {folder} is damaged ({reason}); export it again.") from error
    if not given:
        raise InputError(f"the COLMAP model in {folder} has no placed image; solve it again.")
    return given, points


def _camera(image: Any) -> GivenCamera:
    from recon.poses.from_file import inverted_rigid

    camera = image.camera
    name = camera.model.name
    if name not in MODELS:
        raise InputError(
            f"the COLMAP camera model {name} of {image.name} is not supported; undistort the photos with COLMAP first."
        )
    fx, fy, cx, cy, terms = MODELS[name]
    values = [float(v) for v in camera.params]
    pose = torch.from_numpy(np.asarray(image.cam_from_world().matrix(), dtype=np.float64))  # [3, 4]
    if not (np.isfinite(values).all() and pose.isfinite().all()):
        raise InputError(f"the COLMAP camera of {image.name} has NaN or infinite numbers; solve it again.")
    if min(camera.width, camera.height, values[fx], values[fy]) <= 0:
        raise InputError(f"the COLMAP camera of {image.name} has a size or focal length of 0; solve it again.")
    rotation = pose[:, :3].T
    cam_from_world = inverted_rigid(rotation, -rotation @ pose[:, 3], f"the COLMAP camera of {image.name}")
    distortion = tuple(values[terms[term]] if term in terms else 0.0 for term in ("k1", "k2", "p1", "p2", "k3", "k4"))
    lens = Lens(camera.width, camera.height, values[fx], values[fy], cx=values[cx], cy=values[cy], distortion=distortion)
    return GivenCamera(PurePosixPath(image.name), cam_from_world, lens)


def _points(model: Any) -> PointCloud:
    points = list(model.points3D.values())
    xyz = torch.tensor(np.array([p.xyz for p in points]).reshape(-1, 3), dtype=torch.float32)
    rgb = torch.tensor(np.array([p.color for p in points], dtype=np.float32).reshape(-1, 3) / 255)
    seen = torch.tensor([float(p.track.length()) for p in points])
    cloud = PointCloud(xyz, rgb, 1 - 1 / seen.clamp_min(1))
    return cloud[xyz.isfinite().all(dim=-1)]
