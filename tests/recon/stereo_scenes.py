"""Surfaces with known depth and a texture in space, photographed by ray intersection: the truth for stereo tests."""

import torch

from splat.cameras import Cameras, intrinsics
from splat.views import Views


def texture(xyz, seed=0, finest=45.0):
    """[..., 3] world points -> [..., 3] colours: 40 waves of many directions and lengths."""
    g = torch.Generator().manual_seed(seed)
    waves = torch.nn.functional.normalize(torch.randn(40, 3, generator=g), dim=1)
    waves = waves * torch.logspace(0.5, torch.log10(torch.tensor(finest)).item(), 40)[:, None]
    phase = torch.rand(40, 3, generator=g) * 6.283
    return (0.5 + 0.05 * torch.sin((xyz @ waves.T)[..., None] + phase).sum(-2)).clamp(0, 1)


def plane(point, normal):
    """Ray intersection of a plane: (origins [3], directions [..., 3]) -> ray parameter [...], inf for a miss."""
    point, normal = torch.tensor(point), torch.tensor(normal)

    def hit(origin, directions):
        t = ((point - origin) @ normal) / (directions @ normal)
        return torch.where(t > 0, t, torch.inf)

    return hit


def sphere(centre, radius):
    centre = torch.tensor(centre)

    def hit(origin, directions):
        a = directions.square().sum(-1)
        b = (directions * (origin - centre)).sum(-1)
        root = b * b - a * ((origin - centre).square().sum() - radius**2)
        return torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, torch.inf)

    return hit


def sideways(count=5, step=0.15, distance=3.0, size=96, focal=120.0):
    """Cameras on a line along x, all looking at the origin from +z, up is +y."""
    x = (torch.arange(count) - (count - 1) / 2) * step
    eyes = torch.stack([x, torch.zeros(count), torch.full((count,), distance)], dim=1)
    return Cameras.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1, 0]), intrinsics(focal, size, size)[None], size, size)


def photographed(hit, cameras, colours=texture, masked=False):
    """`Views` and true depth [C, H, W] (inf for a miss); 2 x 2 samples per pixel, white behind."""
    images, depths = [], []
    for i in range(len(cameras)):
        camera = cameras[i]
        fine, _ = _trace(hit, camera.resized(2 * camera.width, 2 * camera.height), colours)
        images.append(torch.nn.functional.avg_pool2d(fine.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0))
        depths.append(_trace(hit, camera, colours)[1])
    depth = torch.stack(depths)
    masks = depth.isfinite().float() if masked else None
    names = tuple(f"photo{i}" for i in range(len(cameras)))
    return Views(torch.stack(images), names, cameras, masks), depth


def _trace(hit, camera, colours):
    v, u = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    K = camera.K[0]
    in_cam = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u)], dim=-1)
    directions = in_cam @ camera.cam_from_world[0, :3, :3]  # z component 1 in the camera: the parameter is depth
    depth = hit(camera.centers[0], directions)
    known = depth.isfinite()
    points = camera.centers[0] + directions * torch.where(known, depth, 0.0)[..., None]
    return torch.where(known[..., None], colours(points), 1.0), depth
