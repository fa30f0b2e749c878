"""DUSt3R (Wang et al., CVPR 2024) and MASt3R (Leroy et al., ECCV 2024): pointmaps of two photos, by their authors' packages.

Both answer with two dictionaries: `pts3d` [B, H, W, 3] of the first photo and `pts3d_in_other_view` [B, H, W, 3] of the second,
both in the first one's camera frame (OpenCV axes), each with `conf` [B, H, W] >= 1. Code and weights are CC-BY-NC-SA-4.0.
Weights are read as the hub has them, `config.json` and `model.safetensors`; the authors' `.pth` files are pickles: refused.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from recon.priors import StereoPrediction
from recon.priors.from_disk import load_mixin, package_class, silence
from recon.priors.learned import PriorWeights
from recon.priors.offline import no_downloads
from recon.priors.scene_prediction import confidence_of_loss
from splat.errors import StoppedLate
from splat.progress import Progress

SIDE, MULTIPLE = 512, 16
CLASSES = {"dust3r": ("dust3r.model", "AsymmetricCroCo3DStereo"), "mast3r": ("mast3r.model", "AsymmetricMASt3R")}


def predict_pairs(
    images: Tensor, pairs: Sequence[tuple[int, int]], weights: PriorWeights, device: torch.device | str = "cpu"
) -> Generator[Progress, None, list[StereoPrediction]]:
    """[C, 3, h, w] sRGB in [0, 1], the sides multiples of 16 -> one prediction per ordered pair of pictures.

    Raises `InputError` for broken weights, `StoppedLate` for an answer that is not finite.
    """
    module, name = CLASSES[weights.prior]
    network = load_mixin(package_class(weights, module, name), weights.folder).to(device)
    found = []
    for number, (i, j) in enumerate(pairs):
        views = [_view(images[k], k, device) for k in (i, j)]
        with no_downloads(), silence(), torch.inference_mode():
            prediction = converted(*network(*views))
        if not bool(prediction.points.isfinite().all()):
            raise StoppedLate(
                f"{weights.family.title} ({weights.source}) gave points that are not finite; its weights are damaged: fetch "
                "them again, or leave --prior out."
            )
        found.append(prediction)
        yield Progress("poses", number + 1, len(pairs), f"{weights.family.title}: photos {i + 1} and {j + 1}")
    return found


def converted(first: Mapping[str, Tensor], second: Mapping[str, Tensor], row: int = 0) -> StereoPrediction:
    """The network's two dictionaries -> the prediction of batch entry `row`, float32 on the CPU; scale unknown."""
    points = torch.stack([first["pts3d"][row], second["pts3d_in_other_view"][row]])
    conf = torch.stack([first["conf"][row], second["conf"][row]])
    return StereoPrediction(points.detach().float().cpu().clone(), confidence_of_loss(conf.detach().float().cpu()))


def _view(image: Tensor, number: int, device: torch.device | str) -> dict:
    """A picture as these networks want it: in [-1, 1], with its height and width."""
    shape = torch.tensor(np.int32([image.shape[1:]]))
    return {"img": (2 * image - 1)[None].to(device), "true_shape": shape, "idx": number, "instance": str(number)}
