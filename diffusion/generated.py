"""What turning pictures of an object into Gaussians ends with, whichever network does it."""

from __future__ import annotations

from dataclasses import dataclass

from splat.gaussians import Splats
from splat.views import Views


@dataclass(frozen=True)
class Generated:
    """One object, +Y up, its main picture's camera at azimuth 0 and the elevation of its subject."""

    splats: Splats
    views: Views  # rendered from the splats on white at the cameras that the network saw, with masks
