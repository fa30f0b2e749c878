"""`splat.raycast` in plain PyTorch, on any device: for machines with a GPU, and none of open3d's ray caster on it.

Every ray meets every triangle, in pieces: right for the few thousand triangles and small pictures that training is made of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.mesh import Mesh

PAIRS = 8_000_000  # of ray and triangle at a time


def cast(mesh: Mesh, camera: Cameras, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest triangle behind each pixel's centre of one camera, seen from either side; on the CPU at the end.

    Returns depth [H, W] (z in the camera frame, world units, 0 where nothing is hit), the triangle [H, W] int64, and [H, W, 2]
    the barycentric weights of its second and third corner. Möller and Trumbore 1997, with the rays' common origin taken out:
    what is left for each pair are three dot products with the direction.
    """
    from splat.raycast import pixel_rays

    rays = torch.from_numpy(pixel_rays(camera))
    height, width = rays.shape[:2]
    origin, directions = rays[0, 0, :3].to(device), rays[..., 3:].reshape(-1, 3).to(device)
    depth = torch.zeros(height * width, device=device)
    face = torch.zeros(height * width, dtype=torch.int64, device=device)
    weights = torch.zeros(height * width, 2, device=device)
    if len(mesh.faces):
        corners = mesh.vertices.float().to(device)[mesh.faces.to(device)]  # [F, 3, 3]
        first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        away = origin - corners[:, 0]
        normal = torch.cross(first, second, dim=1)
        planes = torch.stack([normal, torch.cross(away, second, dim=1), torch.cross(first, away, dim=1)])  # [3, F, 3]
        height_over = (away * normal).sum(1)
        for start in range(0, len(directions), max(PAIRS // len(corners), 1)):
            part = slice(start, start + max(PAIRS // len(corners), 1))
            slope, u, v = torch.einsum("ri,kfi->krf", directions[part], planes)
            slope = torch.where(slope.abs() < 1e-12, torch.nan, slope)  # a triangle seen edge-on
            u, v, t = u / slope, v / slope, -height_over / slope
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
            nearest, which = torch.where(hit, t, torch.inf).min(dim=1)
            found = nearest.isfinite()
            rows = torch.arange(len(which), device=device)
            depth[part] = torch.where(found, nearest, 0)
            face[part] = torch.where(found, which, 0)
            weights[part] = torch.where(found[:, None], torch.stack([u[rows, which], v[rows, which]], -1), 0)
    return (
        depth.reshape(height, width).cpu(), face.reshape(height, width).cpu(), weights.reshape(height, width, 2).cpu(),
    )  # fmt: skip
