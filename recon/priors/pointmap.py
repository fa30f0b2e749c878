"""Our own two-view network (`recon/pointmap`) as a prior: pointmaps of pairs of photos, both orders from one call.

Its weights come from `splatsmith train pointmap-pack`; none ship with splatsmith (docs/pointmap.md says why).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from recon.pointmap.matches import described
from recon.pointmap.network import PairGeometry, PairInput, PointmapNetwork
from recon.priors import StereoPrediction
from recon.priors.learned import PriorWeights
from splat.errors import StoppedLate
from splat.progress import Progress

TAKES_FOCAL = True
SIDE, MULTIPLE = 320, 16  # of the pictures that XFeat sees; pointmaps come at half of it
ALPHA = 0.2  # of the training's confidence: the relative error at which certainty is 1
HALF_SURE = 0.05  # relative error expected where confidence is a half


def predict_pairs(
    images: Tensor,
    pairs: Sequence[tuple[int, int]],
    weights: PriorWeights,
    device: torch.device | str = "cpu",
    focal: float | None = None,
) -> Generator[Progress, None, list[StereoPrediction]]:
    """[C, 3, h, w] sRGB in [0, 1], the sides multiples of 16 -> one prediction per ordered pair of pictures.

    `focal` in long sides of the pictures, where all have one that is known. Raises `InputError` for broken weights,
    `StoppedLate` for an answer that is not finite.
    """
    network = PointmapNetwork.load(weights.folder).to(device)
    cells = [described(image[None], device) for image in images]
    small = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="area")
    asked = sorted({(min(ij), max(ij)) for ij in pairs})
    answers: dict[tuple[int, int], StereoPrediction] = {}
    for number, (i, j) in enumerate(asked):
        pair = PairInput(
            small[[i, j]][None], torch.stack([cells[i][0][0], cells[j][0][0]])[None],
            torch.stack([cells[i][1][0], cells[j][1][0]])[None], torch.full((1,), focal or 0.0),
        )  # fmt: skip
        with torch.inference_mode():
            said = network(pair.to(device))
        answers[i, j], answers[j, i] = both_orders(said)
        if not bool(answers[i, j].points.isfinite().all() & answers[j, i].points.isfinite().all()):
            raise StoppedLate(
                f"{weights.family.title} ({weights.source}) gave points that are not finite; its weights are damaged: pack "
                "them again, or leave --prior out."
            )
        yield Progress("poses", number + 1, len(asked), f"{weights.family.title}: photos {i + 1} and {j + 1}")
    return [answers[ij] for ij in pairs]


def both_orders(said: PairGeometry, row: int = 0) -> tuple[StereoPrediction, StereoPrediction]:
    """(prediction in the first picture's frame, prediction in the second's) of batch entry `row`, float32 on the CPU."""
    own, other = said.local_points()[row].cpu().float().clone(), said.points_in_other()[row].cpu().float().clone()
    confidence = confidence_of_certainty(said.certainty[row].cpu().float())
    return (
        StereoPrediction(torch.stack([own[0], other[1]]), confidence),
        StereoPrediction(torch.stack([own[1], other[0]]), confidence.flip(0)),
    )


def confidence_of_certainty(certainty: Tensor) -> Tensor:
    """DUSt3R's C (eq. 4, at its best alpha / error) -> [0, 1], a half where the expected relative error is HALF_SURE."""
    expected = ALPHA / certainty.clamp_min(1)
    return torch.where(certainty.isfinite(), 1 / (1 + (expected / HALF_SURE) ** 2), 0.0).clone()
