"""Depth maps on the photos' pixels."""

import pytest
import torch

from recon.fit_priors import fit_priors
from recon.priors import DepthMap
from splat.cameras import Cameras
from splat.views import Views


def views(width, height, names):
    cameras = Cameras.orbit(len(names), 3.0, 10, 45, width, height)
    return Views(torch.rand(len(names), height, width, 3), names, cameras)


def test_maps_of_any_size_come_onto_the_photos_pixels():
    photos = [views(8, 6, ("a", "b")), views(6, 4, ("c",))]
    small = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    maps = [DepthMap("a", small, small), DepthMap("b", torch.full((6, 8), 5.0), torch.ones(6, 8)), DepthMap("c", small, small)]
    priors = fit_priors(photos, maps)
    assert priors.fits(photos) and [d.shape for d in priors.depths] == [(2, 6, 8), (1, 4, 6)]
    torch.testing.assert_close(priors.depths[0][0], small.repeat_interleave(3, 0).repeat_interleave(4, 1))
    assert set(priors.depths[1].unique().tolist()) == {0, 1, 2, 3}  # nothing between known and unknown


def test_order_matters():
    photos = [views(8, 6, ("a", "b"))]
    flat = torch.ones(6, 8)
    with pytest.raises(AssertionError):
        fit_priors(photos, [DepthMap("b", flat, flat), DepthMap("a", flat, flat)])
