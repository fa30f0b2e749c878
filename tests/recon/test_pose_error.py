"""Pose errors of cameras that are wrong by a known amount."""

import dataclasses
import math

import pytest
import torch

from recon.pose_error import LOST_DEG, pose_auc, poses_of
from recon.pose_error import relative_errors as errors_of_poses
from splat.cameras import Cameras
from splat.rotations import se3_exp
from splat.similarity import Similarity


def cameras(count=4):
    batch = Cameras.orbit(count, 3.0, 20, 45, 64, 48)
    return [dataclasses.replace(batch[i], cam_from_world=batch[i].cam_from_world.double()) for i in range(count)]


def relative_errors(found, truth):
    return errors_of_poses(poses_of(found), poses_of(truth))


def turned(camera, degrees):
    motion = se3_exp(torch.tensor([[0.0, 0, 0, 0, 0, math.radians(degrees)]], dtype=torch.float64))
    return dataclasses.replace(camera, cam_from_world=motion @ camera.cam_from_world)


def test_any_similar_world_is_right():
    rotation = se3_exp(torch.tensor([0.0, 0, 0, 0.3, -1, 0.7], dtype=torch.float64))[:3, :3]
    world = Similarity(rotation, torch.tensor([1.0, -2, 3], dtype=torch.float64), 2.5)
    errors = relative_errors([c.transformed(world) for c in cameras()], cameras())
    assert len(errors) == 6 and errors.max() < 1e-4


def test_one_camera_turned_by_a_known_angle():
    found = cameras()
    found[2] = turned(found[2], 7.0)
    errors = relative_errors(found, cameras()).sort().values
    torch.testing.assert_close(errors[:3], torch.zeros(3).double(), atol=1e-5, rtol=0)  # pairs without it
    torch.testing.assert_close(errors[3:].min(), torch.tensor(7.0).double())  # at least: the direction may be off by more
    assert pose_auc(errors, 10) == pytest.approx(float((3 + sum(max(0, 1 - float(e) / 10) for e in errors[3:])) / 6))


def test_lost_and_unknown_cameras():
    found = cameras()
    found[0] = None
    errors = relative_errors(found, cameras())
    assert (errors == LOST_DEG).sum() == 3
    truth = [None, *cameras()[1:]]
    assert len(relative_errors(found, truth)) == 3 and pose_auc(relative_errors(found, truth), 5) == pytest.approx(1, abs=1e-4)
    assert math.isnan(pose_auc(relative_errors(found[:1], truth[:1]), 5))


def test_two_photos_from_one_place():
    a = cameras()[0]
    assert relative_errors([a, turned(a, 3)], [a, turned(a, 3)]).max() < 1e-6
    moved = dataclasses.replace(a, cam_from_world=se3_exp(torch.tensor([[0.5, 0, 0, 0, 0, 0.0]]).double()) @ a.cam_from_world)
    assert relative_errors([a, moved], [a, a])[0] == LOST_DEG
