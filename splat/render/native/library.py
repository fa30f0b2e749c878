"""The compiled kernels as Python sees them: structures of scene.h, ssim.h, adam.h and step.h, and the loaded library."""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import torch
from torch import Tensor

from splat.errors import BackendUnavailable
from splat.render.native import build
from splat.render.native.cores import usable_cores

log = logging.getLogger(__name__)

OK, BAD_NUMBERS, OUT_OF_MEMORY = 0, 1, 2  # what the functions return

Pointer = ctypes.c_void_p
Int = ctypes.c_int32
Float = ctypes.c_float
Double = ctypes.c_double


def _structure(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


Scene = _structure(
    "Scene", means=Pointer, quats=Pointer, log_scales=Pointer, opacity_logits=Pointer, sh=Pointer, count=ctypes.c_int64,
    terms=Int, degree=Int,
)  # fmt: skip
Lens = _structure(
    "Lens", cam_from_world=Pointer, K=Pointer, background=Pointer, cameras=Int, width=Int, height=Int, antialiased=Int,
    near=Float, low_pass=Float, threads=Int, keep=Int,
)  # fmt: skip
Images = _structure("Images", rgb=Pointer, alpha=Pointer, depth=Pointer, means2d=Pointer, radii=Pointer)
Upstream = _structure("Upstream", rgb=Pointer, alpha=Pointer, depth=Pointer)
Gradients = _structure(
    "Gradients", means=Pointer, quats=Pointer, log_scales=Pointer, opacity_logits=Pointer, sh=Pointer, means2d=Pointer,
    means2d_abs=Pointer, cam_from_world=Pointer, background=Pointer,
)  # fmt: skip
L1Ssim = _structure(
    "L1Ssim", image=Pointer, target=Pointer, weight=Pointer, gradient=Pointer, loss=Pointer, batch=ctypes.c_int64,
    height=ctypes.c_int64, width=ctypes.c_int64, ssim_weight=Float, threads=Int,
)  # fmt: skip
AdamArray = _structure(
    "AdamArray", value=Pointer, gradient=Pointer, mean=Pointer, square=Pointer, count=ctypes.c_int64, steps=ctypes.c_int64,
    lr=Double, later_lr=Double, head=Int, row=Int,
)  # fmt: skip
Turn = _structure(
    "Turn", cam_from_world=Pointer, K=Pointer, photo=Pointer, mask=Pointer, backdrop=3 * Float, tint=3 * Float, width=Int,
    height=Int, degree=Int, exposure=Int, lr_means=Double, key=ctypes.c_uint64,
)  # fmt: skip
Run = _structure(
    "Run", scene=Scene, lens=Lens, images=Images, truth=Pointer, exposed=Pointer, v_image=Pointer, v_alpha=Pointer,
    exposures=Pointer, v_exposures=Pointer, photos=ctypes.c_int64, gradients=Gradients, arrays=ctypes.POINTER(AdamArray),
    array_count=ctypes.c_int64, beta1=Double, beta2=Double, eps=Double, ssim_weight=Float, opacity_weight=Float,
    scale_weight=Float, noise=Float, photo_loss=Double, regularisers=Double, done=Int,
)  # fmt: skip


def open_library(path: Path) -> ctypes.CDLL:
    """Load a shared object made by `build` and declare its functions. ctypes lets go of the GIL during calls."""
    library = ctypes.CDLL(str(path))
    structure = ctypes.POINTER
    library.splatsmith_lanes.restype = Int
    library.splatsmith_forward.restype = Int
    library.splatsmith_forward.argtypes = [structure(Scene), structure(Lens), structure(Images), structure(Pointer)]
    library.splatsmith_backward.restype = Int
    library.splatsmith_backward.argtypes = [
        Pointer, structure(Scene), structure(Lens), structure(Images), structure(Upstream), structure(Gradients),
    ]  # fmt: skip
    library.splatsmith_release.restype = None
    library.splatsmith_release.argtypes = [Pointer]
    library.splatsmith_l1_ssim.restype = Int
    library.splatsmith_l1_ssim.argtypes = [structure(L1Ssim)]
    library.splatsmith_adam.restype = Int
    library.splatsmith_adam.argtypes = [structure(AdamArray), ctypes.c_int64, Double, Double, Double, Int]
    library.splatsmith_run.restype = Int
    library.splatsmith_run.argtypes = [structure(Run), structure(Turn), Int]
    return library


@functools.cache
def load() -> ctypes.CDLL:
    """The library for this processor, built on first use. Raises `BackendUnavailable`."""
    variant = build.cpu_variants()[-1]
    path = build.library_path(variant)
    try:
        return open_library(path)
    except OSError as error:
        raise BackendUnavailable(f"the fast CPU renderer {path} does not load: {error}") from error


@functools.cache
def available() -> bool:
    """Whether the kernels are there or could be built; if not, says so once, with the remedy."""
    try:
        load()
    except BackendUnavailable as reason:
        log.warning("The reference renderer is used, about a hundred times slower: %s", reason)
        return False
    return True


def thread_count(wanted: int | None) -> int:
    """`wanted`, at least 1; by default torch's number of threads, but no more than the usable cores."""
    return min(usable_cores(), torch.get_num_threads()) if wanted is None else max(int(wanted), 1)


def address(x: Tensor | None) -> int | None:
    """Of memory that the caller keeps alive. Raises TypeError for anything but contiguous float32 on CPU."""
    if x is None:
        return None
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
        raise TypeError(f"{x.dtype} on {x.device}, strides {x.stride()}; the native kernels take contiguous float32 on cpu")
    return x.data_ptr()


def as_kernel_input(x: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    """`x` made contiguous. Raises TypeError or ValueError when it is not a float32 CPU tensor of `shape`."""
    if not isinstance(x, Tensor) or x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor")
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise TypeError(f"{name} is {x.dtype} on {x.device}; the native kernels take float32 on cpu")
    if x.shape != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {shape}")
    return x.contiguous()
