"""Where Gaussians are added, moved and removed during the fit.

A strategy is a frozen dataclass that looks (`observe`), and now and then proposes an `Edit` of rows. `apply_edit` is the
only place that changes rows; it changes parameters and Adam's state together, so that nothing can fall out of step.
To add a strategy: a dataclass with the same methods and its name in `Densify`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from splat.gaussians import Splats
from splat.render import Rendering
from splat.rotations import matrix_from_quat

DEAD = 0.005  # opacity below which a Gaussian no longer earns its keep; 3DGS's pruning threshold


@dataclass(frozen=True)
class Edit:
    """The rows after an edit: new row i starts as a copy of old row `source[i]`."""

    source: Tensor  # [M] long
    fresh: Tensor  # [M] bool: Adam's moments start at zero
    values: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # parameter -> (rows of M, their new values)


@dataclass(frozen=True)
class Observations:
    """What a strategy has seen since its last edit."""

    gradient: Tensor  # [N] summed norm of the projected mean's gradient, in units of half an image
    seen: Tensor  # [N] number of views that drew the Gaussian

    @staticmethod
    def empty(n: int, device: torch.device) -> Observations:
        return Observations(torch.zeros(n, device=device), torch.zeros(n, device=device))


@torch.no_grad()
def apply_edit(edit: Edit, parameters: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    """Replace every parameter of `parameters` (all [N, ...]) and its Adam moments by the edited rows, in place of the dict."""
    for group in optimiser.param_groups:
        name = group["name"]
        if name not in parameters:
            continue
        old = parameters[name]
        new = old.detach()[edit.source].clone()
        if name in edit.values:
            rows, values = edit.values[name]
            new[rows] = values
        new.requires_grad_()
        state = optimiser.state.pop(old, None)
        if state:
            for key in ("exp_avg", "exp_avg_sq"):
                moment = state[key][edit.source]
                moment[edit.fresh] = 0
                state[key] = moment
            optimiser.state[new] = state
        group["params"] = [new]
        parameters[name] = new


@dataclass(frozen=True)
class NoDensify:
    """The number of Gaussians stays as initialised."""

    needs_means2d = False

    def observe(self, seen: Observations, rendering: Rendering, width: int, height: int) -> Observations:
        return seen

    def propose(
        self, step: int, total: int, splats: Splats, seen: Observations, extent: float, cap: int, generator
    ) -> Edit | None:
        return None

    def perturb(self, splats: Splats, lr_means: float, generator) -> tuple[Tensor, Tensor] | None:
        return None


@dataclass(frozen=True)
class ClassicDensify(NoDensify):
    """Clone small and split large Gaussians where the projected mean's gradient is large; 3DGS section 5.2."""

    start: float = 0.1  # fraction of the fit before the first edit
    stop: float = 0.6  # fraction of the fit after which rows stay
    every: int = 100  # steps between edits
    gradient: float = 2e-4  # mean norm that asks for more Gaussians, in units of half an image
    large: float = 0.01  # of the scene's extent: larger ones are split, smaller ones cloned
    huge: float = 0.3  # of the scene's extent: larger ones are removed
    reset_at: tuple[float, ...] = ()  # fractions of the fit where opacities fall to 0.01, so that floaters can die
    needs_means2d = True

    @torch.no_grad()
    def observe(self, seen: Observations, rendering: Rendering, width: int, height: int) -> Observations:
        half_image = torch.tensor([width / 2, height / 2], device=seen.seen.device)
        norm = (rendering.means2d_probe.grad * half_image).norm(dim=-1)  # [C, N]
        drawn = rendering.radii > 0
        return Observations(seen.gradient + (norm * drawn).sum(0), seen.seen + drawn.sum(0))

    @torch.no_grad()
    def propose(
        self, step: int, total: int, splats: Splats, seen: Observations, extent: float, cap: int, generator
    ) -> Edit | None:
        n, device = len(splats), splats.means.device
        every_row = torch.arange(n, device=device)
        if step in {round(f * total) for f in self.reset_at}:
            low = splats.opacity_logits.clamp_max(math.log(0.01 / 0.99))
            return Edit(every_row, torch.zeros(n, dtype=torch.bool, device=device), {"opacity_logits": (every_row, low)})
        if step % self.every or not self.start * total <= step <= self.stop * total:
            return None
        mean_gradient = seen.gradient / seen.seen.clamp_min(1)
        size = splats.scales.amax(-1)
        wanted = mean_gradient > self.gradient
        keep = (splats.opacities > DEAD) & (size < self.huge * extent)
        room = max(cap - int(keep.sum()), 0)
        wanted &= keep
        if int(wanted.sum()) > room:  # the most wanted first
            wanted = torch.zeros_like(wanted).index_fill_(0, mean_gradient.where(wanted, -1).topk(room).indices, True)
        split, clone = wanted & (size > self.large * extent), wanted & (size <= self.large * extent)
        stay = (keep & ~split).nonzero().squeeze(-1)
        twins = split.nonzero().squeeze(-1)
        source = torch.cat([stay, clone.nonzero().squeeze(-1), twins, twins])
        fresh = torch.ones(len(source), dtype=torch.bool, device=device)
        fresh[: len(stay)] = False
        if len(source) == n and not bool(fresh.any()):
            return None
        if len(source) == 0:  # everything died: keep what there is rather than an empty scene
            return None
        rows = torch.arange(len(source) - 2 * len(twins), len(source), device=device)
        parents = splats[source[rows]]
        noise = torch.randn(len(rows), 3, generator=generator).to(device)
        offset = (matrix_from_quat(parents.quats) @ (parents.scales * noise)[:, :, None]).squeeze(-1)
        return Edit(
            source,
            fresh,
            {"means": (rows, parents.means + offset), "log_scales": (rows, parents.log_scales - math.log(1.6))},
        )


@dataclass(frozen=True)
class MCMCDensify(NoDensify):
    """Dead Gaussians move onto live ones, the number grows to the cap, and faint ones jitter; Kheradmand et al. 2024."""

    start: float = 0.05  # fraction of the fit before the first edit
    stop: float = 0.8  # fraction of the fit after which rows stay
    every: int = 100  # steps between edits
    growth: float = 0.05  # more Gaussians per edit, until the cap
    noise: float = 5e5  # times the learning rate of the means (eq. 9); 0 switches the jitter off

    @torch.no_grad()
    def propose(
        self, step: int, total: int, splats: Splats, seen: Observations, extent: float, cap: int, generator
    ) -> Edit | None:
        if step % self.every or not self.start * total <= step <= self.stop * total:
            return None
        n, device = len(splats), splats.means.device
        dead = splats.opacities <= DEAD
        target = max(n, min(cap, int(n * (1 + self.growth))))  # never fewer than there are
        rows = torch.cat([dead.nonzero().squeeze(-1), torch.full((target - n,), -1, device=device)])
        if len(rows) == 0 or bool(dead.all()):
            return None
        chance = splats.opacities.where(~dead, 0).double().cpu()
        chosen = torch.multinomial(chance, len(rows), replacement=True, generator=generator).to(device)
        copies = torch.bincount(chosen, minlength=n) + 1
        opacity, log_scales = relocated(splats.opacities, splats.log_scales, copies)
        source = torch.cat([torch.arange(n, device=device), rows[rows < 0]])
        source[torch.cat([rows[rows >= 0], torch.arange(n, target, device=device)])] = chosen
        touched = (copies[source] > 1).nonzero().squeeze(-1)
        fresh = torch.zeros(len(source), dtype=torch.bool, device=device)
        fresh[touched] = True
        logit = torch.logit(opacity.clamp(DEAD, 1 - 1e-6))
        return Edit(
            source,
            fresh,
            {
                "opacity_logits": (touched, logit[source[touched]]),
                "log_scales": (touched, log_scales[source[touched]]),
            },
        )

    @torch.no_grad()
    def perturb(self, splats: Splats, lr_means: float, generator) -> tuple[Tensor, Tensor] | None:
        """(rows, offsets [M, 3]): noise shaped by the covariance, for faint Gaussians only; eq. 9 with its sigmoid gate.

        `lr_means` is the learning rate of the means over the square of the scene's extent, so that the jitter scales with the
        scene: the equation multiplies a length by a covariance.
        """
        if self.noise == 0:
            return None
        gate = torch.sigmoid(100 * ((1 - splats.opacities) - 0.995))
        rows = (gate > 1e-3).nonzero().squeeze(-1)
        if len(rows) == 0:
            return None
        faint = splats[rows]
        noise = torch.randn(len(rows), 3, generator=generator).to(gate) * (gate[rows] * self.noise * lr_means)[:, None]
        return rows, (faint.covariances() @ noise[:, :, None]).squeeze(-1)


Densify = NoDensify | ClassicDensify | MCMCDensify


def relocated(opacities: Tensor, log_scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity [N] and log scales [N, 3] of each of `copies` [N] equal Gaussians that together look like the old one.

    "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al. 2024), eq. 8; at most 51 copies count.
    """
    out_opacities, out_scales = opacities.clone(), log_scales.clone()
    rows = (copies > 1).nonzero().squeeze(-1)
    if len(rows) == 0:
        return out_opacities, out_scales
    copies, o = copies[rows].clamp_max(51), opacities[rows].double()
    new = 1 - (1 - o).pow(1 / copies)
    sums = torch.zeros_like(o)
    for i in range(1, int(copies.max()) + 1):
        k = torch.arange(i, dtype=torch.float64, device=o.device)
        binomial = torch.exp(math.lgamma(i) - torch.lgamma(k + 1) - torch.lgamma(i - k))
        terms = binomial * (-1) ** k / (k + 1).sqrt() * new[:, None] ** (k + 1)
        sums += terms.sum(-1) * (copies >= i)
    ratio = (o / sums.clamp_min(1e-12)).clamp(1e-3, 1.0)
    out_opacities[rows] = new.to(opacities)
    out_scales[rows] = (log_scales[rows].double() + ratio.log()[:, None]).to(log_scales)
    return out_opacities, out_scales
