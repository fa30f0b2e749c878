"""Objects made as if their picture had been taken from the protocol's distance, for a picture that was taken from another."""

from __future__ import annotations

import torch

from diffusion.data.object_views import DISTANCE
from diffusion.subject import Subject
from splat.gaussians import Splats
from splat.render import RenderOptions, render
from splat.similarity import Similarity

MEASURED_SIDE = 64  # px of the picture from which the distance of the visible surface is taken
LEAST_COVERAGE = 0.5


@torch.no_grad()
def scaled_for_its_camera(splats: Splats, picture: Subject, threads: int | None = None) -> Splats:
    """`splats` scaled about the origin so that what the picture shows of them is as large as it was from `DISTANCE`.

    The frame's focal length grows with the distance D, so what lies at the object's middle keeps its size and what is o nearer
    to the camera loses some: it appeared with 1 / (1 - o / DISTANCE) of the middle's size and now with 1 / (1 - o / D). With o
    the mean over the visible surface, the scale s that makes it as large as before fulfils
    s / (1 - s o / D) = 1 / (1 - o / DISTANCE).
    """
    distance = picture.distance
    if distance == DISTANCE:
        return splats
    camera = Subject(picture.image, picture.alpha, picture.azimuth_deg, picture.elevation_deg).cameras(MEASURED_SIDE)
    drawn = render(splats, camera, RenderOptions(threads=threads))
    seen = drawn.alpha[0] > LEAST_COVERAGE
    if not bool(seen.any()):
        return splats
    nearer = DISTANCE - float(drawn.expected_depth[0][seen].mean())
    scale = 1 / (1 - nearer / DISTANCE + nearer / distance)
    return splats.transformed(Similarity(torch.eye(3), torch.zeros(3), scale))
