"""The terms of the regularised fit: closed forms, and gradients against finite differences in float64."""

import math

import pytest
import torch
from scenes import identity_camera, one_splat, orbit, random_splats
from torch.autograd import gradcheck

from splat.cameras import Cameras
from splat.regularise.depth import absolute_loss, local_pearson_loss, pearson_loss
from splat.regularise.drop import FULL, GONE, raised, thinned
from splat.regularise.normals import normal_loss, normals_from_depth
from splat.regularise.smoothing import filter_widths, smoothed


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(*shape, seed=1):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.7).double()


def test_pearson_knows_neither_scale_nor_offset():
    prior, all_of_it = 3 + noise(50), torch.ones(50)
    assert pearson_loss(7 * prior - 2, prior, all_of_it) == pytest.approx(0, abs=1e-6)
    assert pearson_loss(5 - prior, prior, all_of_it) == pytest.approx(2, abs=1e-6)
    x = torch.tensor([1.0, -1, 1, -1]).double()
    assert pearson_loss(x, 9 + torch.tensor([1.0, 1, -1, -1]).double(), torch.ones(4)) == pytest.approx(1, abs=1e-6)


def test_pearson_is_the_correlation_of_what_is_known():
    depth, prior, mask = 2 + noise(3, 40), 4 + noise(3, 40, seed=5), known(3, 40)
    expected = [1 - torch.corrcoef(torch.stack([d[m > 0], p[m > 0]]))[0, 1] for d, p, m in zip(depth, prior, mask)]
    torch.testing.assert_close(pearson_loss(depth, prior, mask), torch.stack(expected), atol=1e-6, rtol=0)
    disturbed = torch.where(mask > 0, depth, 1e3)
    torch.testing.assert_close(pearson_loss(disturbed, prior, mask), pearson_loss(depth, prior, mask))


def test_pearson_gradient():
    depth, prior, mask = (2 + noise(2, 12)).requires_grad_(), 4 + noise(2, 12, seed=5), known(2, 12)
    assert gradcheck(lambda d: pearson_loss(d, prior, mask), depth)


@pytest.mark.parametrize(
    "prior, mask", [(torch.full((9,), 2.0), torch.ones(9)), (noise(9), torch.zeros(9))], ids=["flat", "unknown"]
)
def test_pearson_says_nothing_where_the_prior_does_not(prior, mask):
    depth = noise(9, seed=2).requires_grad_()
    loss = pearson_loss(depth, prior.double(), mask)
    loss.backward()
    assert loss == 0 and not depth.grad.any()


def test_pearson_of_a_flat_render_has_a_finite_gradient():
    depth = torch.full((20,), 2.0, dtype=torch.float64, requires_grad=True)
    pearson_loss(depth, 3 + noise(20), torch.ones(20)).backward()
    assert depth.grad.isfinite().all() and 0 < depth.grad.abs().max() < 1e4


def test_local_pearson_is_the_mean_over_tiles():
    depth, prior, mask = 2 + noise(9, 14), 4 + noise(9, 14, seed=5), known(9, 14)
    tiles = [(slice(1 + 4 * r, 5 + 4 * r), slice(2 + 4 * c, 6 + 4 * c)) for r in range(2) for c in range(3)]
    expected = torch.stack([pearson_loss(*(x[t].flatten() for x in (depth, prior, mask))) for t in tiles]).mean()
    torch.testing.assert_close(local_pearson_loss(depth, prior, mask, 4, (1, 2)), expected)
    assert gradcheck(lambda d: local_pearson_loss(d, prior, mask, 4, (1, 2)), depth.requires_grad_())


def test_local_pearson_sees_a_part_that_is_inside_out():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    prior = 10 + x + 0.3 * torch.cos(y)
    depth = 10 + x - 0.3 * torch.cos(y)  # right on the whole, its ripples turned about
    mask = torch.ones(32, 32)
    assert pearson_loss(depth.flatten(), prior.flatten(), mask.flatten()) < 0.01
    assert local_pearson_loss(depth, prior, mask, 4) > 2 * local_pearson_loss(depth, prior, mask, 32)


def test_local_pearson_skips_tiles_of_which_little_is_known():
    depth, prior, mask = 2 + noise(8, 8), 4 + noise(8, 8, seed=5), torch.ones(8, 8)
    mask[4:, 4:] = 0
    mask[4, 4] = 1
    others = [(slice(0, 4), slice(0, 4)), (slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4))]
    expected = torch.stack([pearson_loss(*(x[t].flatten() for x in (depth, prior, mask))) for t in others]).mean()
    torch.testing.assert_close(local_pearson_loss(depth, prior, mask, 4), expected)
    assert local_pearson_loss(depth, prior, torch.zeros(8, 8), 4) == 0


def test_absolute_depth():
    prior = torch.tensor([[2.0, 4.0], [1.0, 0.0]]).double()
    depth = torch.tensor([[3.0, 3.0], [1.5, 9.0]]).double().requires_grad_()
    loss = absolute_loss(depth, prior, prior > 0)
    assert loss.item() == pytest.approx((0.5 + 0.25 + 0.5) / 4)
    assert gradcheck(lambda d: absolute_loss(d, prior, prior > 0), depth)


def plane_depth(camera, normal, offset):
    """Depth [H, W] of the plane {p : normal . p = offset} in the camera's frame."""
    at, K = camera.pixel_centers, camera.K[0]
    rays = torch.stack([(at[..., 0] - K[0, 2]) / K[0, 0], (at[..., 1] - K[1, 2]) / K[1, 1], torch.ones_like(at[..., 0])], -1)
    return offset / (rays @ normal)


def test_normals_of_a_plane():
    camera = identity_camera(dtype=torch.float64)
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, -1.0], dtype=torch.float64), dim=0)
    normals, sure = normals_from_depth(plane_depth(camera, normal, -2.0), camera)
    assert sure[1:-1, 1:-1].all() and not sure[0].any() and not sure[:, -1].any()
    torch.testing.assert_close(normals[sure], normal.expand_as(normals[sure]), atol=1e-12, rtol=0)


def test_normals_are_unknown_at_edges_and_holes():
    camera = identity_camera(9)
    depth = torch.full((9, 9), 2.0)
    depth[:, 5:] = 3
    depth[4, 2] = 0
    _, sure = normals_from_depth(depth, camera)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[1:-1, 1:-1] = True
    expected[:, 4:6] = False
    for row, column in ((4, 2), (3, 2), (5, 2), (4, 1), (4, 3)):
        expected[row, column] = False
    assert torch.equal(sure, expected)


def test_gradients_of_normals_and_of_their_loss():
    camera = identity_camera(6, dtype=torch.float64)
    depth = (3 + 0.05 * noise(6, 6)).requires_grad_()
    prior = torch.nn.functional.normalize(noise(6, 6, 3, seed=3), dim=-1)

    def loss(d):
        return normal_loss(*normals_from_depth(d, camera)[:1], prior, torch.ones(6, 6))

    assert gradcheck(loss, depth)


def test_normal_loss_by_hand():
    z = torch.tensor([0.0, 0, 1]).expand(2, 2, 3)
    assert normal_loss(z, z, torch.ones(2, 2)) == 0
    assert normal_loss(z, -z, torch.tensor([[1.0, 0], [0, 0]])) == pytest.approx((2 + 2) / 4)
    x = torch.tensor([1.0, 0, 0]).expand(2, 2, 3)
    assert normal_loss(z, x, torch.ones(2, 2)) == pytest.approx(2 + 1)


def test_thinned_keeps_the_mean_opacity():
    splats = random_splats(20_000)
    faint = splats.map(lambda x: x)
    faint.opacity_logits.clamp_(max=0)  # 0.5 at most: no compensation is cut
    thin = thinned(faint, 0.3, torch.Generator().manual_seed(0))
    gone = thin.opacity_logits == GONE
    assert gone.float().mean() == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(thin.opacities[~gone], faint.opacities[~gone] / 0.7)
    assert thin.opacities.mean() == pytest.approx(float(faint.opacities.mean()), rel=0.02)
    again = thinned(faint, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(again.opacity_logits, thin.opacity_logits)
    assert thinned(faint, 0.0, torch.Generator()) is faint


def test_gradient_of_raised_opacities():
    logits = torch.linspace(-4, 1, 7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: raised(x, 1.25), logits)
    full = torch.tensor([3.0], requires_grad=True)
    out = raised(full, 1.25)
    out.sum().backward()
    assert out.sigmoid().item() == pytest.approx(FULL, abs=1e-5) and full.grad == 0


def test_filter_widths_of_the_nearest_pixel():
    far = Cameras.orbit(1, 4.0, 0, 40, 64, 64)
    near = Cameras.orbit(1, 2.0, 0, 40, 64, 64, azimuth_deg=90)
    focal = float(far.K[0, 0, 0])
    means = torch.tensor([[0.0, 0, 0], [0.0, 0, 50.0]])  # the second lies behind one and beside the other
    widths = filter_widths(means, [far, near])
    assert widths[0] == pytest.approx(math.sqrt(0.2) * 2 / focal, rel=1e-5)
    assert widths[1] == widths[0]
    assert filter_widths(means, [far])[0] == pytest.approx(math.sqrt(0.2) * 4 / focal, rel=1e-5)


def test_smoothing_adds_variance_and_keeps_the_integral():
    splats = one_splat((0.0, 0, 0), (0.5, 0.5, 0.5), scales=(0.3, 0.4, 0.01), opacity=0.8, dtype=torch.float64)
    out = smoothed(splats, torch.tensor([0.3], dtype=torch.float64))
    torch.testing.assert_close(out.scales[0], (torch.tensor([0.09, 0.16, 1e-4]).double() + 0.09).sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(out.opacities * out.scales.prod(-1), splats.opacities * splats.scales.prod(-1))
    plain = smoothed(random_splats(30, dtype=torch.float64), torch.zeros(30))
    torch.testing.assert_close(plain.log_scales, random_splats(30, dtype=torch.float64).log_scales)


def test_gradient_of_smoothing():
    splats = random_splats(4, dtype=torch.float64)
    widths = torch.tensor([0.1, 0.05, 0.2, 0.0], dtype=torch.float64)

    def out(log_scales, logits):
        moved = type(splats)(splats.means, splats.quats, log_scales, logits, splats.sh)
        s = smoothed(moved, widths)
        return s.log_scales, s.opacity_logits

    assert gradcheck(out, (splats.log_scales.requires_grad_(), splats.opacity_logits.requires_grad_()))


def test_widths_do_not_depend_on_the_batching_of_cameras():
    cameras, means = orbit(4), random_splats(50).means
    one = filter_widths(means, [cameras])
    many = filter_widths(means, [cameras[i] for i in range(4)])
    torch.testing.assert_close(one, many)
