"""SIFT of a photo and of the photo as if its surfaces were seen more from the front: matches between steps of 30 to 60 degrees.

A floor seen at a grazing angle, or a wall from its side, is squeezed in one direction, and SIFT knows turned and scaled
patterns only. So the photo is squeezed along one direction and stretched across it in several ways, and the features of all
those views count as the photo's. Morel and Yu, "ASIFT: a new framework for fully affine invariant image comparison",
SIAM Journal on Imaging Sciences 2009.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recon.features import FeatureConfig, Features, detect_sift, grey_of

# Ratio of the two scales, and the direction that is squeezed, in degrees from the x axis; the photo itself comes first.
VIEWS = ((1, 0), (2, 0), (2, 90), (4, 0), (4, 90), (2, 45), (2, 135))
MAX_SIDE = 640  # px of the detector's pictures: what is seen from two very different sides is seen coarsely
SAME = 1 / 480  # x long side: keypoints of two views nearer than this are one
APART = 6 / 480  # x long side: two places that compete in the ratio test are at least this far from each other
RATIO = 0.85
RIVALS = 8  # nearest descriptors among which the competing place is looked for


def extract_affine(image: Tensor, config: FeatureConfig, device: torch.device | str) -> Features:
    """Features of all `VIEWS`, an equal share of `config.max_keypoints` each, at their places in `image` [H, W, 3].

    Keypoints of several views at one place have the same coordinates: those of the least distorted view.
    """
    height, width = image.shape[:2]
    grey = grey_of(image, min(config.max_side, MAX_SIDE))
    keypoints, descriptors = [np.zeros((0, 2))], [np.zeros((0, 128), np.float32)]
    for squeeze, direction in VIEWS:
        picture, linear, shift = _view(grey, squeeze, direction)
        places, found = detect_sift(picture, max(config.max_keypoints // len(VIEWS), 1))  # 0 would be no limit
        places = (places - 0.5 - shift) @ np.linalg.inv(linear).T + 0.5
        inside = ((places > 4) & (places < [grey.shape[1] - 4, grey.shape[0] - 4])).all(axis=1)
        keypoints.append(places[inside] * [width / grey.shape[1], height / grey.shape[0]])
        descriptors.append(found[inside])
    merged = _merged(np.concatenate(keypoints), SAME * max(width, height))
    return Features(
        torch.from_numpy(merged).float().to(device),
        torch.from_numpy(np.concatenate(descriptors)).float().to(device),
        width,
        height,
        "affine",
    )


def match_affine(a: Features, b: Features) -> Tensor:
    """[M, 2] rows of places that match: mutual nearest descriptors, clearly nearer than any other place of the photo."""
    similarity = a.descriptors @ b.descriptors.T
    top, near = similarity.topk(min(RIVALS, len(b)), dim=1)
    distance = (2 - 2 * top).clamp_min(0).sqrt()
    elsewhere = (b.keypoints[near] - b.keypoints[near[:, :1]]).norm(dim=-1) > APART * max(b.width, b.height)
    rival = torch.where(elsewhere, distance, distance[:, -1:]).min(dim=1).values
    back = similarity.argmax(dim=0)[near[:, 0]]
    mutual = (a.keypoints[back] - a.keypoints).norm(dim=-1) <= SAME * max(a.width, a.height)
    rows = torch.nonzero(mutual & (distance[:, 0] < RATIO * rival))[:, 0]
    rows = rows[distance[rows, 0].argsort(stable=True)].cpu()
    pairs = torch.stack([_first_rows(a)[rows], _first_rows(b)[near[rows, 0].cpu()]], dim=1).numpy()
    best = np.ones(len(pairs), bool)  # the best match of each place in either photo
    for side in (0, 1):
        first = np.zeros(len(pairs), bool)
        first[np.unique(pairs[:, side], return_index=True)[1]] = True
        best &= first
    return torch.from_numpy(pairs[best])


def _view(grey: np.ndarray, squeeze: float, direction: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The picture with its pixels at `linear` [2, 2] @ (x, y) + `shift` [2] (pixel centres at integers), its area unchanged."""
    import cv2

    if squeeze == 1:
        return grey, np.eye(2), np.zeros(2)
    height, width = grey.shape
    scale = squeeze**0.5
    c, s = np.cos(np.radians(direction)), np.sin(np.radians(direction))
    turn = np.array([[c, s], [-s, c]])
    linear = turn.T @ np.diag([1 / scale, scale]) @ turn
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]) @ linear.T
    shift = -corners.min(axis=0)
    columns, rows = np.ceil(np.ptp(corners, axis=0)).astype(int) + 1
    # Blurred along the squeezed direction before it is sampled more coarsely; 0.8 px is the blur that SIFT expects.
    sigma = 0.8 * (scale**2 - 1) ** 0.5
    reach = int(3 * sigma) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along, across = x * c + y * s, y * c - x * s
    kernel = np.exp(-(along**2) / (2 * sigma**2) - across**2 / (2 * 0.3**2))
    blurred = cv2.filter2D(grey, -1, kernel / kernel.sum())
    transform = np.column_stack([linear, shift])
    picture = cv2.warpAffine(blurred, transform, (int(columns), int(rows)), borderMode=cv2.BORDER_REPLICATE)
    return picture, linear, shift


def _merged(places: np.ndarray, radius: float) -> np.ndarray:
    """Each place [N, 2] moved to the first one of the list within `radius` of it that was not itself moved."""
    from scipy.spatial import cKDTree

    out, moved = places.copy(), np.zeros(len(places), bool)
    if len(places) == 0:
        return out
    for number, others in enumerate(cKDTree(places).query_ball_point(places, radius)):
        if moved[number]:
            continue
        later = [o for o in others if o > number and not moved[o]]
        out[later], moved[later] = places[number], True
    return out


def _first_rows(features: Features) -> Tensor:
    """[N] the first row with the same place."""
    _, first, inverse = np.unique(features.keypoints.cpu().numpy(), axis=0, return_index=True, return_inverse=True)
    return torch.from_numpy(first[inverse.reshape(-1)])
