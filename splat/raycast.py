"""Pictures and exact depth of triangle meshes, by ray casting: training and test views of known geometry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.mesh import Mesh
from splat.open3d_import import open3d
from splat.views import Views

WHITE = (1.0, 1.0, 1.0)
GREY = 0.7  # colour of a mesh that has none


def raycast(
    mesh: Mesh,
    cameras: Cameras,
    *,
    supersample: int = 2,
    background: Tensor | Sequence[float] = WHITE,
    names: Sequence[str] | None = None,
    threads: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Views, Tensor]:
    """Draw `mesh` unlit through every camera: texture where it has one, else vertex colours, else grey; both sides.

    Returns views (images [C, H, W, 3] sRGB over `background` [3], masks [C, H, W] the covered fraction of each pixel,
    the cameras) and depth [C, H, W]: z in the camera frame at the pixel's centre, world units, 0 where nothing is hit.
    Colours are the mean of supersample^2 samples a pixel, depth is one ray. Not differentiable. Rays are cast on `device`, by
    open3d on the CPU, where `threads` 0 lets it choose, and by `raycast_torch` elsewhere; the result is on the CPU.
    """
    assert supersample >= 1, supersample
    names = tuple(f"view_{i:03d}" for i in range(len(cameras))) if names is None else tuple(names)
    cameras = cameras.to("cpu")
    behind = np.asarray(background, dtype=np.float32)
    cast = _caster(mesh, threads, device)
    shade = _colours_at(mesh)
    images, masks, depths = [], [], []
    for i in range(len(cameras)):
        view = cameras[i]
        depth, _, _ = cast(view)
        fine_depth, face, weights = cast(view.resized(view.width * supersample, view.height * supersample))
        covered = fine_depth > 0  # [sH, sW]
        rgb = np.broadcast_to(behind, (*covered.shape, 3)).copy()
        rgb[covered] = shade(face[covered], weights[covered])
        images.append(_box_average(rgb, supersample))
        masks.append(_box_average(covered[..., None].astype(np.float32), supersample)[..., 0])
        depths.append(depth)
    stack = [torch.from_numpy(np.stack(x)) for x in (images, masks, depths)]
    return Views(stack[0], names, cameras, stack[1]), stack[2]


def pixel_rays(camera: Cameras) -> np.ndarray:
    """One camera -> [H, W, 6] float32: origin and direction in the world of the ray through each pixel's centre.

    Directions have z = 1 in the camera frame, so the distance along a ray in units of its direction is the depth.
    """
    assert len(camera) == 1, len(camera)
    x = torch.arange(camera.width, dtype=torch.float64) + 0.5
    y = torch.arange(camera.height, dtype=torch.float64) + 0.5
    pixels = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(camera.height, camera.width).double()], dim=-1)
    in_cam = pixels @ torch.linalg.inv(camera.K[0].double()).T  # [H, W, 3], z = 1
    rotation = camera.cam_from_world[0, :3, :3].double()
    directions = in_cam @ rotation  # rows d^T R = (R^T d)^T
    center = -(rotation.T @ camera.cam_from_world[0, :3, 3].double())
    return torch.cat([center.expand_as(directions), directions], dim=-1).float().numpy()


def _scene(mesh: Mesh, threads: int):
    o3d = open3d()
    scene = o3d.t.geometry.RaycastingScene(nthreads=threads)
    if len(mesh.faces):
        vertices = o3d.core.Tensor(mesh.vertices.detach().cpu().float().contiguous().numpy())
        scene.add_triangles(vertices, o3d.core.Tensor(mesh.faces.cpu().to(torch.uint32).numpy()))
    return scene


def _caster(mesh: Mesh, threads: int, device: torch.device | str):
    """A function of one camera -> depth [H, W] with 0 where nothing is hit, triangles [H, W], barycentric weights [H, W, 2]."""
    if torch.device(device).type != "cpu":
        from splat.raycast_torch import cast

        return lambda camera: tuple(x.numpy() for x in cast(mesh, camera, device))
    scene = _scene(mesh, threads)

    def cast_on_cpu(camera: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        hits = scene.cast_rays(open3d().core.Tensor(pixel_rays(camera)), nthreads=threads)
        depth = hits["t_hit"].numpy()
        depth = np.where(np.isfinite(depth), depth, 0).astype(np.float32)
        return depth, hits["primitive_ids"].numpy(), hits["primitive_uvs"].numpy()

    return cast_on_cpu


def _colours_at(mesh: Mesh):
    """A function of triangle indices [M] and barycentric (u, v) [M, 2] of the second and third corner -> rgb [M, 3]."""
    faces = mesh.faces.cpu().numpy()

    def corners_blended(values: np.ndarray, uv: np.ndarray) -> np.ndarray:  # values [M, 3 corners, D]
        weights = np.stack([1 - uv[:, 0] - uv[:, 1], uv[:, 0], uv[:, 1]], axis=-1)
        return np.einsum("mk,mkd->md", weights, values)

    if mesh.texture is not None and mesh.uvs is not None:
        texture, uvs = mesh.texture.cpu().float().numpy(), mesh.uvs.cpu().float().numpy()
        return lambda triangle, uv: bilinear(texture, corners_blended(uvs[triangle], uv))
    if mesh.colors is not None:
        colors = mesh.colors.cpu().float().numpy()
        return lambda triangle, uv: corners_blended(colors[faces[triangle]], uv)
    return lambda triangle, uv: np.full((len(triangle), 3), GREY, dtype=np.float32)


def bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Texture [H, W, D] at uv [M, 2]; (0, 0) is the lower left corner of the image; clamped at the edges. -> [M, D]"""
    height, width = texture.shape[:2]
    x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1)
    y = np.clip((1 - uv[:, 1]) * height - 0.5, 0, height - 1)
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    upper = texture[y0, x0] * (1 - fx) + texture[y0, x1] * fx
    lower = texture[y1, x0] * (1 - fx) + texture[y1, x1] * fx
    return (upper * (1 - fy) + lower * fy).astype(np.float32)


def _box_average(x: np.ndarray, size: int) -> np.ndarray:
    """[size*H, size*W, D] -> [H, W, D]."""
    height, width, depth = x.shape
    return x.reshape(height // size, size, width // size, size, depth).mean(axis=(1, 3), dtype=np.float32)
