"""The fixed peer of the kernel benchmark: gsplat's own projection and SH in PyTorch, and a tiled PyTorch compositor.

Kept as it is, so that figures from different days compare; the product's reference renderer may change, this does not.
"""

from __future__ import annotations

import torch
from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics
from torch import Tensor

from splat.cameras import Cameras
from splat.gaussians import Splats

TILE = 16


def render(splats: Splats, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """One camera -> rgb [H, W, 3] on black, alpha [H, W], depth [H, W]; gsplat's semantics."""
    assert len(cameras) == 1
    width, height = cameras.width, cameras.height
    covars, _ = _quat_scale_to_covar_preci(splats.quats, splats.scales, True, False)
    radii, means2d, depths, conics, _ = _fully_fused_projection(
        splats.means, covars, cameras.cam_from_world, cameras.K, width, height
    )
    radii, means2d, depths, conics = radii[0], means2d[0], depths[0], conics[0]
    directions = splats.means - cameras.centers
    colours = (_spherical_harmonics(splats.sh_degree, directions, splats.sh) + 0.5).clamp_min(0)
    features = torch.cat([colours, depths[:, None], torch.ones_like(depths)[:, None]], dim=1)  # [N, 5]
    order = depths.argsort()
    order = order[(radii[order] > 0).all(-1)]
    low = ((means2d - radii).detach() / TILE).floor()[order]
    high = ((means2d + radii).detach() / TILE).floor()[order]
    rows = []
    for ty in range(-(-height // TILE)):
        in_row = (low[:, 1] <= ty) & (high[:, 1] >= ty)
        row_order, row_low, row_high = order[in_row], low[in_row, 0], high[in_row, 0]
        row = []
        for tx in range(-(-width // TILE)):
            m = row_order[(row_low <= tx) & (row_high >= tx)]
            row.append(_tile(means2d[m], conics[m], splats.opacities[m], features[m], tx, ty))
        rows.append(torch.cat(row, dim=1))
    image = torch.cat(rows)[:height, :width]
    return image[..., :3], image[..., 4], image[..., 3]


def _tile(means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, tx: int, ty: int) -> Tensor:
    step = torch.arange(TILE) + 0.5
    dx = (step + tx * TILE - means2d[:, :1])[:, None, :]
    dy = (step + ty * TILE - means2d[:, 1:])[:, :, None]
    a, b, c = (conics[:, k, None, None] for k in range(3))
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities[:, None, None] * torch.exp(-sigma)).clamp_max(0.999)
    alpha = torch.where((alpha >= 1 / 255) & (sigma >= 0), alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    weight = torch.where(after > 1e-4, alpha * before, torch.zeros_like(alpha))
    return torch.einsum("myx,mf->yxf", weight, features)
