"""Depth Anything 3 (Lin et al., 2025): cameras and depth of any number of photos, through its authors' package.

Its answer: `depth` [N, H, W]; `conf` [N, H, W] >= 1; `extrinsics` [N, 3, 4] (or 4 x 4) camera-from-world in OpenCV axes;
`intrinsics` [N, 3, 3] in pixels of the processed pictures; `sky` [N, H, W] bool where a model tells it. The licence differs by
size: small and base are Apache-2.0, large, giant and nested CC-BY-NC-4.0. The monocular models give no cameras and are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon.priors.from_disk import load_mixin, package_class, silence
from recon.priors.learned import PriorWeights
from recon.priors.offline import no_downloads
from recon.priors.scene_prediction import ScenePrediction, confidence_of_loss
from splat.cameras import Cameras
from splat.errors import InputError

SIDE, MULTIPLE = 504, 14


def predict_scene(images: Tensor, weights: PriorWeights, device: torch.device | str = "cpu") -> ScenePrediction:
    """[C, 3, h, w] sRGB in [0, 1], the sides multiples of 14 -> cameras and depth. Raises `InputError` for broken weights."""
    network = load_mixin(package_class(weights, "depth_anything_3.api", "DepthAnything3"), weights.folder).to(device)
    pictures = [(255 * image.permute(1, 2, 0)).round().byte().cpu().numpy() for image in images]
    # The pictures have the size that it would give them: what comes back is on their pixels.
    with no_downloads(), silence():
        answer = network.inference(pictures, process_res=max(images.shape[2:]))
    return converted(answer)


def converted(answer: Any) -> ScenePrediction:
    """Its `Prediction` -> `ScenePrediction`. Raises `InputError` for one without cameras."""
    if getattr(answer, "extrinsics", None) is None or getattr(answer, "intrinsics", None) is None:
        raise InputError(
            "These weights of Depth Anything 3 give depth and no cameras; use the small, base, large or giant model."
        )
    depth = _tensor(answer.depth)
    height, width = depth.shape[1:]
    extrinsics = _tensor(answer.extrinsics)
    pose = torch.eye(4).repeat(len(depth), 1, 1)
    pose[:, :3] = extrinsics[:, :3]
    conf = getattr(answer, "conf", None)
    confidence = torch.full_like(depth, 0.5) if conf is None else confidence_of_loss(_tensor(conf))
    sky = getattr(answer, "sky", None)
    if sky is not None:
        depth = torch.where(_tensor(sky) > 0.5, 0.0, depth)
    metric = bool(getattr(answer, "is_metric", 0))
    return ScenePrediction(Cameras(pose, _tensor(answer.intrinsics), width, height), depth, confidence, metric)


def _tensor(x: np.ndarray | Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(x)).float().clone()
