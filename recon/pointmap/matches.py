"""What the network is told of each picture by XFeat: descriptors of its cells, and which cell of the other picture is alike.

Descriptors learnt on millions of real pictures are what few made-up rooms cannot teach; XFeat itself stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CELL = 8  # px of a picture to a cell of XFeat
CHANNELS = 64
SHARPNESS = 40.0  # of the softmax over cosines: right cells then get 0.4 on average, wrong ones half of it


@torch.inference_mode()
def described(images: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, H, W], sides multiples of 8 -> unit descriptors [B, 64, H/8, W/8] and trust [B, H/8, W/8]."""
    from recon.features import _xfeat

    found, _, reliability = _xfeat(str(device)).net(images.to(device))
    return F.normalize(found, dim=1).clone(), reliability[:, 0].clone()


def cell_matches(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Descriptors [B, C, h, w] of two pictures -> for each [B, h, w, 3]: where its cells lie in the other, and how surely.

    The shift (x, y) to the best cell by mutual softmax, refined over that cell's neighbours, in long sides of the picture,
    and its probability.
    """
    h, w = first.shape[-2:]
    cosines = first.flatten(2).mT @ second.flatten(2)  # [B, h w, h w]
    alike = (SHARPNESS * (cosines - 1)).exp()
    # the geometric mean of the softmax over either picture
    likely = alike * alike.sum(2, keepdim=True).rsqrt() * alike.sum(1, keepdim=True).rsqrt()
    return _refined_best(likely, h, w), _refined_best(likely.mT, h, w)


def _refined_best(likely: Tensor, h: int, w: int) -> Tensor:
    sure, best = likely.max(2)  # [B, h w]
    x, y = best % w, best // w
    total = torch.zeros_like(sure)
    at = torch.zeros(*sure.shape, 2, device=sure.device)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            inside = (x + dx >= 0) & (x + dx < w) & (y + dy >= 0) & (y + dy < h)
            cell = (y + dy).clamp(0, h - 1) * w + (x + dx).clamp(0, w - 1)
            weight = likely.gather(2, cell[..., None])[..., 0] * inside
            total = total + weight
            at = at + weight[..., None] * torch.stack([x + dx, y + dy], dim=-1)
    rows = torch.arange(h * w, device=sure.device)
    shift = (at / total.clamp_min(1e-12)[..., None] - torch.stack([rows % w, rows // w], dim=-1)) / max(h, w)
    return torch.cat([shift, sure[..., None]], dim=-1).unflatten(1, (h, w))
