"""The reference renderer against numbers worked out by hand, finite differences, and an untiled compositor."""

import math

import pytest
import torch
from scenes import identity_camera, one_splat, orbit, random_splats

from splat.cameras import Cameras, intrinsics
from splat.gaussians import Splats
from splat.render import RenderOptions, reference, render

F64 = torch.float64


def draw(splats, cameras, **options):
    return render(splats, cameras, RenderOptions(**options), "reference")


def distances(size):
    """[H, W] px from each pixel's centre to the image's."""
    step = torch.arange(size, dtype=F64) + 0.5 - size / 2
    return (step[:, None] ** 2 + step[None] ** 2).sqrt()


class TestClosedForm:
    SIZE, FOCAL, Z, SCALE = 33, 40.0, 2.0, 0.1
    VARIANCE = (FOCAL * SCALE / Z) ** 2 + 0.3  # px^2

    def on_axis(self, opacity=0.8, colour=(0.2, 0.4, 0.6), z=Z, scale=SCALE):
        return one_splat((0.0, 0.0, z), colour, (scale,) * 3, opacity, F64)

    def test_one_gaussian_on_the_axis(self):
        drawn = draw(self.on_axis(), identity_camera(dtype=F64))
        alpha = 0.8 * torch.exp(-(distances(self.SIZE) ** 2) / (2 * self.VARIANCE))
        alpha[alpha < 1 / 255] = 0
        torch.testing.assert_close(drawn.alpha[0], alpha, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(
            drawn.rgb[0], alpha[..., None] * torch.tensor([0.2, 0.4, 0.6], dtype=F64), atol=1e-6, rtol=1e-6
        )
        torch.testing.assert_close(drawn.depth[0], alpha * 2, atol=1e-6, rtol=1e-6)
        assert (alpha == 0).sum() > 100 and (alpha > 0).sum() > 100

    def test_antialiased_scales_opacity_by_the_area_lost(self):
        drawn = draw(self.on_axis(), identity_camera(dtype=F64), antialiased=True)
        plain = self.VARIANCE - 0.3
        assert float(drawn.alpha[0, 16, 16]) == pytest.approx(0.8 * plain / self.VARIANCE, rel=1e-6)

    def test_low_pass_option(self):
        drawn = draw(self.on_axis(), identity_camera(dtype=F64), low_pass=1.7)
        assert float(drawn.alpha[0, 16, 19]) == pytest.approx(0.8 * math.exp(-9 / 2 / (4 + 1.7)), rel=1e-6)

    def test_two_overlapping(self):
        """At the centre alphas are the opacities 0.6 (red, z = 2) and 0.5 (green, z = 3)."""
        pair = Splats.cat([self.on_axis(0.5, (0, 1.0, 0), z=3.0), self.on_axis(0.6, (1.0, 0, 0))])
        drawn = draw(pair, identity_camera(dtype=F64), background=torch.tensor([0, 0, 1.0]))
        pixel = drawn.rgb[0, 16, 16].tolist(), float(drawn.alpha[0, 16, 16]), float(drawn.depth[0, 16, 16])
        assert pixel[0] == pytest.approx([0.6, 0.4 * 0.5, 0.4 * 0.5], abs=1e-6)
        assert pixel[1] == pytest.approx(1 - 0.4 * 0.5, abs=1e-6)
        assert pixel[2] == pytest.approx(0.6 * 2 + 0.2 * 3, abs=1e-6)
        assert float(drawn.expected_depth[0, 16, 16]) == pytest.approx(1.8 / 0.8, abs=1e-6)

    def test_empty_pixels_have_no_depth(self):
        drawn = draw(self.on_axis(), identity_camera(dtype=F64))
        assert drawn.expected_depth[0, 0, 0] == 0 and drawn.expected_depth.isfinite().all()

    def test_alpha_never_exceeds_0_999(self):
        drawn = draw(self.on_axis(0.99999), identity_camera(dtype=F64))
        assert float(drawn.alpha[0, 16, 16]) == pytest.approx(0.999, abs=1e-9)

    @pytest.mark.parametrize(("opacity", "visible"), [(1 / 254, 1), (1 / 256, 0)])
    def test_alpha_below_1_255_is_skipped(self, opacity, visible):
        drawn = draw(self.on_axis(opacity), identity_camera(dtype=F64))
        assert int((drawn.alpha > 0).sum()) == visible  # the central pixel alone
        assert int((drawn.radii > 0).sum()) == visible

    def test_a_pixel_stops_before_transmittance_1e_4(self):
        """After alphas of 0.98, T is 0.02, 0.0004, 0.000008: the third is not composited, nor anything behind it."""
        layers = [self.on_axis(0.98, (0, 0, 0), z=2.0 + i) for i in range(3)]
        layers.append(self.on_axis(0.5, (1, 1, 1), z=6.0, scale=5.0))
        drawn = draw(Splats.cat(layers), identity_camera(dtype=F64))
        assert float(1 - drawn.alpha[0, 16, 16]) == pytest.approx(0.0004, rel=1e-4)
        assert float(drawn.rgb[0, 16, 16].sum()) == pytest.approx(0, abs=1e-6)
        assert float(drawn.rgb[0, 0, 0, 0]) > 0.3  # away from the layers the one behind shows

    @pytest.mark.parametrize(("z", "drawn_at_all"), [(0.0099, False), (0.0101, True)])
    def test_near_plane(self, z, drawn_at_all):
        drawn = draw(self.on_axis(z=z, scale=z / 20), identity_camera(dtype=F64))
        assert bool(drawn.alpha.max() > 0) is drawn_at_all

    def test_background_per_camera(self):
        cameras = Cameras.cat([identity_camera(dtype=F64)] * 2)
        drawn = draw(self.on_axis(), cameras, background=torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        assert drawn.rgb[:, 0, 0].tolist() == [[1, 0, 0], [0, 1, 0]]

    def test_no_gaussians_draw_the_background(self):
        drawn = draw(self.on_axis()[:0], identity_camera(dtype=F64), background=torch.tensor([0.1, 0.2, 0.3], dtype=F64))
        assert drawn.rgb[0, 5, 5].tolist() == pytest.approx([0.1, 0.2, 0.3])
        assert drawn.alpha.max() == 0 and drawn.means2d.shape == (1, 0, 2) and drawn.radii.shape == (1, 0)


class TestProjection:
    def test_2d_covariance_is_the_first_order_one(self):
        """J Sigma J^T with J by finite differences of `Cameras.project`, for a tilted camera."""
        splats, cameras = random_splats(20, dtype=F64), orbit(1, dtype=F64)
        p = reference.project(splats, cameras, 0, RenderOptions())
        assert len(p.rows) >= 15
        eps = 1e-6
        for i, row in enumerate(p.rows.tolist()):
            mean = splats.means[row]
            nudged = torch.cat([mean + eps * torch.eye(3, dtype=F64), mean - eps * torch.eye(3, dtype=F64)])
            pixels = cameras.project(nudged)[0][0]
            jacobian = ((pixels[:3] - pixels[3:]) / (2 * eps)).T  # [2, 3]
            covariance = jacobian @ splats.covariances()[row] @ jacobian.T + 0.3 * torch.eye(2, dtype=F64)
            xx, xy, yy = p.conics[i]
            torch.testing.assert_close(
                torch.stack([xx, xy, xy, yy]).view(2, 2), torch.linalg.inv(covariance), rtol=1e-5, atol=1e-8
            )
            torch.testing.assert_close(p.means2d[i], cameras.project(mean[None])[0][0, 0])

    def test_means2d_and_radii_are_in_the_order_of_the_splats(self):
        splats, cameras = random_splats(20, dtype=F64), orbit(3, dtype=F64)
        drawn = draw(splats, cameras)
        seen = drawn.radii > 0
        assert seen.float().mean() > 0.8
        torch.testing.assert_close(drawn.means2d[seen], cameras.project(splats.means)[0][seen])

    def test_radius_covers_every_touched_pixel(self):
        for i in range(10):
            splat, camera = random_splats(10, seed=3, dtype=F64)[i : i + 1], orbit(1, dtype=F64)
            drawn = draw(splat, camera)
            ys, xs = (drawn.alpha[0] > 0).nonzero(as_tuple=True)
            if len(xs):
                offset = torch.stack([xs, ys], -1) + 0.5 - drawn.means2d[0, 0]
                assert float(offset.abs().max()) <= float(drawn.radii[0, 0])

    def test_far_outside_the_frame_nothing_explodes(self):
        """Large Gaussians beside the camera, where the affine approximation breaks down, stay bounded."""
        splats = one_splat((30.0, 0, 0.05), (1.0, 1, 1), (0.5,) * 3)
        drawn = draw(splats, identity_camera())
        assert drawn.rgb.isfinite().all() and drawn.alpha.max() < 0.5


def compose_without_tiles(p, width, height):
    """One Gaussian after the other over the whole image, with explicit skips and stops per pixel."""
    y, x = torch.meshgrid(torch.arange(height).to(p.depths) + 0.5, torch.arange(width).to(p.depths) + 0.5, indexing="ij")
    left = torch.ones(height, width).to(p.depths)  # transmittance
    done = torch.zeros(height, width, dtype=torch.bool)
    out = torch.zeros(height, width, 4).to(p.depths)
    for i in range(len(p.rows)):
        dx, dy = x - p.means2d[i, 0], y - p.means2d[i, 1]
        xx, xy, yy = p.conics[i]
        alpha = (p.opacities[i] * torch.exp(-0.5 * (xx * dx * dx + 2 * xy * dx * dy + yy * dy * dy))).clamp(max=0.999)
        touched = (alpha >= 1 / 255) & ~done
        stops = touched & (left * (1 - alpha) <= 1e-4)
        done = done | stops
        weight = torch.where(touched & ~stops, alpha * left, torch.zeros_like(alpha))
        out = out + weight[..., None] * torch.cat([p.colours[i], p.depths[i : i + 1]])
        left = left - weight
    return out, 1 - left


class TestTiles:
    @pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 16), (17, 15), (50, 35)])
    def test_tiles_change_nothing(self, width, height):
        splats = random_splats(150, seed=1, dtype=F64)
        splats = Splats(splats.means, splats.quats, splats.log_scales + 0.7, splats.opacity_logits + 2.5, splats.sh)
        cameras = orbit(1, width, height, dtype=F64)
        drawn = draw(splats, cameras)
        expected, alpha = compose_without_tiles(reference.project(splats, cameras, 0, RenderOptions()), width, height)
        if width > 16:
            assert float(alpha.max()) > 0.9998 and float(alpha.min()) < 0.99  # pixels that stop and pixels that do not
        torch.testing.assert_close(drawn.alpha[0], alpha, atol=1e-9, rtol=0)
        torch.testing.assert_close(torch.cat([drawn.rgb[0], drawn.depth[0, ..., None]], -1), expected, atol=1e-9, rtol=0)

    def test_recomputing_tiles_changes_nothing(self, monkeypatch):
        """Large images recompute tiles in the backward pass instead of storing them."""
        results = []
        for stored in (1 << 25, 0):
            monkeypatch.setattr(reference, "STORED_PAIRS", stored)
            splats = random_splats(30).map(lambda x: x.requires_grad_())
            drawn = draw(splats, orbit(2))
            (drawn.rgb.square().sum() + drawn.depth.sum()).backward()
            results.append((drawn.rgb, splats.means.grad, splats.sh.grad))
        for a, b in zip(*results):
            assert torch.equal(a, b)

    def test_order_of_rows_does_not_matter(self):
        splats = random_splats(40, dtype=F64)
        shuffle = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(draw(splats[shuffle], orbit(2, dtype=F64)).rgb, draw(splats, orbit(2, dtype=F64)).rgb)

    def test_a_batch_of_cameras_is_the_cameras_one_by_one(self):
        splats, cameras = random_splats(30), orbit(3)
        together = draw(splats, cameras)
        for i in range(3):
            assert torch.equal(together.rgb[i], draw(splats, cameras[i]).rgb[0])

    def test_float32_agrees_with_float64(self):
        splats, cameras = random_splats(60), orbit(2)
        low, high = draw(splats, cameras), draw(splats.to(F64), cameras.to(F64))
        difference = (low.rgb - high.rgb).abs()
        assert difference.mean() < 1e-6 and difference.max() < 6e-3  # one threshold flip is 1/255


class TestGradients:
    """Central differences in float64 on a scene where every Gaussian covers every pixel, far from every cut-off."""

    WIDTH, HEIGHT = 5, 4

    def scene(self):
        g = torch.Generator().manual_seed(4)
        n = 3
        splats = random_splats(n, 3, seed=4, dtype=F64)
        splats = Splats(
            means=0.3 * splats.means,
            quats=splats.quats,
            log_scales=0.25 * torch.randn(n, 3, generator=g, dtype=F64),
            opacity_logits=0.5 * splats.opacity_logits - 0.3,
            sh=torch.cat([0.3 * splats.sh[:, :1].abs() + 0.5, 0.3 * splats.sh[:, 1:]], dim=1),  # colours away from the clamp
        )
        return splats, Cameras.orbit(2, 4.0, 20, 50, self.WIDTH, self.HEIGHT).to(F64), torch.rand(2, 3, generator=g, dtype=F64)

    def test_the_scene_is_far_from_every_cut_off(self):
        splats, cameras, _ = self.scene()
        for c in range(len(cameras)):
            p = reference.project(splats, cameras, c, RenderOptions())
            assert len(p.rows) == len(splats) and p.colours.min() > 0.1
            for i in range(len(splats)):
                _, alone = compose_without_tiles(reference.project(splats[i : i + 1], cameras, c, RenderOptions()), 5, 4)
                assert 0.01 < alone.min() and alone.max() < 0.9
            _, alpha = compose_without_tiles(p, 5, 4)
            assert alpha.max() < 0.999
            assert p.depths.diff().min() > 1e-3  # the order is not in doubt

    @pytest.mark.parametrize(
        ("group", "antialiased"),
        [
            *((g, False) for g in ("means", "quats", "log_scales", "opacity_logits", "sh", "pose", "background")),
            *((g, True) for g in ("means", "quats", "log_scales", "opacity_logits", "pose")),
        ],
    )
    def test_finite_differences(self, group, antialiased):
        splats, cameras, background = self.scene()
        values = {**vars(splats), "pose": cameras.cam_from_world, "background": background}

        def outputs(x):
            v = {**values, group: x}
            scene = Splats(*(v[name] for name in ("means", "quats", "log_scales", "opacity_logits", "sh")))
            moved = Cameras(v["pose"], cameras.K, cameras.width, cameras.height)
            drawn = draw(scene, moved, background=v["background"], antialiased=antialiased)
            return drawn.rgb, drawn.alpha, drawn.depth

        x = values[group].clone().requires_grad_()
        x_rgb = torch.autograd.grad(outputs(x)[0].sum(), x)[0]
        assert x_rgb.abs().max() > 1e-3  # the check below is not of zeros
        if group == "background":
            torch.autograd.gradcheck(lambda b: outputs(b)[0], x, eps=1e-6, atol=1e-7, rtol=1e-5)
        else:
            torch.autograd.gradcheck(outputs, x, eps=1e-6, atol=1e-7, rtol=1e-5)

    def test_quaternion_gradient_is_tangent(self):
        """Length does not matter, so no gradient points along it."""
        splats, cameras, _ = self.scene()
        splats = splats.map(lambda x: x.requires_grad_())
        draw(splats, cameras).rgb.square().sum().backward()
        along = (splats.quats.grad * splats.quats).sum(-1) / splats.quats.norm(dim=-1)
        assert along.abs().max() < 1e-9 and splats.quats.grad.norm() > 1e-3

    def test_probe_gradient_is_that_of_shifting_the_projected_mean(self):
        """With one Gaussian, shifting its projection is shifting the principal point."""
        splats, cameras, _ = self.scene()
        splat, camera = splats[:1], cameras[:1]
        target = torch.rand(self.HEIGHT, self.WIDTH, 3, generator=torch.Generator().manual_seed(0), dtype=F64)

        def loss(drawn):
            return (drawn.rgb[0] - target).square().sum()

        drawn = draw(splat, camera, track_means2d=True)
        loss(drawn).backward()
        assert drawn.means2d_probe.grad.shape == (1, 1, 2)
        for axis in range(2):
            moved = []
            for sign in (1, -1):
                K = camera.K.clone()
                K[0, axis, 2] += sign * 1e-5
                moved.append(float(loss(draw(splat, Cameras(camera.cam_from_world, K, self.WIDTH, self.HEIGHT)))))
            expected = (moved[0] - moved[1]) / 2e-5
            assert float(drawn.means2d_probe.grad[0, 0, axis]) == pytest.approx(expected, rel=1e-5)
            assert abs(expected) > 1e-3

    def test_absolute_probe_gradient_adds_up_every_pixels_share(self):
        splats, cameras, _ = self.scene()
        weight = torch.randn(self.HEIGHT, self.WIDTH, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
        drawn = draw(splats[:3], cameras[:1], track_means2d=True)
        (drawn.rgb[0] * weight).sum().backward()
        expected = torch.zeros(1, 3, 2, dtype=F64)
        for y in range(self.HEIGHT):
            for x in range(self.WIDTH):
                one = draw(splats[:3], cameras[:1], track_means2d=True)
                (one.rgb[0, y, x] * weight[y, x]).sum().backward()
                expected += one.means2d_probe.grad.abs()
        torch.testing.assert_close(drawn.means2d_probe.absgrad, expected)
        assert bool((expected > 1.2 * drawn.means2d_probe.grad.abs()).any())

    def test_probe_rows_follow_the_splats(self):
        """Gaussians outside the picture get zero, whatever their place in the rows."""
        splats = random_splats(20)
        away = Splats(splats.means + 100, splats.quats, splats.log_scales, splats.opacity_logits, splats.sh)
        mixed = Splats.cat([away, splats])
        drawn = draw(mixed, orbit(2), track_means2d=True)
        drawn.rgb.square().sum().backward()
        grad = drawn.means2d_probe.grad
        assert grad[:, :20].abs().max() == 0
        alone = draw(splats, orbit(2), track_means2d=True)
        alone.rgb.square().sum().backward()
        torch.testing.assert_close(grad[:, 20:], alone.means2d_probe.grad)

    def test_no_gradient_where_a_gaussian_is_hidden_by_the_stop(self):
        wall = [one_splat((0.0, 0, 2 + i), (1.0, 0, 0), (3.0,) * 3, 0.98, F64) for i in range(3)]
        hidden = one_splat((0.0, 0, 9), (0, 1.0, 0), (0.5,) * 3, 0.9, F64)
        splats = Splats.cat([*wall, hidden]).map(lambda x: x.requires_grad_())
        camera = Cameras(torch.eye(4)[None], intrinsics(40, 5, 5)[None], 5, 5).to(F64)
        draw(splats, camera).rgb.sum().backward()
        assert splats.sh.grad[3].abs().max() == 0 and splats.sh.grad[0].abs().max() > 0

    def test_gradients_are_finite_at_the_edges(self):
        """Opaque, transparent, tiny, huge, behind, on the camera, of zero rotation: no NaN anywhere."""
        base = random_splats(8, dtype=torch.float32)
        base.means[0] = torch.tensor([0.0, 0, 3])
        base.means[1] = orbit(1).centers[0]
        base.opacity_logits[2], base.opacity_logits[3] = 60.0, -60.0
        base.log_scales[4], base.log_scales[5] = -30.0, 5.0
        base.quats[6] = 0
        base.means[7] = 2 * orbit(1).centers[0]
        for antialiased in (False, True):
            splats = base.map(lambda x: x.clone().requires_grad_())
            drawn = draw(splats, orbit(2), antialiased=antialiased, background=torch.ones(3))
            (drawn.rgb.square().sum() + drawn.depth.sum() + drawn.alpha.sum()).backward()
            assert drawn.rgb.isfinite().all() and drawn.depth.isfinite().all()
            for name, value in vars(splats).items():
                assert value.grad.isfinite().all(), name
