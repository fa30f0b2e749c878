"""Where Gaussians are added, moved and removed during the fit.

A strategy is a frozen dataclass that looks (`observe`), and now and then proposes an `Edit` of rows. `apply_edit` is the
only place that changes rows; it changes parameters and Adam's state together, so that nothing can fall out of step.
To add a strategy: a dataclass with the same methods and its name in `Densify`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from splat.gaussians import Splats
from splat.render import Rendering
from splat.rotations import matrix_from_quat
from splat.sh import C0

DEAD = 0.005  # opacity below which a Gaussian no longer earns its keep; 3DGS's pruning threshold
FAINT = -2.52  # opacity logit above which the jitter of MCMC, a sigmoid of the opacity, is below a thousandth


@dataclass(frozen=True)
class Edit:
    """The rows after an edit: new row i starts as a copy of old row `source[i]`."""

    source: Tensor  # [M] long
    fresh: Tensor  # [M] bool: Adam's moments start at zero
    values: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # parameter -> (rows of M, their new values)


@dataclass(frozen=True)
class Observations:
    """What a strategy goes by."""

    score: Tensor  # [N] since the last edit: summed norm of the projected mean's gradient, in units of half an image; or error
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
    noise = 0.0  # strength of `perturb`; 0 if it never moves anything
    error_views = 0  # photos whose error is measured before an edit
    first = 1.0  # the fit starts with at most this share of the cap

    def edits_at(self, step: int, total: int) -> bool:
        """Whether `propose` would edit after this step."""
        return False

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

    def edits_at(self, step: int, total: int) -> bool:
        regular = step % self.every == 0 and self.start * total <= step <= self.stop * total
        return regular or self._resets_at(step, total)

    def _resets_at(self, step: int, total: int) -> bool:
        return step in {round(f * total) for f in self.reset_at}

    @torch.no_grad()
    def observe(self, seen: Observations, rendering: Rendering, width: int, height: int) -> Observations:
        half_image = torch.tensor([width / 2, height / 2], device=seen.seen.device)
        norm = (rendering.means2d_probe.grad * half_image).norm(dim=-1)  # [C, N]
        drawn = rendering.radii > 0
        return Observations(seen.score + (norm * drawn).sum(0), seen.seen + drawn.sum(0))

    @torch.no_grad()
    def propose(
        self, step: int, total: int, splats: Splats, seen: Observations, extent: float, cap: int, generator
    ) -> Edit | None:
        n, device = len(splats), splats.means.device
        every_row = torch.arange(n, device=device)
        if self._resets_at(step, total):
            low = splats.opacity_logits.clamp_max(math.log(0.01 / 0.99))
            return Edit(every_row, torch.zeros(n, dtype=torch.bool, device=device), {"opacity_logits": (every_row, low)})
        if not self.edits_at(step, total):
            return None
        mean_gradient = seen.score / seen.seen.clamp_min(1)
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

    def edits_at(self, step: int, total: int) -> bool:
        return step % self.every == 0 and self.start * total <= step <= self.stop * total

    @torch.no_grad()
    def propose(
        self, step: int, total: int, splats: Splats, seen: Observations, extent: float, cap: int, generator
    ) -> Edit | None:
        if not self.edits_at(step, total):
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
        rows = (splats.opacity_logits < FAINT).nonzero().squeeze(-1)
        if len(rows) == 0:
            return None
        faint = splats[rows]
        gate = torch.sigmoid(100 * (0.005 - faint.opacities))
        noise = torch.randn(len(rows), 3, generator=generator).to(gate) * (gate * self.noise * lr_means)[:, None]
        return rows, (faint.covariances() @ noise[:, :, None]).squeeze(-1)


@dataclass(frozen=True)
class ErrorDensify(NoDensify):
    """Gaussians that take part in the photos' errors are split, faint ones removed, on a schedule that reaches the cap.

    Where to split is drawn in proportion to the error of several photos, shared out by blending weight ("Revising
    Densification in Gaussian Splatting", Rota Bulo et al. 2024, eq. 6; over many views as in FastGS, Ren et al. 2025); the
    number of Gaussians follows a fixed curve ("Taming 3DGS", Mallick et al. 2024).
    """

    start: float = 0.03  # fraction of the fit before the first edit
    full: float = 0.5  # fraction of the fit where the number of Gaussians reaches the cap
    stop: float = 0.8  # fraction of the fit after which rows stay
    edits: int = 30  # in all
    error_views: int = 8  # photos whose error is measured before an edit
    first: float = 0.25  # the fit starts with at most this share of the cap: where more are needed shows in the errors
    dead: float = 0.02  # opacity below which a Gaussian makes room for others
    max_growth: float = 0.3  # share of the Gaussians that one edit may split

    def edits_at(self, step: int, total: int) -> bool:
        every = self._every(total)
        return step % every == 0 and self.start * total <= step <= self.stop * total

    def _every(self, total: int) -> int:
        """Steps between edits."""
        return max(round(total * (self.stop - self.start) / self.edits), 1)

    @torch.no_grad()
    def propose(
        self, step: int, total: int, splats: Splats, seen: Observations, extent: float, cap: int, generator
    ) -> Edit | None:
        if not self.edits_at(step, total):
            return None
        stay = (splats.opacities > self.dead).nonzero().squeeze(-1)
        alive = len(stay)
        chance = seen.score[stay].clamp_min(0).double().cpu()
        edits_left = 1 + max((self.full * total - step) // self._every(total), 0)  # this one included
        target = min(round(alive * (cap / max(alive, 1)) ** (1 / edits_left)), cap)  # the same factor at every edit
        count = min(target - alive, int(self.max_growth * alive), int((chance > 0).sum()))
        if alive == 0 or (alive == len(splats) and count <= 0):  # nothing alive: keep what there is
            return None
        rows = torch.zeros(0, dtype=torch.long)
        if count > 0:
            rows = torch.multinomial(chance, count, generator=generator)
        rows = rows.to(stay)
        halves = torch.cat([rows, torch.arange(alive, alive + len(rows), device=rows.device)])
        source = torch.cat([stay, stay[rows]])
        fresh = torch.zeros(len(source), dtype=torch.bool, device=rows.device)
        fresh[halves] = True
        means, log_scales = split_along_the_longest_axis(splats[stay[rows]])
        return Edit(source, fresh, {"means": (halves, means), "log_scales": (halves, log_scales)})


Densify = NoDensify | ClassicDensify | MCMCDensify | ErrorDensify


def split_along_the_longest_axis(splats: Splats) -> tuple[Tensor, Tensor]:
    """Means [2 N, 3] and log scales [2 N, 3] of the halves, first all of one side: together they have the old covariance.

    Two equal Gaussians of half the length, sqrt(3) / 2 standard deviations to either side of the old mean.
    """
    longest = splats.log_scales.argmax(-1, keepdim=True)  # [N, 1]
    axes = matrix_from_quat(splats.quats)  # columns
    axis = axes.gather(2, longest[:, None].expand(-1, 3, 1)).squeeze(-1)  # [N, 3]
    offset = math.sqrt(0.75) * splats.scales.gather(1, longest) * axis
    log_scales = splats.log_scales.scatter_add(1, longest, torch.full_like(longest, math.log(0.5), dtype=axis.dtype))
    return torch.cat([splats.means + offset, splats.means - offset]), log_scales.repeat(2, 1)


def error_shares(splats: Splats, draw: Callable[[Splats, int], tuple[Tensor, ...]], photos: Sequence[int]) -> Tensor:
    """[N] the absolute colour errors of `photos`, in pixels, shared out to the Gaussians by their blending weights.

    `draw(splats, photo)` gives the image, differentiable in `sh`, and its truth first, both [1, H, W, 3]. An image is linear
    in the colours, so the gradient of its error-weighted sum with respect to a Gaussian's is the error under its weights.
    """
    total = torch.zeros(len(splats), device=splats.means.device)
    for photo in photos:
        sh = splats.sh.detach().requires_grad_()
        image, truth, *_ = draw(replace(splats.detach(), sh=sh), photo)
        error = (image.detach() - truth).abs()
        total += torch.autograd.grad(image, sh, error / 3)[0][:, 0].sum(-1) / C0
    return total


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
