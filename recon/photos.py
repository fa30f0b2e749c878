"""The photographs of a job: found, judged, read, named and masked."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from splat.errors import InputError
from splat.io import images

log = logging.getLogger(__name__)

TRANSFORMS = ("transforms.json", "transforms_train.json")  # nerfstudio's and NeRF-synthetic's names
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
FEWEST_FRAMES = 8  # of each video, where the pictures beside it leave room for less


@dataclass(frozen=True)
class PhotoConfig:
    """How photos are read."""

    max_side: int = 1024  # pixels; longer photos are scaled down to this long side
    max_photos: int = 40  # more are thinned evenly; 0 keeps all
    min_photos: int = 2  # fewer different readable photos are an error
    masks: str = (
        ""  # "" uses alpha alone, "auto" cuts the subject out, anything else is a folder of masks named like the photos
    )
    max_pixels: int = images.MAX_PIXELS  # most pixels decoded at once for one photo; 3 bytes each


@dataclass(frozen=True)
class Photo:
    """One photo at working size."""

    name: str  # unique within the set, safe as a file name, keeps the suffix
    path: Path  # where it was read; a video for its frames
    sha256: str  # of the file's bytes; of the pixels for a video's frame
    image: Tensor  # [H, W, 3] sRGB
    mask: Tensor | None  # [H, W] foreground in [0, 1]
    focal_px: float | None  # in pixels of `image`, from EXIF
    original_size: tuple[int, int]  # (width, height) upright, before scaling
    camera: str = ""  # maker and model, "" when unknown
    on_white: bool = False  # the image is already composited on white outside its mask (it came with alpha)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of `image`."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True)
class PhotoSet:
    """What a job works on."""

    photos: tuple[Photo, ...]  # in natural order of their names
    skipped: tuple[tuple[str, str], ...]  # (name, reason) of what was offered and not used
    notices: tuple[str, ...]  # sentences for the user


def read_photos(inputs: Sequence[Path], config: PhotoConfig | None = None) -> PhotoSet:
    """Folders, picture files, videos and `transforms.json` files -> the photos of the job, in natural order of their names.

    A folder gives its pictures, or else its videos, those of its folder `images`, or those that its `transforms.json` names; a
    `transforms.json` stands for the pictures that it names. What cannot be read is skipped with a reason. Pictures with
    alpha are composited on white and get it as mask; other masks leave the image as it is (`composited` applies them). Links
    to pictures are followed. Raises `InputError` when fewer than `config.min_photos` different photos remain, or an input or a
    mask is unusable.
    """
    config = config or PhotoConfig()
    notices: list[str] = []
    skipped: list[tuple[str, str]] = []
    files = list_files(inputs, notices)
    files, hashes = _without_copies(files, skipped)
    files = _thinned(files, config.max_photos, notices, "photos")
    names = unique_names(files)
    frames = _frames_each(files, config.max_photos or 40)
    photos: list[Photo] = []
    for path in files:
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                photos += _video_frames(path, names[path], frames, config, notices)
            else:
                photos.append(_read_photo(path, names[path], hashes[path], config))
        except InputError as error:
            if len(files) == 1:
                raise
            skipped.append((path.name, str(error)))
    _require(photos, skipped, config.min_photos)
    photos = _with_masks(photos, config, notices)
    if skipped:
        notices.append(f"{len(skipped)} of {len(skipped) + len(photos)} files were not used: {skipped[0][1]}")
    return PhotoSet(tuple(photos), tuple(skipped), tuple(notices))


def composited(photo: Photo, background: Sequence[float] = (1.0, 1.0, 1.0)) -> Photo:
    """The photo on one colour (sRGB) outside its mask; unchanged without a mask."""
    if photo.mask is None:
        return photo
    colour = torch.tensor(list(background), dtype=torch.float32)
    rest = (1 - photo.mask)[..., None]  # [H, W, 1]
    if photo.on_white:
        image = photo.image + rest * (colour - 1)
    else:
        image = photo.image * (1 - rest) + rest * colour
    return replace(photo, image=image.clamp(0, 1), on_white=bool((colour == 1).all()))


def natural_key(name: str) -> tuple:
    """Sorts r_2 before r_10."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name.casefold()) if part
    )


# --- finding ---------------------------------------------------------------------------------------------------------


def list_files(inputs: Sequence[Path], notices: list[str]) -> list[Path]:
    """The picture and video files that `inputs` stand for, in natural order, each once."""
    if not inputs:
        raise InputError("no photos were given; name a folder, picture files or a video.")
    files: list[Path] = []
    for path in inputs:
        path = Path(path)
        if path.is_dir():
            files += _files_of_folder(path, notices)
        elif path.suffix.lower() == ".json" and path.is_file():
            files += _files_of_transforms(path, notices)
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"{path} does not exist; check the path.")
    distinct = {file.resolve(): file for file in reversed(files)}  # a link and its target are one photo
    return sorted(distinct.values(), key=lambda file: (natural_key(file.name), str(file)))


def _files_of_folder(folder: Path, notices: list[str]) -> list[Path]:
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file()]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}); check its permissions.") from error
    pictures = [entry for entry in entries if entry.suffix.lower() in images.SUFFIXES]
    videos = [entry for entry in entries if entry.suffix.lower() in VIDEO_SUFFIXES]
    chosen = pictures or videos
    if not chosen and (folder / "images").is_dir():
        return _files_of_folder(folder / "images", notices)
    transforms = next((folder / name for name in TRANSFORMS if (folder / name).is_file()), None)
    if not chosen and transforms is not None:
        return _files_of_transforms(transforms, notices)
    if not chosen:
        raise InputError(
            f"{folder} holds no picture ({len(entries)} other files); give a folder with JPEG, PNG, WebP, HEIC or TIFF files."
        )
    if len(chosen) < len(entries):
        others = sorted(entry.name for entry in set(entries) - set(chosen))
        notices.append(f"{len(others)} files in {folder.name} are no photos and were ignored ({_some(others)}).")
    return chosen


def _files_of_transforms(path: Path, notices: list[str]) -> list[Path]:
    from recon.poses.from_file import photos_of_transforms

    files = photos_of_transforms(path)
    notices.append(f"{path.name} names {len(files)} photos.")
    return files


def _without_copies(files: list[Path], skipped: list[tuple[str, str]]) -> tuple[list[Path], dict[Path, str]]:
    """Files with different bytes, and the SHA-256 of each."""
    first: dict[str, Path] = {}
    hashes: dict[Path, str] = {}
    for path in files:
        try:
            digest = _sha256(path)
        except (OSError, InputError) as error:
            skipped.append((path.name, f"{path.name} cannot be read ({error}); check the file."))
            continue
        if digest in first:
            skipped.append(
                (path.name, f"{path.name} is a copy of {first[digest].name} (the same bytes); one of them is enough.")
            )
        else:
            first[digest] = path
            hashes[path] = digest
    return list(hashes), hashes


def _sha256(path: Path) -> str:
    if not path.is_file():  # a pipe would block for ever
        raise InputError("not a regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _thinned(files: list[Path], limit: int, notices: list[str], what: str) -> list[Path]:
    if limit <= 0 or len(files) <= limit:
        return files
    notices.append(f"{len(files)} {what} were thinned evenly to {limit}; raise the limit to use more, at the price of time.")
    if limit == 1:
        return files[:1]
    return [files[round(i * (len(files) - 1) / (limit - 1))] for i in range(limit)]


def _frames_each(files: Sequence[Path], limit: int) -> int:
    """Frames to take of each video: what the pictures leave of `limit`, shared, but some even where they leave nothing."""
    videos = sum(path.suffix.lower() in VIDEO_SUFFIXES for path in files)
    if videos == 0:
        return 0
    left = max(limit - (len(files) - videos), min(FEWEST_FRAMES * videos, limit))
    return max(left // videos, 1)


def unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for each file: its own, with only letters, digits and `-_. ` kept, numbered where two would collide.

    A video's is without suffix, for its frames to add theirs.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in files:
        stem = re.sub(r"[^\w\-. ]", "_", path.stem).strip(". ")[:80] or "photo"
        suffix = "" if path.suffix.lower() in VIDEO_SUFFIXES else re.sub(r"[^\w.]", "", path.suffix)[:10]
        name, count = f"{stem}{suffix}", 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}-{count}{suffix}"
        taken.add(name.casefold())
        names[path] = name
    return names


def _require(photos: list[Photo], skipped: list[tuple[str, str]], minimum: int) -> None:
    if len(photos) >= minimum:
        return
    found = "1 photo" if len(photos) == 1 else f"{len(photos) or 'no'} photos"
    reason = f" ({skipped[0][1].rstrip('.')})" if skipped else ""
    raise InputError(
        f"only {found} of the {len(photos) + len(skipped)} given can be used, {minimum} are needed{reason}; add photos taken "
        "from different places around the subject."
    )


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_photo(path: Path, name: str, sha256: str, config: PhotoConfig) -> Photo:
    image, alpha, meta = images.read_image(path, max_pixels=config.max_pixels, max_side=config.max_side)
    if min(image.shape[:2]) < 32:
        raise InputError(f"{path.name} has {meta.width} x {meta.height} pixels; photos need at least 32 along each side.")
    if alpha is not None and alpha.max() == 0:
        raise InputError(f"{path.name} is fully transparent; export it with its subject opaque.")
    if alpha is not None:
        image = image * alpha[..., None] + (1 - alpha)[..., None]
    scale = max(image.shape[:2]) / max(meta.width, meta.height)
    focal = None if meta.focal_px is None else meta.focal_px * scale
    return Photo(name, path, sha256, image, alpha, focal, (meta.width, meta.height), meta.camera, on_white=alpha is not None)


def _video_frames(path: Path, name: str, count: int, config: PhotoConfig, notices: list[str]) -> list[Photo]:
    from recon.video import sharp_frames

    frames = sharp_frames(path, count, config.max_side, config.max_pixels)
    span = frames[-1].seconds - frames[0].seconds
    notices.append(f"{path.name}: the {len(frames)} sharpest frames, spread over {span:.1f} s, were taken.")
    return [
        Photo(
            f"{name}_{frame.index:06d}.png",
            path,
            hashlib.sha256(frame.image.numpy().tobytes()).hexdigest(),
            frame.image,
            None,
            None,
            frame.original_size,
        )
        for frame in frames
    ]


# --- masks -----------------------------------------------------------------------------------------------------------


def _with_masks(photos: list[Photo], config: PhotoConfig, notices: list[str]) -> list[Photo]:
    if not config.masks:
        return photos
    if config.masks == "auto":
        from recon.masks import cut_out

        return cut_out(photos, notices)
    folder = Path(config.masks)
    if not folder.is_dir():
        raise InputError(f"the masks folder {folder} does not exist; give a folder of masks named like the photos, or auto.")
    by_stem = {_mask_stem(file.name): file for file in sorted(folder.iterdir()) if file.suffix.lower() in images.SUFFIXES}
    found = [photo for photo in photos if _mask_stem(photo.path.name) in by_stem or _mask_stem(photo.name) in by_stem]
    if not found:
        raise InputError(
            f"none of the {len(by_stem)} masks in {folder} is named like a photo; {photos[0].name} "
            f"wants {Path(photos[0].name).stem}.png."
        )
    if len(found) < len(photos):
        without = [photo.name for photo in photos if photo not in found]
        notices.append(f"{len(without)} of {len(photos)} photos have no mask ({_some(without)}).")
    out = []
    for photo in photos:
        file = by_stem.get(_mask_stem(photo.name)) or by_stem.get(_mask_stem(photo.path.name))
        out.append(photo if file is None else replace(photo, mask=_read_mask(file, photo, config), on_white=False))
    return out


def _mask_stem(name: str) -> str:
    """IMG_1.jpg, IMG_1.png, IMG_1.jpg.png and IMG_1_mask.png all name the mask of IMG_1."""
    stem = Path(name).stem
    if Path(stem).suffix.lower() in images.SUFFIXES:
        stem = Path(stem).stem
    return stem.removesuffix("_mask").casefold()


def _read_mask(file: Path, photo: Photo, config: PhotoConfig) -> Tensor:
    """[H, W] foreground at the photo's working size; white, or opaque, is foreground."""
    try:
        image, alpha, meta = images.read_image(file, max_pixels=config.max_pixels)
    except InputError as error:  # which may be named exactly as its photo
        raise InputError(f"the mask {error}") from error
    width, height = photo.size
    if abs(meta.width * height / (meta.height * width) - 1) > 0.02:
        raise InputError(
            f"the mask {file.name} has {meta.width} x {meta.height} pixels and its photo {photo.original_size[0]} x "
            f"{photo.original_size[1]}; give masks of the photo's shape."
        )
    mask = alpha if alpha is not None else image.mean(dim=-1)
    if mask.max() < 0.5:
        raise InputError(f"the mask {file.name} is empty; paint the subject white.")
    resized = torch.nn.functional.interpolate(
        mask[None, None], (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0, 0].clamp(0, 1)
