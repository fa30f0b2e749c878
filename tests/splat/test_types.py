"""Cameras, Views, PointCloud, Mesh, Progress, errors: what the constructors refuse and what the methods promise."""

from dataclasses import replace

import pytest
import torch
from scenes import orbit

from splat.cameras import Cameras, intrinsics, nearest_to_axes
from splat.errors import InputError, SplatsmithError, StoppedLate, check_finite
from splat.mesh import Mesh
from splat.points import PointCloud
from splat.rotations import matrix_from_quat
from splat.similarity import Similarity
from splat.views import Views

MOVE = Similarity(matrix_from_quat(torch.tensor([0.3, -0.5, 0.7, 0.2]).double()), torch.tensor([1.0, -2, 3]), 2.5)


class TestCameras:
    def test_one_index_gives_a_batch_of_one(self):
        cameras = orbit(3)
        for rows in (1, [1], slice(1, 2), torch.tensor([1])):
            picked = cameras[rows]
            assert len(picked) == 1 and torch.equal(picked.cam_from_world[0], cameras.cam_from_world[1])
        assert len(cameras[-1]) == 1 and torch.equal(cameras[-1].K, cameras.K[2:])

    def test_cat_restores_the_batch_and_refuses_mixed_sizes(self):
        cameras = orbit(3)
        assert torch.equal(Cameras.cat([cameras[0], cameras[1:]]).cam_from_world, cameras.cam_from_world)
        with pytest.raises(AssertionError, match="several image sizes"):
            Cameras.cat([cameras, cameras.resized(7, 7)])

    def test_shapes_are_checked(self):
        with pytest.raises(AssertionError):
            Cameras(torch.eye(4), intrinsics(1, 2, 2)[None], 2, 2)
        with pytest.raises(AssertionError):
            Cameras(torch.eye(4)[None], intrinsics(1, 2, 2)[None].expand(2, 3, 3), 2, 2)
        with pytest.raises(AssertionError):
            Cameras(torch.eye(4)[None], intrinsics(1, 2, 2)[None], 0, 2)

    def test_world_from_cam_is_the_inverse(self):
        cameras = orbit(3, dtype=torch.float64)
        torch.testing.assert_close(cameras.world_from_cam, torch.linalg.inv(cameras.cam_from_world))
        torch.testing.assert_close(cameras.world_from_cam[:, :3, 3], cameras.centers)

    def test_transformed_keeps_pixels_and_scales_depth(self):
        cameras = orbit(3, dtype=torch.float64)
        points = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double()
        pixels, depth = cameras.project(points)
        moved_pixels, moved_depth = cameras.transformed(MOVE).project(MOVE(points))
        torch.testing.assert_close(moved_pixels, pixels)
        torch.testing.assert_close(moved_depth, depth * MOVE.scale)
        torch.testing.assert_close(cameras.transformed(MOVE).centers, MOVE(cameras.centers))

    def test_unproject_inverts_project(self):
        cameras = orbit(3, dtype=torch.float64)
        skewed = replace(cameras, K=cameras.K + torch.tensor([[0.0, 3, 1], [0, 2, -2], [0, 0, 0]]))
        points = 0.3 * torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double()
        pixels, depth = skewed.project(points)  # [3, 8, 2], [3, 8]
        torch.testing.assert_close(skewed.unproject(pixels, depth), points.expand(3, 8, 3))

    def test_a_whole_picture_is_unprojected_by_one_camera(self):
        camera = orbit(1, width=5, height=4)
        world = camera.unproject(camera.pixel_centers, torch.full((4, 5), 2.0))
        assert camera.pixel_centers[3, 1].tolist() == [1.5, 3.5] and world.shape == (4, 5, 3)
        pixels, depth = camera.project(world.view(-1, 3))
        torch.testing.assert_close(pixels[0].view(4, 5, 2), camera.pixel_centers, atol=1e-4, rtol=0)
        torch.testing.assert_close(depth, torch.full((1, 20), 2.0))

    def test_the_point_nearest_to_all_axes(self):
        target = torch.tensor([0.3, -0.2, 0.5]).double()
        eyes = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
        forward = torch.nn.functional.normalize(target - eyes, dim=-1)
        guess = torch.tensor([9.0, 9, 9]).double()
        torch.testing.assert_close(nearest_to_axes(eyes, forward, guess, pull=0.0), target)
        ahead = torch.tensor([[0.0, 0, 1]]).double().expand(6, 3)  # parallel: the guess tells how far, the axes where
        found = nearest_to_axes(eyes, ahead, guess, pull=1e-6)
        torch.testing.assert_close(found, torch.cat([eyes.mean(0)[:2], guess[2:]]), atol=1e-4, rtol=0)

    def test_opengl_round_trip(self):
        cameras = orbit(3)
        again = Cameras.from_opengl(cameras.to_opengl(), cameras.K, cameras.width, cameras.height)
        torch.testing.assert_close(again.cam_from_world, cameras.cam_from_world)

    def test_look_at_many_targets(self):
        eyes, targets = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
        cameras = Cameras.look_at(eyes, targets, torch.tensor([0.0, 1, 0]), intrinsics(10, 20, 20), 20, 20)
        for i in range(5):
            pixel, depth = cameras[i].project(targets[i : i + 1])
            assert pixel.flatten().tolist() == pytest.approx([10, 10], abs=1e-3)
            assert float(depth) == pytest.approx(float((eyes[i] - targets[i]).norm()), rel=1e-5)


class TestViews:
    def test_indexing_keeps_everything_together(self):
        views = Views(torch.rand(3, 32, 40, 3), ("a", "b", "c"), orbit(3), torch.rand(3, 32, 40))
        picked = views[[2, 0]]
        assert picked.names == ("c", "a") and picked.size == (40, 32) and len(picked) == 2
        assert torch.equal(picked.images, views.images[[2, 0]]) and torch.equal(picked.masks, views.masks[[2, 0]])
        assert torch.equal(picked.cameras.cam_from_world, views.cameras.cam_from_world[[2, 0]])
        assert len(views[[]]) == 0

    def test_mismatches_are_refused(self):
        images = torch.rand(3, 32, 40, 3)
        for names, cameras, masks in [
            (("a", "b"), None, None),
            (("a", "b", "c"), orbit(2), None),
            (("a", "b", "c"), orbit(3, width=32, height=40), None),
            (("a", "b", "c"), None, torch.rand(3, 40, 32)),
        ]:
            with pytest.raises(AssertionError):
                Views(images, names, cameras, masks)


class TestPointCloud:
    def test_rows_stay_together_and_radius_scales(self):
        g = torch.Generator().manual_seed(0)
        cloud = PointCloud(
            torch.randn(5, 3, generator=g), torch.rand(5, 3, generator=g), torch.rand(5, generator=g), torch.ones(5)
        )
        mask = torch.tensor([True, False, True, True, False])
        assert len(cloud[mask]) == 3 and torch.equal(cloud[mask].confidence, cloud.confidence[mask])
        moved = cloud.transformed(MOVE)
        torch.testing.assert_close(moved.xyz, MOVE(cloud.xyz))
        torch.testing.assert_close(moved.radius, torch.full((5,), 2.5))
        assert torch.equal(moved.rgb, cloud.rgb)

    def test_mismatches_are_refused(self):
        with pytest.raises(AssertionError):
            PointCloud(torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(4))
        with pytest.raises(AssertionError):
            PointCloud(torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(5), torch.zeros(4))


class TestMesh:
    def test_faces_must_index_vertices(self):
        vertices = torch.zeros(3, 3)
        Mesh(vertices, torch.tensor([[0, 1, 2]]))
        Mesh(vertices, torch.zeros(0, 3, dtype=torch.int64))
        for faces in ([[0, 1, 3]], [[-1, 0, 1]]):
            with pytest.raises(AssertionError, match="beyond"):
                Mesh(vertices, torch.tensor(faces))
        with pytest.raises(AssertionError):
            Mesh(vertices, torch.tensor([[0, 1, 2]], dtype=torch.int32))

    def test_a_rotation_keeps_the_winding(self):
        vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
        mesh = Mesh(vertices, torch.tensor([[0, 1, 2]])).transformed(MOVE)
        a, b, c = mesh.vertices
        normal = torch.linalg.cross(b - a, c - a)
        torch.testing.assert_close(normal, (MOVE.scale**2 * MOVE.rotation[:, 2]).float())


class TestErrors:
    def test_check_finite_names_and_counts(self):
        check_finite(torch.zeros(3), "depth")
        check_finite(torch.zeros(0), "depth")
        with pytest.raises(InputError, match="depth has 2 of 4 values"):
            check_finite(torch.tensor([0, float("nan"), 1, float("-inf")]), "depth")

    def test_one_base(self):
        assert issubclass(InputError, SplatsmithError) and issubclass(StoppedLate, SplatsmithError)
        assert not issubclass(InputError, StoppedLate)
