"""The CPU renderer: C++ kernels called through ctypes, differentiable, deterministic for any number of threads.

`render` is the back-end, `available` says whether the kernels are built or can be, `loss.fused_l1_ssim` is the training loss,
`adam.NativeAdam` the optimiser, `step.FusedSteps` all of them in one call.
The kernels are the .cpp files here: project.cpp (world to image and back), tiles.cpp (order), blend.cpp (compositing and its
gradient), ssim.cpp, photo.cpp, regularise.cpp, adam.cpp, jitter.cpp. build.py compiles them once into the user's cache;
library.py loads them.
"""

from __future__ import annotations

import torch

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.render import Rendering, RenderOptions
from splat.render.native.library import available

__all__ = ["available", "render"]


def render(splats: Splats, cameras: Cameras, options: RenderOptions) -> Rendering:
    """See `splat.render.render`. float32 on CPU only.

    Raises TypeError and ValueError for other tensors, `InputError` when they hold NaN, `BackendUnavailable` without kernels.
    """
    from splat.render.native.rasterise import rasterise

    probe = None
    if options.track_means2d:
        probe = torch.zeros(len(cameras), len(splats), 2, requires_grad=True)
    images = rasterise(splats, cameras, options, probe)
    return Rendering(*images, means2d_probe=probe)
