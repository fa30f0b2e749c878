"""VGGT (Wang et al., CVPR 2025): cameras and depth of up to some dozens of photos in one pass, through its authors' package.

Its answer: `pose_enc` [1, S, 9] = translation (3), quaternion x, y, z, w (4) of camera-from-world in OpenCV axes, then the
vertical and the horizontal angle of view; `depth` [1, S, H, W, 1] in the units of its world; `depth_conf` [1, S, H, W] >= 1.
The world is the first photo's camera. The weights VGGT-1B are CC-BY-NC-4.0, VGGT-1B-Commercial has a licence of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recon.priors.from_disk import load_mixin, package_class, silence
from recon.priors.learned import PriorWeights
from recon.priors.offline import no_downloads
from recon.priors.scene_prediction import ScenePrediction, confidence_of_loss
from splat.cameras import Cameras
from splat.rotations import matrix_from_quat

SIDE, MULTIPLE = 518, 14  # px of the grid, and its patch


def predict_scene(images: Tensor, weights: PriorWeights, device: torch.device | str = "cpu") -> ScenePrediction:
    """[C, 3, h, w] sRGB in [0, 1], the sides multiples of 14 -> cameras and depth. Raises `InputError` for broken weights."""
    network = load_mixin(package_class(weights, "vggt.models.vggt", "VGGT"), weights.folder).to(device)
    on_gpu = torch.device(device).type == "cuda"
    with no_downloads(), silence(), torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
        answer = network(images[None].to(device))
    return converted(answer)


def converted(answer: Mapping[str, Tensor]) -> ScenePrediction:
    """The network's dictionary for one scene -> `ScenePrediction`, float32 on the CPU."""
    code = answer["pose_enc"][0].detach().float().cpu()  # [S, 9]
    depth = answer["depth"][0, ..., 0].detach().float().cpu()  # [S, H, W]
    height, width = depth.shape[1:]
    pose = torch.eye(4).repeat(len(code), 1, 1)
    pose[:, :3, :3] = matrix_from_quat(code[:, [6, 3, 4, 5]])  # ours are w, x, y, z
    pose[:, :3, 3] = code[:, :3]
    K = torch.zeros(len(code), 3, 3)
    K[:, 0, 0] = 0.5 * width / (0.5 * code[:, 8]).tan()
    K[:, 1, 1] = 0.5 * height / (0.5 * code[:, 7]).tan()
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = 0.5 * width, 0.5 * height, 1.0
    confidence = confidence_of_loss(answer["depth_conf"][0].detach().float().cpu())
    return ScenePrediction(Cameras(pose, K, width, height), depth.clone(), confidence)
