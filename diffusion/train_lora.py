"""A scene's own LoRA: Stable Diffusion and its ControlNet learn how this scene's damaged renders should have looked.

GaussianObject's and LM-Gaussian's repair model: the ControlNet sees the render of an early fit from a photo's own camera, the
network learns to denoise the photo. Only the noise levels that a repair goes through are learnt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion.lora import Lora, attached, new_lora
from diffusion.models.stable_diffusion import encoded
from diffusion.sd_repair import RepairCost, SdRepairer, framed, repair_cost
from splat.errors import InputError, StoppedLate
from splat.progress import Progress

LAYERS = "transformer_blocks"  # attention and feed-forward layers
MOST_STEPS = 100_000
ACTIVATIONS = 8000.0  # bytes a pixel that are kept for the backward pass, of which most is computed again


@dataclass(frozen=True)
class LoraConfig:
    """How a scene's LoRA is trained. LM-Gaussian: 1800 steps, rank 64, lr 1e-3, all noise levels, the text encoder too."""

    steps: int = 600
    rank: int = 16
    lr: float = 2e-4
    warmup: int = 20  # steps over which the rate rises from 0
    side: int = 512  # px of the square crops, the same of render and photo; smaller pictures are taken whole
    seed: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.steps <= MOST_STEPS and 1 <= self.rank <= 1024 and self.side >= 8):
            raise InputError(
                f"steps {self.steps} must be 1 to {MOST_STEPS}, rank {self.rank} 1 to 1024, side {self.side} 8 or more."
            )


@dataclass
class LoraState:
    """A training that can go on: closing the generator leaves it after its last whole step."""

    lora: Lora
    optimiser: torch.optim.Optimizer
    step: int = 0
    losses: list[float] = field(default_factory=list)  # mean squared error of the noise, every step


def begin_lora(repairer: SdRepairer, config: LoraConfig) -> LoraState:
    """Step 0: the networks answer as without it."""
    lora = new_lora(repairer.networks, config.rank, torch.Generator().manual_seed(config.seed), LAYERS)
    for weight in lora.parameters():
        weight.requires_grad_(True)
    return LoraState(lora, torch.optim.AdamW(lora.parameters(), lr=config.lr, weight_decay=0.0))


def train_lora(
    repairer: SdRepairer,
    renders: Sequence[Tensor],
    photos: Sequence[Tensor],
    config: LoraConfig,
    state: LoraState | None = None,
) -> Generator[Progress, None, Lora]:
    """`renders` and `photos`, pairs [H, W, 3] sRGB of one size each, sizes may differ between pairs.

    Goes on from `state`, which is changed in place, to `config.steps`; the same steps come out whether it was cut or not.
    Yields Progress("lora", step, steps), value loss. Raises InputError without pairs, StoppedLate when the loss is not finite.
    """
    if not photos or len(renders) != len(photos) or any(a.shape != b.shape for a, b in zip(renders, photos)):
        raise InputError(f"{len(renders)} renders and {len(photos)} photos make no pairs of one size; give as many of each.")
    state = state or begin_lora(repairer, config)
    pipe = repairer.pipeline
    with torch.no_grad():
        words = repairer.encoded_text()
    yield Progress("lora", state.step, config.steps)
    while state.step < config.steps:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
        pair = int(torch.randint(len(photos), (), generator=generator))
        render, photo = _crop(renders[pair], photos[pair], config.side, generator)
        for group in state.optimiser.param_groups:
            group["lr"] = config.lr * min((state.step + 1) / max(config.warmup, 1), 1.0)
        with _remembering_little(pipe), attached(state.lora, repairer.networks):
            loss = _loss(repairer, render, photo, words, generator)
            state.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        if not bool(loss.isfinite()):
            raise StoppedLate(f"The LoRA's loss was no longer finite at step {state.step}; train it with a lower lr.")
        torch.nn.utils.clip_grad_norm_(state.lora.parameters(), 1.0)
        state.optimiser.step()
        state.step += 1
        state.losses.append(float(loss.detach()))
        yield Progress("lora", state.step, config.steps, values={"loss": state.losses[-1]})
    return Lora(*({name: w.detach() for name, w in part.items()} for part in (state.lora.down, state.lora.up)))


def lora_cost(repairer: SdRepairer, steps: int, config: LoraConfig | None = None) -> RepairCost:
    """What training will take on the pipeline's device, roughly: each step is worth four calls and half the autoencoder."""
    side = max((config or LoraConfig()).side, repairer.config.least_side)
    once = dataclasses.replace(repairer, config=dataclasses.replace(repairer.config, calls=4, guidance=1.0))
    cost = repair_cost(once, steps, side, side)
    return RepairCost(cost.seconds, cost.memory + ACTIVATIONS * side**2)


def _loss(repairer: SdRepairer, render: Tensor, photo: Tensor, words: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of what the U-Net predicts of the noised photo, told of the render by the ControlNet."""
    pipe, config = repairer.pipeline, repairer.config
    device, dtype = pipe.device, pipe.unet.dtype
    hint, picture = (framed(x, config.least_side, pipe.vae_scale_factor)[0].to(device) for x in (render, photo))
    with torch.no_grad():
        clean = encoded(pipe.vae, picture)
    levels = max(round(config.strength * pipe.scheduler.config.num_train_timesteps), 1)
    time = torch.randint(levels, (1,), generator=generator).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    noisy = pipe.scheduler.add_noise(clean, noise, time)
    predicted = _predicted(pipe, noisy.to(dtype), time, words, hint.to(dtype), config.control).float()
    return (predicted - _target(pipe.scheduler, clean, noise, time)).square().mean()


def _predicted(pipe: Any, noisy: Tensor, time: Tensor, words: Tensor, hint: Tensor, control: float) -> Tensor:
    down, middle = pipe.controlnet(
        noisy, time, encoder_hidden_states=words, controlnet_cond=hint, conditioning_scale=control, return_dict=False
    )
    return pipe.unet(
        noisy,
        time,
        encoder_hidden_states=words,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        return_dict=False,
    )[0]


def _target(scheduler: Any, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """What the network was trained to predict."""
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return clean
    if kind == "v_prediction":  # a n - s x_0, which is what the noised pair (noise, -clean) holds
        return scheduler.add_noise(noise, -clean, time)
    return noise


@contextmanager
def _remembering_little(pipe: Any) -> Iterator[None]:
    """Within it the networks compute again in the backward pass what they would else have to keep."""
    networks = (pipe.unet, pipe.controlnet)
    for network in networks:
        network.train()  # diffusers looks at it; these networks have no dropout
        network.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for network in networks:
            network.disable_gradient_checkpointing()
            network.eval()


def _crop(render: Tensor, photo: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same window of both, `side` px at most, anywhere."""
    height, width = photo.shape[:2]
    h, w = min(side, height), min(side, width)
    top = int(torch.randint(height - h + 1, (), generator=generator))
    left = int(torch.randint(width - w + 1, (), generator=generator))
    return render[top : top + h, left : left + w], photo[top : top + h, left : left + w]
