import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from recon.photos import Photo, PhotoConfig, read_photos
from recon.poses.from_file import files_of_poses, load_poses, photos_of_transforms, write_transforms
from splat.cameras import Cameras
from splat.errors import InputError

IDENTITY = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def shifted(x: float) -> list[list[float]]:
    return [[1.0, 0, 0, x], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]


def capture(folder: Path, count: int = 3, size: tuple[int, int] = (64, 48)) -> tuple[Photo, ...]:
    """`images/0.png`, ... in the folder, different from each other."""
    (folder / "images").mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (40 * i, 90, 200)).save(folder / "images" / f"{i}.png")
    return read_photos([folder / "images"]).photos


def transforms(folder: Path, frames: list[Any] | None = None, **fields: Any) -> Path:
    """A good nerfstudio file for `capture`, with what the test changes."""
    if frames is None:
        frames = [{"file_path": f"images/{i}.png", "transform_matrix": shifted(i)} for i in range(3)]
    content = {"fl_x": 50.0, "fl_y": 52.0, "cx": 31.0, "cy": 25.0, "w": 64, "h": 48, "frames": frames, **fields}
    path = folder / "transforms.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_nerfstudio_form(tmp_path: Path) -> None:
    photos = capture(tmp_path)
    poses = load_poses(transforms(tmp_path, k1=-0.1), photos)
    assert poses.placed == (0, 1, 2) and poses.k1 == (-0.1,) * 3 and poses.warnings == () and len(poses.points) == 0
    camera = poses.cameras[2]
    assert camera is not None and (camera.width, camera.height) == (64, 48)
    assert torch.allclose(camera.K[0], torch.tensor([[50.0, 0, 31], [0, 52, 25], [0, 0, 1]]))
    # OpenGL's camera at (2, 0, 4) looks along -z with +y up; ours looks the same way with +y down.
    assert torch.allclose(camera.centers[0], torch.tensor([2.0, 0, 4]))
    assert torch.allclose(camera.forward[0], torch.tensor([0.0, 0, -1]))
    assert torch.allclose(camera.cam_from_world[0, 1, :3], torch.tensor([0.0, -1, 0]))
    assert photos_of_transforms(tmp_path / "transforms.json") == [tmp_path / "images" / f"{i}.png" for i in range(3)]


def test_intrinsics_follow_the_working_size_and_the_frame(tmp_path: Path) -> None:
    capture(tmp_path, size=(640, 480))
    photos = read_photos([tmp_path / "images"], PhotoConfig(max_side=160)).photos
    frames = [{"file_path": f"images/{i}.png", "transform_matrix": shifted(i)} for i in range(3)]
    frames[1] |= {"fl_x": 800.0, "fl_y": 800.0, "cx": 320, "cy": 240, "w": 640, "h": 480}
    poses = load_poses(transforms(tmp_path, frames, w=320, h=240, fl_x=200, fl_y=None, cx=None, cy=None), photos)
    first, second, _ = poses.cameras
    assert first is not None and second is not None
    assert torch.allclose(first.K[0].diagonal(), torch.tensor([100.0, 100, 1])) and first.K[0, 0, 2] == 80
    assert torch.allclose(second.K[0].diagonal(), torch.tensor([200.0, 200, 1])) and second.K[0, 1, 2] == 60


def test_nerf_synthetic_form(tmp_path: Path) -> None:
    photos = capture(tmp_path)
    angle = 2 * math.atan(0.5)
    frames = [{"file_path": f"./images/{i}", "rotation": 0.01, "transform_matrix": shifted(i)} for i in (1, 0)]
    path = tmp_path / "transforms_train.json"
    path.write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    for given in (path, tmp_path):
        poses = load_poses(given, photos)
        assert poses.placed == (0, 1)
        assert torch.allclose(poses.cameras[1].K[0], torch.tensor([[64.0, 0, 32], [0, 64, 24], [0, 0, 1]]))
        assert poses.cameras[1].centers[0, 0] == 1
    assert poses.reasons[2] == "2.png has no camera in transforms_train.json." or "has no camera" in poses.reasons[2]
    assert any("1 of 3 photos have no camera" in warning for warning in poses.warnings)
    assert [p.name for p in photos_of_transforms(tmp_path)] == ["1.png", "0.png"]


def test_chair(shared_data: Path) -> None:
    folder = shared_data / "photos" / "chair"
    paths = photos_of_transforms(folder / "transforms_test.json")
    assert len(paths) == 25 and paths[1].name == "r_8.png"
    photos = read_photos(paths[:4], PhotoConfig(max_photos=0)).photos
    poses = load_poses(folder / "transforms_test.json", photos)
    assert poses.placed == (0, 1, 2, 3)
    cameras = Cameras.cat(list(poses.cameras))
    assert torch.allclose(cameras.K[0, 0, 0], torch.tensor(555.5555), atol=1e-3)
    # The chair is round the origin: its middle lies in the middle of the mask.
    pixels, depth = cameras.project(torch.zeros(1, 3))
    for photo, pixel, z in zip(photos, pixels[:, 0], depth[:, 0]):
        y, x = torch.nonzero(photo.mask > 0.5, as_tuple=True)
        assert z == pytest.approx(4.03, abs=0.01)
        assert x.min() < pixel[0] < x.max() and y.min() < pixel[1] < y.max()


def test_same_names_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for part, colour in (("left", 10), ("right", 200)):
        (tmp_path / part).mkdir()
        Image.new("RGB", (64, 48), (colour, 0, 0)).save(tmp_path / part / "0.png")
    photos = read_photos([tmp_path / "left", tmp_path / "right"]).photos
    frames = [{"file_path": f"{part}/0.png", "transform_matrix": shifted(x)} for part, x in (("right", 5.0), ("left", 7.0))]
    poses = load_poses(transforms(tmp_path, frames), photos)
    for photo, camera in zip(photos, poses.cameras):
        assert camera.centers[0, 0] == (7 if photo.path.parent.name == "left" else 5)
    frames = [{"file_path": f"{part}/0.png", "transform_matrix": shifted(x)} for part, x in (("a", 5.0), ("b", 7.0))]
    with pytest.raises(InputError, match="cameras for 0 of the 2 photos"):
        load_poses(transforms(tmp_path, frames), photos)


def test_distortion_that_k1_cannot_express_is_reported(tmp_path: Path) -> None:
    photos = capture(tmp_path)
    mild = load_poses(transforms(tmp_path, k1=0.1, k2=-0.01, p1=0.0001), photos)
    assert mild.warnings == () and 0.08 < mild.k1[0] < 0.1
    strong = load_poses(transforms(tmp_path, k1=0.1, p1=0.02), photos)
    assert any("more than k1 can express" in warning for warning in strong.warnings)
    with pytest.raises(InputError, match="too strong"):
        load_poses(transforms(tmp_path, k1=0.1, k2=2.0), photos)


# --- hostile files ---------------------------------------------------------------------------------------------------


def frame(i: int = 0, **changes: Any) -> dict[str, Any]:
    return {"file_path": f"images/{i}.png", "transform_matrix": shifted(i), **changes}


def matrix(row: int, column: int, value: Any) -> list[list[Any]]:
    out: list[list[Any]] = [list(r) for r in IDENTITY]
    out[row][column] = value
    return out


MIRRORED = [[-1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
DOUBLED = [[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"transform_matrix": matrix(0, 3, math.nan)}, "NaN or infinite"),
        ({"transform_matrix": matrix(1, 1, math.inf)}, "NaN or infinite"),
        ({"transform_matrix": matrix(0, 0, 10**400)}, "NaN or infinite"),
        ({"transform_matrix": MIRRORED}, "mirrored"),
        ({"transform_matrix": DOUBLED}, r"not rigid \(scale 2"),
        ({"transform_matrix": matrix(0, 1, 0.3)}, "not rigid"),
        ({"transform_matrix": matrix(3, 3, 2.0)}, "last row"),
        ({"transform_matrix": matrix(0, 0, "1")}, "4 x 4 numbers"),
        ({"transform_matrix": matrix(0, 0, True)}, "4 x 4 numbers"),
        ({"transform_matrix": IDENTITY[:2]}, "4 x 4 numbers"),
        ({"transform_matrix": None}, "4 x 4 numbers"),
        ({"file_path": "../secret.png"}, "outside the folder"),
        ({"file_path": "images/../../secret.png"}, "outside the folder"),
        ({"file_path": "/etc/passwd"}, "outside the folder"),
        ({"file_path": "C:\\windows\\0.png"}, "outside the folder"),
        ({"file_path": "..\\secret.png"}, "outside the folder"),
        ({"file_path": "images/out.png"}, "leads outside"),
        ({"file_path": 7}, "no usable file_path"),
        ({"file_path": ""}, "no usable file_path"),
        ({"file_path": "a\0b"}, "no usable file_path"),
        ({"fl_x": 0}, "fl_x 0"),
        ({"fl_x": math.nan}, "fl_x nan"),
        ({"fl_x": "50"}, "fl_x 50"),
        ({"fl_x": 0.001}, "no camera"),
        ({"cx": math.inf}, "cx inf"),
        ({"w": 48, "h": 64}, "EXIF rotation"),
        ({"w": 64, "h": 64}, "64 x 64 pixels"),
        ({"w": -4}, "w -4"),
        ({"k1": math.nan}, "k1 nan"),
    ],
)
def test_bad_frames_are_one_sentence(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    photos = capture(tmp_path)
    Image.new("RGB", (64, 48)).save(tmp_path.parent / "secret.png")
    (tmp_path / "images" / "out.png").symlink_to(tmp_path.parent / "secret.png")
    path = transforms(tmp_path, [frame(1), frame(0, **changes), frame(2)])
    with pytest.raises(InputError, match=text) as caught:
        load_poses(path, photos)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "content, text",
    [
        ("", "not readable JSON"),
        ("{", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ('{"frames": ' + "9" * 5000 + "}", "not readable JSON"),
        ("[1, 2]", "list instead of an object"),
        ("{}", "no list of frames"),
        ('{"frames": []}', "no list of frames"),
        ('{"frames": {"a": 1}}', "no list of frames"),
        ('{"frames": [1]}', "frame 0 is no object"),
        ('{"camera_model": "OPENCV_FISHEYE", "frames": [{}]}', "OPENCV_FISHEYE"),
        (json.dumps({"frames": [frame(0), frame(1)]}), "neither fl_x nor camera_angle_x"),
        (json.dumps({"camera_angle_x": 4.0, "frames": [frame(0), frame(1)]}), "camera_angle_x 4.0"),
        (json.dumps({"fl_x": 50, "frames": [frame(0, transform_matrix=IDENTITY)] * 3}), "share one place"),
        (json.dumps({"fl_x": 50, "frames": [frame(0), frame(9)]}), "cameras for 1 of the 3 photos"),
        (json.dumps({"fl_x": 50, "frames": [frame(i, transform_matrix=shifted(5e6 + i)) for i in range(3)]}), "common offset"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, content: str, text: str) -> None:
    photos = capture(tmp_path)
    (tmp_path / "transforms.json").write_text(content)
    with pytest.raises(InputError, match=text) as caught:
        load_poses(tmp_path / "transforms.json", photos)
    assert "\n" not in str(caught.value)


def test_huge_and_missing_files(tmp_path: Path) -> None:
    with (tmp_path / "transforms.json").open("wb") as file:
        file.truncate(70_000_000)
    with pytest.raises(InputError, match="70 MB"):
        photos_of_transforms(tmp_path / "transforms.json")
    with pytest.raises(InputError, match="do not exist"):
        load_poses(tmp_path / "nowhere.json", ())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a transforms"):
        load_poses(tmp_path / "empty", ())
    with pytest.raises(InputError, match=r"none of the 3 pictures"):
        photos_of_transforms(transforms(tmp_path))


# --- writing ---------------------------------------------------------------------------------------------------------


def test_written_cameras_read_back(tmp_path: Path) -> None:
    photos = capture(tmp_path)
    generator = torch.Generator().manual_seed(1)
    eyes = torch.randn(3, 3, generator=generator) * 3
    K = torch.tensor([[61.3, 0, 30.9], [0, 60.1, 25.2], [0, 0, 1]])
    cameras = Cameras.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1, 0]), K, 64, 48)
    write_transforms(tmp_path / "cameras.json", [cameras[[0, 1]], cameras[2]], [photo.name for photo in photos])
    back = Cameras.cat(list(load_poses(tmp_path / "cameras.json", photos).cameras))
    assert (back.cam_from_world - cameras.cam_from_world).abs().max() < 1e-6
    assert (back.K - cameras.K).abs().max() < 1e-5
    content = json.loads((tmp_path / "cameras.json").read_text())
    world_from_cam = torch.tensor(content["frames"][0]["transform_matrix"])
    assert torch.allclose(world_from_cam[:3, 3], eyes[0], atol=1e-5)
    assert torch.allclose(world_from_cam[:3, 2], -cameras.forward[0], atol=1e-5)  # OpenGL looks along -z


# --- COLMAP ----------------------------------------------------------------------------------------------------------


def colmap_model(folder: Path, text: bool) -> Any:
    """A synthetic model of 4 images and 40 points, written by COLMAP itself."""
    import zlib  # noqa: F401  (before pycolmap)

    import pycolmap

    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 1, 4, 40
    options.camera_width, options.camera_height = 640, 480
    options.camera_params = [700.0, 320, 240, 0.05]
    model = pycolmap.synthesize_dataset(options)
    folder.mkdir(parents=True)
    model.write_text(str(folder)) if text else model.write_binary(str(folder))
    return model


@pytest.mark.parametrize("text", [False, True])
def test_colmap_folder(tmp_path: Path, text: bool) -> None:
    model = colmap_model(tmp_path / "sparse" / "0", text)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(model.images.values()):
        Image.new("RGB", (640, 480), (40 * i, 90, 200)).save(tmp_path / "images" / image.name)
    photos = read_photos([tmp_path / "images"], PhotoConfig(max_side=320)).photos
    suffix = "txt" if text else "bin"
    assert [file.name for file in files_of_poses(tmp_path)] == [f"{n}.{suffix}" for n in ("cameras", "images", "points3D")]
    poses = load_poses(tmp_path, photos)
    assert poses.placed == (0, 1, 2, 3) and poses.k1 == pytest.approx((0.05,) * 4) and len(poses.points) == 40
    assert float(poses.points.confidence.min()) >= 0.5 and float(poses.points.rgb.max()) <= 1
    for photo, camera in zip(photos, poses.cameras):
        image = next(image for image in model.images.values() if image.name == photo.name)
        for observed in [p for p in image.points2D if p.has_point3D()][:10]:
            point = torch.tensor(model.points3D[observed.point3D_id].xyz, dtype=torch.float32)
            plain = (camera.project(point[None])[0][0, 0] - camera.K[0, :2, 2]) / 350
            bent = plain * (1 + 0.05 * plain.square().sum()) * 350 + camera.K[0, :2, 2]
            assert torch.allclose(bent * 2, torch.tensor(observed.xy, dtype=torch.float32), atol=0.05)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_damaged_colmap_folder(tmp_path: Path, name: str) -> None:
    colmap_model(tmp_path / "model", text=False)
    data = (tmp_path / "model" / name).read_bytes()
    for damaged in (data[: len(data) // 2], b"\xff" * 6 + b"\0\0" + data[8:]):
        (tmp_path / "model" / name).write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            load_poses(tmp_path / "model", capture(tmp_path))


def test_fisheye_colmap_camera_is_refused(tmp_path: Path) -> None:
    colmap_model(tmp_path / "model", text=True)
    path = tmp_path / "model" / "cameras.txt"
    path.write_text(path.read_text().replace("SIMPLE_RADIAL ", "SIMPLE_RADIAL_FISHEYE "))
    with pytest.raises(InputError, match="SIMPLE_RADIAL_FISHEYE"):
        load_poses(tmp_path / "model", capture(tmp_path))


@pytest.mark.parametrize("text", [False, True])
def test_random_damage_in_colmap_files_is_an_input_error(tmp_path: Path, text: bool) -> None:
    colmap_model(tmp_path / "model", text)
    photos = capture(tmp_path)
    rng = np.random.default_rng(3)
    for path in (tmp_path / "model" / f"{name}{'.txt' if text else '.bin'}" for name in ("cameras", "images", "points3D")):
        whole = path.read_bytes()
        for _ in range(25):
            data = bytearray(whole)
            for _ in range(rng.integers(0, 5)):
                data[rng.integers(min(len(data), 300))] = rng.integers(256)
            path.write_bytes(bytes(data[: rng.integers(1, len(data) + 1)]))
            with pytest.raises(InputError) as caught:  # at the latest because no photo has such a name
                load_poses(tmp_path / "model", photos)
            assert "\n" not in str(caught.value)
        path.write_bytes(whole)
