"""What cameras do to pictures: exposure, white balance, contrast, vignetting, blur, noise, JPEG."""

from __future__ import annotations

import numpy as np


def as_photographed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`image` [H, W, 3] float32 sRGB in [0, 1] -> uint8 [H, W, 3], as some camera would have stored it."""
    import cv2

    out = image * 2 ** rng.normal(0, 0.35) * 2 ** rng.normal(0, 0.08, 3)
    grey = out.mean(-1, keepdims=True)
    out = grey + (out - grey) * rng.uniform(0.5, 1.4)
    out = np.clip(out, 0, None) ** np.exp(rng.normal(0, 0.15))
    height, width = out.shape[:2]
    y, x = np.mgrid[:height, :width]
    radius2 = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2)[..., None]
    out = out * (1 - rng.uniform(0, 0.6) * radius2)
    out = cv2.GaussianBlur(
        out.astype(np.float32), (0, 0), rng.uniform(0.45, 0.9) if rng.random() < 0.8 else rng.uniform(0.9, 1.6)
    )
    noise = rng.normal(size=out.shape) * rng.uniform(0, 0.025)
    stored = (np.clip(out + noise, 0, 1) * 255).round().astype(np.uint8)
    _, code = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 96))])
    return cv2.imdecode(code, cv2.IMREAD_COLOR)  # stored and read in one order of channels, whatever OpenCV calls it
