"""One step of the fit as one call of the kernels: no autograd, no memory asked for, next to no Python."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from splat.gaussians import Splats
from splat.render import RenderOptions
from splat.render.native import library, loans
from splat.render.native.adam import NativeAdam
from splat.render.native.library import AdamArray, Gradients, Images, L1Ssim, Scene, address, as_kernel_input
from splat.render.native.rasterise import check, degree_used, lens_of


@dataclass(frozen=True)
class StepResult:
    image: Tensor  # [1, H, W, 3] as drawn before the step; overwritten by the next step of the same size
    photo_loss: float  # L1 and SSIM
    loss: float  # with the regularisers; where it is not finite, no parameter was moved


class FusedStep:
    """Draws one camera, compares with a photo and moves the splats by one step of Adam, as autograd would, to rounding.

    The loss is (1 - ssim_weight) L1 + ssim_weight (1 - SSIM) + opacity_weight mean(opacity) + scale_weight mean(scale).
    `optimiser` holds the splats' five fields as parameters; after an edit of rows it holds the new ones.
    """

    def __init__(
        self, optimiser: NativeAdam, ssim_weight: float, opacity_weight: float = 0.0, scale_weight: float = 0.0
    ) -> None:
        self.optimiser = optimiser
        self.weights = (ssim_weight, opacity_weight, scale_weight)
        self.photo_loss, self.regularisers = ctypes.c_double(), ctypes.c_double()
        self.gradients: list[Tensor] = []
        self.images: list[Tensor] = []
        self.job, self.job_of = library.Step(), None

    @torch.no_grad()
    def __call__(self, splats: Splats, cam_from_world: Tensor, K: Tensor, truth: Tensor, options: RenderOptions) -> StepResult:
        """cam_from_world [4, 4] and K [3, 3], finite; truth [H, W, 3]; options.background [3] or None.

        Raises TypeError and ValueError for other tensors, `InputError` when the splats hold NaN.
        """
        height, width = truth.shape[:2]
        lens = lens_of(1, width, height, options)
        pose = as_kernel_input(cam_from_world, "cam_from_world", (4, 4))
        K = as_kernel_input(K, "K", (3, 3))
        truth = as_kernel_input(truth, "truth", (height, width, 3))
        background = None
        if options.background is not None:
            background = as_kernel_input(options.background, "background", (3,))
        lens.cam_from_world, lens.K, lens.background, lens.keep = address(pose), address(K), address(background), True

        leaves = [splats.means, splats.quats, splats.log_scales, splats.opacity_logits, splats.sh]
        states = [self.optimiser.state.get(x) for x in leaves]
        moments = [state[key].data_ptr() for state in states if state for key in ("exp_avg", "exp_avg_sq")]
        job_of = (height, width, splats.sh.shape, *(x.data_ptr() for x in leaves), *moments)
        if job_of != self.job_of:  # else the structures are as the last step left them
            self._prepare(leaves, height, width)
            self.job_of = job_of if moments else None
        job = self.job
        job.lens, job.scene.degree = lens, degree_used(splats, options)
        job.loss.target, job.loss.threads = address(truth), lens.threads
        self.optimiser.begin_step(leaves, self.arrays)
        check(library.load().splatsmith_step(job), tuple(leaves))
        for leaf in leaves:
            torch.autograd.graph.increment_version(leaf)
        photo_loss = self.photo_loss.value
        return StepResult(self.images[0], photo_loss, photo_loss + self.regularisers.value)

    def _prepare(self, leaves: list[Tensor], height: int, width: int) -> None:
        """Memory and structures for these leaves and images of this size."""
        n = len(leaves[0])
        if [g.shape for g in self.gradients] != [x.shape for x in leaves]:
            self.gradients = []  # first given back, so that they are lent again
            self.gradients = [loans.empty(*x.shape) for x in leaves]
        shapes = [(1, height, width, 3), (1, height, width), (1, height, width), (1, n, 2), (1, n), (1, height, width, 3)]
        if [tuple(x.shape) for x in self.images] != shapes:
            self.images = []
            self.images = [loans.empty(*shape) for shape in shapes]
        self.arrays = self.optimiser.arrays_of(leaves, self.gradients)
        *images, v_rgb = map(address, self.images)
        ssim_weight, opacity_weight, scale_weight = self.weights
        first = self.optimiser.param_groups[0]
        self.job = library.Step(
            scene=Scene(*map(address, leaves), count=n, terms=leaves[4].shape[1]),
            images=Images(*images),
            loss=L1Ssim(
                image=images[0], gradient=v_rgb, loss=ctypes.addressof(self.photo_loss), batch=1, height=height, width=width,
                ssim_weight=ssim_weight,
            ),
            gradients=Gradients(*map(address, self.gradients)),
            arrays=ctypes.cast(self.arrays, ctypes.POINTER(AdamArray)), regularisers=ctypes.pointer(self.regularisers),
            beta1=first["betas"][0], beta2=first["betas"][1], eps=first["eps"],
            opacity_weight=opacity_weight, scale_weight=scale_weight,
        )  # fmt: skip
