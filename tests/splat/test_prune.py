"""Which Gaussians are seen."""

import math

import torch

from splat.cameras import Cameras, intrinsics
from splat.gaussians import Splats
from splat.prune import visibility
from splat.render import RenderOptions


def test_visibility_counts_pixels_and_hidden_ones_have_none():
    """A wide opaque wall, a small Gaussian in front of it and one behind it, seen by one camera on +Z."""
    cameras = Cameras.look_at(
        torch.tensor([[0.0, 0, 3]]), torch.zeros(3), torch.tensor([0.0, 1, 0]), intrinsics(64, 64, 64), 64, 64
    )
    grid = torch.linspace(-2, 2, 41)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    wall = torch.stack([x.flatten(), y.flatten(), torch.zeros(1681)], -1)
    means = torch.cat([wall, torch.tensor([[0.0, 0, 1], [0.0, 0, -1]])])
    n = len(means)
    scales = torch.full((n, 3), math.log(0.1))
    scales[-2:] = math.log(0.05)
    splats = Splats(means, torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1), scales, torch.full((n,), 6.0), torch.randn(n, 1, 3))
    seen = visibility(splats, [cameras], RenderOptions(), "reference")
    assert seen.shape == (n,)
    # Standard deviation 0.05 at depth 2 and focal 64 is 1.6 px, with the low-pass 1.69: about 2 pi 1.69^2 pixels,
    # a little more where saturation flattens the peak, a little less where weights under 1/255 are cut.
    assert 15 < float(seen[-2]) < 20
    assert float(seen[-1]) < 0.01
    assert torch.equal(seen, visibility(splats, [cameras[[0, 0]]], RenderOptions(), "reference"))  # the largest, not the sum
