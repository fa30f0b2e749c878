import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from synthetic_scenes import photograph, speckle, textured, walk_around

from recon import doctor
from recon.doctor import check_hope, examine, require_hope
from recon.overlap import groups
from recon.photo_quality import blur
from recon.photos import Photo, PhotoConfig, PhotoSet, read_photos
from splat.cameras import intrinsics
from splat.errors import InputError
from splat.rotations import matrix_from_quat


def photo_set(images: list[torch.Tensor], focal_px: float | None = None) -> PhotoSet:
    photos = [
        Photo(f"IMG_{i}.png", Path(f"IMG_{i}.png"), str(i), image, None, focal_px, (image.shape[1], image.shape[0]))
        for i, image in enumerate(images)
    ]
    return PhotoSet(tuple(photos), (), ())


def noise(image: torch.Tensor, seed: int) -> torch.Tensor:
    return (image + 0.01 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def pattern(seed: int, size: int = 640) -> np.ndarray:
    """[size, size, 3]; no part like another."""
    return np.ascontiguousarray(speckle(np.random.default_rng(seed), size).astype(np.float32))


@pytest.fixture(scope="module")
def walk() -> tuple[Photo, ...]:
    return tuple(photograph(textured(3), walk_around(7, 3, arc_deg=72), seed=3))


def test_a_good_walk_round_is_good(walk: tuple[Photo, ...]) -> None:
    diagnosis = examine(PhotoSet(walk, (), ()))
    assert diagnosis.verdict == "good" and diagnosis.expected_placed == 7 and diagnosis.problems == ()
    assert diagnosis.groups == ((0, 1, 2, 3, 4, 5, 6),)
    assert {(i, i + 1) for i in range(6)} <= {(i, j) for i, j, _ in diagnosis.links}
    assert all(finding.coverage > 0.3 and finding.notes == () for finding in diagnosis.photos)
    assert diagnosis.next_photo.endswith(".")
    require_hope(diagnosis)


def test_a_good_set_is_let_through_at_the_first_look(walk: tuple[Photo, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda photos: pytest.fail("the whole set was examined"))
    check_hope(PhotoSet(walk, (), ()))


def test_a_wall_takes_the_long_look_and_passes(walk: tuple[Photo, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.overlap, "show_depth", lambda first, second: False)
    check_hope(PhotoSet(walk, (), ()))


def test_blurred_and_dark_photos_are_named(walk: tuple[Photo, ...]) -> None:
    images = [photo.image for photo in walk]
    images[2] = torch.from_numpy(cv2.GaussianBlur(images[2].numpy(), (0, 0), 4))
    images[5] = images[5] * 0.4
    diagnosis = examine(photo_set(images, 704.0))
    assert diagnosis.photos[2].notes == ("blurred",)
    assert any("darker than the others" in note for note in diagnosis.photos[5].notes)
    assert any("1 of 7 photos are blurred (IMG_2.png)" in problem for problem in diagnosis.problems)
    assert any("exposure" in problem and "IMG_5.png" in problem for problem in diagnosis.problems)
    assert diagnosis.verdict in ("fair", "poor") and diagnosis.expected_placed >= 6


def test_given_matches_replace_the_quick_ones(walk: tuple[Photo, ...]) -> None:
    cut = {(i, j): 0 for i in range(4) for j in range(4, 7)}
    diagnosis = examine(PhotoSet(walk, (), ()), cut | {(1, 5): 10})
    assert diagnosis.groups == ((0, 1, 2, 3), (4, 5, 6)) and diagnosis.expected_placed == 4
    assert "between photo_001.png and photo_005.png" in diagnosis.next_photo
    assert any("3 of 7 photos do not connect" in problem for problem in diagnosis.problems)


def test_a_stranger_is_left_out_of_the_expectation(walk: tuple[Photo, ...]) -> None:
    images = [photo.image for photo in walk[:4]] + [torch.from_numpy(pattern(9)[:480])]
    diagnosis = examine(photo_set(images))
    assert diagnosis.expected_placed == 4 and diagnosis.photos[4].links == 0
    assert diagnosis.photos[4].notes == ("shares nothing with another photo",)
    assert "IMG_4.png" in diagnosis.problems[0] and "IMG_4.png" in diagnosis.next_photo


def impossible(photos: PhotoSet) -> str:
    diagnosis = examine(photos)
    assert diagnosis.verdict == "impossible" and diagnosis.expected_placed == 0
    with pytest.raises(InputError) as caught:
        check_hope(photos)
    assert str(caught.value) == diagnosis.problems[0]
    return diagnosis.problems[0]


def test_the_same_view_again_and_again() -> None:
    image = torch.from_numpy(pattern(1))
    assert "all 4 photos show the same view" in impossible(photo_set([noise(image, i) for i in range(4)]))


def test_photos_without_texture() -> None:
    ramp = torch.linspace(0.4, 0.6, 640)[None, :, None].expand(480, 640, 3)
    assert "3 of 3 photos show almost no texture" in impossible(photo_set([noise(ramp + 0.02 * i, i) for i in range(3)]))
    blank = [torch.full((480, 640, 3), 0.2 * i) for i in range(4)]
    assert "almost no texture" in impossible(photo_set(blank))


def test_unrelated_photos_are_left_to_the_finer_means_of_the_pose_solver() -> None:
    photos = photo_set([torch.from_numpy(pattern(i)) for i in (20, 21, 22)])
    diagnosis = examine(photos)
    assert diagnosis.verdict == "impossible" and "no two of the 3 photos" in diagnosis.problems[0]
    check_hope(photos)
    with pytest.raises(InputError, match="no two of the 3 photos"):
        require_hope(diagnosis)


def turned(image: np.ndarray, yaw_deg: float, focal: float) -> torch.Tensor:
    """What a camera shows that was only turned."""
    half = math.radians(yaw_deg) / 2
    R = matrix_from_quat(torch.tensor([math.cos(half), 0.2 * math.sin(half), math.sin(half), 0], dtype=torch.float64)).numpy()
    return seen_through(image, R, focal)


def seen_through(image: np.ndarray, change: np.ndarray, focal: float) -> torch.Tensor:
    """The middle 640 x 480 of a picture after the homography K change K^-1."""
    height, width = image.shape[:2]
    there, here = (intrinsics(focal, *size).double().numpy() for size in ((width, height), (640, 480)))
    return torch.from_numpy(cv2.warpPerspective(image, here @ change @ np.linalg.inv(there), (640, 480)))


@pytest.mark.parametrize("known", [True, False])
def test_a_camera_that_only_turned(known: bool) -> None:
    image = pattern(2, 1100)
    images = [noise(turned(image, yaw, 700.0), i) for i, yaw in enumerate((-8, 0, 7, 13))]
    assert "only turned on the spot" in impossible(photo_set(images, 700.0 if known else None))


def test_a_wall_seen_from_several_places_is_no_turn() -> None:
    """A plane also moves by homographies."""
    image = pattern(2, 1100)
    images = []
    for i, x in enumerate((-0.3, 0.0, 0.25, 0.5)):
        half = x / 2  # turned towards the wall's middle
        R = matrix_from_quat(torch.tensor([math.cos(half), 0, math.sin(half), 0], dtype=torch.float64)).numpy()
        images.append(noise(seen_through(image, R + np.outer(R @ [x, 0.05 * i, 0], [0, 0, 1]), 700.0), i))
    assert examine(photo_set(images, 700.0)).verdict != "impossible"
    assert examine(photo_set(images)).verdict != "impossible"


def test_fewer_than_two_photos() -> None:
    with pytest.raises(InputError, match="at least 2 are needed"):
        examine(photo_set([torch.from_numpy(pattern(0))]))


def test_blur_measures_blur_and_not_content() -> None:
    scenes = [pattern(4), photograph(textured(5), walk_around(1, 5))[0].image.numpy()]
    for scene in scenes:
        values = [blur(torch.from_numpy(cv2.GaussianBlur(scene, (0, 0), sigma))) for sigma in (0.5, 1.5, 3, 6)]
        assert values == sorted(values) and values[-1] - values[0] > 0.3
    assert blur(torch.full((64, 64, 3), 0.5)) == 0


def test_groups() -> None:
    assert groups(5, [(0, 3), (3, 4)]) == [[0, 3, 4], [1], [2]]
    assert groups(3, []) == [[0], [1], [2]]


@pytest.mark.slow
@pytest.mark.parametrize("name, placed", [("banana", 16), ("lund", 29), ("berlin", 3), ("brighton_beach", 18)])
def test_real_sets_are_expected_to_work(shared_data: Path, name: str, placed: int) -> None:
    diagnosis = examine(read_photos([shared_data / "photos" / name], PhotoConfig()))
    assert diagnosis.expected_placed == placed and diagnosis.verdict in ("good", "fair")
