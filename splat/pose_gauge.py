"""Which part of a change of cameras means something: all of it but a similarity of the world.

Splats and cameras that move together draw the same pictures, so cameras that are free to move drift, and their world's place,
turn and size with them. Taking that drift out of every step keeps the world that the points and the held-out cameras live in.
"""

from __future__ import annotations

import torch
from torch import Tensor


def similarity_motions(cam_from_world: Tensor, units: Tensor) -> Tensor:
    """Poses [C, 4, 4] and units [6] -> orthonormal basis [6 C, K] of the tangents that a similarity of the world gives them.

    A tangent (translation, rotation vector) / units moves a camera by se3_exp(tangent * units) @ cam_from_world. K is 7, or
    less where cameras coincide. First order: for the small steps of an optimiser. float64.
    """
    poses = cam_from_world.detach().double().cpu()
    count = len(poses)
    rotation, t = poses[:, :3, :3], poses[:, :3, 3]
    motions = torch.zeros(count, 6, 7, dtype=torch.float64)
    motions[:, :3, :3] = rotation  # the world moved by v: translation R v
    turned = rotation.mT  # rows: R e_k
    motions[:, 3:, 3:6] = turned.mT  # turned by w: rotation R w, translation t x R w
    motions[:, :3, 3:6] = torch.linalg.cross(t[:, None].expand(-1, 3, -1), turned, dim=-1).mT
    motions[:, :3, 6] = -t  # made larger by s: translation -s t
    scaled = (motions / units.double().cpu()[:, None]).reshape(6 * count, 7)
    u, s, _ = torch.linalg.svd(scaled, full_matrices=False)
    return u[:, s > 1e-9 * s[0]]


def without_similarity(tangents: Tensor, motions: Tensor) -> Tensor:
    """Tangents [C, 6] less their part along `similarity_motions`."""
    flat = tangents.detach().double().cpu().reshape(-1)
    return (flat - motions @ (motions.T @ flat)).reshape(tangents.shape).to(tangents)
