"""Depth Anything V2 (Yang et al., NeurIPS 2024) of transformers: the inverse depth of single photos, up to scale and offset.

The licence differs by size: small is Apache-2.0, base and large are CC-BY-NC-4.0. Its metric variants give depth, which is
believed up to scale alone.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor

from recon.priors.depth_guess import DepthGuess, each_photo
from recon.priors.from_disk import load_strictly, read_config
from recon.priors.learned import PriorWeights
from splat.errors import InputError
from splat.progress import Progress
from splat.views import Views

PATCH = 14
SIDE = 518  # px, what it was trained at
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def guess_depths(
    views: list[Views], weights: PriorWeights, device: torch.device | str = "cpu", seed: int = 0
) -> Generator[Progress, None, list[DepthGuess]]:
    """One guess per view, on the view's pixels. Raises `InputError` for a folder that does not load; see `load_strictly`."""
    from transformers import DepthAnythingForDepthEstimation

    network = load_strictly(DepthAnythingForDepthEstimation, weights.folder).to(device)
    side, mean, std = _preprocessing(weights.folder)
    metric = network.config.depth_estimation_type == "metric"

    def guess(image: Tensor) -> Tensor:
        small = (resized(image, side) - mean) / std  # [h, w, 3]
        out = network(pixel_values=small.permute(2, 0, 1)[None].to(device)).predicted_depth[0]  # [h, w]
        return torch.nn.functional.interpolate(out[None, None].float(), image.shape[:2], mode="bilinear", align_corners=False)[
            0, 0
        ]

    return (yield from each_photo(views, guess, "scaled" if metric else "inverse", weights))


def resized(image: Tensor, side: int) -> Tensor:
    """[H, W, 3] scaled, both sides multiples of 14, so that the one that needs less scaling becomes about `side` px long.

    As the image processor that comes with the weights does it (bicubic, proportions kept to the nearest patch).
    """
    height, width = image.shape[:2]
    scale = min(side / height, side / width, key=lambda s: abs(1 - s))
    size = tuple(max(PATCH, round(n * scale / PATCH) * PATCH) for n in (height, width))
    out = torch.nn.functional.interpolate(
        image.permute(2, 0, 1)[None], size, mode="bicubic", antialias=True, align_corners=False
    )
    return out[0].permute(1, 2, 0).clamp(0, 1)


def _preprocessing(folder: Path) -> tuple[int, Tensor, Tensor]:
    """(side, mean [3], standard deviation [3]) of preprocessor_config.json, or the published ones where there is none."""
    if not (folder / "preprocessor_config.json").is_file():
        return SIDE, torch.tensor(MEAN), torch.tensor(STD)
    config = read_config(folder, "preprocessor_config.json")
    try:
        side = int((config.get("size") or {}).get("height", SIDE))
        mean, std = (torch.tensor([float(x) for x in config.get(k, d)]) for k, d in (("image_mean", MEAN), ("image_std", STD)))
        if (
            not PATCH <= side <= 4096
            or mean.shape != (3,)
            or std.shape != (3,)
            or not bool((std > 0).all() & mean.isfinite().all())
        ):
            raise ValueError(f"size {side}")
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'preprocessor_config.json'} makes no sense ({str(error)[:80]}); copy it again.") from error
    return side, mean, std
