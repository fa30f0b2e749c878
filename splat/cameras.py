"""Pinhole cameras in the OpenCV convention: +x right, +y down, +z forward; pixel centres at +0.5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splat.similarity import Similarity


@dataclass(frozen=True)
class Cameras:
    """C cameras of one image size. p_cam = cam_from_world @ p_world; pixel = K @ p_cam / z."""

    cam_from_world: Tensor  # [C, 4, 4] rigid
    K: Tensor  # [C, 3, 3] pixels; a centred camera has cx = width / 2
    width: int
    height: int

    def __post_init__(self) -> None:
        c = self.cam_from_world.shape[0]
        assert self.cam_from_world.shape == (c, 4, 4), self.cam_from_world.shape
        assert self.K.shape == (c, 3, 3), self.K.shape
        assert self.width > 0 and self.height > 0, (self.width, self.height)

    def __len__(self) -> int:
        return self.cam_from_world.shape[0]

    def __getitem__(self, rows: int | slice | Tensor | Sequence[int]) -> Cameras:
        """Always a batch: one index gives a batch of one."""
        if isinstance(rows, int):
            rows = [rows]
        return replace(self, cam_from_world=self.cam_from_world[rows], K=self.K[rows])

    def to(self, target: torch.device | str | torch.dtype) -> Cameras:
        return replace(self, cam_from_world=self.cam_from_world.to(target), K=self.K.to(target))

    @staticmethod
    def cat(parts: Sequence[Cameras]) -> Cameras:
        """All cameras in order; every part has the same image size."""
        assert len({(p.width, p.height) for p in parts}) == 1, "cameras of several image sizes"
        return replace(parts[0], cam_from_world=torch.cat([p.cam_from_world for p in parts]), K=torch.cat([p.K for p in parts]))

    @property
    def centers(self) -> Tensor:
        """[C, 3] world positions."""
        return -(self.cam_from_world[:, :3, :3].mT @ self.cam_from_world[:, :3, 3:]).squeeze(-1)

    @property
    def forward(self) -> Tensor:
        """[C, 3] unit viewing directions in the world."""
        return self.cam_from_world[:, 2, :3]

    @property
    def world_from_cam(self) -> Tensor:
        """[C, 4, 4]."""
        out = torch.zeros_like(self.cam_from_world)
        out[:, :3, :3] = self.cam_from_world[:, :3, :3].mT
        out[:, :3, 3] = self.centers
        out[:, 3, 3] = 1
        return out

    def resized(self, width: int, height: int) -> Cameras:
        """The same views with another pixel grid; with centres at +0.5, K scales linearly."""
        scale = torch.tensor([width / self.width, height / self.height, 1.0]).to(self.K)
        return replace(self, K=self.K * scale[:, None], width=width, height=height)

    def cropped(self, left: int, top: int, width: int, height: int) -> Cameras:
        """The window whose upper left pixel is (left, top); may reach outside."""
        shift = torch.zeros(3, 3).to(self.K)
        shift[0, 2], shift[1, 2] = left, top
        return replace(self, K=self.K - shift, width=width, height=height)

    def transformed(self, similarity: Similarity) -> Cameras:
        """The same views after the world moved by `similarity`; the cameras' own unit scales with it."""
        rotation = self.cam_from_world[:, :3, :3].double().cpu() @ similarity.rotation.T
        out = self.cam_from_world.double().cpu().clone()
        out[:, :3, :3] = rotation
        out[:, :3, 3] = similarity.scale * out[:, :3, 3] - rotation @ similarity.translation
        return replace(self, cam_from_world=out.to(self.cam_from_world))

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points [N, 3] -> pixels [C, N, 2] and depth [C, N]; pixels of points with depth <= 0 are meaningless."""
        in_cam = points @ self.cam_from_world[:, :3, :3].mT + self.cam_from_world[:, None, :3, 3]  # [C, N, 3]
        homogeneous = in_cam @ self.K.mT
        depth = in_cam[..., 2]
        return homogeneous[..., :2] / torch.where(depth.abs() < 1e-12, torch.ones_like(depth), depth)[..., None], depth

    @property
    def pixel_centers(self) -> Tensor:
        """[H, W, 2] x and y of the centre of every pixel."""
        x, y = (torch.arange(n, device=self.K.device).to(self.K) + 0.5 for n in (self.width, self.height))
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)

    def unproject(self, pixels: Tensor, depth: Tensor) -> Tensor:
        """The inverse of `project`: pixels [..., N, 2] at `depth` [..., N] -> world points [..., N, 3].

        The leading dimensions broadcast against [C]; to one camera any will do, such as [H, W, 2] and [H, W].
        """
        K = self.K[:, :, :, None]  # [C, 3, 3, 1]
        y = (pixels[..., 1] - K[:, 1, 2]) / K[:, 1, 1]
        x = (pixels[..., 0] - K[:, 0, 2] - K[:, 0, 1] * y) / K[:, 0, 0]
        in_cam = torch.stack(torch.broadcast_tensors(x * depth, y * depth, depth), dim=-1)
        return in_cam @ self.cam_from_world[:, :3, :3] + self.centers[:, None]

    @staticmethod
    def from_opengl(world_from_cam: Tensor, K: Tensor, width: int, height: int) -> Cameras:
        """OpenGL/Blender/NeRF poses (camera looks along -z, +y up) [C, 4, 4], rigid, same world."""
        flipped = world_from_cam.double() * torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)
        return Cameras(torch.linalg.inv(flipped).float(), K.float(), width, height)

    def to_opengl(self) -> Tensor:
        """[C, 4, 4] float64 world_from_cam in the OpenGL camera axes."""
        flip = torch.tensor([1.0, -1, -1, 1], dtype=torch.float64, device=self.K.device)
        return torch.linalg.inv(self.cam_from_world.double()) * flip

    @staticmethod
    def look_at(eyes: Tensor, targets: Tensor, up: Tensor, K: Tensor, width: int, height: int) -> Cameras:
        """Cameras at `eyes` [C, 3] facing `targets` [C, 3] or [3]; `up` [3] points up in the image.

        Looking straight along `up`, any horizontal axis serves.
        """
        eyes = eyes.double()
        forward = torch.nn.functional.normalize(targets.double().expand_as(eyes) - eyes, dim=-1)
        up = torch.nn.functional.normalize(up.double(), dim=-1).expand_as(eyes)
        right = torch.linalg.cross(forward, up)
        spare = torch.linalg.cross(forward, torch.tensor([0.0, 0, -1], dtype=torch.float64).expand_as(eyes))
        spare2 = torch.linalg.cross(forward, torch.tensor([1.0, 0, 0], dtype=torch.float64).expand_as(eyes))
        spare = torch.where(spare.norm(dim=-1, keepdim=True) < 1e-6, spare2, spare)
        right = torch.where(right.norm(dim=-1, keepdim=True) < 1e-6, spare, right)
        right = torch.nn.functional.normalize(right, dim=-1)
        rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)  # rows: x, y (down), z
        pose = torch.eye(4, dtype=torch.float64).repeat(len(eyes), 1, 1)
        pose[:, :3, :3] = rotation
        pose[:, :3, 3] = -(rotation @ eyes[:, :, None]).squeeze(-1)
        return Cameras(pose.float(), K.float().expand(len(eyes), 3, 3).contiguous(), width, height)

    @staticmethod
    def orbit(
        count: int, radius: float, elevation_deg: float, fov_deg: float, width: int, height: int,
        target: Tensor | None = None, azimuth_deg: float = 0.0,
    ) -> Cameras:  # fmt: skip
        """`count` cameras round `target` in the +Y-up world; azimuth 0 is on +Z, positive towards +X; horizontal fov."""
        target = torch.zeros(3) if target is None else target.cpu()
        azimuth = math.radians(azimuth_deg) + torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
        elevation = math.radians(elevation_deg)
        offset = torch.stack(
            [
                azimuth.sin() * math.cos(elevation),
                torch.full_like(azimuth, math.sin(elevation)),
                azimuth.cos() * math.cos(elevation),
            ],
            dim=-1,
        )
        K = intrinsics(0.5 * width / math.tan(math.radians(fov_deg) / 2), width, height)
        return Cameras.look_at(target + radius * offset, target, torch.tensor([0.0, 1, 0]), K, width, height)


def nearest_to_axes(centers: Tensor, forward: Tensor, guess: Tensor, pull: float) -> Tensor:
    """[3] the point nearest to all optical axes in least squares: `forward` [C, 3] unit through `centers` [C, 3].

    Drawn to `guess` [3] with weight `pull`, against 1 of all axes together: it decides where the axes are parallel.
    """
    identity = torch.eye(3, dtype=centers.dtype, device=centers.device)
    across = identity - forward[:, :, None] * forward[:, None, :]  # [C, 3, 3]
    system = across.mean(0) + pull * identity
    target = (across @ centers[:, :, None]).squeeze(-1).mean(0) + pull * guess
    return torch.linalg.solve(system, target)


def intrinsics(focal: float, width: int, height: int) -> Tensor:
    """[3, 3] centred pinhole with square pixels; `focal` in pixels."""
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float32)
