"""The files that every result of a single object has, whatever it was made from: scene, mesh, turntable, preview, cameras."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.jobs import meshed
from app.presets import ObjectPreset, TextPreset
from app.report import Licence
from splat.progress import Progress

if TYPE_CHECKING:
    from splat.cameras import Cameras
    from splat.density_mesh import DensityMeshConfig
    from splat.extract_mesh import MeshConfig
    from splat.gaussians import Splats
    from splat.mesh import Mesh

ELEVATION_DEG = 15.0  # of the turntable
THICKNESS = 0.006  # world units to which the mesh thickens what is thinner, so that rods, strings and blades stay whole
SHEET_SIDE, SHEET_VIEWS = 256, 6  # px and pictures of a row of preview.png

Row = tuple[str, Sequence[Tensor]]  # of preview.png: a label and pictures [H, W, 3]


@dataclass(frozen=True)
class Drawing:
    """How the pictures of a result are drawn."""

    background: tuple[float, float, float]  # sRGB
    threads: int

    def of(self, splats: Splats, cameras: Cameras) -> Generator[Tensor, None, None]:
        """One picture [H, W, 3] a camera."""
        from app.turntable import render_frames

        yield from render_frames(splats, cameras, torch.tensor(self.background), self.threads)


def around(count: int, side: int, azimuth_deg: float = 0.0) -> Cameras:
    """Cameras on a level circle at the distance that the generators' objects are made for."""
    from diffusion.data.object_views import DISTANCE, FOV_DEG
    from splat.cameras import Cameras

    return Cameras.orbit(count, DISTANCE, ELEVATION_DEG, FOV_DEG, side, side, azimuth_deg=azimuth_deg)


def mesh_plan(preset: TextPreset) -> tuple[Cameras, MeshConfig]:
    """Cameras all round an object and how their depth becomes its mesh."""
    from diffusion.data.object_views import DISTANCE
    from diffusion.fit_volume import fitting_cameras
    from splat.extract_mesh import MeshConfig

    cameras = fitting_cameras(preset.mesh_views, preset.mesh_side)
    pixel = DISTANCE / float(cameras.K[0, 0, 0])  # world units, at the middle of the object
    config = MeshConfig(
        resolution=preset.mesh_resolution,
        max_faces=preset.mesh_faces,
        low_pass=max(THICKNESS / pixel, 1.0) ** 2,
        carve=True,
        truncation=4.0,
        min_part=0.005,
    )
    return cameras, config


def closed_mesh(splats: Splats, preset: ObjectPreset) -> Generator[Progress, None, tuple[Mesh | None, tuple[str, ...]]]:
    """The closed mesh of an object whose splats are fuzzy, or None and the sentence why there is none."""
    from splat.density_mesh import density_mesh

    return (yield from meshed(lambda: density_mesh(splats, closed_mesh_plan(preset))))


def closed_mesh_plan(preset: ObjectPreset) -> DensityMeshConfig:
    """How the density of an object's splats becomes its mesh."""
    from splat.density_mesh import DensityMeshConfig

    return DensityMeshConfig(resolution=preset.mesh_resolution, max_faces=preset.mesh_faces)


def object_mesh(splats: Splats, preset: TextPreset) -> Generator[Progress, None, tuple[Mesh | None, tuple[str, ...]]]:
    """The mesh of an object, or None and the sentence why there is none."""
    from splat.extract_mesh import extract_mesh

    cameras, config = mesh_plan(preset)
    return (yield from meshed(lambda: extract_mesh(splats, [cameras], config)))


def write_pictures(
    folder: Path,
    splats: Splats,
    mesh: Mesh | None,
    preset: ObjectPreset,
    drawing: Drawing,
    above: Sequence[Row] = (),
) -> Generator[Progress, None, None]:
    """turntable.mp4, and preview.png with `above`'s rows over the splats and the mesh from all round."""
    from app.contact_sheet import object_sheet
    from app.turntable import video
    from splat.io.images import save_image
    from splat.raycast import raycast

    path = around(preset.turntable_frames, preset.turntable_side)
    with video(folder / "turntable.mp4") as add:
        for i, frame in enumerate(drawing.of(splats, path)):
            add(frame)
            yield Progress("turntable", i + 1, len(path), preview=frame)
    cameras = around(SHEET_VIEWS, SHEET_SIDE, 30.0)
    rows = [*above, ("splats", list(drawing.of(splats, cameras)))]
    if mesh is not None:
        views, _ = raycast(mesh, cameras, background=drawing.background, threads=drawing.threads)
        rows.append(("mesh", list(views.images)))
    save_image(folder / "preview.png", object_sheet(rows))


def write_scene(folder: Path, splats: Splats, mesh: Mesh | None, side: int, first: Sequence[tuple[str, Cameras]] = ()) -> None:
    """scene.ply, mesh.glb and cameras.json: the cameras `first` with their names, then the protocol's of `side` px."""
    from diffusion.data.object_views import protocol_cameras
    from recon.poses.from_file import write_transforms
    from splat.io import save
    from splat.io.meshes import save_mesh

    save(splats, folder / "scene.ply")
    if mesh is not None:
        save_mesh(mesh, folder / "mesh.glb")
    cameras = protocol_cameras(side)
    names = [name for name, _ in first] + [f"view_{i:03d}.png" for i in range(len(cameras))]
    write_transforms(folder / "cameras.json", [*(camera for _, camera in first), cameras], names)


def stated_licences(stated: Sequence[str], otherwise: str) -> list[Licence]:
    """ "name: licence" of weights as their own files state it; a text without a name is a licence of `otherwise`."""
    split = (text.partition(": ") for text in stated)
    return [Licence(name, licence) if colon else Licence(otherwise, name) for name, colon, licence in split]
