"""Where one more photo would help most, as the jobs ask and tell it: the report's entry, the picture, the check's answer."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.estimate import REFERENCE_SLOWDOWN, SECONDS_NEXT_PHOTO, clock, estimate_poses
from splat.errors import InputError, SplatsmithError
from splat.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from app.machine import Place
    from recon.next_photo import NextPhoto
    from recon.photos import Photo
    from splat.gaussians import Splats
    from splat.views import Views

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CHECK_SIDE = 160  # px, long side of the photos that the check looks at


def entry(found: NextPhoto) -> dict[str, Any]:
    """`next_photo` of report.json; the camera is a frame of cameras.json."""
    from recon.next_photo import sentence
    from recon.poses.from_file import frame_of

    return {
        "text": sentence(found),
        "nearest": found.nearest,
        "azimuth_deg": round(found.azimuth_deg, 2),
        "elevation_deg": round(found.elevation_deg, 2),
        "distance": round(found.distance, 3),
        "gain": round(found.gain, 4),
        "overlap": round(found.overlap, 3),
        "places": found.candidates,
        "camera": frame_of(found.camera, "next_photo"),
    }


def sheet(found: NextPhoto, views: Sequence[Views], splats: Splats) -> Tensor:
    """The page of `app.next_photo_sheet` for the posed photos that `found` came from."""
    from app.next_photo_sheet import next_photo_sheet
    from recon.next_photo import sentence

    names = [name for view in views for name in view.names]
    photos = [image for view in views for image in view.images]
    cameras = [view.cameras[i] for view in views for i in range(len(view))]
    return next_photo_sheet(found, sentence(found), photos[names.index(found.nearest)], cameras, names, splats)


# --- the check -------------------------------------------------------------------------------------------------------


def check_picture(path: Path | None) -> None:
    """Raises `InputError` where the picture could not be written at the end."""
    if path is None:
        return
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"--picture {path} has no suffix of a picture; give a name that ends in {', '.join(PICTURES)}.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--picture {path} has no folder to go to; make {path.absolute().parent} first.")


def look(
    photos: Sequence[Photo], picture: Path | None, place: Place
) -> Generator[Progress, None, tuple[str, dict[str, Any] | None]]:
    """Place the photos, fit them quickly and say where the next one helps most; with `picture`, draw it there.

    Returns the sentence and the report's entry; where nothing can be said, the reason and None. Yields the estimate first.
    """
    from recon.next_photo import NextPhotoConfig, next_photo
    from recon.poses import PoseConfig
    from recon.reconstruct import ReconstructConfig, reconstruct
    from splat.io.images import save_image

    seconds = look_seconds(len(photos), place)
    told = f"Where one more photo would help most: about {clock(seconds)}; --quick leaves this out."
    yield Progress("estimate", 1, 1, told, values={"seconds": seconds})
    poses = PoseConfig(device=place.device, max_cpu_seconds=120)
    config = NextPhotoConfig(backend=place.renderer, threads=place.threads)
    try:
        scene = yield from reconstruct(photos, ReconstructConfig(poses=poses, fit_side=CHECK_SIDE))
        views = [view.to(place.device) for view in scene.train]
        found = yield from next_photo(views, scene.initial.to(place.device), config)
    except SplatsmithError as error:
        return f"Where one more photo would help most cannot be told: {error}", None
    if found is None:
        return "No place was found from which a photo would be new and still overlap these enough.", None
    values = entry(found)
    if picture is not None:
        try:
            save_image(picture, sheet(found, scene.train, scene.initial))
        except OSError as error:
            raise InputError(f"{picture} cannot be written ({error.strerror or error}); give another --picture.") from error
    return values["text"], values


def look_seconds(photos: int, place: Place) -> float:
    slow = REFERENCE_SLOWDOWN if place.renderer == "reference" else 1.0
    return estimate_poses(photos, place.threads) + slow * SECONDS_NEXT_PHOTO
