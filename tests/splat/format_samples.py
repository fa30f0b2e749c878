"""Splats for the tests of file formats, and how far two readings of them differ."""

import math

import torch

from splat.gaussians import Splats


def random_splats(n=40, degree=3, seed=0, spread=1.0):
    """Values as a fitted scene has them: within the ranges of every format."""
    g = torch.Generator().manual_seed(seed)
    sh = 0.15 * torch.randn(n, (degree + 1) ** 2, 3, generator=g)
    sh[:, 0] = (torch.rand(n, 3, generator=g) - 0.5) * 3.5  # colours within [0, 1], which is all that .splat holds
    return Splats(
        means=spread * torch.randn(n, 3, generator=g),
        quats=torch.randn(n, 4, generator=g),
        log_scales=(torch.randn(n, 3, generator=g) - 3).clamp(-8, 4),
        opacity_logits=(2 * torch.randn(n, generator=g)).clamp(-5, 5),
        sh=sh.clamp(-0.9, 0.9) if degree == 0 else torch.cat([sh[:, :1], sh[:, 1:].clamp(-0.9, 0.9)], dim=1),
    )


def paired(splats, others):
    """The rows of `splats` in the order of `others`, by the nearest centre."""
    return splats[torch.cdist(others.means.double(), splats.means.double()).argmin(1)]


def differences(a, b):
    """The largest difference of each kind between the rows of `a` and `b`; SH over the bands that both have."""
    terms = min(a.sh.shape[1], b.sh.shape[1])
    unit = [torch.nn.functional.normalize(s.quats.double(), dim=1) for s in (a, b)]
    unit[1] = unit[1] * torch.where((unit[0] * unit[1]).sum(1, keepdim=True) < 0, -1, 1)
    chord = (unit[0] - unit[1]).norm(dim=1)
    return {
        "position": float((a.means - b.means).abs().max()),
        "angle_deg": math.degrees(float((4 * (chord / 2).asin()).max())),
        "log_scale": float((a.log_scales - b.log_scales).abs().max()),
        "opacity": float((a.opacities - b.opacities).abs().max()),
        "rgb": float((a.rgb - b.rgb).abs().max()),
        "sh": float((a.sh[:, 1:terms] - b.sh[:, 1:terms]).abs().max()) if terms > 1 else 0.0,
    }
