"""Salient-object networks in ONNX form (the U2-Net family and IS-Net, as rembg uses them), where a user has one on disk.

Nothing is ever downloaded: files are looked for where rembg keeps its own. Qin et al., "U2-Net", 2020; "Highly Accurate
Dichotomous Image Segmentation", 2022.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splat.errors import BackendUnavailable, InputError

FILES = ("isnet-general-use.onnx", "u2net.onnx", "u2netp.onnx", "silueta.onnx")  # the best first
INSTALL = "pip install onnxruntime"


@dataclass(frozen=True)
class Reading:
    """How a network wants its picture: (x / max(x) - mean) / deviation, [1, 3, side, side]."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    side: int


U2NET = Reading((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 320)
ISNET = Reading((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), 1024)


def find_matting_model() -> Path | None:
    """The best model in $U2NET_HOME or ~/.u2net; None where there is none, or no onnxruntime to run it."""
    import importlib.util

    if importlib.util.find_spec("onnxruntime") is None:
        return None
    folder = Path(os.environ.get("U2NET_HOME") or Path.home() / ".u2net")
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def matting_mask(image: Tensor, model: Path) -> Tensor:
    """[H, W, 3] sRGB -> [H, W] coverage in [0, 1] by the network in `model`.

    Raises `BackendUnavailable` without onnxruntime, `InputError` for a file that is no such network.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(f"A matting model needs onnxruntime; install it with: {INSTALL}") from error
    reading = ISNET if "isnet" in model.name.lower() else U2NET
    try:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        (output, *_) = session.run(None, {session.get_inputs()[0].name: prepared(image, reading)})
        found = np.asarray(output, np.float32).reshape(reading.side, reading.side)
    except Exception as error:  # onnxruntime's errors have no common base
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{model} is no matting model of the U2-Net or IS-Net kind ({reason}); give another.") from error
    return coverage(found, image.shape[1], image.shape[0])


def prepared(image: Tensor, reading: Reading) -> np.ndarray:
    """[H, W, 3] -> [1, 3, side, side] float32 as the network was trained."""
    import cv2

    small = cv2.resize(image.numpy(), (reading.side, reading.side), interpolation=cv2.INTER_AREA)
    small = small / max(float(small.max()), 1e-6)
    small = (small - np.float32(reading.mean)) / np.float32(reading.deviation)
    return np.ascontiguousarray(small.transpose(2, 0, 1)[None], dtype=np.float32)


def coverage(found: np.ndarray, width: int, height: int) -> Tensor:
    """The network's answer [side, side], stretched to [0, 1] as rembg does, at the size of the picture: [height, width]."""
    import cv2

    low, high = float(found.min()), float(found.max())
    found = (found - low) / max(high - low, 1e-6)
    return torch.from_numpy(cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)).clamp(0, 1)
