"""Drawing splats: one call, `render`, over a table of back-ends with the same semantics.

Semantics (gsplat's, "3D Gaussian Splatting", Kerbl et al. 2023, eq. 3-6): pixel centres at +0.5;
alpha = min(0.999, opacity * exp(-sigma)); a Gaussian with alpha < 1/255 at a pixel is skipped there; a pixel stops when
its next transmittance would be <= 1e-4, and that Gaussian is not composited; the 2-D covariance gets `low_pass` px^2.
To add a back-end: one file with a function of the signature below and one line in `BACKENDS`; it joins the parity tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.errors import BackendUnavailable
from splat.gaussians import Splats

ALPHA_MIN = 1 / 255  # below this a Gaussian does not touch a pixel
ALPHA_MAX = 0.999  # keeps the transmittance invertible
TRANSMITTANCE_MIN = 1e-4  # a pixel is finished when the next value would not exceed this


@dataclass(frozen=True)
class RenderOptions:
    """What every back-end understands."""

    background: Tensor | None = None  # [3] or [C, 3] sRGB behind the splats; None is black
    sh_degree: int | None = None  # use bands up to this degree; None uses all
    near: float = 0.01  # world units; nearer Gaussians are not drawn
    low_pass: float = 0.3  # px^2 added to the 2-D covariance (EWA); the same value in every 3DGS viewer
    antialiased: bool = False  # scale opacity by sqrt(det / det with low-pass) (Mip-Splatting's 2-D filter)
    track_means2d: bool = False  # keep the gradients of the projected means, for densification
    threads: int | None = None  # CPU back-ends: threads to use; None lets the back-end choose


@dataclass(frozen=True)
class Rendering:
    """What a back-end returns. Differentiable: rgb, alpha, depth."""

    rgb: Tensor  # [C, H, W, 3] sRGB, background included
    alpha: Tensor  # [C, H, W] in [0, 1)
    depth: Tensor  # [C, H, W] sum of weight * z, world units
    means2d: Tensor  # [C, N, 2] pixels
    radii: Tensor  # [C, N] pixels, 0 where a Gaussian was not drawn
    # With `track_means2d`: after backward, `means2d_probe.grad` [C, N, 2] is the gradient of the projected means, per pixel.
    # `means2d_probe.absgrad` is the same with the absolute value of every pixel's share, so that pulls in opposite directions
    # do not cancel ("AbsGS", Ye et al. 2024, eq. 8); the attribute has gsplat's name.
    means2d_probe: Tensor | None = None

    @property
    def expected_depth(self) -> Tensor:
        """[C, H, W] depth / alpha; 0 where nothing was hit."""
        return self.depth / self.alpha.clamp_min(1e-10)


Backend = Callable[[Splats, Cameras, RenderOptions], Rendering]

# name -> (module, function); imported when first used.
BACKENDS = {
    "reference": ("splat.render.reference", "render"),
    "native": ("splat.render.native", "render"),
    "gsplat": ("splat.render.cuda_gsplat", "render"),
}


def backend(name: str) -> Backend:
    """The function behind `name`. Raises `BackendUnavailable` when its package, compiler or device is missing."""
    module, function = BACKENDS[name]
    return getattr(importlib.import_module(module), function)


def pick_backend(device: torch.device | str) -> str:
    """The best back-end for `device`: gsplat on CUDA; on CPU the native kernel when it builds, else the reference."""
    if torch.device(device).type == "cuda":
        return "gsplat"
    from splat.render import native

    return "native" if native.available() else "reference"


def render(splats: Splats, cameras: Cameras, options: RenderOptions | None = None, backend_name: str = "auto") -> Rendering:
    """Draw `splats` through every camera.

    Splats and cameras live on one device and share a floating dtype (float32; the reference also takes float64).
    Differentiable in every field of `splats`, in `cameras.cam_from_world` and in the background; not in `K`.
    `backend_name` is "auto" or a key of `BACKENDS`. Raises `BackendUnavailable` for a back-end that cannot run here.
    """
    options = options or RenderOptions()
    if options.background is not None and options.background.ndim == 1:
        options = replace(options, background=options.background.expand(len(cameras), 3))
    if backend_name == "auto":  # the fast back-ends are float32
        backend_name = pick_backend(splats.means.device) if splats.means.dtype == torch.float32 else "reference"
    elif backend_name not in BACKENDS:
        raise BackendUnavailable(f"no renderer named {backend_name}; choose one of {', '.join(BACKENDS)}")
    return backend(backend_name)(splats, cameras, options)
