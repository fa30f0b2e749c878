"""The kernels as a differentiable function of tensors."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splat.cameras import Cameras
from splat.errors import InputError, check_finite
from splat.gaussians import Splats
from splat.render import RenderOptions
from splat.render.native import library, loans
from splat.render.native.library import Gradients, Images, Lens, Scene, Upstream, address, as_kernel_input

MAX_SIDE = 1 << 15  # pixels


def rasterise(splats: Splats, cameras: Cameras, options: RenderOptions, probe: Tensor | None) -> tuple[Tensor, ...]:
    """rgb [C, H, W, 3], alpha [C, H, W], depth [C, H, W], means2d [C, N, 2], radii [C, N].

    `probe` [C, N, 2] receives the gradient of means2d, and the attribute `absgrad`. The images are differentiable in splats,
    poses and background.
    """
    n, c = len(splats), len(cameras)
    lens = lens_of(c, cameras.width, cameras.height, options)
    background = options.background
    if background is not None:
        if background.ndim == 1:
            background = background.expand(c, 3)
        background = as_kernel_input(background, "background", (c, 3))
        check_finite(background, "background")
    inputs = (
        as_kernel_input(splats.means, "means", (n, 3)),
        as_kernel_input(splats.quats, "quats", (n, 4)),
        as_kernel_input(splats.log_scales, "log_scales", (n, 3)),
        as_kernel_input(splats.opacity_logits, "opacity_logits", (n,)),
        as_kernel_input(splats.sh, "sh", (n, splats.sh.shape[1], 3)),
        as_kernel_input(cameras.cam_from_world, "cam_from_world", (c, 4, 4)),
        background,
        probe,
    )
    K = as_kernel_input(cameras.K.detach(), "K", (c, 3, 3))
    for x, name in ((inputs[5], "cam_from_world"), (K, "K")):
        if not math.isfinite(x.detach().sum()):  # one operation, where the message's count takes several
            check_finite(x, name)
    lens.K = address(K)
    lens.keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return Rasterise.apply(lens, K, degree_used(splats, options), *inputs)


def lens_of(cameras: int, width: int, height: int, options: RenderOptions) -> Lens:
    """Without the pointers. Raises ValueError for sizes and options that cannot be drawn."""
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE:
        raise ValueError(f"an image of {width} x {height} pixels; each side must be 1 to {MAX_SIDE}")
    if not (options.near > 0 and math.isfinite(options.low_pass) and options.low_pass >= 0):
        raise ValueError(f"near is {options.near}, low_pass {options.low_pass}; near must be positive, low_pass not negative")
    return Lens(
        cameras=cameras, width=width, height=height, antialiased=options.antialiased, near=options.near,
        low_pass=options.low_pass, threads=library.thread_count(options.threads),
    )  # fmt: skip


def degree_used(splats: Splats, options: RenderOptions) -> int:
    return splats.sh_degree if options.sh_degree is None else min(max(options.sh_degree, 0), splats.sh_degree)


class Frame:
    """What the library keeps between the forward and the backward pass; given back when this object goes."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self.library, self.handle = library, handle

    def __del__(self) -> None:
        if self.handle:
            self.library.splatsmith_release(self.handle)


class Rasterise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, lens, K, degree, means, quats, log_scales, opacity_logits, sh, cam_from_world, background, probe):
        kernels = library.load()
        c, n, h, w = lens.cameras, means.shape[0], lens.height, lens.width
        out = tuple(loans.empty(*shape) for shape in ((c, h, w, 3), (c, h, w), (c, h, w), (c, n, 2), (c, n)))
        inputs = (means, quats, log_scales, opacity_logits, sh)
        scene = Scene(*map(address, inputs), count=n, terms=sh.shape[1], degree=degree)
        lens.cam_from_world, lens.background = address(cam_from_world), address(background)
        handle = ctypes.c_void_p()
        images = Images(*map(address, out))
        check(kernels.splatsmith_forward(scene, lens, images, ctypes.byref(handle)), inputs)
        ctx.frame = Frame(kernels, handle)
        ctx.probe = probe
        ctx.scene, ctx.lens, ctx.K, ctx.images = scene, lens, K, images
        ctx.save_for_backward(*inputs, cam_from_world, background, *out[:3])
        ctx.mark_non_differentiable(*out[3:])
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, v_rgb, v_alpha, v_depth, _means2d, _radii):
        # Reading saved_tensors also raises when one was changed in place since.
        *inputs, cam_from_world, background, _rgb, _alpha, _depth = ctx.saved_tensors
        if all(v is None for v in (v_rgb, v_alpha, v_depth)):
            return (None,) * 11
        upstream = [None if v is None else v.float().contiguous() for v in (v_rgb, v_alpha, v_depth)]
        lens = ctx.lens
        c, n = lens.cameras, inputs[0].shape[0]
        pose_wanted, background_wanted, probe_wanted = ctx.needs_input_grad[8:]
        gradients = [loans.empty(*x.shape) for x in inputs]
        v_pose = torch.empty_like(cam_from_world) if pose_wanted else None
        v_background = torch.empty_like(background) if background_wanted else None
        v_probe, v_abs = (loans.empty(c, n, 2), loans.empty(c, n, 2)) if probe_wanted else (None, None)
        out = Gradients(*map(address, (*gradients, v_probe, v_abs, v_pose, v_background)))
        if c == 0:
            for g in gradients:
                g.zero_()
        status = ctx.frame.library.splatsmith_backward(
            ctx.frame.handle, ctx.scene, lens, ctx.images, Upstream(*map(address, upstream)), out
        )
        check(status, inputs)
        if probe_wanted:
            ctx.probe.absgrad = v_abs
        wanted = (g if need else None for g, need in zip(gradients, ctx.needs_input_grad[3:8]))
        return None, None, None, *wanted, v_pose, v_background, v_probe


def check(status: int, inputs: tuple[Tensor, ...]) -> None:
    if status == library.BAD_NUMBERS:
        for name, x in zip(("means", "quats", "log_scales", "opacity_logits", "sh"), inputs):
            check_finite(x, name)
        raise InputError("the splats' colours overflow float32; the values of sh are too large.")
    if status != library.OK:
        raise MemoryError("the renderer ran out of memory; render fewer or smaller splats, or a smaller image.")
