"""Losses of denoising networks. Every function takes one noise level per sample, [B], and returns one loss per sample, [B]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.objective.paths import per_sample
from diffusion.schedules import from_data
from splat.errors import InputError


def min_snr_weight(snr: Tensor, prediction_type: str, limit: float = 5.0, floor: float = 0.0) -> Tensor:
    """Weight [B] of the squared error of this prediction type that amounts to min(snr, limit) on x_0 (Hang et al. 2023).

    `floor` bounds the x_0 weight from below, so that nearly pure noise still teaches the colour and size of things.
    """
    on_data = snr.clamp(max=limit).clamp(min=floor)
    if prediction_type == "sample":
        return on_data
    if prediction_type == "epsilon":
        return on_data / snr
    if prediction_type == "v_prediction":
        return on_data / (snr + 1)
    if prediction_type == "flow_prediction":  # error of n - x_0 is (1 + a/s) times that of x_0
        return on_data / (1 + snr.sqrt()) ** 2
    raise InputError(f"Unknown prediction type {prediction_type!r}; use epsilon, sample, v_prediction or flow_prediction.")


def denoising_loss(
    prediction: Tensor,
    x0: Tensor,
    noise: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    prediction_type: str,
    snr_limit: float | None = 5.0,
    snr_floor: float = 0.0,
) -> Tensor:
    """Squared error [B] of a prediction [B, ...] made from alpha x0 + sigma noise; alpha, sigma [B]; min-SNR weighted.

    `snr_limit=None` leaves the prediction's own error unweighted, as for flow matching.
    """
    a, s = per_sample(alpha, x0), per_sample(sigma, x0)
    target = x0 if prediction_type == "sample" else from_data(x0, a * x0 + s * noise, a, s, prediction_type)
    if prediction_type == "epsilon":
        target = noise  # exact, where from_data would divide by a small sigma
    loss = ((prediction - target) ** 2).flatten(1).mean(1)
    if snr_limit is None:
        return loss
    return min_snr_weight((alpha / sigma) ** 2, prediction_type, snr_limit, snr_floor).to(loss) * loss


def rendered_loss(
    rendered: Tensor,
    target: Tensor,
    snr: Tensor,
    *,
    rendered_alpha: Tensor | None = None,
    masks: Tensor | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    perceptual_weight: float = 1.0,
    mask_weight: float = 1.0,
    snr_limit: float = 5.0,
    snr_floor: float = 0.2,
    unseen: Tensor | None = None,
) -> Tensor:
    """x_0 loss through a renderer (DSplats; diffusion with forward models, Tewari et al. 2023): [B].

    The network predicts splats, `rendered` [B, V, H, W, 3] are their images from the V cameras, and the image *is* the x_0
    prediction, so its error carries the x_0 weight min(snr, limit), snr [B]. Views flagged in `unseen` [V] were not among the
    network's noisy inputs; they count without that weight, since nothing in them was given away by low noise.
    masks, rendered_alpha [B, V, H, W]; `perceptual` maps two image stacks [N, H, W, 3] to [N].
    """
    assert rendered.shape == target.shape and rendered.ndim == 5, (rendered.shape, target.shape)
    per_view = ((rendered - target) ** 2).mean((-3, -2, -1))  # [B, V]
    if masks is not None:
        assert rendered_alpha is not None, "masks need the rendered alpha"
        per_view = per_view + mask_weight * ((rendered_alpha - masks) ** 2).mean((-2, -1))
    if perceptual is not None:
        per_view = per_view + perceptual_weight * perceptual(rendered.flatten(0, 1), target.flatten(0, 1)).reshape(
            per_view.shape
        )
    weight = min_snr_weight(snr, "sample", snr_limit, snr_floor).to(per_view)[:, None].expand_as(per_view)
    if unseen is not None:
        weight = torch.where(unseen.to(weight.device), torch.ones_like(weight), weight)
    return (weight * per_view).mean(1)


def ambient_loss(
    denoise: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    noise_level: Tensor,
    sigma: Tensor,
    noise: Tensor,
    data_std: float = 0.5,
) -> Tensor:
    """Training from samples y [B, ...] = x_0 + noise_level n of known noise_level [B] (Daras et al. 2024), VE; [B].

    x = y + sqrt(sigma^2 - noise_level^2) noise, denoise(x, sigma [B]) predicts x_0, and its prediction of the less noisy y,
    (s_n^2/s^2) x + (1 - s_n^2/s^2) x_0, is compared with y under EDM's weight. Needs sigma > noise_level: below its own noise
    a sample teaches nothing. noise_level 0 is ordinary denoising.
    """
    if not bool((sigma > noise_level).all()):
        raise InputError("Ambient training needs sigma above each sample's own noise level; draw sigma from above it.")
    s, own = per_sample(sigma, y), per_sample(noise_level, y)
    x = y + (s**2 - own**2).sqrt() * noise
    share = own**2 / s**2
    error = share * x + (1 - share) * denoise(x, sigma) - y
    weight = (sigma**2 + data_std**2) / (sigma * data_std) ** 2
    # (1 - share) scales the error of x_0; undone, so that noisy and clean samples weigh alike at equal sigma
    return weight.to(y) * ((error / (1 - share)) ** 2).flatten(1).mean(1)
