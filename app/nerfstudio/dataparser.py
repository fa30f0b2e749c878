"""nerfstudio's data parser `splatsmith-data`: photos with or without poses, or a result folder of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from app.nerfstudio.prepare import HELDOUT, INITIAL, TRAIN, PrepareConfig, prepared
from recon.poses.from_file import read_transforms
from splat.io import load


@dataclass
class SplatsmithDataParserConfig(DataParserConfig):
    """Photos, posed and looked at for depth by splatsmith; or a result of splatsmith."""

    _target: type = field(default_factory=lambda: SplatsmithDataParser)
    data: Path = Path()
    """Folder of photos, a video, or a result folder."""
    poses: str = "auto"
    """auto solves camera poses; or a transforms.json, or a COLMAP model folder. A result has its own."""
    fit_side: int = 480
    """Long side in px of the pictures to fit."""
    holdout: int = 8
    """Every n-th photo is for evaluation; 0 fits all."""
    cache: Path = Path("outputs/splatsmith-data")
    """Where undistorted pictures, poses and first Gaussians are kept for the next run."""


class SplatsmithDataParser(DataParser):
    """See `app.nerfstudio.prepare.prepared`. The world is the result's: +Y up, cameras within about a unit sphere."""

    config: SplatsmithDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **_) -> DataparserOutputs:
        config = PrepareConfig(self.config.poses, self.config.fit_side, self.config.holdout)
        folder = prepared(self.config.data, self.config.cache, config)
        frames = read_transforms(folder / TRAIN)
        if split != "train":  # with none held out, evaluation looks at the photos of the fit
            frames = _frames_or_none(folder / HELDOUT) or frames
        initial = load(folder / INITIAL)
        metadata = {
            "splatsmith_initial": str(folder / INITIAL),
            "points3D_xyz": initial.means,
            "points3D_rgb": (initial.rgb.clamp(0, 1) * 255).to(torch.uint8),
        }
        return DataparserOutputs(
            image_filenames=[folder / frame.file for frame in frames],
            cameras=_cameras(frames),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]])),
            metadata=metadata,
        )


def _frames_or_none(path: Path) -> list:
    return read_transforms(path) if '"file_path"' in path.read_text() else []


def _cameras(frames: list) -> Cameras:
    """nerfstudio's cameras: OpenGL axes, world from camera."""
    flip = torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)
    world_from_cam = torch.stack([torch.linalg.inv(frame.cam_from_world.double()) * flip for frame in frames])
    lenses = [frame.lens for frame in frames]

    def column(name: str, kind: torch.dtype) -> torch.Tensor:
        return torch.tensor([getattr(lens, name) for lens in lenses], dtype=kind)

    return Cameras(
        camera_to_worlds=world_from_cam[:, :3].float(),
        fx=column("focal_x", torch.float32),
        fy=column("focal_y", torch.float32),
        cx=column("cx", torch.float32),
        cy=column("cy", torch.float32),
        width=column("width", torch.int32),
        height=column("height", torch.int32),
        camera_type=CameraType.PERSPECTIVE,
    )


SplatsmithData = DataParserSpecification(
    config=SplatsmithDataParserConfig(), description="Photos with or without poses, or a result of splatsmith."
)
