"""Similarities of the world are taken out of camera tangents, and nothing else."""

import torch

from splat.cameras import Cameras
from splat.pose_gauge import similarity_motions, without_similarity
from splat.rotations import se3_exp
from splat.similarity import Similarity

UNITS = torch.tensor([2.0, 2, 2, 1, 1, 1])


def cameras():
    return Cameras.orbit(5, 3.0, 20, 45, 40, 32)


def log_of(moved, still):
    """Tangents [C, 6] of small motions."""
    motion = moved.double() @ torch.linalg.inv(still.double())
    skew = (motion[:, :3, :3] - motion[:, :3, :3].mT) / 2
    return torch.cat([motion[:, :3, 3], torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1)], -1)


def test_a_similarity_of_the_world_is_nothing():
    still = cameras()
    motions = similarity_motions(still.cam_from_world, UNITS)
    assert motions.shape == (30, 7)
    small = 1e-4
    rotation = se3_exp(small * torch.tensor([0.0, 0, 0, 0.3, -0.5, 0.8], dtype=torch.float64))[:3, :3]
    world = Similarity(rotation, small * torch.tensor([0.5, -0.2, 0.7], dtype=torch.float64), 1 + small)
    exact = Cameras(still.cam_from_world.double(), still.K.double(), 40, 32)
    moved = exact.transformed(world).cam_from_world.clone()
    moved[:, :3, 3] /= world.scale  # a camera's own unit is free: only directions are seen
    tangents = log_of(moved, exact.cam_from_world) / UNITS
    assert tangents.norm() > 0.5 * small
    assert without_similarity(tangents, motions).norm() < 1e-3 * tangents.norm()


def test_what_is_left_is_left_alone():
    motions = similarity_motions(cameras().cam_from_world, UNITS)
    tangents = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left = without_similarity(tangents, motions)
    torch.testing.assert_close(without_similarity(left, motions), left)
    removed = (tangents - left).double().reshape(-1)
    assert removed.norm() > 0.1 and abs(float(removed @ left.double().reshape(-1))) < 1e-6
    assert torch.linalg.matrix_rank(torch.cat([motions, removed[:, None]], 1)) == 7  # a similarity, no more


def test_cameras_in_one_place():
    still = cameras().cam_from_world[:1].expand(3, 4, 4)
    assert similarity_motions(still, UNITS).shape == (18, 6)  # size and a step forward are the same to them
