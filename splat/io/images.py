"""Reading and writing pictures: the only place where pixels are uint8. Everything outside sees float32 sRGB in [0, 1].

The header is judged before any pixel is decoded, so that a picture of any size costs at most `max_pixels` of memory.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile
from torch import Tensor

from splat.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".tif", ".tiff", ".bmp")
MAX_PIXELS = 120_000_000  # 360 MB as 8-bit RGB; above every phone (108 MP), below what 2 GB of memory stands

# Transpositions that bring a picture with this EXIF orientation upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Sensor widths in mm for cameras that write FocalLength but often neither its 35 mm equivalent nor a resolution.
SENSOR_WIDTHS_MM = {
    "iphone 4": 4.54,
    "iphone4": 4.54,
    "iphone 5": 4.54,
    "iphone 6": 4.8,
    "iphone 7": 4.8,
    "iphone 8": 4.8,
    "fc200": 6.17,
    "fc300": 6.17,
    "fc330": 6.17,
    "fc6310": 13.2,
    "gopro": 6.17,
    "hero": 6.17,
    "pixel": 5.76,
    "nikon d3": 23.2,
    "nikon d5": 23.5,
    "nikon d7": 23.5,
    "ilce-6": 23.5,
    "ilce-7": 35.8,
    "canon eos 5d": 36.0,
    "canon eos 6d": 35.8,
    "canon eos": 22.3,
    "e-m": 17.3,
    "dmc-g": 17.3,
}


@dataclass(frozen=True)
class ImageMeta:
    """What the header says, after the EXIF rotation and before any scaling."""

    width: int  # pixels
    height: int  # pixels
    focal_px: float | None  # in pixels of width x height, from EXIF; None when EXIF does not tell
    format: str  # "JPEG", "PNG", "WEBP", "HEIF", "TIFF", "GIF", "BMP"
    camera: str  # maker and model, "" when unknown
    orientation: int = 1  # the EXIF orientation that was applied
    animated: bool = False  # it holds further pictures, frames or pages, of which the first is read


def read_image(
    path: Path, *, max_pixels: int = MAX_PIXELS, max_side: int | None = None
) -> tuple[Tensor, Tensor | None, ImageMeta]:
    """A picture file -> (image [H, W, 3] sRGB, alpha [H, W] or None, what its header says).

    Upright by EXIF, 8 bits deep, embedded colour profiles brought to sRGB, CMYK, grey, palette and 16-bit pictures
    included. A long side above `max_side` is scaled down with an antialiasing filter. `alpha` is None for opaque
    pictures; colours are straight, not multiplied by it. Raises `InputError` for what is no picture, is damaged, or
    would need more than `max_pixels` decoded at once (a JPEG can be decoded at an eighth of its size, most others not).
    """
    with _opened(path) as picture:
        return _decoded(picture, path.name, max_pixels, max_side)


def decode_image(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, max_side: int | None = None
) -> tuple[Tensor, Tensor | None, ImageMeta]:
    """As `read_image`, from the bytes of a file; `name` is used in errors."""
    with _plugin(io.BytesIO(data), name) as picture:
        return _decoded(picture, name, max_pixels, max_side)


def read_meta(path: Path) -> ImageMeta:
    """The header alone; no pixel is decoded. Raises `InputError`."""
    with _opened(path) as picture, _as_input_error(path.name):
        return _meta(picture, _orientation(picture))


def save_image(path: Path, image: Tensor, quality: int = 92) -> None:
    """[H, W, 3] sRGB, [H, W, 4] with alpha, or [H, W] grey, in [0, 1] (clamped) -> .png, .jpg or .webp by suffix."""
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    assert pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4)), pixels.shape
    suffix = path.suffix.lower()
    assert suffix in (".png", ".jpg", ".jpeg", ".webp"), suffix
    assert suffix in (".png", ".webp") or pixels.shape[-1] != 4 or pixels.ndim == 2, "JPEG has no alpha"
    options = {} if suffix == ".png" else {"quality": quality}
    if suffix in (".jpg", ".jpeg"):
        options["subsampling"] = 0  # 4:4:4: colour edges stay where they are
    Image.fromarray(pixels).save(path, **options)


# --- opening ---------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():  # a folder, a missing file, or a pipe that would block for ever
        raise InputError(f"{path.name} is not a file that can be read; check the path {path}.")
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path.name} cannot be opened ({error.strerror}); check its permissions.") from error
    with file, _plugin(file, path.name) as picture:
        yield picture


@contextmanager
def _plugin(file: io.BufferedIOBase, name: str) -> Iterator[Image.Image]:
    """The picture behind an open file, its header parsed.

    Classes are called by the file's first bytes instead of through `Image.open`, which would judge the size by a global
    limit before the reader can choose a reduced decode.
    """
    head = file.read(32)
    file.seek(0)
    if not head:
        raise InputError(f"{name} is empty (0 bytes); copy it again from the camera.")
    with _as_input_error(name):
        picture = _open_by_magic(file, head)
    if picture is None:
        raise InputError(
            f"{name} is not a JPEG, PNG, WebP, HEIC, TIFF, GIF or BMP picture, whatever its name says; convert it to one."
        )
    with picture:
        yield picture


def _open_by_magic(file: io.BufferedIOBase, head: bytes) -> ImageFile.ImageFile | None:
    if head.startswith(b"\xff\xd8\xff"):
        from PIL.JpegImagePlugin import JpegImageFile as Plugin
    elif head.startswith(b"\x89PNG\r\n\x1a\n"):
        from PIL.PngImagePlugin import PngImageFile as Plugin
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        from PIL.WebPImagePlugin import WebPImageFile as Plugin
    elif head[:4] in (b"II*\0", b"MM\0*"):
        from PIL.TiffImagePlugin import TiffImageFile as Plugin
    elif head[:6] in (b"GIF87a", b"GIF89a"):
        from PIL.GifImagePlugin import GifImageFile as Plugin
    elif head.startswith(b"BM"):
        from PIL.BmpImagePlugin import BmpImageFile as Plugin
    elif head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        from pillow_heif.as_plugin import HeifImageFile as Plugin
    else:
        return None
    return Plugin(file)


@contextmanager
def _as_input_error(name: str) -> Iterator[None]:
    """Whatever a decoder throws at damaged bytes becomes one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd EXIF and palettes that we handle
            yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name} does not fit into memory; scale it down.") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{name} is damaged or incomplete ({reason}); copy it again or leave it out.") from error


# --- header ----------------------------------------------------------------------------------------------------------


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation that is still to be applied."""
    if picture.format in ("TIFF", "HEIF"):  # these plugins turn the picture themselves
        return 1
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # hostile EXIF; the pixels may still be good
        return 1
    return value if value in UPRIGHT else 1


def _meta(picture: Image.Image, orientation: int) -> ImageMeta:
    width, height = picture.size
    try:
        exif = picture.getexif()
        tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    except Exception:  # hostile EXIF; the pixels may still be good
        tags = {}
    focal = _focal_px(tags, width, height)
    if orientation >= 5:
        width, height = height, width
    animated = picture.format in ("GIF", "PNG", "WEBP", "TIFF") and bool(getattr(picture, "is_animated", False))
    return ImageMeta(width, height, focal, picture.format or "", _camera(tags), orientation, animated)


def _camera(tags: dict) -> str:
    maker, model = (str(tags.get(t, "")).replace("\0", "").strip() for t in (ExifTags.Base.Make, ExifTags.Base.Model))
    return model if model.lower().startswith(maker.lower()) else f"{maker} {model}"


def _number(tags: dict, tag: int) -> float:
    """A positive finite number, else 0."""
    try:
        value = float(tags.get(tag, 0))
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0


def _focal_px(tags: dict, width: int, height: int) -> float | None:
    """Focal length in pixels of a width x height file or None. EXIF 2.32 tags; values outside 0.2-10 long sides are dropped."""
    long_side = max(width, height)
    exif_sides = sorted((_number(tags, ExifTags.Base.ExifImageWidth), _number(tags, ExifTags.Base.ExifImageHeight)))
    if exif_sides[0] and abs(exif_sides[1] / exif_sides[0] / (long_side / min(width, height)) - 1) > 0.02:
        return None  # cropped after it was taken: the tags speak of another picture
    equivalent = _number(tags, ExifTags.Base.FocalLengthIn35mmFilm)
    focal_mm = _number(tags, ExifTags.Base.FocalLength)
    resolution = _number(tags, ExifTags.Base.FocalPlaneXResolution)
    unit_mm = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}.get(int(_number(tags, ExifTags.Base.FocalPlaneResolutionUnit)) or 2)
    sensor_mm = _sensor_width(_camera(tags))
    if equivalent:
        # The equivalence is of diagonals (CIPA DCG-001): 36 mm along a 3:2 frame, 34.6 mm along a 4:3 one. Wider frames are
        # cut from 4:3 sensors without a change of the tag.
        focal = equivalent / (36.0 if abs(long_side / min(width, height) - 1.5) < 0.02 else 34.61) * long_side
    elif focal_mm and resolution and unit_mm and exif_sides[1]:
        focal = focal_mm / unit_mm * resolution * long_side / exif_sides[1]
    elif focal_mm and sensor_mm:
        focal = focal_mm / sensor_mm * long_side
    else:
        return None
    return focal if 0.2 * long_side < focal < 10 * long_side else None


def _sensor_width(camera: str) -> float | None:
    camera = camera.lower()
    return next((width for name, width in SENSOR_WIDTHS_MM.items() if name in camera), None)


# --- pixels ----------------------------------------------------------------------------------------------------------


def _decoded(picture: Image.Image, name: str, max_pixels: int, max_side: int | None) -> tuple[Tensor, Tensor | None, ImageMeta]:
    with _as_input_error(name):
        full, orientation = picture.size, _orientation(picture)
        meta = _meta(picture, orientation)
        _reduce_decode(picture, name, max_pixels, max_side)
        picture.load()
        image, alpha = _to_tensors(_scaled(_eight_bit(picture), full, max_side), orientation)
        return image, alpha, meta


def _reduce_decode(picture: Image.Image, name: str, max_pixels: int, max_side: int | None) -> None:
    """Ask a JPEG for a cheaper size; refuse what would still cost more than `max_pixels`."""
    width, height = picture.size
    cost = width * height
    if picture.format == "JPEG":
        if max_side is not None and 2 * max_side < max(width, height):
            factor = 2 * max_side / max(width, height)  # twice the goal: the rest is left to the better filter
            picture.draft(None, (max(1, round(width * factor)), max(1, round(height * factor))))
        if not picture.info.get("progressive"):  # a progressive file keeps all its coefficients, 3 bytes a pixel
            cost = picture.size[0] * picture.size[1]
    if cost > max_pixels:
        factor = math.sqrt(max_pixels / (width * height))
        raise InputError(
            f"{name} has {width} x {height} pixels ({width * height / 1e6:.0f} million), more than the {max_pixels / 1e6:.0f} "
            f"million that the memory budget allows; scale it to {int(width * factor)} x {int(height * factor)} or raise the "
            "budget."
        )


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Mode RGB, or RGBa (colours multiplied by alpha, so that scaling does not bleed hidden colours) where there is alpha."""
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture).astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("pixels that are not finite")
        deep = picture.mode.startswith("I") and (picture.mode != "I" or values.max(initial=0) > 255)
        top = 65535.0 if deep else (255.0 if values.max(initial=0) > 1 else 1.0)
        return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    if picture.mode == "CMYK":
        return _to_srgb(picture, profile) if profile else picture.convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        if profile:
            alpha = rgba.getchannel("A")
            rgba = _to_srgb(rgba.convert("RGB"), profile).convert("RGBA")
            rgba.putalpha(alpha)
        return rgba.convert("RGB") if rgba.getextrema()[3][0] == 255 else rgba.convert("RGBa")
    rgb = picture.convert("RGB")
    return _to_srgb(rgb, profile) if profile else rgb


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return picture if picture.mode == "RGB" else picture.convert("RGB")
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # a damaged or unfitting profile: the numbers as they are
        return picture.convert("RGB")


def _scaled(picture: Image.Image, full: tuple[int, int], max_side: int | None) -> Image.Image:
    """Long side at most `max_side`. `full` is the size before a reduced decode, whose last column may be a partial one."""
    if max_side is None or max(full) <= max_side:
        return picture
    factor = max_side / max(full)
    goal = (max(1, round(full[0] * factor)), max(1, round(full[1] * factor)))
    decode = 2 ** round(math.log2(max(full) / max(picture.size)))
    box = (0, 0, min(full[0] / decode, picture.size[0]), min(full[1] / decode, picture.size[1]))
    # Hamming: as sharp as an area mean, without its dislocations at ratios that are not whole numbers.
    return picture.resize(goal, Image.Resampling.HAMMING, box=box)


def _to_tensors(picture: Image.Image, orientation: int) -> tuple[Tensor, Tensor | None]:
    if orientation != 1:
        picture = picture.transpose(UPRIGHT[orientation])
    pixels = torch.from_numpy(np.array(picture)).float() / 255  # [H, W, 3 or 4]
    if picture.mode == "RGB":
        return pixels, None
    alpha = pixels[..., 3]
    return (pixels[..., :3] / alpha.clamp_min(1 / 255)[..., None]).clamp(0, 1), alpha
