"""Whatever a user may hand in: one clear sentence, the right status, and nothing at the output path."""

import json
import struct
import zlib
from pathlib import Path

import pytest
import torch
from tiny_capture import QUICK

from app import __main__ as entry
from splat.io.images import save_image


def photo(path: Path, seed: int, width: int = 96, height: int = 64) -> Path:
    noise = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    save_image(path, image)
    return path


def refused(capsys, folder: Path, *words: object, status: int = 2) -> str:
    """Run `photos`; returns the sentence after checking that it is one and that nothing was written."""
    out = folder / "out" / "R"
    assert entry.main(["photos", *map(str, words), "--out", str(out), "--quiet"]) == status
    errors = capsys.readouterr().err.strip()
    assert "Traceback" not in errors
    sentence = errors.splitlines()[-1]
    assert sentence.endswith(".") and len(sentence) < 600
    assert not out.exists()
    if status == 2:
        assert not out.parent.exists()
    return sentence


def test_an_empty_folder(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    assert "no picture" in refused(capsys, tmp_path, tmp_path / "photos")


def test_a_folder_that_does_not_exist(tmp_path, capsys):
    assert "does not exist" in refused(capsys, tmp_path, tmp_path / "nowhere")


def test_paths_longer_than_the_system_allows(tmp_path, capsys, capture):
    long = tmp_path / ("x" * 300)
    for words in ([long], [capture.photos, "--poses", long], [capture.photos, "--masks", long]):
        assert "xxx" in refused(capsys, tmp_path, *words)
    assert entry.main(["export", str(long), "--to", str(tmp_path / "m.ply"), "--quiet"]) == 2


def test_no_input_at_all(tmp_path, capsys):
    assert "no photos" in refused(capsys, tmp_path)


def test_one_photo(tmp_path, capsys):
    assert "1 photo" in refused(capsys, tmp_path, photo(tmp_path / "a.jpg", 0))


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "0 bytes"), (b"dear diary, today I saw a fox\n" * 50, "not a JPEG"), (None, "damaged")],
    ids=["0-byte", "text named .jpg", "truncated"],
)
def test_damaged_files(tmp_path, capsys, content, told):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        file = photo(folder / f"{i}.jpg", i)
        file.write_bytes(
            file.read_bytes()[:700] + bytes([i]) if content is None else content + bytes([32 + i] * (len(content) > 0))
        )
    assert told in refused(capsys, tmp_path, folder)


def test_one_damaged_file_among_good_ones_is_reported_and_left_out(tmp_path, capsys, capture):
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in capture.photos.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    words = ["photos", str(folder), "--poses", str(capture.poses), "--out", str(tmp_path / "R"), *QUICK, "--steps", "5"]
    assert entry.main(words) == 0
    assert "broken.jpg" in capsys.readouterr().err
    report = json.loads((tmp_path / "R" / "report.json").read_text())
    assert any("broken.jpg" in warning for warning in report["warnings"])
    assert len(report["inputs"]) == 9 and not report["inputs"][-1]["placed"]


def test_a_picture_of_40000_pixels_a_side_costs_no_memory(tmp_path, capsys):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
        data = (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000 + i))) + chunk(b"IEND", b"")
        )
        (folder / f"{i}.png").write_bytes(data)
    assert "40000 x 40000" in refused(capsys, tmp_path, folder)


def test_copies_of_one_photo(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        photo(folder / f"{i}.png", 7)
    assert "copy" in refused(capsys, tmp_path, folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda frame: frame["transform_matrix"][0].__setitem__(0, float("nan")), "NaN"),
        (lambda frame: frame["transform_matrix"][0].__setitem__(0, 7.0), "rigid"),
        (lambda frame: frame.__setitem__("transform_matrix", [[1, 0, 0, 0]] * 3 + [[0, 0, 0, 1]]), "determinant 0"),
        (lambda frame: frame.__setitem__("transform_matrix", [[1, 0, 0, 0]] * 4), "last row"),
        (lambda frame: frame.__setitem__("file_path", "../../etc/passwd"), "outside"),
        (lambda frame: frame.__setitem__("file_path", "/etc/passwd"), "outside"),
        (lambda frame: frame.pop("transform_matrix"), "transform_matrix"),
    ],
    ids=["nan", "not rigid", "rank 1", "last row", "escape", "absolute", "missing"],
)
def test_bad_given_poses(tmp_path, capsys, capture, change, told):
    content = json.loads(capture.poses.read_text())
    change(content["frames"][2])
    poses = tmp_path / "transforms.json"
    poses.write_text(json.dumps(content))
    assert told in refused(capsys, tmp_path, capture.photos, "--poses", poses)


def test_poses_of_other_photos(tmp_path, capsys, capture):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        photo(folder / f"other_{i}.png", i)
    assert "cameras for 0 of the 3 photos" in refused(capsys, tmp_path, folder, "--poses", capture.poses)


def test_a_memory_budget_too_small_for_the_photos(tmp_path, capsys, capture):
    for budget in ("720MB", "100MB"):
        assert budget in refused(capsys, tmp_path, capture.photos, "--memory-budget", budget)
    assert entry.main(["check", str(capture.photos), "--memory-budget", "600MB", "--quiet"]) == 2
    assert "600MB leaves nothing" in capsys.readouterr().err


def test_an_output_folder_below_a_file(tmp_path, capsys, capture):
    (tmp_path / "out").write_text("a file")
    status = entry.main(["photos", str(capture.photos), "--poses", str(capture.poses), "--out", str(tmp_path / "out" / "R")])
    assert status == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "a file"


def test_an_output_folder_without_permission(tmp_path, capsys, capture, monkeypatch):
    """As root no folder refuses, so the refusal is simulated where the system would give it."""

    def refuse(self, *more, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "Permission denied" in refused(capsys, tmp_path, capture.photos, "--poses", capture.poses)


def wall(seed: int, width: int = 900, height: int = 700) -> torch.Tensor:
    """[height, width, 3] patches of many sizes, no part like another."""
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.rand(1, 3, height // cell, width // cell, generator=generator) for cell in (6, 14, 40, 100)]
    return sum(torch.nn.functional.interpolate(x, (height, width))[0] for x in layers).permute(1, 2, 0) / 4


def turned(picture: torch.Tensor, degrees: float) -> torch.Tensor:
    """The middle 480 x 360 of a wall, photographed by a camera of 600 px focal length that turned about its own centre."""
    import cv2
    import numpy as np

    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    here, there = (np.array([[600, 0, w / 2], [0, 600, h / 2], [0, 0, 1]]) for w, h in ((480, 360), picture.shape[1::-1]))
    return torch.from_numpy(cv2.warpPerspective(picture.numpy(), here @ turn @ np.linalg.inv(there), (480, 360)))


def grainy(picture: torch.Tensor, seed: int) -> torch.Tensor:
    return (picture + 0.01 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


@pytest.mark.parametrize(
    ("pictures", "told"),
    [
        (lambda: [torch.full((64, 96, 3), 0.3 + 0.1 * i) for i in range(3)], "almost no texture"),
        (lambda: [grainy(turned(wall(0), 0), i) for i in range(3)], "the same view"),
        (lambda: [grainy(turned(wall(0), 6.0 * i), i) for i in range(3)], "only turned on the spot"),
    ],
    ids=["textureless", "the same view three times", "turned on the spot"],
)
def test_photos_that_hold_no_depth_are_found_before_work(tmp_path, capsys, pictures, told):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, picture in enumerate(pictures()):
        save_image(folder / f"{i}.png", picture)
    assert told in refused(capsys, tmp_path, folder)


def test_photos_that_cannot_work_stop_late_and_leave_no_result(tmp_path, capsys):
    """Photos of different things, each with texture: only the pose solver can tell that they share nothing."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        save_image(folder / f"{i}.png", turned(wall(i), 0))
    refused(capsys, tmp_path, folder, status=4)


@pytest.mark.parametrize("broken", ["counts", "huge", "nan"])
def test_damaged_scene_files(tmp_path, capsys, result, broken):
    data = (result / "scene.ply").read_bytes()
    head, body = data.split(b"end_header\n", 1)
    scene = tmp_path / "scene.ply"
    if broken == "counts":
        body = body[:-10]
    elif broken == "huge":
        count = head.split(b"element vertex ")[1].split(b"\n")[0]
        head = head.replace(b"element vertex " + count, b"element vertex 99999999999999")
    else:
        body = struct.pack("<f", float("nan")) + body[4:]
    scene.write_bytes(head + b"end_header\n" + body)
    for words in (["export", scene, "--to", tmp_path / "copy.ply"], ["render", scene, "--to", tmp_path / "picture.png"]):
        assert entry.main(list(map(str, words))) == 2
        assert capsys.readouterr().err.strip().endswith(".")
    assert [p.name for p in tmp_path.iterdir()] == ["scene.ply"]
