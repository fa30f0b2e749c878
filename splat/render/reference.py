"""The reference renderer: plain PyTorch, any device, float32 or float64. Every other back-end is tested against it.

"3D Gaussian Splatting for Real-Time Radiance Field Rendering" (Kerbl et al. 2023); the local affine projection is
"EWA Splatting" (Zwicker et al. 2002). Written to be read: one camera at a time, one 16x16 tile at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from splat import sh as harmonics
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.render import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN, Rendering, RenderOptions

TILE = 16  # pixels
# Above this many (pixel, Gaussian) pairs in one image, tiles are recomputed in the backward pass instead of stored.
STORED_PAIRS = 1 << 25


@dataclass(frozen=True)
class Projection:
    """M of the N Gaussians as one camera sees them, nearest first."""

    rows: Tensor  # [M] which Gaussians
    means2d: Tensor  # [M, 2] pixels
    conics: Tensor  # [M, 3] inverse 2-D covariance: xx, xy, yy
    depths: Tensor  # [M] z, world units
    opacities: Tensor  # [M] after the anti-aliasing compensation
    colours: Tensor  # [M, 3]
    half_extent: Tensor  # [M, 2] pixels, half the box outside which alpha < 1/255; not differentiable
    absgrad: Tensor | None = None  # [N, 2] the backward pass adds the absolute gradients of the means' shares here


def render(splats: Splats, cameras: Cameras, options: RenderOptions) -> Rendering:
    """See `splat.render.render`. Differentiable once in splats, poses and background."""
    probe = None
    if options.track_means2d:
        probe = splats.means.new_zeros(len(cameras), len(splats), 2).requires_grad_()
        probe.absgrad = torch.zeros_like(probe)
    images, means2d, radii = [], [], []
    for c in range(len(cameras)):
        p = project(splats, cameras, c, options, None if probe is None else probe[c])
        if probe is not None:
            p = replace(p, absgrad=probe.absgrad[c])
        rgb, alpha, depth = rasterise(p, cameras.width, cameras.height)
        if options.background is not None:
            rgb = rgb + (1 - alpha)[..., None] * options.background[c].to(rgb)
        images.append((rgb, alpha, depth))
        means2d.append(p.means2d.detach().new_zeros(len(splats), 2).index_put((p.rows,), p.means2d))
        radius = p.half_extent.amax(-1).ceil()
        radii.append(radius.new_zeros(len(splats)).index_put((p.rows,), radius))
    rgb, alpha, depth = (torch.stack(x) for x in zip(*images))
    return Rendering(rgb, alpha, depth, torch.stack(means2d), torch.stack(radii), probe)


def project(splats: Splats, cameras: Cameras, c: int, options: RenderOptions, probe: Tensor | None = None) -> Projection:
    """The Gaussians that touch the image of camera `c`. `probe` [N, 2] is added to the projected means."""
    pose, K = cameras.cam_from_world[c], cameras.K[c]
    rotation, width, height = pose[:3, :3], cameras.width, cameras.height
    in_front = (splats.means @ rotation.T + pose[:3, 3])[:, 2].detach() > options.near
    rows = in_front.nonzero().squeeze(-1)
    s = splats[rows]

    mean = s.means @ rotation.T + pose[:3, 3]  # [M, 3] camera frame
    z = mean[:, 2]
    focal, centre = torch.stack([K[0, 0], K[1, 1]]), K[:2, 2]
    means2d = mean[:, :2] / z[:, None] * focal + centre
    if probe is not None:
        means2d = means2d + probe[rows]

    # Jacobian of the projection at the mean, taken no farther than 30 % of the half image outside the frame: beyond, the
    # affine approximation explodes (gsplat's limits).
    size = torch.tensor([width, height], dtype=z.dtype, device=z.device)
    margin = 0.3 * 0.5 * size / focal
    tangent = (mean[:, :2] / z[:, None]).clamp(-(centre / focal + margin), (size - centre) / focal + margin)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [focal[0] / z, zero, -focal[0] * tangent[:, 0] / z, zero, focal[1] / z, -focal[1] * tangent[:, 1] / z], dim=-1
    ).unflatten(-1, (2, 3))
    to_image = jacobian @ rotation
    covariance = to_image @ s.covariances() @ to_image.mT  # [M, 2, 2]
    xx, xy, yy = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
    det_plain = xx * yy - xy * xy
    xx, yy = xx + options.low_pass, yy + options.low_pass
    det = (xx * yy - xy * xy).clamp_min(1e-12)
    conics = torch.stack([yy / det, -xy / det, xx / det], dim=-1)
    opacities = s.opacities
    if options.antialiased:
        opacities = opacities * (det_plain / det).clamp_min(1e-12).sqrt()

    directions = torch.nn.functional.normalize(s.means - cameras.centers[c], dim=-1)
    colours = harmonics.colours(s.sh, directions, options.sh_degree)

    with torch.no_grad():
        extent = (2 * (opacities / ALPHA_MIN).clamp_min(1).log()).sqrt()  # in standard deviations
        half = extent[:, None] * torch.stack([xx, yy], dim=-1).sqrt()
        seen = (opacities >= ALPHA_MIN) & (means2d + half > 0).all(-1) & (means2d - half < size).all(-1)
        order = torch.argsort(torch.where(seen, z, torch.inf), stable=True)[: int(seen.sum())]
    return Projection(
        rows[order], means2d[order], conics[order], z[order], opacities[order], colours[order], half[order]
    )  # fmt: skip


def rasterise(p: Projection, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """Front-to-back compositing -> rgb [H, W, 3] on black, alpha [H, W], depth [H, W]."""
    across, down = -(-width // TILE), -(-height // TILE)
    tile, member = tile_members(p, across, down)
    starts = torch.searchsorted(tile, torch.arange(across * down + 1, device=tile.device)).tolist()
    features = torch.cat([p.colours, p.depths[:, None], torch.ones_like(p.depths)[:, None]], dim=-1)  # [M, 5]
    rows = []
    keep = len(tile) * TILE * TILE <= STORED_PAIRS or not torch.is_grad_enabled()
    for ty in range(down):
        row = []
        for tx in range(across):
            t = ty * across + tx
            m = member[starts[t] : starts[t + 1]]
            means2d = p.means2d[m][:, None, None, :]  # [m, 1, 1, 2]
            if p.absgrad is not None:
                means2d = TrackedMeans.apply(p.means2d[m], p.absgrad, p.rows[m])
            args = (means2d, p.conics[m], p.opacities[m], features[m], tx, ty)
            row.append(composite_tile(*args) if keep else checkpoint(composite_tile, *args, use_reentrant=False))
        rows.append(torch.cat(row, dim=1))
    image = torch.cat(rows, dim=0)[:height, :width]
    return image[..., :3], image[..., 4], image[..., 3]


@torch.no_grad()
def tile_members(p: Projection, across: int, down: int) -> tuple[Tensor, Tensor]:
    """(tile id, Gaussian) for every tile a Gaussian's box touches, sorted by tile, nearest first inside a tile."""
    limit = torch.tensor([across, down], device=p.means2d.device)
    reach = p.half_extent + 1e-2  # px, covers rounding of the box; the alpha test decides
    low = ((p.means2d - reach) / TILE).floor().long().clamp_min(0).minimum(limit)
    high = ((p.means2d + reach) / TILE).floor().long().add(1).clamp_min(0).minimum(limit)
    span = (high - low).clamp_min(0)
    counts = span[:, 0] * span[:, 1]
    member = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    offset = torch.arange(len(member), device=counts.device) - (counts.cumsum(0) - counts)[member]
    tile = (low[member, 1] + offset // span[member, 0]) * across + low[member, 0] + offset % span[member, 0]
    tile, order = tile.sort(stable=True)
    return tile, member[order]


class TrackedMeans(torch.autograd.Function):
    """means2d [m, 2] -> [m, TILE, TILE, 2], one copy for each pixel, whose gradients are also added up as absolute values."""

    @staticmethod
    def forward(ctx, means2d: Tensor, absgrad: Tensor, rows: Tensor) -> Tensor:
        ctx.absgrad, ctx.rows = absgrad, rows
        return means2d[:, None, None, :].expand(-1, TILE, TILE, -1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.absgrad.index_add_(0, ctx.rows, gradient.abs().sum((1, 2)))
        return gradient.sum((1, 2)), None, None


def composite_tile(means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, tx: int, ty: int) -> Tensor:
    """m Gaussians, nearest first -> [TILE, TILE, F] weighted sums of `features` [m, F] at the tile's pixel centres.

    `means2d` is [m, 1 or TILE, 1 or TILE, 2].
    """
    step = torch.arange(TILE, dtype=means2d.dtype, device=means2d.device) + 0.5
    x, y = step + tx * TILE, step + ty * TILE
    dx = means2d[..., 0] - x  # [m, 1 or TILE, TILE]
    dy = means2d[..., 1] - y[:, None]  # [m, TILE, 1 or TILE]
    a, b, c = (conics[:, k, None, None] for k in range(3))
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy  # [m, TILE, TILE]
    alpha = (opacities[:, None, None] * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    alpha = torch.where((alpha >= ALPHA_MIN) & (sigma >= 0), alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    weight = torch.where(after > TRANSMITTANCE_MIN, alpha * before, torch.zeros_like(alpha))
    return torch.einsum("myx,mf->yxf", weight, features)
