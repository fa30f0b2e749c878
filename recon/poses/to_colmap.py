"""Posed views as a COLMAP model with undistorted photos: what other splat trainers read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from splat.io.images import save_image
from splat.points import PointCloud
from splat.rotations import quat_from_matrix
from splat.views import Views


def write_colmap_folder(folder: Path, views: Sequence[Views], points: PointCloud) -> None:
    """`folder`/images/*.png and `folder`/sparse/0/{cameras,images,points3D}.txt; PINHOLE, one camera a photo, empty tracks.

    The world is that of `views`; COLMAP has no axes of its own. `folder` must not exist.
    """
    (folder / "images").mkdir(parents=True)
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    cameras, images = [], []
    for view in views:
        assert view.cameras is not None, "posed views"
        poses = view.cameras.cam_from_world.double()
        for i, name in enumerate(view.names):
            K = view.cameras.K[i].tolist()
            number, file = len(cameras) + 1, f"{Path(name).stem}_{len(cameras):03d}.png"
            width, height = view.size
            cameras.append(f"{number} PINHOLE {width} {height} {K[0][0]} {K[1][1]} {K[0][2]} {K[1][2]}")
            pose = [*quat_from_matrix(poses[i, :3, :3]).tolist(), *poses[i, :3, 3].tolist()]
            images.append(f"{number} {' '.join(map(str, pose))} {number} {file}\n")  # an empty line of 2-D points follows
            save_image(folder / "images" / file, view.images[i])
    rgb = (points.rgb.clamp(0, 1) * 255).round().int().tolist()
    rows = [f"{i + 1} {x} {y} {z} {r} {g} {b} 0" for i, ((x, y, z), (r, g, b)) in enumerate(zip(points.xyz.tolist(), rgb))]
    (sparse / "cameras.txt").write_text("\n".join(cameras) + "\n")
    (sparse / "images.txt").write_text("\n".join(images) + "\n")
    (sparse / "points3D.txt").write_text("\n".join(rows) + "\n")
