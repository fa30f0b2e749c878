"""MapAnything (Keetha et al., 3DV 2026): metric cameras and depth of many photos, through its authors' package.

Its answer is a list with one dictionary per photo: `camera_poses` [1, 4, 4] world-from-camera in OpenCV axes, `intrinsics`
[1, 3, 3], `depth_z` [1, H, W, 1], `conf` [1, H, W] >= 1, `mask` [1, H, W, 1] of what is valid; lengths are metres, with
`metric_scaling_factor` already applied. Of the two published weights, map-anything-apache is Apache-2.0 and map-anything
CC-BY-NC-4.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recon.priors.from_disk import load_mixin, package_class, silence
from recon.priors.learned import PriorWeights
from recon.priors.offline import no_downloads
from recon.priors.scene_prediction import ScenePrediction, confidence_of_loss
from splat.cameras import Cameras

SIDE, MULTIPLE = 518, 14
MEAN, STD = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # of ImageNet


def predict_scene(images: Tensor, weights: PriorWeights, device: torch.device | str = "cpu") -> ScenePrediction:
    """[C, 3, h, w] sRGB in [0, 1], the sides multiples of 14 -> cameras and depth. Raises `InputError` for broken weights."""
    network = load_mixin(package_class(weights, "mapanything.models", "MapAnything"), weights.folder).to(device)
    pictures = (images - MEAN) / STD  # as its encoder, DINOv2, wants them
    views = [{"img": p[None].to(device), "data_norm_type": ["dinov2"], "instance": [str(i)]} for i, p in enumerate(pictures)]
    with no_downloads(), silence(), torch.inference_mode():
        answer = network.infer(views, use_amp=torch.device(device).type == "cuda", apply_mask=True, mask_edges=True)
    return converted(answer)


def converted(answer: Sequence[Mapping[str, Tensor]]) -> ScenePrediction:
    """The network's list for one scene -> `ScenePrediction`, float32 on the CPU."""

    def stacked(key: str) -> Tensor:
        return torch.stack([photo[key][0].detach().float().cpu() for photo in answer])

    depth = stacked("depth_z")[..., 0]
    height, width = depth.shape[1:]
    if "mask" in answer[0]:
        depth = torch.where(stacked("mask")[..., 0] > 0.5, depth, 0.0)
    pose = torch.linalg.inv(stacked("camera_poses").double()).float()
    return ScenePrediction(
        Cameras(pose, stacked("intrinsics"), width, height), depth, confidence_of_loss(stacked("conf")), metric=True
    )
