"""gsplat's example trainer (examples/simple_trainer.py, Apache-2.0) in a few lines: the peer of `training.py` on a GPU.

Its settings: one photo a step, Adam for every parameter, SH degree 3 unlocked in steps, L1 + 0.2 SSIM, and gsplat's own
strategies with their defaults. Its schedule counts 30,000 steps; for fewer, every number of steps shrinks in proportion, as its
`steps_scaler` does. Unlike there, the start is random splats as in `training.py`, and the photos lie on white.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from splat.gaussians import Splats
from splat.metrics import ssim_map
from splat.optimise import scene_extent
from splat.views import Views

FULL = 30_000  # steps of the schedule
SCHEDULES = {
    "default": {"refine_start_iter": 500, "refine_stop_iter": 15_000, "reset_every": 3000, "refine_every": 100},
    "mcmc": {"refine_start_iter": 500, "refine_stop_iter": 25_000, "refine_every": 100},
}


def fit(train: Views, start: Splats, steps: int, strategy_name: str, cap: int, seed: int, rasterization: Callable) -> Splats:
    """Splats after `steps` steps of `strategy_name`, "default" or "mcmc"; the latter keeps to `cap` Gaussians."""
    from gsplat.strategy import DefaultStrategy, MCMCStrategy

    mcmc, device, extent = strategy_name == "mcmc", train.images.device, scene_extent([train])
    schedule = {name: max(round(n * steps / FULL), 1) for name, n in SCHEDULES[strategy_name].items()}
    strategy = MCMCStrategy(cap_max=cap, **schedule) if mcmc else DefaultStrategy(**schedule)
    values = {
        "means": (start.means, 1.6e-4 * extent),
        "scales": (start.log_scales, 5e-3),
        "quats": (start.quats, 1e-3),
        "opacities": (start.opacity_logits, 5e-2),
        "sh0": (start.with_sh_degree(3).sh[:, :1], 2.5e-3),
        "shN": (start.with_sh_degree(3).sh[:, 1:], 2.5e-3 / 20),
    }
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(x.detach().clone()) for name, (x, _) in values.items()})
    adams = {name: torch.optim.Adam([params[name]], lr=rate, eps=1e-15) for name, (_, rate) in values.items()}
    decay = torch.optim.lr_scheduler.ExponentialLR(adams["means"], gamma=0.01 ** (1 / steps))
    strategy.check_sanity(params, adams)
    state = strategy.initialize_state() if mcmc else strategy.initialize_state(scene_scale=extent)
    white = torch.ones(1, 3, device=device)
    generator, order = torch.Generator().manual_seed(seed), []
    torch.manual_seed(seed)  # the strategies draw from torch's own generator
    for step in range(steps):
        if not order:
            order = torch.randperm(len(train), generator=generator).tolist()
        photo = order.pop()
        image, _, info = rasterization(
            means=params["means"], quats=params["quats"], scales=params["scales"].exp(),
            opacities=params["opacities"].sigmoid(), colors=torch.cat([params["sh0"], params["shN"]], 1),
            viewmats=train.cameras.cam_from_world[photo, None], Ks=train.cameras.K[photo, None], width=train.cameras.width,
            height=train.cameras.height, sh_degree=min(step * FULL // (steps * 1000), 3), backgrounds=white, packed=False,
        )  # fmt: skip
        strategy.step_pre_backward(params, adams, state, step, info)
        truth = train.images[photo, None]
        loss = 0.8 * (image - truth).abs().mean() + 0.2 * (1 - similarity(image, truth))
        if mcmc:
            loss = loss + 0.01 * params["opacities"].sigmoid().mean() + 0.01 * params["scales"].exp().mean()
        loss.backward()
        for adam in adams.values():
            adam.step()
            adam.zero_grad(set_to_none=True)
        decay.step()
        if mcmc:
            rate = decay.get_last_lr()[0]
            strategy.step_post_backward(params, adams, state, step, info, lr=rate)
        else:
            strategy.step_post_backward(params, adams, state, step, info, packed=False)
    sh = torch.cat([params["sh0"], params["shN"]], 1)
    return Splats(params["means"], params["quats"], params["scales"], params["opacities"], sh).detach()


def similarity(image: Tensor, truth: Tensor) -> Tensor:
    """Mean SSIM, by the trainer's own fused kernel where the package fused_ssim is installed."""
    try:
        from fused_ssim import fused_ssim
    except ImportError:
        return ssim_map(image, truth).mean()
    return fused_ssim(image.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2), padding="valid")
