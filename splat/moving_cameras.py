"""Cameras that move with the fit, so that solved poses get better while the splats do."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from splat.cameras import Cameras
from splat.pose_gauge import similarity_motions, without_similarity
from splat.rotations import se3_exp
from splat.views import Views

# Adam's averages reach over dozens of looks at each photo: what one look says of its camera is mostly noise, and steps of the
# usual short memory would shake cameras that are right already by more than they were wrong.
BETAS = (0.99, 0.999)


class MovingCameras:
    """A tangent for each photo of `views`, all views in order, with an optimiser of its own.

    What the cameras do together, as a similarity of the world would, is taken out of every step. `extent` [world units] is what
    translations count in, rotations are in radians; rates fall exponentially from `rate` to `final_rate`.
    """

    def __init__(self, views: list[Views], extent: float, rate: float, final_rate: float) -> None:
        cam_from_world = torch.cat([v.cameras.cam_from_world for v in views])
        self.rate, self.final_rate = rate, final_rate
        self.units = torch.tensor([extent] * 3 + [1.0] * 3, device=cam_from_world.device)
        self.tangents = torch.zeros(len(cam_from_world), 6, device=cam_from_world.device, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.tangents], lr=rate, betas=BETAS, eps=1e-15)
        self.world_motions = similarity_motions(cam_from_world, self.units)

    def moved(self, photo: int, cam_from_world: Tensor) -> Tensor:
        """[1, 4, 4] where the camera of this photo is now; differentiable in its tangent."""
        return se3_exp(self.tangents[photo, None] * self.units) @ cam_from_world

    def step(self, progress: float) -> None:
        """Along the gradient that the last look left, `progress` [0, 1) through the fit."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * (self.final_rate / self.rate) ** progress
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.tangents.copy_(without_similarity(self.tangents, self.world_motions))

    @torch.no_grad()
    def cameras(self, views: list[Views]) -> list[Cameras]:
        """One batch per view, where they are now."""
        out, first = [], 0
        for view in views:
            tangents = self.tangents[first : first + len(view)] * self.units
            out.append(dataclasses.replace(view.cameras, cam_from_world=se3_exp(tangents) @ view.cameras.cam_from_world))
            first += len(view)
        return out

    def state(self) -> dict[str, Tensor]:
        return {"tangents": self.tangents} | self.optimiser.state.get(self.tangents, {})

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        self.tangents.copy_(state["tangents"])
        moments = {key: state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}
        if moments:
            self.optimiser.state[self.tangents] = moments | {"step": state["step"].cpu()}
