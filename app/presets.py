"""What `--preset` means, in plain numbers; the pipelines turn these into the configs of the parts. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffusion.image_config import ImageSampleConfig
from diffusion.text_config import TextSampleConfig

PresetName = Literal["draft", "standard", "quality"]


@dataclass(frozen=True)
class Preset:
    """One trade between time and quality for the photos job."""

    feature_side: int  # px, long side of the photos that features are found and poses solved on
    fit_side: int  # px, long side of the photos that the splats are fitted to
    steps: int  # optimisation steps
    max_gaussians: int
    sh_degree: int  # view-dependent colour: 0 none, 3 as 3DGS
    mesh_faces: int  # the mesh is simplified to about this many triangles
    turntable_side: int  # px, long side of the turntable video
    turntable_frames: int


PRESETS: dict[PresetName, Preset] = {
    "draft": Preset(
        feature_side=1024,
        fit_side=320,
        steps=500,
        max_gaussians=40_000,
        sh_degree=1,
        mesh_faces=40_000,
        turntable_side=480,
        turntable_frames=48,
    ),
    "standard": Preset(
        feature_side=1024,
        fit_side=480,
        steps=1500,
        max_gaussians=80_000,
        sh_degree=2,
        mesh_faces=100_000,
        turntable_side=640,
        turntable_frames=90,
    ),
    "quality": Preset(
        feature_side=1600,
        fit_side=1024,
        steps=7000,
        max_gaussians=500_000,
        sh_degree=3,
        mesh_faces=300_000,
        turntable_side=1024,
        turntable_frames=120,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ObjectPreset:
    """One trade between time and quality for the mesh and the pictures of an object."""

    mesh_resolution: int  # voxels along the longest side
    mesh_faces: int  # the mesh is simplified to about this many triangles
    turntable_side: int  # px, square
    turntable_frames: int


@dataclass(frozen=True, kw_only=True)
class TextPreset(ObjectPreset):
    """One trade between time and quality for the text job, for each object."""

    candidates: int  # tries, of which the best is kept
    mesh_views: int  # pictures from all round whose depth becomes the mesh
    mesh_side: int  # px of those pictures, square
    steps: int  # network calls of the diffusion


TEXT_PRESETS: dict[PresetName, TextPreset] = {
    "draft": TextPreset(
        candidates=1,
        steps=8,
        mesh_views=24,
        mesh_side=192,
        mesh_resolution=112,
        mesh_faces=20_000,
        turntable_side=320,
        turntable_frames=36,
    ),
    "standard": TextPreset(
        candidates=4,
        steps=TextSampleConfig.steps,
        mesh_views=28,
        mesh_side=288,
        mesh_resolution=144,
        mesh_faces=60_000,
        turntable_side=512,
        turntable_frames=72,
    ),
    "quality": TextPreset(
        candidates=16,
        steps=25,
        mesh_views=48,
        mesh_side=448,
        mesh_resolution=224,
        mesh_faces=150_000,
        turntable_side=1024,
        turntable_frames=120,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ImagePreset(ObjectPreset):
    """One trade between time and quality for the image job, for each object."""

    steps: int  # network calls of the diffusion
    refine_steps: int  # of the fit that makes the front view the picture itself; 0 leaves the network's Gaussians
    refine_side: int  # px of the picture in that fit, square
    max_gaussians: int  # after it


IMAGE_PRESETS: dict[PresetName, ImagePreset] = {
    "draft": ImagePreset(
        steps=4,
        refine_steps=80,
        refine_side=192,
        max_gaussians=20_000,
        mesh_resolution=112,
        mesh_faces=20_000,
        turntable_side=320,
        turntable_frames=36,
    ),
    "standard": ImagePreset(
        steps=ImageSampleConfig.steps,
        refine_steps=200,
        refine_side=320,
        max_gaussians=30_000,
        mesh_resolution=144,
        mesh_faces=60_000,
        turntable_side=512,
        turntable_frames=72,
    ),
    "quality": ImagePreset(
        steps=25,
        refine_steps=600,
        refine_side=512,
        max_gaussians=60_000,
        mesh_resolution=224,
        mesh_faces=150_000,
        turntable_side=1024,
        turntable_frames=120,
    ),
}
