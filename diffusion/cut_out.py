"""Taking the subject out of a picture, offline: by its alpha, a plain background, a matting model on disk, or GrabCut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffusion.matting_model import find_matting_model, matting_mask
from diffusion.plain_background import plain_background_mask
from diffusion.soft_edge import soft_edge
from diffusion.subject import LEAST_PIXELS
from splat.errors import InputError
from splat.grabcut import middle_mask, subject_mask

Way = Literal["mask", "alpha", "plain background", "matting model", "grabcut", "whole picture"]

SEE_THROUGH = 0.02  # share of the pixels that must be transparent for alpha to say where the subject is
SHOWN = 0.5  # coverage from which a pixel is the subject's
SMALL, LARGE = 0.02, 0.95  # shares of the picture outside which a cut-out is doubtful
CUT_OFF = 0.05  # share of the picture's border that the subject may touch
CLEAR_OUTLINE = 0.88  # share of the outline that shows: subjects on a table have 0.95 to 1, cuts through a street 0.85
GRABBED = 0.03, 0.8  # share of the picture that GrabCut must find
PIECE = 0.02  # of the subject's area; smaller pieces do not count
MANY_PIECES = 4


@dataclass(frozen=True)
class CutOut:
    """A picture without its background."""

    image: Tensor  # [H, W, 3] sRGB, straight
    mask: Tensor  # [H, W] coverage in [0, 1]
    way: Way
    detail: str = ""  # the model's file name, or why nothing better could be done
    doubts: tuple[str, ...] = ()  # sentences without a subject: "covers 1 % of the picture"

    @property
    def facts(self) -> dict[str, float]:
        """What the doubts are read from."""
        return measured(self.mask)


def cut_out(image: Tensor, alpha: Tensor | None, mask: Tensor | None = None, model: Path | None = None) -> CutOut:
    """The subject of one picture [H, W, 3] sRGB with alpha [H, W] or None.

    `mask` [H, W], given by the user, goes before everything. A matting model is used where `model` names one or where rembg
    has left one on this machine. Raises `InputError` where there is no subject: transparent, one even colour, an empty mask.
    The same on every run.
    """
    if mask is not None:  # what lies under transparent pixels means nothing, also where the mask wants them
        return _judged(image if alpha is None else image * alpha[..., None] + 1 - alpha[..., None], mask, "mask")
    if alpha is not None:
        if int((alpha > SHOWN).sum()) < LEAST_PIXELS:
            raise InputError("it is transparent all over, so there is nothing to see; give a picture that shows its subject.")
        if float((alpha < SHOWN).float().mean()) > SEE_THROUGH:
            return _judged(image, alpha, "alpha")
        image = image * alpha[..., None] + 1 - alpha[..., None]
    if float((image - image.mean((0, 1))).abs().amax()) < 4 / 255:
        raise InputError("it is of one even colour, so there is no subject to be seen; give another picture.")
    if model is not None:
        return _judged(image, matting_mask(image, model), "matting model", model.name)
    subject = plain_background_mask(image)
    if subject is not None and int(subject.sum()) >= LEAST_PIXELS:
        return _judged(*soft_edge(image, subject), "plain background")
    model = find_matting_model()
    if model is not None:
        return _judged(image, matting_mask(image, model), "matting model", model.name)
    return _grabbed(image)


def _grabbed(image: Tensor) -> CutOut:
    """By GrabCut from the border, else from the middle, else the whole picture."""
    for found in (subject_mask(image), middle_mask(image)):
        mask = found.doubtful if found.mask is None else found.mask
        vague = f"only {100 * found.outline:.0f} % of its outline can be seen" if found.outline < CLEAR_OUTLINE else ""
        if mask is not None and GRABBED[0] < float(mask.mean()) < GRABBED[1]:
            return _judged(*soft_edge(image, mask > SHOWN), "grabcut", found.reason or vague)
    return _judged(image, torch.ones(image.shape[:2]), "whole picture", found.reason)


def measured(mask: Tensor) -> dict[str, float]:
    """Shares of the picture that the subject covers and of its border that it touches, and its number of larger pieces."""
    import cv2

    shown = mask.numpy() > SHOWN
    edge = np.concatenate([shown[0], shown[-1], shown[:, 0], shown[:, -1]])
    count, _, stats, _ = cv2.connectedComponentsWithStats(shown.astype(np.uint8), connectivity=8)
    areas = stats[1:count, cv2.CC_STAT_AREA]
    return {
        "covers": float(shown.mean()),
        "touches": float(edge.mean()),
        "pieces": int((areas > PIECE * shown.sum()).sum()),
    }


def _judged(image: Tensor, mask: Tensor, way: Way, detail: str = "") -> CutOut:
    facts = measured(mask)
    if facts["covers"] * mask.numel() < LEAST_PIXELS:
        raise InputError(
            f"its {way} leaves {facts['covers'] * mask.numel():.0f} pixels of {mask.shape[1]} x {mask.shape[0]} to be seen; "
            "give another mask or picture."
        )
    doubts = [detail] if detail and way in ("grabcut", "whole picture") else []
    if facts["covers"] < SMALL:
        doubts.append(f"it covers {100 * facts['covers']:.1f} % of the picture")
    if facts["covers"] > LARGE:
        doubts.append(f"it covers {100 * facts['covers']:.0f} % of the picture")
    if facts["touches"] > CUT_OFF:
        doubts.append(f"it runs out of the picture along {100 * facts['touches']:.0f} % of the border")
    if facts["pieces"] >= MANY_PIECES:
        doubts.append(f"it is in {facts['pieces']} pieces")
    return CutOut(image, mask, way, detail, tuple(dict.fromkeys(doubts)))
