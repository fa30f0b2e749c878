"""The files that every result of a captured scene has: scene, mesh, turntable, preview, cameras; and how it is measured."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from splat.progress import Progress

if TYPE_CHECKING:
    from app.contact_sheet import Pair
    from app.presets import Preset
    from app.report import Quality
    from splat.cameras import Cameras
    from splat.gaussians import Splats
    from splat.mesh import Mesh
    from splat.views import Views

T = TypeVar("T")


def measured(
    splats: Splats, views: Sequence[Views], background: Tensor, exposures: Tensor | None, threads: int
) -> Generator[Progress, None, tuple[Quality | None, list[Pair]]]:
    """See `app.quality.measure`."""
    from app.quality import measure

    return (yield from measure(splats, views, background, exposures, threads))


def write_pictures(
    folder: Path,
    splats: Splats,
    cameras: Sequence[Cameras],
    pairs: Sequence[Pair],
    preset: Preset,
    background: Tensor,
    threads: int,
) -> Generator[Progress, None, None]:
    """turntable.mp4 along a path that suits the `cameras`, and preview.png: photos beside renders, and frames of the video."""
    from app.contact_sheet import contact_sheet
    from app.turntable import render_frames, suited_path, video
    from splat.io.images import save_image

    path = suited_path(cameras, splats, preset.turntable_frames, preset.turntable_side)
    shown = set(_spread(list(range(len(path))), 6))
    kept: list[Tensor] = []  # a few only: a long video of large frames would fill the memory
    with video(folder / "turntable.mp4") as add:
        for i, frame in enumerate(render_frames(splats, path, background, threads)):
            add(frame)
            kept += [frame] * (i in shown)
            yield Progress("turntable", i + 1, len(path), preview=frame)
    save_image(folder / "preview.png", contact_sheet(_spread(pairs, 4), kept))


def write_scene(folder: Path, splats: Splats, mesh: Mesh | None, train: Sequence[Views], heldout: Sequence[Views]) -> None:
    """scene.ply, mesh.glb, cameras.json and, where photos were held out, cameras_holdout.json."""
    from recon.poses.from_file import write_transforms
    from splat.io import save
    from splat.io.meshes import save_mesh

    save(splats, folder / "scene.ply")
    if mesh is not None:
        save_mesh(mesh, folder / "mesh.glb")
    write_transforms(folder / "cameras.json", [v.cameras for v in train], [name for v in train for name in v.names])
    if heldout:
        names = [name for v in heldout for name in v.names]
        write_transforms(folder / "cameras_holdout.json", [v.cameras for v in heldout], names)


def _spread(items: Sequence[T], most: int) -> Sequence[T]:
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]
