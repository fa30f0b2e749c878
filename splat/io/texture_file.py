"""A texture as the bytes of a PNG or JPEG."""

from __future__ import annotations

import io
from typing import Literal

from torch import Tensor

TextureFormat = Literal["png", "jpeg"]
SUFFIXES: dict[TextureFormat, str] = {"png": ".png", "jpeg": ".jpg"}
JPEG_QUALITY = 92  # with full colour resolution: halved, charts of different colours would run into each other


def encoded(texture: Tensor, kind: TextureFormat) -> bytes:
    """[H, W, 3] sRGB in [0, 1] -> the file's bytes."""
    from PIL import Image

    picture = Image.fromarray((texture.detach().cpu().clamp(0, 1) * 255).round().byte().contiguous().numpy())
    stream = io.BytesIO()
    if kind == "png":
        picture.save(stream, "PNG")
    else:
        picture.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return stream.getvalue()
