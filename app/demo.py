"""The bundled example."""

from __future__ import annotations

from pathlib import Path

from splat.errors import InputError


def example_photos() -> Path:
    """The folder of example photos: inside the installed package, or in `assets/` of a checkout."""
    app = Path(__file__).parent
    places = [app / "assets" / "example" / "photos", app.parent / "assets" / "example" / "photos"]
    for place in places:
        if place.is_dir():
            return place
    raise InputError(
        f"The example photos are missing ({places[0]}); reinstall splatsmith, or run `make example` in a checkout."
    )
