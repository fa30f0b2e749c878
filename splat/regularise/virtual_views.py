"""Pictures from between the photos, made of the points that the two photos beside them are known to show.

LM-Gaussian (Yu, Long, Tan 2024) interpolates camera matrices and draws one point cloud of all photos. Here a virtual camera
goes along an arc about what its two photos look at, and only the points of these two are drawn: from between them nearly all
of these are visible, while a cloud of all photos shows its far side through the holes of its near one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from splat.cameras import Cameras, nearest_to_axes
from splat.gaussians import Splats
from splat.losses import photometric
from splat.regularise.config import Priors, VirtualView
from splat.render import RenderOptions, render
from splat.rotations import matrix_from_quat, quat_from_matrix
from splat.sh import from_rgb
from splat.views import Views

SOLID = 0.9  # alpha of a point render from which its colour counts
OPACITY = 0.98  # of a point
SIZE = 0.6  # standard deviation of a point, in pixels of its own photo
HIDDEN = 0.98  # a known surface nearer than this share of the drawn depth hides what was drawn
WIDEST_DEG = 100.0  # photos farther apart than this, seen from what they look at, share too little to look from between


def virtual_views(views: list[Views], priors: Priors, per_pair: int, scale: float, backend: str = "auto") -> list[VirtualView]:
    """`per_pair` views at equal steps between each photo and its nearest ones, `scale` times as large as the photos.

    `priors.depths` must be in the world's units. Views without a single known pixel are left out; may be empty.
    """
    photos = [(v, i) for v in range(len(views)) for i in range(len(views[v]))]
    cameras = [views[v].cameras[i] for v, i in photos]
    points = [_points(views[v], i, priors.depths[v][i], scale) for v, i in photos]
    found = []
    for a, b in neighbours(cameras):
        pair = Splats.cat([points[a], points[b]])
        others = [p for k, p in enumerate(points) if k not in (a, b) and len(p)]
        for k in range(per_pair):
            camera = between(cameras[a], cameras[b], (k + 1) / (per_pair + 1))
            camera = camera.resized(max(round(camera.width * scale), 1), max(round(camera.height * scale), 1))
            if len(pair) == 0:
                continue
            drawn = _drawn(pair, others, camera, backend)
            if bool(drawn.known.any()):
                found.append(drawn)
    return found


def neighbours(cameras: list[Cameras], each: int = 2) -> list[tuple[int, int]]:
    """Pairs (i < j) of cameras of batches of one: each with those that look at the subject from most nearly its side."""
    centers = torch.cat([c.centers for c in cameras]).double().cpu()
    forward = torch.cat([c.forward for c in cameras]).double().cpu()
    rays = torch.nn.functional.normalize(centers - _focus(centers, forward), dim=-1)
    apart = (rays @ rays.T).clamp(-1, 1).acos().rad2deg()
    apart.fill_diagonal_(math.inf)
    pairs = set()
    for i, row in enumerate(apart):
        for j in row.argsort()[:each].tolist():
            if row[j] <= WIDEST_DEG:
                pairs.add((min(i, j), max(i, j)))
    return sorted(pairs)


def between(first: Cameras, second: Cameras, share: float) -> Cameras:
    """The camera (a batch of one) `share` of the way from `first` to `second`, of the first one's size.

    Direction and distance from the point that both look at go along an arc, orientation by slerp, K linearly; so a walk round
    a subject stays outside it.
    """
    centers = torch.cat([first.centers, second.centers]).double()
    focus = _focus(centers.cpu(), torch.cat([first.forward, second.forward]).double().cpu()).to(centers)
    offset = centers - focus
    distance = offset.norm(dim=-1)
    direction = _slerp(*(offset / distance.clamp_min(1e-12)[:, None]), share)
    center = focus + direction * (distance[0] ** (1 - share) * distance[1] ** share)
    quats = quat_from_matrix(torch.cat([first.cam_from_world, second.cam_from_world])[:, :3, :3].double())
    quat = _slerp(quats[0], quats[1] if quats[0] @ quats[1] >= 0 else -quats[1], share)
    rotation = matrix_from_quat(quat)
    pose = torch.eye(4, dtype=torch.float64, device=center.device)
    pose[:3, :3], pose[:3, 3] = rotation, -(rotation @ center)
    K = first.K + share * (second.resized(first.width, first.height).K - first.K)
    return replace(first, cam_from_world=pose[None].to(first.cam_from_world), K=K)


def _focus(centers: Tensor, forward: Tensor) -> Tensor:
    """[3] what the cameras look at; for parallel axes, a point ahead at the distance of the cameras' own spread."""
    ahead = centers.mean(0) + forward.mean(0) * (centers - centers.mean(0)).norm(dim=-1).max().clamp_min(1e-6)
    return nearest_to_axes(centers, forward, ahead, pull=1e-3)


def _slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Unit vectors [D] -> the unit vector `share` of the way; straight where they are nearly the same."""
    angle = (a @ b).clamp(-1, 1).acos()
    if float(angle) < 1e-4:
        return torch.nn.functional.normalize(a + share * (b - a), dim=0)
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def _points(view: Views, i: int, depth: Tensor, scale: float) -> Splats:
    """The known pixels of one photo as small opaque splats, on a grid `scale` times as fine as the photo's."""
    width, height = (max(round(side * scale), 1) for side in view.size)
    small = view[[i]].resized(width, height)
    nearest = torch.nn.functional.interpolate(depth[None, None], (height, width), mode="nearest-exact")[0, 0]
    known = nearest > 0
    if small.masks is not None:
        known &= small.masks[0] > 0.99  # elsewhere the colour is partly the background's
    z = nearest[known]
    xyz = small.cameras.unproject(small.cameras.pixel_centers[known], z)[0]
    size = SIZE * z / (small.cameras.K[0, 0, 0] * small.cameras.K[0, 1, 1]).sqrt()
    quats = torch.zeros(len(z), 4, device=z.device)
    quats[:, 0] = 1
    logit = math.log(OPACITY / (1 - OPACITY))
    colour = from_rgb(small.images[0][known])[:, None]
    return Splats(xyz, quats, size.log()[:, None].repeat(1, 3), torch.full_like(z, logit), colour)


@torch.no_grad()
def _drawn(pair: Splats, others: list[Splats], camera: Cameras, backend: str) -> VirtualView:
    rendering = render(pair, camera, RenderOptions(), backend)
    known = rendering.alpha > SOLID
    if others:
        hiding = render(Splats.cat(others), camera, RenderOptions(), backend)
        known &= ~((hiding.alpha > SOLID) & (hiding.expected_depth < HIDDEN * rendering.expected_depth))
    image = rendering.rgb / rendering.alpha.clamp_min(1e-6)[..., None]
    return VirtualView(camera, image.clamp(0, 1), torch.ones_like(rendering.alpha), known.float())


def virtual_loss(image: Tensor, target: VirtualView, backdrop: Tensor) -> Tensor:
    """Mean over all pixels of the L1 distance to the target on `backdrop` [3], weighed by how much it is known.

    LM-Gaussian's virtual-view term; `image` [1, H, W, 3] is drawn on the same backdrop.
    """
    wanted = target.image + (1 - target.alpha[..., None]) * backdrop
    return ((image - wanted).abs().mean(-1) * target.known).mean()


def repaired_loss(image: Tensor, target: VirtualView, ssim_weight: float) -> Tensor:
    """The term of a repaired view, which stands on its own backdrop: L1 as `virtual_loss`, and `ssim_weight` of 1 - SSIM.

    For SSIM, what is not known is taken from `image` [1, H, W, 3] itself: there it agrees.
    """
    loss = virtual_loss(image, target, target.backdrop)
    if ssim_weight == 0:
        return loss
    known = target.known[..., None]
    wanted = known * target.image + (1 - known) * image.detach()
    return (1 - ssim_weight) * loss + ssim_weight * photometric(image, wanted, 1.0)
