"""LGM's network: four pictures of an object with the rays through their pixels -> a Gaussian for every output pixel.

"LGM: Large Multi-View Gaussian Model for High-Resolution 3D Content Creation" (Tang et al., ECCV 2024, section 3.2): a U-Net
whose decoder ends below the resolution of its input, and whose attention, where the feature maps are small, spans all views.
The modules have the names of the published ones, so that a released file loads as it is; what the input and the output mean
is in `diffusion.lgm`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IN_CHANNELS = 9  # rgb, moment and direction of the ray
OUT_CHANNELS = 14  # position, opacity, scale, quaternion, rgb
GROUPS = 32
HEADS = 16
DAMPING = math.sqrt(0.5)  # of every sum with a residual, which keeps the variance


@dataclass(frozen=True)
class LgmShape:
    """What the tensors of a checkpoint decide: channels from the first stage to the last, and where there is attention."""

    down: tuple[int, ...]
    down_attention: tuple[bool, ...]
    up: tuple[int, ...]
    up_attention: tuple[bool, ...]
    mid_attention: bool = True
    layers: int = 2  # in a stage on the way down; one more on the way up

    def splat_side(self, input_side: int) -> int:
        """Pixels along the side of the output maps."""
        return input_side >> (len(self.down) - 1) << (len(self.up) - 1)


_NO, _YES = False, True
BIG = LgmShape(
    (64, 128, 256, 512, 1024, 1024), (_NO, _NO, _NO, _YES, _YES, _YES),
    (1024, 1024, 512, 256, 128), (_YES, _YES, _YES, _NO, _NO),
)  # fmt: skip
SMALL = LgmShape(BIG.down, BIG.down_attention, BIG.up[:4], BIG.up_attention[:4])
TINY = LgmShape((32, 64, 128, 256, 512), (_NO, _NO, _NO, _NO, _YES), (512, 256, 128), (_YES, _NO, _NO))


def shape_of(tensors: Mapping[str, Sequence[int]]) -> LgmShape:
    """The shape that a checkpoint's names and tensor shapes spell. Raises KeyError for the first name that is missing.

    It looks at a few names only: whether all the others fit is for a strict comparison to say.
    """

    def stages(kind: str) -> range:
        numbers = {name.split(".")[2] for name in tensors if name.startswith(f"unet.{kind}.")}
        return range(len(numbers))

    def channels(kind: str) -> tuple[int, ...]:
        return tuple(int(tensors[f"unet.{kind}.{i}.nets.0.conv1.weight"][0]) for i in stages(kind))

    def attention(kind: str) -> tuple[bool, ...]:
        return tuple(f"unet.{kind}.{i}.attns.0.norm.weight" in tensors for i in stages(kind))

    layers = sum(f"unet.down_blocks.0.nets.{j}.conv1.weight" in tensors for j in range(8))
    down, up = channels("down_blocks"), channels("up_blocks")
    for name, found in (("unet.down_blocks.0.nets.0.conv1.weight", down), ("unet.up_blocks.0.nets.0.conv1.weight", up)):
        if not found:
            raise KeyError(name)
    mid_attention = "unet.mid_block.attns.0.norm.weight" in tensors
    return LgmShape(down, attention("down_blocks"), up, attention("up_blocks"), mid_attention, layers)


class LGM(nn.Module):
    """[B, V, 9, H, W] pictures and rays -> [B, V, 14, H', W'] raw Gaussians, H' = `shape.splat_side(H)`.

    The views carry no number: permuting them permutes the output. H and W are divisible by 2^(stages down - 1).
    `turned` is no part of the weights: whether they were trained with the quaternions in force (`diffusion.lgm_checkpoint`).
    """

    def __init__(self, shape: LgmShape = BIG, turned: bool = True) -> None:
        super().__init__()
        self.shape = shape
        self.turned = turned
        self.unet = _UNet(shape)
        self.conv = nn.Conv2d(OUT_CHANNELS, OUT_CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, v, c = x.shape[:3]
        assert c == IN_CHANNELS, x.shape
        return self.conv(self.unet(x.flatten(0, 1), v)).unflatten(0, (b, v))


class _UNet(nn.Module):
    def __init__(self, shape: LgmShape) -> None:
        super().__init__()
        down, up = shape.down, shape.up
        self.conv_in = nn.Conv2d(IN_CHANNELS, down[0], 3, padding=1)
        entries = (down[0], *down[:-1])
        self.down_blocks = nn.ModuleList(
            _Stage(
                [entries[i], *[down[i]] * (shape.layers - 1)], down[i], shape.down_attention[i],
                "downsample" if i < len(down) - 1 else None,
            )
            for i in range(len(down))
        )  # fmt: skip
        self.mid_block = _Middle(down[-1], shape.mid_attention)
        self.up_blocks = nn.ModuleList()
        below = up[0]
        for i, width in enumerate(up):
            # all but the last skip are of this stage's own resolution; the last comes from the stage above it
            skips = [*[width] * shape.layers, down[max(-2 - i, -len(down))]]
            inputs = [below + skips[0], *[width + skip for skip in skips[1:]]]
            resample = "upsample" if i < len(up) - 1 else None
            self.up_blocks.append(_Stage(inputs, width, shape.up_attention[i], resample))
            below = width
        self.norm_out = nn.GroupNorm(GROUPS, up[-1])
        self.conv_out = nn.Conv2d(up[-1], OUT_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, views: int) -> Tensor:
        """[B V, 9, H, W] -> [B V, 14, H', W']."""
        x = self.conv_in(x)
        skips = [x]
        for stage in self.down_blocks:
            for layer in range(len(stage.nets)):
                x = stage.layer(layer, x, views)
                skips.append(x)
            if hasattr(stage, "downsample"):
                x = stage.downsample(x)
                skips.append(x)
        x = self.mid_block(x, views)
        for stage in self.up_blocks:
            for layer in range(len(stage.nets)):
                x = stage.layer(layer, torch.cat([x, skips.pop()], dim=1), views)
            if hasattr(stage, "upsample"):
                x = stage.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class _Stage(nn.Module):
    """Layers of one resolution, `inputs` channels into each and `width` out, then perhaps a change of resolution."""

    def __init__(self, inputs: list[int], width: int, attention: bool, resample: str | None) -> None:
        super().__init__()
        self.nets = nn.ModuleList(_Residual(channels, width) for channels in inputs)
        self.attns = nn.ModuleList(_ViewAttention(width) for _ in inputs if attention)
        if resample:
            self.add_module(resample, nn.Conv2d(width, width, 3, stride=2 if resample == "downsample" else 1, padding=1))

    def layer(self, number: int, x: Tensor, views: int) -> Tensor:
        x = self.nets[number](x)
        return self.attns[number](x, views) if len(self.attns) else x


class _Middle(nn.Module):
    def __init__(self, width: int, attention: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList([_Residual(width, width), _Residual(width, width)])
        self.attns = nn.ModuleList([_ViewAttention(width)] if attention else [])

    def forward(self, x: Tensor, views: int) -> Tensor:
        x = self.nets[0](x)
        for attention in self.attns:
            x = attention(x, views)
        return self.nets[1](x)


class _Residual(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return (inner + self.shortcut(x)) * DAMPING


class _ViewAttention(nn.Module):
    """Every pixel of every view of an object sees all the others, `b (v h w) c`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width, bias=False), "proj": nn.Linear(width, width)})

    def forward(self, x: Tensor, views: int) -> Tensor:
        h, w = x.shape[-2:]
        tokens = self.norm(x).flatten(2).mT.unflatten(0, (-1, views)).flatten(1, 2)  # [B, V H W, C]
        qkv = self.attn["qkv"](tokens).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # [3, B, heads, V H W, C / heads]
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).flatten(2)  # [B, V H W, C]
        out = self.attn["proj"](mixed).unflatten(1, (views, -1)).flatten(0, 1)  # [B V, H W, C]
        return (x + out.mT.unflatten(2, (h, w))) * DAMPING
