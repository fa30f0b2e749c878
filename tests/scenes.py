"""Small scenes that several tests draw."""

import torch

from splat.cameras import Cameras, intrinsics
from splat.gaussians import Splats
from splat.sh import from_rgb


def random_splats(n=5, degree=3, seed=0, dtype=torch.float32):
    """Every field random and different; a cloud about as wide as the unit sphere, colours mostly inside [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    sh = 0.15 * torch.randn(n, (degree + 1) ** 2, 3, generator=g)
    sh[:, 0] = from_rgb(torch.rand(n, 3, generator=g))
    return Splats(
        means=0.5 * torch.randn(n, 3, generator=g),
        quats=torch.randn(n, 4, generator=g),
        log_scales=0.5 * torch.randn(n, 3, generator=g) - 2,
        opacity_logits=torch.randn(n, generator=g),
        sh=sh,
    ).to(dtype)


def one_splat(position, colour, scales=(0.1, 0.1, 0.1), opacity=0.9, dtype=torch.float32):
    """A single axis-aligned Gaussian of one colour."""
    return Splats(
        means=torch.tensor([position]),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        log_scales=torch.tensor([scales]).log(),
        opacity_logits=torch.tensor([opacity]).logit(),
        sh=from_rgb(torch.tensor([colour]))[:, None],
    ).map(lambda x: x.to(dtype))


def identity_camera(size=33, focal=40.0, dtype=torch.float32):
    """A centred camera at the origin of an OpenCV world, looking along +z."""
    return Cameras(torch.eye(4)[None], intrinsics(focal, size, size)[None], size, size).to(dtype)


def orbit(count=2, width=40, height=32, dtype=torch.float32):
    """Cameras round the origin from slightly above, 3 units away."""
    return Cameras.orbit(count, radius=3.0, elevation_deg=15.0, fov_deg=45.0, width=width, height=height).to(dtype)
