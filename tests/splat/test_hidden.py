"""Which places no photo shows."""

import torch

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.hidden import hidden
from splat.views import Views


def wall() -> Splats:
    """A closed square of 0.6 on the plane z = 0, of Gaussians 0.03 apart."""
    x = torch.linspace(-0.3, 0.3, 21)
    means = torch.stack([*torch.meshgrid(x, x, indexing="xy"), torch.zeros(21, 21)], dim=-1).reshape(-1, 3)
    n = len(means)
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(n, 1)
    return Splats(means, quats, torch.full((n, 3), -3.7), torch.full((n,), 5.0), torch.zeros(n, 1, 3))


def seen_from(*azimuths: float) -> list[Views]:
    cameras = [Cameras.orbit(1, 2.0, 0.0, 40.0, 48, 48, azimuth_deg=a) for a in azimuths]
    return [Views(torch.ones(1, 48, 48, 3), (f"{i}",), camera) for i, camera in enumerate(cameras)]


POINTS = torch.tensor(
    [[0.0, 0, 0.2], [0, 0, 0.0], [0, 0, -0.02], [0, 0, -0.2], [0.5, 0, -0.2], [0, 0, 3.0], [3.0, 0, 0], [0.22, 0, -0.2]]
)


def test_what_lies_behind_the_surface_or_outside_of_the_picture_is_hidden():
    told = hidden(POINTS, wall(), seen_from(0.0), margin=0.05)
    # before it, on it, just behind it, behind it, beside it, behind the camera, left of the picture, behind its edge
    assert told.tolist() == [False, False, False, True, False, True, True, True]


def test_one_photo_that_shows_a_place_is_enough():
    assert hidden(POINTS, wall(), seen_from(0.0, 180.0), margin=0.05).tolist()[3] is False, "the photo from behind shows it"
    assert hidden(POINTS, wall(), seen_from(0.0, 60.0), margin=0.05).tolist()[7] is False, "looking past the edge"
    assert not hidden(POINTS[:5], wall()[:0], seen_from(0.0), margin=0.05).any(), "nothing hides them"
