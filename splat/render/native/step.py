"""Steps of the fit inside the kernels, many in one call: no autograd, no memory asked for, next to no Python."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splat.gaussians import Splats
from splat.render import RenderOptions
from splat.render.native import library, loans
from splat.render.native.adam import NativeAdam
from splat.render.native.library import AdamArray, Gradients, Images, Scene, address, as_kernel_input
from splat.render.native.rasterise import check, lens_of

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Turn:
    """What one step of a fit draws and compares with."""

    photo: Tensor  # [H, W, 3]
    cam_from_world: Tensor  # [4, 4], finite
    K: Tensor  # [3, 3], finite
    sh_degree: int  # bands used, at most
    lr_means: float
    mask: Tensor | None = None  # [H, W] foreground in [0, 1]
    backdrop: Colour = (0.0, 0.0, 0.0)  # behind the splats
    tint: Colour = (0.0, 0.0, 0.0)  # what a masked photo needs added to lie on the backdrop
    exposure: int = 0  # row of the exposures
    key: int = 0  # of the random numbers

    def truth(self) -> Tensor:
        """[H, W, 3] the photo on the backdrop."""
        if self.mask is None:
            return self.photo
        return self.photo + (1 - self.mask[..., None]) * torch.tensor(self.tint, device=self.photo.device)


@dataclass(frozen=True)
class StepsResult:
    """Of the last turn that was drawn. The images are overwritten by the next call."""

    image: Tensor  # [1, H, W, 3] as drawn before the step, exposed
    truth: Tensor  # [1, H, W, 3]
    photo_loss: float  # L1 and SSIM
    loss: float  # with the regularisers; where it is not finite, no parameter was moved
    done: int  # turns that moved the splats: all of them, or those before the loss was not finite


class FusedSteps:
    """Draws cameras, compares with photos and moves the splats by one step of Adam each, as autograd would, to rounding.

    The loss is (1 - ssim_weight) L1 + ssim_weight (1 - SSIM) + opacity_weight mean(opacity) + scale_weight mean(scale).
    `optimiser` holds the splats' five fields as parameters (after an edit of rows, the new ones), and `exposures` [C, 2, 3]
    where given: gain less 1 and offset per photo, whose mean is kept at zero. `options` say how to draw, but for background
    and degree. `noise` times the learning rate of the means is the strength of MCMC's jitter.
    """

    def __init__(
        self, optimiser: NativeAdam, options: RenderOptions, ssim_weight: float, opacity_weight: float = 0.0,
        scale_weight: float = 0.0, exposures: Tensor | None = None, noise: float = 0.0,
    ) -> None:  # fmt: skip
        if exposures is not None and exposures.shape[1:] != (2, 3):
            raise ValueError(f"exposures have shape {tuple(exposures.shape)}; expected (photos, 2, 3)")
        self.optimiser, self.options, self.exposures = optimiser, options, exposures
        self.weights = {
            "ssim_weight": ssim_weight, "opacity_weight": opacity_weight, "scale_weight": scale_weight, "noise": noise
        }  # fmt: skip
        self.rooms: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, splats: Splats, turns: Sequence[Turn]) -> StepsResult:
        """Takes the turns in order; their photos may differ in size.

        Raises TypeError and ValueError for tensors that the kernels do not take, `InputError` when the splats hold NaN. Where
        a step made the NaN, the result says so by its loss.
        """
        jobs, kept = (library.Turn * len(turns))(), []
        for job, turn in zip(jobs, turns):
            kept.append(self._fill(job, turn, splats))
        run, leaves, arrays = self._prepared(splats, turns)
        status = library.load().splatsmith_run(run, jobs, len(turns))
        self.optimiser.moved(leaves, arrays)
        broken = status == library.BAD_NUMBERS and run.done > 0
        if not broken:
            check(status, tuple(leaves))
        last = turns[min(run.done, len(turns) - 1)]
        shape = (1, *last.photo.shape)
        truth = last.photo[None] if last.mask is None else self._room("truth", *shape)
        image = self._room("rgb" if self.exposures is None else "exposed", *shape)
        loss = math.nan if broken else run.photo_loss + run.regularisers
        return StepsResult(image, truth, run.photo_loss, loss, run.done)

    def _fill(self, job: library.Turn, turn: Turn, splats: Splats) -> tuple[Tensor | None, ...]:
        """Tells the kernels of `turn`; returns what must live until they are done."""
        height, width = turn.photo.shape[:2]
        lens_of(1, width, height, self.options)  # checks the size
        if self.exposures is not None and not 0 <= turn.exposure < len(self.exposures):
            raise ValueError(f"exposure {turn.exposure} of {len(self.exposures)}")
        photo = as_kernel_input(turn.photo, "photo", (height, width, 3))
        pose = as_kernel_input(turn.cam_from_world, "cam_from_world", (4, 4))
        K = as_kernel_input(turn.K, "K", (3, 3))
        mask = None if turn.mask is None else as_kernel_input(turn.mask, "mask", (height, width))
        job.photo, job.cam_from_world, job.K, job.mask = map(address, (photo, pose, K, mask))
        job.backdrop[:], job.tint[:] = turn.backdrop, turn.tint
        job.width, job.height, job.exposure, job.key = width, height, turn.exposure, turn.key
        job.degree, job.lr_means = min(max(turn.sh_degree, 0), splats.sh_degree), turn.lr_means
        return photo, pose, K, mask

    def _prepared(self, splats: Splats, turns: Sequence[Turn]) -> tuple[library.Run, list[Tensor], ctypes.Array]:
        """What the kernels are told of all turns, the tensors that they move, and how."""
        n, first = len(splats), self.optimiser.param_groups[0]
        h, w = max((turn.photo.shape[:2] for turn in turns), key=math.prod)
        leaves = [splats.means, splats.quats, splats.log_scales, splats.opacity_logits, splats.sh]
        leaves += [] if self.exposures is None else [self.exposures]
        gradients = [self._room(f"gradient {k}", *x.shape) for k, x in enumerate(leaves)]
        shapes = {"rgb": (h, w, 3), "alpha": (h, w), "depth": (h, w), "means2d": (n, 2), "radii": (n,)}
        arrays = self.optimiser.arrays_of(leaves, gradients)
        run = library.Run(
            scene=Scene(*map(address, leaves[:5]), count=n, terms=splats.sh.shape[1]),
            lens=lens_of(1, w, h, self.options),
            images=Images(*(address(self._room(name, *shape)) for name, shape in shapes.items())),
            v_image=address(self._room("v_image", h, w, 3)), gradients=Gradients(*map(address, gradients[:5])),
            arrays=ctypes.cast(arrays, ctypes.POINTER(AdamArray)), array_count=len(arrays),
            beta1=first["betas"][0], beta2=first["betas"][1], eps=first["eps"], **self.weights,
        )  # fmt: skip
        run.lens.keep = True
        if any(turn.mask is not None for turn in turns):
            run.truth = address(self._room("truth", h, w, 3))
        if self.exposures is not None:
            run.exposed = address(self._room("exposed", h, w, 3))
            run.v_alpha = address(self._room("v_alpha", h, w))
            run.exposures, run.v_exposures, run.photos = address(leaves[5]), address(gradients[5]), len(leaves[5])
        return run, leaves, arrays

    def _room(self, name: str, *shape: int) -> Tensor:
        """Memory that stays from call to call."""
        count = math.prod(shape)
        if name not in self.rooms or self.rooms[name].numel() < count:
            self.rooms.pop(name, None)  # first given back, so that it is lent again
            self.rooms[name] = loans.empty(count)
        return self.rooms[name][:count].view(shape)
