"""The judge of repair on a ray-cast scene: what only fits longer is not taken for repair, and what knows the truth is."""

import dataclasses

import numpy as np
import pytest
import torch

from recon.repair.judge import JudgeConfig, Scores, left_out_scores, repair_helps, without
from recon.repair.rounds import RepairRoundsConfig, _arcs
from splat.cameras import Cameras, intrinsics
from splat.gaussians import Splats
from splat.mesh import Mesh
from splat.optimise import FitConfig
from splat.raycast import raycast
from splat.sh import from_rgb

SIDE = 40
FIT = FitConfig(max_gaussians=900, sh_degree=0, threads=1)
JUDGE = JudgeConfig(photos=2, side=SIDE, steps=100, round_steps=40)
ROUNDS = RepairRoundsConfig(rounds=2, per_pair=2)


def run(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def painted(xyz: torch.Tensor) -> torch.Tensor:
    return 0.5 + 0.4 * torch.sin(4 * xyz + torch.tensor([0.0, 1, 2]))


@pytest.fixture(scope="module")
def scene():
    """(mesh, four photos of a painted ball, splats on its surface with its colours and much noise)."""
    rows, columns = 40, 80
    v, u = np.meshgrid(np.linspace(0, np.pi, rows), np.linspace(0, 2 * np.pi, columns), indexing="ij")
    xyz = torch.from_numpy(np.stack([np.sin(v) * np.sin(u), np.cos(v), np.sin(v) * np.cos(u)], -1).reshape(-1, 3)).float()
    corner = (torch.arange(rows - 1)[:, None] * columns + torch.arange(columns - 1)).reshape(-1)
    faces = torch.cat(
        [
            torch.stack([corner, corner + columns, corner + 1], 1),
            torch.stack([corner + 1, corner + columns, corner + columns + 1], 1),
        ]
    )
    mesh = Mesh(xyz, faces, painted(xyz))
    angle = torch.deg2rad(torch.tensor([-15.0, -50.0, 55.0, 20.0], dtype=torch.float64))  # the first and last are left out
    eyes = torch.stack([3 * angle.sin(), torch.full_like(angle, 0.8), 3 * angle.cos()], dim=1)
    K = intrinsics(1.3 * SIDE, SIDE, SIDE)
    cameras = Cameras.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1, 0]), K, SIDE, SIDE)
    photos, _ = raycast(mesh, cameras, threads=1)
    g = torch.Generator().manual_seed(0)
    on = torch.nn.functional.normalize(torch.randn(700, 3, generator=g), dim=1)
    start = Splats(
        on,
        torch.tensor([[1.0, 0, 0, 0]]).repeat(len(on), 1),
        torch.full((len(on), 3), 0.07).log(),
        torch.full((len(on),), 2.0),
        from_rgb(painted(on) + 0.3 * torch.randn(len(on), 3, generator=g))[:, None],
    )
    return mesh, [photos], start


class Oracle:
    """Knows the true picture of every view, in the order in which the judge asks."""

    def __init__(self, mesh: Mesh, views, photos: list[int]) -> None:
        asked = [
            Cameras.cat(_arcs(without(views, None, photo)[0], ROUNDS, number)[k : k + 8])
            for photo in photos
            for number in range(ROUNDS.rounds)
            for k in range(0, len(_arcs(without(views, None, photo)[0], ROUNDS, number)), 8)
        ]
        self.pictures = iter([raycast(mesh, cameras, threads=1)[0].images for cameras in asked])

    def __call__(self, request):
        return next(self.pictures)


def test_further_steps_are_not_taken_for_repair(scene):
    """A repairer that hands back what it was given: the rounds do make the splats better, and as much without it."""
    _, photos, start = scene
    before, control, after = run(left_out_scores(photos, start, FIT, lambda request: request.images, ROUNDS, None, JUDGE))
    assert control.ssim > before.ssim + 0.005 and after.ssim > before.ssim, (before, control, after)
    assert not repair_helps(before, control, after), (before, control, after)


def test_true_pictures_are_kept(scene):
    mesh, photos, start = scene
    oracle = Oracle(mesh, photos, [0, 3])
    before, control, after = run(left_out_scores(photos, start, FIT, oracle, ROUNDS, None, JUDGE))
    assert repair_helps(before, control, after) and after.ssim > control.ssim + 0.005, (before, control, after)
    assert next(oracle.pictures, None) is None, "asked for every view once"


def test_the_fit_before_and_the_rounds_each_have_their_rates(scene):
    """Splats that are not moved at first are what the judge begins with; the rounds' own config does not change that."""
    _, photos, start = scene
    short = dataclasses.replace(JUDGE, photos=1, steps=20, round_steps=5)
    judged = [
        run(left_out_scores(photos, start, FIT, lambda request: request.images, ROUNDS, None, short, further))
        for further in (None, dataclasses.replace(FIT, lr_sh0=0.0, lr_means=0.0))
    ]
    assert judged[0][0] == judged[1][0] and judged[0][1].ssim > judged[1][1].ssim


def test_repair_must_beat_both_what_was_and_the_steps_alone():
    low, middle, high = (Scores(25.0, ssim, 3) for ssim in (0.80, 0.81, 0.82))
    assert repair_helps(low, middle, high) and repair_helps(middle, low, high)
    assert not repair_helps(low, high, high) and not repair_helps(low, high, middle) and not repair_helps(high, low, middle)
