import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recon.photos import PhotoConfig, composited, natural_key, read_photos
from splat.errors import InputError


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48), **save: object) -> Path:
    """Coloured blocks, different for every seed."""
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path, **save)
    return path


def folder_of(tmp_path: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        picture(tmp_path / name, seed)
    return tmp_path


def test_folder_in_natural_order_ignoring_what_is_no_picture(tmp_path: Path) -> None:
    folder_of(tmp_path, "r_10.png", "r_2.png", "r_1.jpg")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "more").mkdir()
    result = read_photos([tmp_path])
    assert [photo.name for photo in result.photos] == ["r_1.jpg", "r_2.png", "r_10.png"]
    assert result.skipped == ()
    assert len(result.notices) == 1 and "1 files" in result.notices[0] and "notes.txt" in result.notices[0]
    assert len({photo.sha256 for photo in result.photos}) == 3 and len(result.photos[0].sha256) == 64


def test_images_subfolder_is_found(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    folder_of(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "LICENSE").write_text("x")
    assert len(read_photos([tmp_path]).photos) == 2


def test_transforms_json_names_the_photos(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    folder_of(tmp_path / "train", "r_0.png", "r_1.png", "r_2.png")
    frames = [{"file_path": f"./train/r_{i}", "transform_matrix": np.eye(4).tolist()} for i in (2, 0)]
    path = tmp_path / "transforms_train.json"
    path.write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    for given in (path, tmp_path):
        result = read_photos([given])
        assert [photo.name for photo in result.photos] == ["r_0.png", "r_2.png"]
        assert result.notices == ("transforms_train.json names 2 photos.",)


def test_natural_key() -> None:
    names = ["b10", "b9", "B1", "10", "2", "a", "b", "b1c", "é2", "é10"]
    assert sorted(names, key=natural_key) == ["2", "10", "a", "b", "B1", "b1c", "b9", "b10", "é2", "é10"]


def test_mixed_sizes_portrait_and_focal_at_working_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 36
    picture(tmp_path / "landscape.jpg", 1, (600, 400), exif=exif)
    exif[0x0112] = 6
    picture(tmp_path / "portrait.jpg", 2, (600, 400), exif=exif)
    picture(tmp_path / "small.png", 3, (90, 60))
    landscape, portrait, small = read_photos([tmp_path], PhotoConfig(max_side=150)).photos
    assert landscape.size == (150, 100) and portrait.size == (100, 150) and small.size == (90, 60)
    assert portrait.original_size == (400, 600)
    assert landscape.focal_px == pytest.approx(150) and portrait.focal_px == pytest.approx(150) and small.focal_px is None


def test_copies_and_links_count_once(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "b.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    result = read_photos([tmp_path, tmp_path / "a.png"])
    assert len(result.photos) == 2
    assert [name for name, _ in result.skipped] == ["copy.png"]
    assert "copy of a.png" in result.skipped[0][1]


def test_identical_photos_are_one_photo(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name, 7)
    with pytest.raises(InputError, match=r"only 1 photo of the 3 given can be used, 2 are needed \(b.png is a copy of a.png"):
        read_photos([tmp_path])


def test_damaged_photos_are_skipped_with_a_reason(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "b.png")
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "d.jpg").write_text("not a photo")
    (tmp_path / "e.png").write_bytes((tmp_path / "a.png").read_bytes()[:-200])
    picture(tmp_path / "f.png", 5, (20, 20))
    result = read_photos([tmp_path])
    assert [photo.name for photo in result.photos] == ["a.png", "b.png"]
    reasons = dict(result.skipped)
    assert "0 bytes" in reasons["c.jpg"] and "not a JPEG" in reasons["d.jpg"] and "damaged" in reasons["e.png"]
    assert "at least 32" in reasons["f.png"]
    assert any("4 of 6 files were not used" in notice for notice in result.notices)


@pytest.mark.parametrize("case, text", [("empty", "no picture"), ("one", "only 1 photo"), ("none", "no photos were given")])
def test_too_few(tmp_path: Path, case: str, text: str) -> None:
    if case == "one":
        picture(tmp_path / "a.png")
    with pytest.raises(InputError, match=text):
        read_photos([] if case == "none" else [tmp_path])


def test_single_unreadable_file_tells_its_own_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.jpg is empty"):
        read_photos([tmp_path / "a.jpg"])
    with pytest.raises(InputError, match="does not exist"):
        read_photos([tmp_path / "b.jpg"])


def test_pipe_named_like_a_photo_does_not_block(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "b.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert len(read_photos([tmp_path]).photos) == 2
    assert dict(read_photos([tmp_path, tmp_path / "pipe.jpg"]).skipped).keys() == {"pipe.jpg"}


def test_thinning_is_even_and_noticed(tmp_path: Path) -> None:
    folder_of(tmp_path, *(f"{i}.png" for i in range(13)))
    result = read_photos([tmp_path], PhotoConfig(max_photos=5))
    assert [photo.name for photo in result.photos] == ["0.png", "3.png", "6.png", "9.png", "12.png"]
    assert any("13 photos were thinned evenly to 5" in notice for notice in result.notices)
    assert len(read_photos([tmp_path], PhotoConfig(max_photos=0)).photos) == 13


def test_names_are_unique_and_safe(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    files = [picture(tmp_path / "x" / "IMG 1.png", 1), picture(tmp_path / "y" / "img 1.png", 2)]
    files += [picture(tmp_path / "x" / "a<b>:\n*.png", 3), picture(tmp_path / "x" / "ünï.png", 4)]
    files += [picture(tmp_path / "x" / ("w" * 200 + ".png"), 5)]
    names = [photo.name for photo in read_photos(files).photos]
    assert len({name.casefold() for name in names}) == 5
    assert {"IMG 1.png", "img 1-2.png", "ünï.png", "w" * 80 + ".png"} <= set(names)
    assert not any(set(name) & set('/\\<>:*\n"') or name.startswith(".") for name in names)


# --- masks -----------------------------------------------------------------------------------------------------------


def test_alpha_becomes_mask_on_white(tmp_path: Path) -> None:
    for seed in range(2):
        pixels = np.full((48, 64, 4), 255, np.uint8)
        pixels[..., :3] = (200, 100, 10 + seed)
        pixels[:, :20, 3] = 0
        pixels[:, 20:30, 3] = 128
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
    photo = read_photos([tmp_path]).photos[0]
    assert photo.mask is not None and photo.on_white
    assert torch.allclose(photo.image[5, 5], torch.ones(3))
    assert torch.allclose(photo.image[5, 50] * 255, torch.tensor([200.0, 100, 10]), atol=0.6)
    assert torch.allclose(photo.image[5, 25] * 255, torch.tensor([200.0, 100, 10]) * 128 / 255 + 127, atol=1)
    black = composited(photo, (0, 0, 0))
    assert torch.allclose(black.image[5, 25] * 255, torch.tensor([200.0, 100, 10]) * 128 / 255, atol=1)
    assert torch.equal(composited(photo).image, photo.image)


def test_masks_folder_is_matched_by_stem(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    folder_of(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    half = np.zeros((24, 32), np.uint8)
    half[:, 16:] = 255
    for name in ("a.png", "B_mask.png", "nobody.png"):
        Image.fromarray(half).save(tmp_path / "masks" / name)
    result = read_photos([tmp_path], PhotoConfig(masks=str(tmp_path / "masks")))
    a, b, c = result.photos
    assert a.mask is not None and b.mask is not None and c.mask is None
    assert a.mask.shape == (48, 64) and float(a.mask[:, :30].max()) == 0 and float(a.mask[:, 34:].min()) == 1
    assert torch.equal(a.image, read_photos([tmp_path]).photos[0].image)
    assert any("1 of 3 photos have no mask" in notice and "c.jpg" in notice for notice in result.notices)
    on_white = composited(a)
    assert torch.allclose(on_white.image[:, :30], torch.ones(48, 30, 3)) and torch.equal(
        on_white.image[:, 34:], a.image[:, 34:]
    )


@pytest.mark.parametrize(
    "size, value, name, text",
    [((48, 48), 255, "a.png", "48 x 48"), ((64, 48), 0, "a.png", "empty"), ((64, 48), 255, "z.png", "named like a photo")],
)
def test_bad_masks(tmp_path: Path, size: tuple[int, int], value: int, name: str, text: str) -> None:
    (tmp_path / "masks").mkdir()
    folder_of(tmp_path, "a.jpg", "b.jpg")
    Image.new("L", size, value).save(tmp_path / "masks" / name)
    with pytest.raises(InputError, match=text):
        read_photos([tmp_path], PhotoConfig(masks=str(tmp_path / "masks")))
    with pytest.raises(InputError, match="does not exist"):
        read_photos([tmp_path], PhotoConfig(masks=str(tmp_path / "nowhere")))
    (tmp_path / "masks" / name).write_bytes(b"")
    (tmp_path / "masks" / name).rename(tmp_path / "masks" / "a.png")
    with pytest.raises(InputError, match=r"the mask a\.png is empty \(0 bytes\)"):
        read_photos([tmp_path], PhotoConfig(masks=str(tmp_path / "masks")))


def disc_scene(path: Path, seed: int, background: str) -> np.ndarray:
    """An orange ellipse before a background; returns the truth [H, W]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:240, 0:320]
    truth = ((x - 160 - 10 * seed) / 60) ** 2 + ((y - 120) / 80) ** 2 < 1
    grey = 140 + 30 * (y / 240) if background == "plain" else rng.integers(0, 255, (240, 320))
    pixels = np.repeat(np.asarray(grey, float)[..., None], 3, -1)
    orange = np.array([220.0, 120, 30]) * (0.7 + 0.3 * ((x // 12 + y // 12) % 2))[..., None]
    pixels = np.where(truth[..., None], orange if background == "plain" else pixels, pixels) + rng.normal(0, 4, (240, 320, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return truth


def test_subject_is_cut_out_without_weights(tmp_path: Path) -> None:
    truths = [disc_scene(tmp_path / f"{seed}.jpg", seed, "plain") for seed in range(2)]
    result = read_photos([tmp_path], PhotoConfig(masks="auto"))
    for photo, truth in zip(result.photos, truths):
        assert photo.mask is not None
        found, true = photo.mask > 0.5, torch.from_numpy(truth)
        assert float((found & true).sum() / (found | true).sum()) > 0.93
    assert result.notices == ()


def test_no_subject_is_said_and_photos_stay_whole(tmp_path: Path) -> None:
    for seed in range(2):
        disc_scene(tmp_path / f"{seed}.jpg", seed, "noise")
    result = read_photos([tmp_path], PhotoConfig(masks="auto"))
    assert all(photo.mask is None for photo in result.photos)
    assert any("no subject could be cut out" in notice and "folder of masks" in notice for notice in result.notices)


# --- video -----------------------------------------------------------------------------------------------------------


def film(path: Path, frames: int = 48, blurred: tuple[int, ...] = (), rate: int = 24) -> Path:
    """A pattern that moves by 2 pixels a frame, H.264."""
    import av
    import cv2

    pattern = np.random.default_rng(0).integers(0, 255, (15, 60, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)  # [120, 480]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.options = {"crf": "10"}
        for i in range(frames):
            pixels = np.ascontiguousarray(pattern[:, 2 * i : 2 * i + 160])
            pixels = cv2.GaussianBlur(pixels, (0, 0), 4) if i in blurred else pixels
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_video_gives_sharp_frames_spread_over_it(tmp_path: Path) -> None:
    sharp = {2, 9, 14, 20, 26, 31, 40, 46}
    path = film(tmp_path / "walk round.mp4", blurred=tuple(set(range(48)) - sharp))
    result = read_photos([path], PhotoConfig(max_photos=8, max_side=80))
    indices = [int(photo.name.split("_")[-1].removesuffix(".png")) for photo in result.photos]
    assert set(indices) == sharp
    assert result.photos[0].size == (80, 60) and result.photos[0].original_size == (160, 120)
    assert result.photos[0].path == path and result.photos[0].name.startswith("walk round_")
    assert any("8 sharpest frames" in notice for notice in result.notices)


def test_short_video_gives_few_frames(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 24)
    assert 3 <= len(read_photos([tmp_path]).photos) <= 5


def test_videos_share_the_limit_and_their_frames_have_names_of_their_own(tmp_path: Path) -> None:
    film(tmp_path / "clip.mp4", 48)
    film(tmp_path / "clip.mov", 48, blurred=tuple(range(0, 48, 2)))
    photos = read_photos([tmp_path], PhotoConfig(max_photos=10)).photos
    assert len({photo.name for photo in photos}) == len(photos) == 10
    assert {path.name: sum(p.path == path for p in photos) for path in tmp_path.iterdir()} == {"clip.mp4": 5, "clip.mov": 5}


def test_a_damaged_video_among_pictures_is_left_out(tmp_path: Path) -> None:
    files = [picture(tmp_path / "a.png", 1), picture(tmp_path / "b.png", 2), tmp_path / "c.mp4"]
    files[2].write_bytes(b"no film")
    result = read_photos(files)
    assert [photo.name for photo in result.photos] == ["a.png", "b.png"] and "c.mp4" in result.skipped[0][1]
    assert "Errno" not in result.skipped[0][1]


def test_damaged_videos(tmp_path: Path) -> None:
    film(tmp_path / "good.mp4")
    data = (tmp_path / "good.mp4").read_bytes()
    for name, content in {"text.mp4": b"no film", "empty.mp4": b"", "half.mp4": data[: len(data) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_photos([tmp_path / name])


@pytest.mark.parametrize("name, count, size", [("banana", 16, (1024, 681)), ("berlin", 3, (1024, 768))])
def test_real_sets(shared_data: Path, name: str, count: int, size: tuple[int, int]) -> None:
    result = read_photos([shared_data / "photos" / name])
    assert len(result.photos) == count and result.skipped == () and result.photos[0].size == size
    assert all(photo.focal_px is not None and 0.5 < photo.focal_px / 1024 < 2 for photo in result.photos)
