import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from splat.errors import InputError
from splat.io.images import read_image, read_meta, save_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants(width: int = 64, height: int = 48) -> np.ndarray:
    """Red top left, green top right, blue bottom left, white bottom right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    pixels[:h, :w], pixels[:h, w:], pixels[h:, :w], pixels[h:, w:] = RED, GREEN, BLUE, WHITE
    return pixels


def with_exif(path: Path, **values: object) -> Path:
    """A 640 x 480 JPEG whose EXIF has the named tags."""
    tags = {
        "orientation": 0x0112, "make": 0x010F, "model": 0x0110, "f35": 0xA405, "focal": 0x920A,
        "plane_x": 0xA20E, "plane_unit": 0xA210, "exif_width": 0xA002, "exif_height": 0xA003,
    }  # fmt: skip
    exif = Image.Exif()
    for name, value in values.items():
        (exif if name in ("orientation", "make", "model") else exif.get_ifd(0x8769))[tags[name]] = value
    Image.fromarray(quadrants(640, 480)).save(path, exif=exif)
    return path


def corners(image: torch.Tensor) -> list[tuple[int, ...]]:
    """Rounded colours of the top left, top right, bottom left and bottom right quadrant."""
    h, w = image.shape[:2]
    places = [(h // 4, w // 4), (h // 4, 3 * w // 4), (3 * h // 4, w // 4), (3 * h // 4, 3 * w // 4)]
    return [tuple((image[y, x] * 255 / 85).round().int().mul(85).tolist()) for y, x in places]


UPRIGHT = [RED, GREEN, BLUE, WHITE]
# What each stored orientation must show; the EXIF specification says where row 0 and column 0 belong.
TURNED = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(quadrants()).save(path, exif=exif)
    image, alpha, meta = read_image(path)
    assert corners(image) == TURNED[orientation]
    assert alpha is None
    expected = (64, 48) if orientation < 5 else (48, 64)
    assert (image.shape[1], image.shape[0]) == (meta.width, meta.height) == expected
    assert (read_meta(path).width, read_meta(path).height) == expected


def test_heic_is_turned_once(tmp_path: Path) -> None:
    import pillow_heif

    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.heic"
    pillow_heif.from_pillow(Image.fromarray(quadrants())).save(path, exif=exif.tobytes(), quality=95)
    image, _, meta = read_image(path)
    assert (meta.width, meta.height, meta.format) == (48, 64, "HEIF")
    assert corners(image) == TURNED[6]


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).save(tmp_path / "photo.jpg", quality=95)
    (tmp_path / "photo.jpg").rename(tmp_path / "photo.png")
    assert read_image(tmp_path / "photo.png")[2].format == "JPEG"
    Image.fromarray(quadrants()).save(tmp_path / "photo.bmp")
    assert corners(read_image(tmp_path / "photo.bmp")[0]) == UPRIGHT


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        picture = Image.fromarray((grey / 255).astype(np.float32))
    elif mode in ("L", "LA"):
        picture = Image.fromarray(grey).convert(mode)
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    path = tmp_path / ("photo.tif" if mode in ("F", "CMYK") else "photo.png")
    picture.save(path)
    image, alpha, _ = read_image(path)
    assert image.shape == (48, 64, 3) and image.dtype == torch.float32 and alpha is None
    if mode not in ("1", "P"):  # black and white, and the web palette, keep no ramp
        expected = torch.from_numpy(grey[0]).float() / 255
        assert (image[10].mean(dim=-1) - expected).abs().max() < 0.02


def test_alpha_is_straight_and_survives_scaling(tmp_path: Path) -> None:
    """Hidden colours must not bleed into the visible ones when the picture shrinks."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[...] = (0, 255, 0, 0)
    pixels[:, :31] = (255, 0, 0, 255)
    path = tmp_path / "cut.png"
    Image.fromarray(pixels).save(path)
    image, alpha, _ = read_image(path, max_side=32)
    assert alpha is not None and alpha.shape == (32, 32)
    assert float(alpha[:, 15].mean()) == pytest.approx(0.5, abs=0.2)
    seen = alpha > 0.05
    assert torch.allclose(image[seen], torch.tensor([1.0, 0, 0]).expand(int(seen.sum()), 3), atol=0.03)


def test_opaque_alpha_and_transparent_palette(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).convert("RGBA").save(tmp_path / "opaque.png")
    assert read_image(tmp_path / "opaque.png")[1] is None
    palette = Image.fromarray(quadrants()).quantize(4)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((2, 2)))
    _, alpha, _ = read_image(tmp_path / "palette.png")
    assert alpha is not None and float(alpha[2, 2]) == 0 and float(alpha[-2, -2]) == 1


def test_scaling_is_antialiased_and_unshifted(tmp_path: Path) -> None:
    y, x = np.mgrid[0:600, 0:800]
    stripes = ((x + y) % 2 * 255).astype(np.uint8)
    Image.fromarray(np.stack([stripes] * 3, -1)).save(tmp_path / "stripes.png")
    image, _, meta = read_image(tmp_path / "stripes.png", max_side=160)
    assert image.shape == (120, 160, 3) and (meta.width, meta.height) == (800, 600)
    assert (image - 0.5).abs().max() < 0.02
    ramp = np.repeat((x / 799 * 255).astype(np.uint8)[..., None], 3, -1)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    small = read_image(tmp_path / "ramp.png", max_side=160)[0]
    centres = ((torch.arange(160) + 0.5) * 5 - 0.5) / 799
    assert (small[60, 2:-2, 0] - centres[2:-2]).abs().max() < 0.005


def test_reduced_jpeg_decode_agrees_with_the_full_one(tmp_path: Path) -> None:
    """The reduced decode has a partial last column; scaling must not stretch by it."""
    y, x = np.mgrid[0:1203, 0:1605]
    pixels = np.stack([x / 1604, y / 1202, (np.hypot(x - 1400, y - 1000) < 60)], -1)
    Image.fromarray((pixels * 255).astype(np.uint8)).save(tmp_path / "photo.jpg", quality=95, subsampling=0)
    Image.open(tmp_path / "photo.jpg").save(tmp_path / "photo.png")
    reduced = read_image(tmp_path / "photo.jpg", max_side=200)[0]
    full = read_image(tmp_path / "photo.png", max_side=200)[0]
    assert reduced.shape == full.shape == (150, 200, 3)
    assert (reduced - full).abs().mean() < 0.004
    disc = (reduced[..., 2] - 0.1).clamp(0, 1)
    assert float((disc * (torch.arange(200) + 0.5)).sum() / disc.sum()) == pytest.approx(1400.5 / 1605 * 200, abs=0.15)


# --- focal lengths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags, focal",
    [
        ({"f35": 26}, 26 / 34.61 * 640),
        ({"f35": 26, "orientation": 6}, 26 / 34.61 * 640),
        ({"f35": 0, "focal": 10.0, "plane_x": 3000.0, "plane_unit": 3, "exif_width": 6400, "exif_height": 4800}, 300.0),
        ({"focal": 4.8, "model": "iPhone 6"}, 640.0),
        ({"focal": 3.61, "make": "DJI\0\0", "model": "FC300S\0\0"}, 3.61 / 6.17 * 640),
        ({"focal": 50.0, "model": "Unknown"}, None),
        ({"f35": 26, "exif_width": 4000, "exif_height": 2000}, None),
        ({"f35": 60000}, None),
        ({}, None),
    ],
)
def test_focal_from_exif(tmp_path: Path, tags: dict, focal: float | None) -> None:
    path = with_exif(tmp_path / "photo.jpg", **tags)
    assert read_image(path, max_side=320)[2].focal_px == (None if focal is None else pytest.approx(focal, rel=1e-3))
    assert read_meta(path).focal_px == (None if focal is None else pytest.approx(focal, rel=1e-3))


def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jpg"
    Image.fromarray(quadrants()).save(plain, quality=95)
    data = plain.read_bytes()
    payload = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 60000) + b"\xff" * 40
    app1 = b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload
    (tmp_path / "odd.jpg").write_bytes(data[:2] + app1 + data[2:])
    image, _, meta = read_image(tmp_path / "odd.jpg")
    assert corners(image) == UPRIGHT and meta.focal_px is None


def test_unfitting_colour_profiles_are_ignored(tmp_path: Path) -> None:
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    for name, profile in {
        "lab": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        "broken": b"no profile at all",
        "srgb": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }.items():
        grey.save(tmp_path / f"{name}.png", icc_profile=profile)
        assert float(read_image(tmp_path / f"{name}.png")[0].mean()) == pytest.approx(128 / 255, abs=0.002), name


def test_wide_gamut_profile_is_brought_to_srgb(tmp_path: Path) -> None:
    """Red and green swapped in the profile's primaries must come out swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    name = profile.find("sRGB".encode("utf-16-be"))  # else it is taken for what its name says
    profile[name : name + 8] = "odd!".encode("utf-16-be")
    Image.new("RGB", (40, 40), RED).save(tmp_path / "odd.png", icc_profile=bytes(profile))
    assert torch.allclose(read_image(tmp_path / "odd.png")[0][5, 5], torch.tensor([0.0, 1, 0]), atol=0.02)
    cut_out = Image.new("RGBA", (40, 40), (*RED, 255))
    cut_out.putpixel((0, 0), (0, 0, 0, 0))
    cut_out.save(tmp_path / "cut.png", icc_profile=bytes(profile))
    image, alpha, _ = read_image(tmp_path / "cut.png")
    assert torch.allclose(image[5, 5], torch.tensor([0.0, 1, 0]), atol=0.02) and alpha is not None and alpha[5, 5] == 1


# --- hostile files ---------------------------------------------------------------------------------------------------


def huge_png(path: Path, side: int = 40_000) -> Path:
    """A valid header that promises side x side pixels, and a few bytes of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b""))
    return path


def test_40_000_px_is_refused_by_its_header(tmp_path: Path) -> None:
    path = huge_png(tmp_path / "huge.png")
    with pytest.raises(
        InputError, match=r"huge.png has 40000 x 40000 pixels \(1600 million\).*120 million.*scale it to 10954 x"
    ):
        read_image(path, max_side=1024)
    assert read_meta(path).width == 40_000


def test_large_jpeg_is_decoded_reduced_within_the_budget(tmp_path: Path) -> None:
    """The budget holds for what is decoded: a baseline JPEG at an eighth, but a progressive one keeps all coefficients."""
    picture = Image.fromarray(quadrants()).resize((4000, 3000), Image.Resampling.NEAREST)
    picture.save(tmp_path / "baseline.jpg", quality=50)
    picture.save(tmp_path / "progressive.jpg", quality=50, progressive=True)
    image, _, meta = read_image(tmp_path / "baseline.jpg", max_pixels=1_000_000, max_side=256)
    assert image.shape == (192, 256, 3) and (meta.width, meta.height) == (4000, 3000)
    assert corners(image) == UPRIGHT
    with pytest.raises(InputError, match="12 million"):
        read_image(tmp_path / "progressive.jpg", max_pixels=1_000_000, max_side=256)
    with pytest.raises(InputError, match="raise the budget"):
        read_image(tmp_path / "baseline.jpg", max_pixels=1_000_000)


def test_damaged_files_give_one_sentence(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)).save(good)
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "half.jpg").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "text.jpg").write_text("this is a shopping list\n" * 20)
    (tmp_path / "magic.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "magic.tif").write_bytes(b"II*\0" + b"\xff" * 30)
    (tmp_path / "magic.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\xff" * 60)
    (tmp_path / "magic.webp").write_bytes(b"RIFF\x10\0\0\0WEBP" + b"\xff" * 60)
    (tmp_path / "folder.jpg").mkdir()
    expected = {
        "empty.jpg": "empty .0 bytes.", "half.jpg": "damaged or incomplete", "text.jpg": "not a JPEG", "magic.png": "damaged",
        "magic.tif": "damaged", "magic.heic": "damaged", "magic.webp": "damaged", "folder.jpg": "not a file",
        "none.jpg": "not a file",
    }  # fmt: skip
    for name, text in expected.items():
        with pytest.raises(InputError, match=text) as caught:
            read_image(tmp_path / name, max_side=64)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
def test_random_damage_never_escapes_as_another_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(quadrants()).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(bytes(data[: rng.integers(1, len(data) + 1)]))
        try:
            image = read_image(path, max_pixels=10_000_000, max_side=32)[0]
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert image.isfinite().all() and max(image.shape[:2]) <= 32


# --- writing ---------------------------------------------------------------------------------------------------------


def test_written_pictures_read_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(20, 30, 4, generator=generator)
    image[..., 3] = 0.2 + 0.8 * image[..., 3]
    save_image(tmp_path / "a.png", image)
    back, alpha, _ = read_image(tmp_path / "a.png")
    assert alpha is not None and (alpha - image[..., 3]).abs().max() <= 0.51 / 255
    assert (back - image[..., :3]).abs().max() < 0.02
    save_image(tmp_path / "b.png", image[..., :3] * 3 - 1)
    assert (read_image(tmp_path / "b.png")[0] - (image[..., :3] * 3 - 1).clamp(0, 1)).abs().max() <= 0.51 / 255
    smooth = torch.linspace(0, 1, 64)[None, :, None].expand(48, 64, 3)
    save_image(tmp_path / "c.jpg", smooth)
    assert (read_image(tmp_path / "c.jpg")[0] - smooth).abs().max() < 0.03
    save_image(tmp_path / "d.png", image[..., 0])
    assert (read_image(tmp_path / "d.png")[0][..., 1] - image[..., 0]).abs().max() <= 0.51 / 255


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_the_first_of_several_pictures_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving.{suffix}"
    first = Image.fromarray(quadrants())
    first.save(path, save_all=True, append_images=[first.transpose(Image.Transpose.ROTATE_180)], lossless=True)
    image, _, meta = read_image(path)
    assert corners(image) == UPRIGHT and meta.animated and meta.format == suffix.upper()
    first.save(path, lossless=True)
    assert not read_image(path)[2].animated
