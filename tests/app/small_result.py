"""A result folder made at once: three Gaussians whose places are known, a mesh of two triangles, and the other files."""

import json
from pathlib import Path

import numpy as np
import torch

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.io import save
from splat.io.images import save_image
from splat.io.meshes import save_mesh
from splat.mesh import Mesh

C0 = 0.28209479177387814
RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.2, 0.9)
PLACES = {
    RED: (0.5, 0.0, 0.0),
    GREEN: (0.0, 0.5, 0.0),
    BLUE: (0.0, 0.0, -0.3),
}  # red right, green above, blue behind the middle


def small_result(folder: Path) -> Path:
    from app.turntable import video
    from recon.poses.from_file import write_transforms

    folder.mkdir(parents=True)
    colours = torch.tensor(list(PLACES))
    splats = Splats(
        means=torch.tensor(list(PLACES.values())),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1),
        log_scales=torch.full((3, 3), 0.09).log(),
        opacity_logits=torch.full((3,), 4.0),
        sh=((colours - 0.5) / C0)[:, None],
    )
    save(splats, folder / "scene.ply")
    corner = torch.tensor([[-0.08, -0.08, 0.0], [0.12, -0.08, 0], [0, 0.12, 0]])
    vertices = torch.cat([torch.tensor(place) + corner for place in PLACES.values()])
    save_mesh(Mesh(vertices, torch.arange(9).reshape(3, 3), colours.repeat_interleave(3, dim=0)), folder / "mesh.glb")
    cameras = Cameras.orbit(4, 3.0, 0.0, 40.0, 64, 64)
    write_transforms(folder / "cameras.json", [cameras], [f"view_{i}.png" for i in range(4)])
    picture = torch.from_numpy(np.linspace(0, 1, 48 * 48 * 3, dtype=np.float32).reshape(48, 48, 3))
    save_image(folder / "preview.png", picture)
    with video(folder / "turntable.mp4") as add:
        for _ in range(4):
            add(picture)
    report = {
        "command": "photos",
        "gaussians": 3,
        "mesh_faces": 3,
        "seed": 0,
        "inputs": [],
        "warnings": ["One word was not known."],
        "fallbacks": [],
        "stages": [{"name": "fit", "seconds": 2.0}],
        "metrics": {"train": {"psnr": 21.5, "ssim": 0.8}, "holdout": None},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder
