"""What a repairer is told: photos carried by depth, and where they hold."""

import pytest
import torch

from recon.repair.request import RequestConfig, SeenPhoto, carry, nearest_photos, repair_request, trusted
from splat.cameras import Cameras, intrinsics
from splat.gaussians import Splats
from splat.render import RenderOptions, render
from splat.repair_request import RepairRequest
from splat.views import Views

WIDTH, HEIGHT, FOCAL, FAR = 40, 30, 50.0, 4.0


def camera(x: float = 0.0) -> Cameras:
    """At (x, 0, 0), looking along +z."""
    pose = torch.eye(4)[None].clone()
    pose[0, 0, 3] = -x
    return Cameras(pose, intrinsics(FOCAL, WIDTH, HEIGHT)[None], WIDTH, HEIGHT)


def ramp() -> torch.Tensor:
    """A picture whose red says where a pixel lies."""
    image = torch.zeros(HEIGHT, WIDTH, 3)
    image[..., 0] = (torch.arange(WIDTH) + 0.5) / WIDTH
    return image


def carried(photo_depth: torch.Tensor | float, baseline: float = 0.4):
    photo = SeenPhoto(camera(baseline), ramp(), torch.zeros(HEIGHT, WIDTH) + photo_depth)
    depth = torch.full((HEIGHT, WIDTH), FAR)
    return carry(photo, camera(), torch.ones(HEIGHT, WIDTH), depth, RequestConfig())


def test_a_plane_moves_by_focal_times_baseline_over_depth():
    colour, known, facing = carried(FAR)
    shift = FOCAL * 0.4 / FAR  # 5 px: what we see at x, the photo further right sees at x - 5
    x = torch.arange(WIDTH) + 0.5 - shift
    inside = x > 0
    assert torch.equal(known, inside.float().expand(HEIGHT, -1))
    assert torch.allclose(colour[:, inside & (x > 0.5), 0], (x / WIDTH)[inside & (x > 0.5)].expand(HEIGHT, -1), atol=1e-5)
    assert 0.98 < float(facing) < 1


@pytest.mark.parametrize(("there", "expected"), [(0.7, 0.0), (1.3, 0.0), (1.01, 1.0), (1.03, 0.5), (0.97, 0.5), (0.0, 0.0)])
def test_a_photo_that_looks_at_something_else_says_nothing(there, expected):
    """Nearer: it stands before our surface. Farther: the photo looks past it. 0: the splats show nothing there."""
    _, known, _ = carried(there * FAR)
    assert float(known[0, -1]) == pytest.approx(expected, abs=1e-3)


def test_where_the_render_is_not_solid_nothing_is_known():
    photo = SeenPhoto(camera(0.1), ramp(), torch.full((HEIGHT, WIDTH), FAR))
    alpha = torch.ones(HEIGHT, WIDTH)
    alpha[:10] = 0.3
    _, known, _ = carry(photo, camera(), alpha, torch.full((HEIGHT, WIDTH), FAR), RequestConfig())
    assert known[:10].max() == 0 and known[10:, 5:].min() == 1


def test_one_photo_is_trusted_less_than_two():
    known = torch.tensor([[1.0, 1, 0, 0.5], [0, 1, 0, 0], [0, 1, 0, 0.5]])[:, None]
    assert torch.allclose(trusted(known, 0.7), torch.tensor([[0.7, 1.0, 0.0, 0.5]]))
    assert torch.allclose(trusted(known[:1], 0.7), torch.tensor([[0.7, 0.7, 0.0, 0.35]]))


def test_the_photos_that_say_most_come_first():
    known = torch.stack([torch.full((2, 2), k) for k in (0.2, 0.9, 0.8, 0.85)])
    assert nearest_photos(known, torch.tensor([1.0, 0.5, 0.99, -1.0]), 2) == [2, 1]


def wall(depth: float = FAR, half: float = 3.0) -> Splats:
    """A solid wall of red and blue squares across the view."""
    axis = torch.arange(-half, half + 0.05, 0.1)
    x, y = (a.flatten() for a in torch.meshgrid(axis, axis, indexing="xy"))
    n = len(x)
    odd = ((x / 0.5).floor() + (y / 0.5).floor()) % 2
    rgb = torch.stack([odd, torch.zeros(n), 1 - odd], dim=1)
    return Splats(
        torch.stack([x, y, torch.full((n,), depth)], dim=1),
        torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4).contiguous(),
        torch.full((n, 3), 0.07).log(),
        torch.full((n,), 5.0),
        ((rgb - 0.5) / 0.28209479177387814)[:, None],
    )


def views_of(splats: Splats, cameras: list[Cameras], masked: bool = False) -> list[Views]:
    drawn = [render(splats, c, RenderOptions(background=torch.ones(3))) for c in cameras]
    images, alpha = (torch.cat([getattr(d, name) for d in drawn]) for name in ("rgb", "alpha"))
    names = tuple(f"{i}.png" for i in range(len(cameras)))
    return [Views(images.clamp(0, 1), names, Cameras.cat(cameras), alpha.round() if masked else None)]


def test_photos_of_a_wall_draw_the_view_between_them():
    splats = wall()
    views = views_of(splats, [camera(-0.3), camera(0.3), camera(2.0)])
    request = repair_request(splats, views, camera(), torch.ones(3), seed=3)
    assert request.images.shape == (1, HEIGHT, WIDTH, 3) and request.warped.shape == (1, 2, HEIGHT, WIDTH, 3)
    assert request.seed == 3 and request.trust[0, :, 6:-6].min() > 0.99
    middle = slice(6, -6)
    for photo in range(2):
        error = (request.warped[0, photo, :, middle] - request.images[0, :, middle]).abs()
        assert float(request.known[0, photo, :, middle].min()) == 1 and error.mean() < 0.03


def test_a_single_photo_leaves_the_second_reference_empty():
    splats = wall()
    request = repair_request(splats, views_of(splats, [camera(0.1)]), camera(), torch.ones(3))
    assert request.known[0, 0].mean() > 0.9 and request.known[0, 1].max() == 0 and request.warped[0, 1].max() == 0
    assert request.trust.max() == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize(("masked", "expected"), [(True, 1.0), (False, 0.0)])
def test_emptiness_is_trusted_beside_cut_out_subjects_alone(masked, expected):
    small = wall(half=0.5)
    request = repair_request(small, views_of(small, [camera(-0.2), camera(0.2)], masked), camera(), torch.ones(3))
    corner = request.trust[0, :3, :3]
    assert corner.mean() == pytest.approx(expected, abs=1e-3) and request.trust[0, 13:17, 18:22].min() > 0.95


def test_a_request_checks_its_shapes():
    splats = wall()
    request = repair_request(splats, views_of(splats, [camera(0.1)]), camera(), torch.ones(3))
    with pytest.raises(AssertionError):
        RepairRequest(request.images, request.alpha[:, :-1], request.trust, request.warped, request.known)
