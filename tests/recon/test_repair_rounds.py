"""Rounds of repair: a perfect repairer helps, nonsense is found out."""

import dataclasses

import pytest
import torch

from recon.repair.fill import continued, with_holes_filled
from recon.repair.judge import JudgeConfig, Scores, helps, left_out_scores, repair_helps, resized, without
from recon.repair.rounds import RepairRoundsConfig, _arcs, distance_weights, repair_round, repair_rounds
from splat.cameras import Cameras, intrinsics
from splat.gaussians import Splats
from splat.metrics import psnr
from splat.optimise import FitConfig
from splat.regularise import Priors, RegulariserConfig, VirtualView
from splat.render import RenderOptions, render
from splat.views import Views

WHITE = torch.ones(3)
SIDE = 48
FIT = FitConfig(max_gaussians=1500, sh_degree=0, threads=1, min_visibility=0.0)


def run(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def ring(angles_deg: list[float]) -> Cameras:
    angle = torch.deg2rad(torch.tensor(angles_deg, dtype=torch.float64))
    eyes = torch.stack([3 * angle.sin(), torch.full_like(angle, 0.8), 3 * angle.cos()], dim=1)
    K = intrinsics(1.3 * SIDE, SIDE, SIDE)
    return Cameras.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1, 0]), K, SIDE, SIDE)


def cloud(seed: int = 0, n: int = 900) -> Splats:
    """A ball of coloured splats."""
    g = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    rgb = 0.5 + 0.4 * torch.sin(5 * direction + torch.tensor([0.0, 1, 2]))
    return Splats(
        direction * 0.8,
        torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4).contiguous(),
        torch.full((n, 3), 0.09).log(),
        torch.full((n,), 3.0),
        ((rgb - 0.5) / 0.28209479177387814)[:, None],
    )


def seen(splats: Splats, cameras: Cameras) -> torch.Tensor:
    with torch.no_grad():
        return render(splats, cameras, RenderOptions(background=WHITE)).rgb.clamp(0, 1)


@pytest.fixture(scope="module")
def scene():
    """(truth, three photos, what a fit to them might be: colours wrong where the photos do not look)."""
    truth, cameras = cloud(), ring([-60.0, 0.0, 60.0])
    photos = [Views(seen(truth, cameras), ("a.png", "b.png", "c.png"), cameras)]
    g = torch.Generator().manual_seed(5)
    start = dataclasses.replace(truth, sh=truth.sh + 0.6 * torch.randn(truth.sh.shape, generator=g))
    return truth, photos, start


class Oracle:
    """Knows the truth of every view it is asked for, in the order in which rounds ask."""

    def __init__(self, truth: Splats, cameras: list[list[Cameras]]) -> None:
        self.pictures = iter(torch.cat([seen(truth, c) for c in batch]) for batch in cameras)
        self.seeds: list[int] = []

    def __call__(self, request):
        self.seeds.append(request.seed)
        return next(self.pictures)


def test_a_perfect_repairer_is_better_than_the_same_steps_without(scene):
    truth, photos, start = scene
    config = RepairRoundsConfig(rounds=2, steps=40, per_pair=2)
    arcs = [_arcs(photos, config, number) for number in range(2)]
    heldout = ring([-30.0, 30.0])
    oracle = Oracle(truth, arcs)
    with_repair = run(repair_rounds(photos, start, FIT, oracle, config))
    alone = run(repair_rounds(photos, start, FIT, None, config))
    wanted = seen(truth, heldout)
    gained, plain, before = (
        float(psnr(seen(s, heldout), wanted).mean()) for s in (with_repair.fitted.splats, alone.fitted.splats, start)
    )
    assert gained > plain + 0.5 and gained > before + 1, (gained, plain, before)
    assert with_repair.fitted.steps == 80 and oracle.seeds == [0, 1], "one seed for all views of a round"
    assert len(with_repair.views) == len(arcs[1]) and with_repair.views[0].name == "round2_view000"
    assert 0 <= with_repair.invented <= 1


def test_rounds_look_from_different_places(scene):
    _, photos, _ = scene
    config = RepairRoundsConfig(rounds=3, per_pair=2)
    arcs = [_arcs(photos, config, number) for number in range(3)]
    assert [len(a) for a in arcs] == [4, 4, 4]  # two pairs of photos; the third is too wide
    centers = torch.cat([c.centers for a in arcs for c in a])
    assert len({tuple(c) for c in centers.tolist()}) == 12


def test_a_round_is_the_same_for_the_same_seed_and_leaves_its_photos_alone(scene):
    _, photos, start = scene
    before = photos[0].images.clone()
    config = RepairRoundsConfig(rounds=1, steps=5, per_pair=1, scale=0.5, margin=0.125)
    first, second = (run(repair_round(photos, start, FIT, lambda r: 1 - r.images, config)) for _ in range(2))
    assert torch.equal(first.fitted.splats.means, second.fitted.splats.means)
    assert first.views[0].image.shape == (30, 30, 3) and torch.equal(photos[0].images, before)


def test_views_reach_beyond_the_photos_but_not_beside_cut_out_subjects(scene):
    _, photos, _ = scene
    config = RepairRoundsConfig(rounds=1, per_pair=1, margin=0.125)
    (wide, *_), (masked, *_) = (
        _arcs([dataclasses.replace(photos[0], masks=m)], config, 0) for m in (None, torch.ones(3, SIDE, SIDE))
    )
    assert (wide.width, wide.height) == (60, 60) and (masked.width, masked.height) == (SIDE, SIDE)
    point = torch.zeros(1, 3)
    assert torch.allclose(wide.project(point)[0], masked.project(point)[0] + 6, atol=1e-4), "the same camera"


def test_distance_weights_mute_what_is_nearly_a_photo():
    """Photos at 0, 1, 2 and 4 along x: the farthest but one of the photo at 4 is at 1, so d_max is 3."""

    def at(*x: float) -> Cameras:
        pose = torch.eye(4).repeat(len(x), 1, 1)
        pose[:, 0, 3] = -torch.tensor(x)
        return Cameras(pose, intrinsics(10.0, 8, 8).expand(len(x), 3, 3).contiguous(), 8, 8)

    weights = distance_weights(at(0.0, 0.1, 3.0), [at(0.0, 1.0), at(2.0, 4.0)])
    assert torch.allclose(weights, torch.tensor([0.0, 16 * 0.1 / (1.2 * 3), 1.0]))


def test_a_repaired_view_stands_on_its_own_backdrop(scene):
    """Its term is 0 where the splats already show it, whatever colour a step has behind the photos."""
    from splat.regularise import Regulariser

    truth, photos, _ = scene
    camera = ring([20.0])
    view = VirtualView(camera, seen(truth, camera), torch.ones(1, SIDE, SIDE), torch.ones(1, SIDE, SIDE), WHITE)
    priors = Priors([torch.zeros(3, SIDE, SIDE)], repaired=(view,))
    terms = Regulariser(RegulariserConfig(repaired=1.0), photos, priors)
    for backdrop in (torch.zeros(3), torch.tensor([0.2, 0.9, 0.4])):
        loss = terms.of_virtual_view(truth, 0, RenderOptions(), backdrop, torch.Generator().manual_seed(0))
        assert float(loss) < 1e-6
    assert priors.to("cpu").repaired[0].backdrop is not None and priors.scaled(2.0).repaired[0].camera is not None


def test_nonsense_is_found_out_by_photos_that_are_left_out(scene):
    _, photos, start = scene
    noise = torch.Generator().manual_seed(1)

    def nonsense(request):
        return torch.rand(request.images.shape, generator=noise)

    small = JudgeConfig(photos=2, side=32, steps=40, round_steps=20)
    rounds = RepairRoundsConfig(rounds=1, per_pair=1, weight=2.0)
    before, control, after = run(left_out_scores(photos, start, FIT, nonsense, rounds, None, small))
    assert before.photos == 2 and after.ssim < before.ssim - 0.01 and not repair_helps(before, control, after)
    assert run(left_out_scores([photos[0][[0, 1]]], start, FIT, nonsense, rounds, None, small)) is None


def test_help_is_more_likeness_at_little_loss():
    plain = Scores(25.0, 0.8, 3)
    assert helps(plain, Scores(24.95, 0.81, 3)) and helps(plain, Scores(26.0, 0.801, 3))
    assert not helps(plain, Scores(24.8, 0.85, 3)) and not helps(plain, Scores(26.0, 0.8, 3))


def test_priors_follow_their_photos():
    cameras = ring([0.0, 20.0, 40.0])
    images = torch.rand(3, SIDE, SIDE, 3)
    views = [Views(images[:1], ("a",), cameras[[0]]), Views(images[1:], ("b", "c"), cameras[[1, 2]])]
    depths = [torch.full((1, SIDE, SIDE), 1.0), torch.stack([torch.full((SIDE, SIDE), k) for k in (2.0, 3.0)])]
    priors = Priors(depths, [torch.zeros(*d.shape, 3) for d in depths])
    rest, told = without(views, priors, 1)
    assert [v.names for v in rest] == [("a",), ("c",)] and [float(d.max()) for d in told.depths] == [1, 3] and told.fits(rest)
    rest, told = without(views, priors, 0)
    assert [v.names for v in rest] == [("b", "c")] and told.fits(rest)
    small = [v.limited(16) for v in views]
    assert resized(priors, small).fits(small)


def test_depth_goes_on_across_a_hole_with_what_lies_behind():
    depth = torch.full((32, 32), 5.0)
    depth[:, :10] = 2.0
    solid = torch.ones(32, 32, dtype=torch.bool)
    solid[12:20, 8:16] = False  # between the near part and the far one
    filled = continued(depth * solid, solid)
    assert torch.equal(filled[solid], depth[solid])
    assert filled[12:20, 8:16].min() > 2.9 and filled[12:20, 8:16].mean() > 4.2 and filled[12:20, 8:16].max() <= 5.001


def test_holes_are_filled_once_with_the_picture():
    """Two views of a wall with a hole: the second finds little left to fill."""
    axis = torch.arange(-3, 3.01, 0.1)
    x, y = (a.flatten() for a in torch.meshgrid(axis, axis, indexing="xy"))
    wall = Splats(
        torch.stack([x, y, torch.full_like(x, -1.5)], dim=1),
        torch.tensor([[1.0, 0, 0, 0]]).expand(len(x), 4).contiguous(),
        torch.full((len(x), 3), 0.08).log(),
        torch.full((len(x),), 4.0),
        torch.zeros(len(x), 1, 3),
    )
    holed = wall[(x.abs() > 0.8) | (y.abs() > 0.8)]
    cameras = [ring([a]) for a in (-4.0, 4.0)]
    green = torch.tensor([0.1, 0.8, 0.1]).expand(SIDE, SIDE, 3)
    one, two = (with_holes_filled(holed, cameras[:n], [green] * n, WHITE, 2, 10_000) for n in (1, 2))
    fresh = one.means[len(holed) :]
    assert 20 < len(fresh) and len(two) - len(one) < 0.4 * len(fresh)
    assert (fresh[:, 2] + 1.5).abs().max() < 0.3, "on the wall"
    middle = seen(two, cameras[1])[0, SIDE // 2 - 3 : SIDE // 2 + 3, SIDE // 2 - 3 : SIDE // 2 + 3]
    assert middle[..., 1].mean() > middle[..., 0].mean() + 0.3
    assert len(with_holes_filled(holed, cameras, [green] * 2, WHITE, 2, 7)) == len(holed) + 7
    assert len(with_holes_filled(holed, cameras, [green] * 2, green[0, 0], 2, 100)) == len(holed), "nothing but background"
    assert len(with_holes_filled(wall, [cameras[0]], [green], WHITE, 2, 100)) - len(wall) < 100


@pytest.mark.parametrize("change", [{"rounds": 0}, {"steps": 0}, {"partners": 0}, {"per_pair": 0}, {"scale": 0.0}])
def test_rounds_without_anything_in_them_are_none(change):
    with pytest.raises(AssertionError):
        RepairRoundsConfig(**change)
