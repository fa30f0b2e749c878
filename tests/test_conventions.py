"""The conventions of the project, each as a picture or a matrix one can check by thought."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import random_splats

from splat.cameras import Cameras, intrinsics
from splat.gaussians import Splats
from splat.render import RenderOptions, render
from splat.rotations import matrix_from_quat
from splat.sh import from_rgb
from splat.similarity import Similarity

RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
SIZE, FOCAL = 33, 40.0  # odd, so that a pixel's centre is the image's centre
CAMERA = Cameras(torch.eye(4)[None], intrinsics(FOCAL, SIZE, SIZE)[None], SIZE, SIZE)  # at the origin, looking along +z


def splat(position, colour, scales=(0.05, 0.05, 0.05), quat=(1.0, 0, 0, 0), opacity=0.99):
    return Splats(
        means=torch.tensor([position]),
        quats=torch.tensor([quat]),
        log_scales=torch.tensor([scales]).log(),
        opacity_logits=torch.tensor([opacity]).logit(),
        sh=from_rgb(torch.tensor([colour]))[:, None],
    )


@pytest.fixture(params=["reference", "native", pytest.param("gsplat", marks=pytest.mark.cuda)])
def draw(request):
    """A back-end as `draw(splats, cameras, **options) -> Rendering` on the CPU."""
    name = request.param
    if name == "native":
        from splat.render import native

        if not native.available():
            pytest.skip("the native renderer cannot be built here")
    if name == "gsplat" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    device = "cuda" if name == "gsplat" else "cpu"

    def draw(splats, cameras=CAMERA, **options):
        drawn = render(splats.to(device), cameras.to(device), RenderOptions(**options), name)
        return replace(drawn, **{field: getattr(drawn, field).cpu() for field in ("rgb", "alpha", "depth", "means2d", "radii")})

    return draw


def centroid(image):
    """(x, y) of an [H, W] image in pixels, the centre of pixel (i, j) at (i + 0.5, j + 0.5)."""
    h, w = image.shape
    x, y = torch.arange(w) + 0.5, torch.arange(h) + 0.5
    return float((image.sum(0) * x).sum() / image.sum()), float((image.sum(1) * y).sum() / image.sum())


class TestPixels:
    def test_x_is_right_and_y_is_down(self, draw):
        for position, (x, y) in [
            ((0.0, 0, 2), (16.5, 16.5)),
            ((0.4, 0, 2), (24.5, 16.5)),  # + focal * 0.4 / 2 = 8 px
            ((0.0, 0.4, 2), (16.5, 24.5)),
            ((-0.2, 0.4, 2), (12.5, 24.5)),
        ]:
            assert centroid(draw(splat(position, RED)).rgb[0, ..., 0]) == pytest.approx((x, y), abs=0.02)

    def test_pixel_centres_are_at_one_half(self, draw):
        """A Gaussian projected to (16.5, 16.5) is brightest at index 16 and symmetric about it."""
        alpha = draw(splat((0.0, 0, 2), RED)).alpha[0]
        assert divmod(int(alpha.argmax()), SIZE) == (16, 16)
        torch.testing.assert_close(alpha, alpha.flip(0))
        torch.testing.assert_close(alpha, alpha.flip(1))

    def test_channels_are_red_green_blue(self, draw):
        for channel, colour in enumerate((RED, GREEN, BLUE)):
            pixel = draw(splat((0.0, 0, 2), colour)).rgb[0, 16, 16]
            assert pixel[channel] > 0.9 and pixel.sum() - pixel[channel] < 1e-5

    def test_nearer_hides_farther_whatever_the_order(self, draw):
        near, far = splat((0.0, 0, 2), RED), splat((0.0, 0, 4), BLUE, scales=(0.2, 0.2, 0.2))
        for parts in ([near, far], [far, near]):
            pixel = draw(Splats.cat(parts)).rgb[0, 16, 16]
            assert pixel[0] > 0.95 and pixel[2] < 0.05

    def test_behind_the_camera_is_not_drawn(self, draw):
        drawn = draw(splat((0.0, 0, -2), RED))
        assert drawn.alpha.max() == 0 and drawn.radii.max() == 0

    def test_depth_is_z_not_distance(self, draw):
        drawn = draw(splat((0.6, 0, 2), RED))
        depth = drawn.expected_depth[0][drawn.alpha[0] > 0.1]
        torch.testing.assert_close(depth, torch.full_like(depth, 2.0))

    def test_background_shows_where_alpha_is_low(self, draw):
        drawn = draw(splat((0.0, 0, 2), RED), background=torch.tensor([0.1, 0.2, 0.3]))
        assert drawn.rgb[0, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])
        expected = drawn.alpha[0][..., None] * torch.tensor(RED) + (1 - drawn.alpha[0])[..., None] * torch.tensor(
            [0.1, 0.2, 0.3]
        )
        torch.testing.assert_close(drawn.rgb[0], expected, atol=1e-6, rtol=0)

    def test_colours_below_zero_are_black_and_above_one_stay(self, draw):
        pixel = draw(splat((0.0, 0, 2), (2.0, -1.0, 0.5), opacity=0.5)).rgb[0, 16, 16]
        assert pixel.tolist() == pytest.approx([1.0, 0.0, 0.25], abs=1e-6)


class TestRotation:
    def test_quarter_turn_about_z_swaps_the_axes_of_an_ellipse(self, draw):
        wide = draw(splat((0.0, 0, 2), RED, scales=(0.2, 0.05, 0.05))).alpha[0]
        turned = draw(splat((0.0, 0, 2), RED, scales=(0.2, 0.05, 0.05), quat=(math.sqrt(0.5), 0, 0, math.sqrt(0.5)))).alpha[0]
        assert wide[16, 24] > 5 * wide[24, 16]
        torch.testing.assert_close(turned, wide.T, atol=1e-5, rtol=0)

    def test_quaternion_is_wxyz_and_turns_x_towards_y(self, draw):
        """30 degrees about +z (into the image): the long axis points right and down."""
        half = math.radians(15)
        alpha = draw(splat((0.0, 0, 2), RED, scales=(0.2, 0.02, 0.02), quat=(math.cos(half), 0, 0, math.sin(half)))).alpha[0]
        assert alpha[16 + 2, 16 + 3] > 0.5 > 0.01 > alpha[16 - 2, 16 + 3]

    def test_quaternion_length_does_not_matter(self, draw):
        quat = (0.5, 0.2, -0.1, 0.7)
        one = draw(splat((0.1, 0, 2), RED, (0.2, 0.05, 0.1), quat)).alpha
        two = draw(splat((0.1, 0, 2), RED, (0.2, 0.05, 0.1), tuple(3 * q for q in quat))).alpha
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


class TestSphericalHarmonics:
    @pytest.mark.parametrize(
        ("term", "direction"),
        [(1, (0.0, -1, 0)), (2, (0.0, 0, 1)), (3, (-1.0, 0, 0))],  # order -y, +z, -x of 3DGS
    )
    def test_degree_one_brightens_the_side_its_term_names(self, draw, term, direction):
        """Directions run from the camera to the Gaussian."""
        ball = splat((0.0, 0, 0), (0.5, 0.5, 0.5)).with_sh_degree(1)
        ball.sh[0, term] = 0.5
        d = torch.tensor(direction)
        up = torch.tensor([0.0, 0, 1]) if d[2] == 0 else torch.tensor([0.0, 1, 0])
        bright = draw(ball, Cameras.look_at(-2 * d[None], torch.zeros(3), up, intrinsics(FOCAL, SIZE, SIZE), SIZE, SIZE))
        dark = draw(ball, Cameras.look_at(2 * d[None], torch.zeros(3), up, intrinsics(FOCAL, SIZE, SIZE), SIZE, SIZE))
        expected = 0.5 * 0.4886025119029199
        assert float(bright.rgb[0, 16, 16, 0] / bright.alpha[0, 16, 16]) == pytest.approx(0.5 + expected, abs=1e-5)
        assert float(dark.rgb[0, 16, 16, 0] / dark.alpha[0, 16, 16]) == pytest.approx(0.5 - expected, abs=1e-5)

    def test_sh_degree_option_cuts_bands(self, draw):
        g = torch.Generator().manual_seed(0)
        full = splat((0.3, 0.2, 2), (0.5, 0.5, 0.5)).with_sh_degree(3)
        full.sh[:, 1:] = 0.3 * torch.randn(1, 15, 3, generator=g)
        for degree in range(4):
            torch.testing.assert_close(draw(full, sh_degree=degree).rgb, draw(full.with_sh_degree(degree)).rgb)
        assert not torch.allclose(draw(full).rgb, draw(full, sh_degree=2).rgb)


class TestCameras:
    def test_from_opengl_of_a_known_pose(self):
        """The NeRF convention: a camera at (0, 0, 4) with the world's axes looks down -z, with y up."""
        world_from_cam = torch.eye(4)[None].clone()
        world_from_cam[0, 2, 3] = 4
        cameras = Cameras.from_opengl(world_from_cam, intrinsics(FOCAL, SIZE, SIZE)[None], SIZE, SIZE)
        expected = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 4], [0, 0, 0, 1]])
        torch.testing.assert_close(cameras.cam_from_world[0], expected)
        assert cameras.centers.tolist() == [[0, 0, 4]] and cameras.forward.tolist() == [[0, 0, -1]]
        torch.testing.assert_close(cameras.to_opengl(), world_from_cam.double())
        pixels, depth = cameras.project(torch.tensor([[0.4, 0.8, 0.0]]))
        assert depth.tolist() == [[4]]
        assert pixels[0, 0].tolist() == pytest.approx([16.5 + 4, 16.5 - 8])  # world +y is up in the picture

    def test_look_at_puts_up_up_and_right_right(self):
        cameras = Cameras.look_at(
            torch.tensor([[0.0, 0, 5]]), torch.zeros(3), torch.tensor([0.0, 1, 0]), intrinsics(FOCAL, SIZE, SIZE), SIZE, SIZE
        )
        pixels, depth = cameras.project(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]))
        assert pixels[0].flatten().tolist() == pytest.approx([16.5, 16.5, 24.5, 16.5, 16.5, 8.5])
        assert depth[0].tolist() == pytest.approx([5, 5, 5])

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_look_at_along_up_is_still_a_rotation(self, sign):
        cameras = Cameras.look_at(
            torch.tensor([[0.0, 3 * sign, 0]]), torch.zeros(3), torch.tensor([0.0, 1, 0]), intrinsics(9, 9, 9), 9, 9
        )
        rotation = cameras.cam_from_world[0, :3, :3]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3))
        assert torch.linalg.det(rotation) == pytest.approx(1) and cameras.forward[0, 1] == pytest.approx(-sign)

    def test_orbit_azimuth_zero_is_the_front_and_grows_towards_plus_x(self):
        cameras = Cameras.orbit(4, radius=2, elevation_deg=0, fov_deg=90, width=SIZE, height=SIZE)
        expected = torch.tensor([[0.0, 0, 2], [2, 0, 0], [0, 0, -2], [-2, 0, 0]])
        torch.testing.assert_close(cameras.centers, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(cameras.forward, -expected / 2, atol=1e-6, rtol=0)
        torch.testing.assert_close(cameras.K[0, 0, 0], torch.tensor(SIZE / 2))  # a horizontal field of view of 90 degrees

    def test_orbit_elevation_is_upwards(self):
        cameras = Cameras.orbit(
            1, radius=2, elevation_deg=30, fov_deg=60, width=SIZE, height=SIZE, target=torch.tensor([1.0, 2, 3]), azimuth_deg=90
        )
        torch.testing.assert_close(cameras.centers[0], torch.tensor([1 + 2 * math.cos(math.radians(30)), 3.0, 3]))
        pixels, _ = cameras.project(torch.tensor([[1.0, 2, 3], [1, 2.1, 3]]))
        assert pixels[0, 0].tolist() == pytest.approx([16.5, 16.5], abs=1e-4) and pixels[0, 1, 1] < 16.4

    def test_front_view_shows_plus_x_on_the_right(self, draw):
        cameras = Cameras.orbit(1, radius=2, elevation_deg=0, fov_deg=60, width=SIZE, height=SIZE)
        x, y = centroid(draw(splat((0.3, 0.3, 0), RED), cameras).rgb[0, ..., 0])
        assert x > 18 and y < 15

    def test_resized_projects_to_scaled_pixels(self):
        cameras = Cameras.orbit(2, radius=3, elevation_deg=20, fov_deg=50, width=40, height=30)
        points = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
        small = cameras.resized(20, 60)
        assert (small.width, small.height) == (20, 60)
        torch.testing.assert_close(small.project(points)[0], cameras.project(points)[0] * torch.tensor([0.5, 2.0]))

    def test_cropped_projects_to_shifted_pixels(self):
        cameras = Cameras.orbit(2, radius=3, elevation_deg=20, fov_deg=50, width=40, height=30)
        points = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
        window = cameras.cropped(5, -3, 20, 50)
        assert (window.width, window.height) == (20, 50)
        torch.testing.assert_close(window.project(points)[0], cameras.project(points)[0] - torch.tensor([5.0, -3.0]))

    def test_a_crop_draws_the_window(self, draw):
        ball = splat((0.3, 0.2, 2), RED)
        whole = draw(ball).rgb[0]
        torch.testing.assert_close(draw(ball, CAMERA.cropped(14, 9, 17, 20)).rgb[0], whole[9:29, 14:31], atol=1e-6, rtol=0)


class TestMovingTheWorld:
    @settings(max_examples=25)
    @given(
        st.integers(0, 1000),
        st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.01),
        st.tuples(*[st.floats(-20, 20)] * 3),
        st.floats(0.05, 20),
    )
    def test_splats_and_cameras_moved_together_draw_the_same_picture(self, seed, quat, translation, scale):
        """SH degree 3 included; depth grows with the scale."""
        move = Similarity(matrix_from_quat(torch.tensor(quat, dtype=torch.float64)), torch.tensor(translation), scale)
        splats = random_splats(12, seed=seed, dtype=torch.float64)
        cameras = Cameras.orbit(2, radius=3, elevation_deg=20, fov_deg=45, width=24, height=18).to(torch.float64)
        options = RenderOptions(near=1e-4)
        before = render(splats, cameras, options, "reference")
        after = render(splats.transformed(move), cameras.transformed(move), options, "reference")
        assert before.alpha.max() > 0.3
        torch.testing.assert_close(after.rgb, before.rgb, atol=1e-7, rtol=0)
        torch.testing.assert_close(after.alpha, before.alpha, atol=1e-7, rtol=0)
        torch.testing.assert_close(after.depth, before.depth * scale, atol=1e-6 * scale, rtol=0)

    def test_moving_only_the_splats_changes_the_picture(self):
        """Guards the test above against a renderer that ignores what it is given."""
        move = Similarity(matrix_from_quat(torch.tensor([0.9, 0.1, 0.4, 0.0])), torch.zeros(3), 1.0)
        cameras = Cameras.orbit(1, radius=3, elevation_deg=20, fov_deg=45, width=24, height=18)
        before = render(random_splats(12), cameras, backend_name="reference").rgb
        after = render(random_splats(12).transformed(move), cameras, backend_name="reference").rgb
        assert (before - after).abs().max() > 0.05
