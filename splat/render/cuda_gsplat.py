"""gsplat's CUDA kernels behind `splat.render.render` (Ye et al., "gsplat", 2024; Apache-2.0).

gsplat is imported when the first image is drawn, and only where torch sees a GPU: with a CUDA toolkit but no GPU its
import tries to compile and fails.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.errors import BackendUnavailable
from splat.gaussians import Splats
from splat.render import Rendering, RenderOptions

log = logging.getLogger(__name__)

# cameras x Gaussians; above, gsplat keeps only the visible pairs: less memory, slightly slower. Its sparse gradients are not
# used: with Adam, whose moments go on moving what a view does not show, skipping those rows is another optimiser.
PACKED_FROM = 4_000_000
REPORT_EVERY = 15.0  # seconds between two words about a compilation
INSTALL = "install it with: pip install 'splatsmith[cuda]'"


def render(splats: Splats, cameras: Cameras, options: RenderOptions) -> Rendering:
    """See `splat.render.render`; float32 on a CUDA device. The first call of an installation compiles for minutes.

    Raises `BackendUnavailable` without a GPU, without gsplat, or when its kernels cannot be built.
    """
    rasterization = load_rasterization()
    assert splats.means.is_cuda and splats.means.dtype == torch.float32, (splats.means.device, splats.means.dtype)
    outputs = rasterization(**rasterization_arguments(splats, cameras, options))
    return rendering_from(*outputs, len(cameras), len(splats), options)


def rasterization_arguments(splats: Splats, cameras: Cameras, options: RenderOptions) -> dict[str, Any]:
    """The keyword arguments of `gsplat.rasterization` that draw what `render` promises."""
    background = options.background
    degree = splats.sh_degree if options.sh_degree is None else min(options.sh_degree, splats.sh_degree)
    return {
        "means": splats.means,
        "quats": splats.quats,
        "scales": splats.scales,
        "opacities": splats.opacities,
        "colors": splats.sh,
        "sh_degree": degree,
        "viewmats": cameras.cam_from_world,
        "Ks": cameras.K,
        "width": cameras.width,
        "height": cameras.height,
        "near_plane": options.near,
        "eps2d": options.low_pass,
        "rasterize_mode": "antialiased" if options.antialiased else "classic",
        "backgrounds": None if background is None else background.to(splats.means).expand(len(cameras), 3).contiguous(),
        "render_mode": "RGB+D",  # the sum of w z, not divided by alpha
        # Packed means are rows of visible pairs; the probe needs one row for each Gaussian.
        "absgrad": options.track_means2d,  # sets means2d.absgrad in the backward pass
        "packed": not options.track_means2d and len(cameras) * len(splats) > PACKED_FROM,
    }


def rendering_from(colours: Tensor, alphas: Tensor, info: dict[str, Any], c: int, n: int, options: RenderOptions) -> Rendering:
    """What `gsplat.rasterization` returns -- colours [C, H, W, 4], alphas [C, H, W, 1], info -- as a `Rendering`."""
    means2d, radii = info["means2d"], info["radii"]
    if radii.ndim == means2d.ndim:  # one radius for each axis (gsplat 1.5); 0 in either means not drawn
        radii = torch.where((radii > 0).all(-1), radii.amax(-1), 0)
    probe = None
    if options.track_means2d and means2d.requires_grad:
        means2d.retain_grad()
        probe = means2d
    if info.get("gaussian_ids") is not None:  # packed: one row for each visible pair
        pair = (info["camera_ids"].long(), info["gaussian_ids"].long())
        means2d = means2d.new_zeros(c, n, 2).index_put(pair, means2d)
        radii = radii.new_zeros(c, n).index_put(pair, radii)
    return Rendering(
        rgb=colours[..., :3],
        alpha=alphas[..., 0],
        depth=colours[..., 3],
        means2d=means2d,
        radii=radii.to(colours.dtype),
        means2d_probe=probe,
    )


@functools.cache
def load_rasterization() -> Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]:
    """`gsplat.rasterization` with its kernels ready; says once, before, that they are being compiled."""
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            "The gsplat renderer needs an NVIDIA GPU that torch can use; draw on the CPU with --device cpu."
        )
    try:
        with contextlib.nullcontext() if kernels_built() else compilation_reported():
            gsplat = importlib.import_module("gsplat")
            kernels = importlib.import_module("gsplat.cuda._backend")._C
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"The gsplat renderer lacks the package {error.name}; {INSTALL}.") from error
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackendUnavailable(f"gsplat's CUDA kernels could not be built or loaded ({reason}); {INSTALL}.") from error
    if kernels is None:
        raise BackendUnavailable(
            "gsplat has no CUDA kernels: install the CUDA toolkit (nvcc) of your torch's version so that it can compile them, "
            "or a gsplat wheel with ready kernels."
        )
    return gsplat.rasterization


@contextlib.contextmanager
def compilation_reported() -> Iterator[None]:
    """Says that gsplat compiles, then now and then for how long and how many files are done; torch keeps the result."""
    log.warning("gsplat compiles its CUDA kernels on first use; this takes some minutes, once")
    done, start = threading.Event(), time.monotonic()

    def report() -> None:
        while not done.wait(REPORT_EVERY):
            objects = len(list(build_folder().glob("*.o")))
            log.warning("gsplat's kernels: %.0f s, %d files compiled so far", time.monotonic() - start, objects)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()
    log.warning("gsplat's kernels are ready after %.0f s", time.monotonic() - start)


def build_folder() -> Path:
    """Where torch compiles gsplat's kernels and keeps them."""
    from torch.utils.cpp_extension import _get_build_directory  # where gsplat itself looks

    return Path(_get_build_directory("gsplat_cuda", False))


def kernels_built() -> bool:
    """Whether the wheel brings its kernels or an earlier run has compiled them."""
    spec = importlib.util.find_spec("gsplat")  # not of gsplat.csrc: that would import gsplat
    if spec is not None and spec.origin is not None and any(Path(spec.origin).parent.glob("csrc.*")):
        return True
    return any(build_folder().glob("gsplat_cuda.*"))
