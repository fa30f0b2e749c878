"""The multiview splat denoiser on the backbone of a Stable Diffusion U-Net: DSplats' way to start from pictures of everything.

DSplats (Miao et al. 2024) makes the reconstructor from a pretrained latent diffusion model. Here its U-Net is kept as it is,
weight for weight: further input channels are added through a convolution of zeros, self-attention spans the patches of all
views, and a new head beside the old one makes maps of Gaussians. Before training, a single view passes as in the original.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.models.autoencoder import Autoencoder
from diffusion.models.from_disk import load_network
from diffusion.schedules import Schedule, vp
from diffusion.splat_maps import HULL_CHANNELS, MAP_CHANNELS
from splat.errors import InputError

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


class MultiviewUNet(ModelMixin, ConfigMixin):
    """The contract of `MultiviewDenoiser` in the latents of an autoencoder, by a U-Net; make one with `from_unet`.

    `side` is that of the pictures and maps in pixels, `factor` of them lie along a latent. `unet` is the config of the U-Net,
    `betas` of the schedule that it was trained with (`schedules.vp`), `text_tokens` how many tokens stand for no text. The
    latents of the known views come from `autoencoder`, which is not part of the weights: set it before the first call.
    """

    @register_to_config
    def __init__(
        self,
        unet: dict,
        side: int = 256,
        factor: int = 8,
        betas: dict = STABLE_DIFFUSION,
        text_tokens: int = 1,
        space: str = "latent",
    ) -> None:
        super().__init__()
        self.backbone = UNet2DConditionModel.from_config(dict(unet))
        c = self.backbone.config
        self.channels = c.in_channels
        added = 1 + 6 + HULL_CHANNELS + 4 * factor**2  # mask, rays and hull, pixels of the known views
        self.backbone.conv_in = _WidenedInput(self.backbone.conv_in, added)
        self.reference, self.backbone.conv_out = self.backbone.conv_out, nn.Identity()  # what the U-Net itself predicted
        self.reference.requires_grad_(False)
        self.head = nn.Conv2d(c.block_out_channels[0], MAP_CHANNELS * factor**2, 3, padding=1)
        nn.init.zeros_(self.head.bias)
        self.head.weight.data.mul_(0.1)
        self.nothing = nn.Parameter(torch.zeros(text_tokens, c.cross_attention_dim))  # the tokens of no text
        self.backbone.set_attn_processor(CrossViewAttention())
        self.autoencoder: Autoencoder | None = None
        self.schedule: Schedule = vp(**betas)

    def forward(
        self,
        noisy: Tensor,
        clean: Tensor,
        is_clean: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        rays: Tensor,
        text: Tensor | None = None,
    ) -> Tensor:
        """-> maps [B, V, MAP_CHANNELS, S, S]; all but `text` as `MultiviewDenoiser.forward` has it.

        noisy [B, V, C, S / factor, S / factor]; text [B, T, D], features of the U-Net's own text encoder. A known view's own
        latents take the place of its noisy ones, as in CAT3D (Gao et al. 2024).
        """
        if self.autoencoder is None:
            raise InputError("This network reads known views as latents; load it with load_multiview_unet and an autoencoder.")
        views, known = noisy.shape[1], is_clean[:, :, None, None, None].to(noisy.dtype)
        pixels = (known * clean).flatten(0, 1)
        latents = self.autoencoder.encode(pixels).unflatten(0, is_clean.shape).to(noisy.dtype)
        power = (alpha**2 + sigma**2).sqrt()[:, None, None, None, None]  # a U-Net's samples are variance preserving
        sample = (known * latents + (1 - known) * noisy / power).flatten(0, 1)
        h, w = sample.shape[-2:]
        flags = known.flatten(0, 1).expand(-1, 1, h, w)
        seen = [flags, F.adaptive_avg_pool2d(rays.flatten(0, 1), (h, w)), F.pixel_unshuffle(pixels, self.config.factor)]
        log_snr = (alpha / sigma).log().detach().double().cpu().numpy()
        time = torch.as_tensor(self.schedule.time(log_snr), dtype=torch.float32, device=noisy.device)
        features = self.features(torch.cat([sample, *seen], dim=1), time.repeat_interleave(views), views, text)
        return F.pixel_shuffle(self.head(features), self.config.factor).unflatten(0, is_clean.shape)

    def features(self, sample: Tensor, time: Tensor, views: int = 1, text: Tensor | None = None) -> Tensor:
        """What the U-Net has before its last convolution, [B V, D, h, w], of B objects in `views` views each.

        sample [B V, channels or all, h, w], without the added channels as in the original U-Net; time [B V] training
        timesteps, may be fractional; text [B, T, D].
        """
        text = self.nothing.expand(len(sample) // views, -1, -1) if text is None else text
        text = text.to(sample.dtype).repeat_interleave(views, dim=0)
        return self.backbone(sample, time, text, cross_attention_kwargs={"views": views}).sample

    def reference_prediction(self, sample: Tensor, time: Tensor, views: int = 1, text: Tensor | None = None) -> Tensor:
        """What the U-Net was trained to predict, [B V, C, h, w]; arguments as `features`. With one view and no added channels
        this is the original U-Net, bit for bit."""
        return self.reference(self.features(sample, time, views, text))


class CrossViewAttention(AttnProcessor2_0):
    """Self-attention over the tokens of all views of an object, `(b v) n d -> b (v n) d`; attention to text stays per view.

    As MVDream has it (Shi et al. 2023), without new weights. Attention that comes as pictures, [B, C, H, W], stays per view.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        views: int = 1,
    ) -> Tensor:
        x = hidden_states
        if views == 1 or encoder_hidden_states is not None or x.ndim == 4:
            return super().__call__(attn, x, encoder_hidden_states, attention_mask, temb)
        assert attention_mask is None, "a mask of self-attention is one of a single view"
        return super().__call__(attn, x.unflatten(0, (-1, views)).flatten(1, 2), temb=temb).reshape(x.shape)


class _WidenedInput(nn.Module):
    """A convolution with `added` further input channels, zero until trained. Without them it is the convolution itself."""

    def __init__(self, convolution: nn.Conv2d, added: int) -> None:
        super().__init__()
        c = convolution
        self.original = c
        self.added = nn.Conv2d(added, c.out_channels, c.kernel_size, c.stride, c.padding, bias=False)
        nn.init.zeros_(self.added.weight)

    def forward(self, x: Tensor) -> Tensor:
        first = self.original.in_channels
        out = self.original(x[:, :first])
        return out if x.shape[1] == first else out + self.added(x[:, first:])


def from_unet(
    unet: UNet2DConditionModel,
    autoencoder: Autoencoder,
    side: int,
    betas: Mapping[str, object] = STABLE_DIFFUSION,
    no_text: Tensor | None = None,
) -> MultiviewUNet:
    """A denoiser of pictures `side` px wide that starts with the weights of `unet`, a member of the Stable Diffusion family.

    `no_text` [T, D]: the features of the empty prompt, where the U-Net's text encoder is at hand; else one token of zeros.
    Raises InputError where the U-Net wants more than a sample, a time and text, or other latents than the autoencoder's.
    """
    c = unet.config
    asked = [k for k in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim") if c.get(k)]
    if asked or c.num_class_embeds or not isinstance(c.cross_attention_dim, int):
        raise InputError(
            f"This U-Net takes more than a sample, a time and text ({', '.join(asked) or 'classes'}); "
            "Stable Diffusion 1 and 2 and what was tuned from them can be the backbone."
        )
    if c.in_channels != autoencoder.channels:
        raise InputError(
            f"The U-Net reads {c.in_channels} channels and the autoencoder makes {autoencoder.channels}; "
            "take both from one pipeline."
        )
    steps = autoencoder.factor * 2 ** (len(c.block_out_channels) - 1)
    if side % steps:
        raise InputError(f"Pictures of {side} px do not pass this U-Net; their side must be a multiple of {steps}.")
    tokens = 1 if no_text is None else len(no_text)
    network = MultiviewUNet(_plain(c), side, autoencoder.factor, dict(betas), tokens)
    own = {"conv_in.weight": "conv_in.original.weight", "conv_in.bias": "conv_in.original.bias"}
    weights = {f"backbone.{own.get(k, k)}": v for k, v in unet.state_dict().items()}
    for name in ("weight", "bias"):
        weights[f"reference.{name}"] = weights.pop(f"backbone.conv_out.{name}")
    fresh = {k: v for k, v in network.state_dict().items() if k.startswith(("head.", "nothing", "backbone.conv_in.added."))}
    network.load_state_dict({**weights, **fresh})
    if no_text is not None:
        network.nothing.data.copy_(no_text)
    network.autoencoder = autoencoder
    return network.eval()


def from_pipeline(folder: Path, autoencoder: Autoencoder, side: int, no_text: Tensor | None = None) -> MultiviewUNet:
    """`from_unet` for the folder of a diffusers pipeline (`unet`, `scheduler`) or of its U-Net alone, then with the schedule
    of Stable Diffusion. safetensors alone; nothing is downloaded."""
    whole = (folder / "unet" / "config.json").is_file()
    unet = load_network(folder / "unet" if whole else folder, (UNet2DConditionModel,))
    return from_unet(unet, autoencoder, side, _betas(folder) if whole else STABLE_DIFFUSION, no_text)


def load_multiview_unet(folder: Path, autoencoder: Autoencoder) -> MultiviewUNet:
    """What `save_pretrained` wrote of a `MultiviewUNet`, with the autoencoder whose latents it was trained on."""
    network = load_network(folder, (MultiviewUNet,))
    if (network.channels, network.config.factor) != (autoencoder.channels, autoencoder.factor):
        raise InputError(
            f"{folder} wants {network.channels} channels a {network.config.factor}th the size and the autoencoder makes "
            f"{autoencoder.channels} at a {autoencoder.factor}th; give the one that it was trained with."
        )
    network.autoencoder = autoencoder
    return network


def _betas(pipeline: Path) -> dict[str, object]:
    path = pipeline / "scheduler" / "scheduler_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {key: config.get(key, usual) for key, usual in STABLE_DIFFUSION.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no readable scheduler config; copy the pipeline again.") from error


def _plain(config: Mapping[str, object]) -> dict[str, object]:
    """A config that JSON can hold: no private keys, tuples as lists."""
    return json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, default=list))
