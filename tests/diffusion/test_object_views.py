"""Pictures of objects: the protocol's cameras, depth, bytes, and the store of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_objects import box, joined, write_packed

from diffusion.data.object_set import open_objects
from diffusion.data.object_views import (
    DISTANCE,
    ViewConfig,
    cameras_of,
    input_camera,
    load_views,
    object_views,
    protocol_cameras,
    random_cameras,
    render_objects,
    save_views,
)
from splat.errors import InputError

SMALL = ViewConfig(size=24, random=2)


class TestCameras:
    def test_the_protocol_by_its_own_words(self):
        cameras = protocol_cameras(256)
        assert len(cameras) == 14
        expected = [(a, 10) for a in range(0, 360, 45)] + [(a, 35) for a in range(0, 360, 60)]
        for center, (azimuth, elevation) in zip(cameras.centers, expected, strict=True):
            a, e = math.radians(azimuth), math.radians(elevation)
            place = torch.tensor([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])
            torch.testing.assert_close(center, 1.9 * place, atol=1e-5, rtol=0)
        pixels, _ = cameras.project(torch.zeros(1, 3))
        torch.testing.assert_close(pixels, torch.full((14, 1, 2), 128.0), atol=1e-3, rtol=0)
        assert float(cameras.K[0, 0, 0]) == pytest.approx(128 / math.tan(math.radians(49.1 / 2)))
        eye = input_camera(64).centers[0]
        assert math.degrees(math.atan2(eye[0], eye[2])) == pytest.approx(30)
        assert math.degrees(math.asin(eye[1] / 1.9)) == pytest.approx(20)

    def test_random_ones_differ_by_object_and_seed_and_stay_in_their_range(self):
        a, b = (cameras_of(key, SMALL) for key in "ab")
        assert torch.equal(a.cam_from_world[:14], b.cam_from_world[:14]) and not torch.equal(a.centers[14:], b.centers[14:])
        assert torch.equal(a.centers, cameras_of("a", SMALL).centers)
        assert not torch.equal(a.centers[14:], cameras_of("a", replace(SMALL, seed=1)).centers[14:])
        many = random_cameras(2000, 8, torch.Generator().manual_seed(0), (-30, 75))
        height = many.centers[:, 1] / DISTANCE
        assert math.degrees(math.asin(height.min())) >= -30.01 and math.degrees(math.asin(height.max())) <= 75.01
        assert float(height.mean()) == pytest.approx((math.sin(math.radians(75)) - 0.5) / 2, abs=0.03)  # even over the sphere
        torch.testing.assert_close(many.centers.norm(dim=-1), torch.full((2000,), DISTANCE))


class TestPictures:
    def test_front_is_in_view_zero_with_its_true_depth(self):
        """A red box with a blue patch on its +Z face; azimuth 0 sees the patch, azimuth 180 does not."""
        mesh = joined(box(size=(1, 0.6, 0.4)), box((20, 50, 180), (0.2, 0.2, 0.02), (0.25, 0.1, 0.2)))
        drawn = object_views(mesh, protocol_cameras(64))
        views = drawn.views()
        blue = (views.images[..., 2] > 0.6) & (views.images[..., 0] < 0.3)
        assert blue[0].any() and not blue[4].any()
        rows, columns = blue[0].nonzero().float().mean(0)
        assert columns > 34 and rows < 32  # the patch is at +x and above the middle
        camera_depth = 1.9 - 0.2 * math.cos(math.radians(10))
        assert float(drawn.depths()[0, 32, 26]) == pytest.approx(camera_depth, abs=0.02)
        assert drawn.depths()[0, 0, 0] == 0 and views.masks[0, 0, 0] == 0 and (views.images[0, 0, 0] == 1).all()
        assert ((drawn.depths() > 0) <= (views.masks > 0)).all()

    def test_the_store_gives_the_same_bytes_and_draws_nothing_twice(self, tmp_path):
        write_packed(tmp_path / "set", [box(), box((20, 50, 180))], [{"id": "../a"}, {"id": "b"}])
        objects = open_objects(tmp_path / "set")
        list(render_objects(objects, tmp_path / "views", SMALL))
        files = sorted((tmp_path / "views").iterdir())
        assert len(files) == 2
        before = {f: f.stat().st_mtime_ns for f in files}
        again = render_objects(objects, tmp_path / "views", SMALL)
        try:
            while True:
                last = next(again)
        except StopIteration as stop:
            result = stop.value
        assert (last.step, last.total) == (2, 2) and {f: f.stat().st_mtime_ns for f in result} == before
        stored, fresh = load_views(result[1]), object_views(objects[1], cameras_of("b", SMALL))
        for name in ("images", "masks", "depth"):
            assert (getattr(stored, name) == getattr(fresh, name)).all() and getattr(stored, name).shape[:3] == (16, 24, 24)
        assert torch.equal(stored.cameras.cam_from_world, fresh.cameras.cam_from_world)
        list(render_objects(objects, tmp_path / "views", replace(SMALL, size=16)))
        assert len(list((tmp_path / "views").iterdir())) == 4

    def test_damaged_stores_are_refused(self, tmp_path):
        views = object_views(box(), input_camera(16))
        save_views(views, tmp_path / "a.npz")
        whole = (tmp_path / "a.npz").read_bytes()
        for number, content in enumerate((b"", whole[:200], whole[:-30], b"PK" + bytes(500))):
            (tmp_path / f"{number}.npz").write_bytes(content)
            with pytest.raises(InputError, match="drawn anew"):
                load_views(tmp_path / f"{number}.npz")
        save_views(replace(views, masks=views.masks[:, :5]), tmp_path / "b.npz")
        with pytest.raises(InputError, match="masks"):
            load_views(tmp_path / "b.npz")

    def test_no_view_at_all_is_refused(self):
        with pytest.raises(InputError, match="No view"):
            cameras_of("a", ViewConfig(protocol=False, random=0))
