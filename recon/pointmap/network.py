"""The two-view network: pictures and XFeat's cells in, depth of both, their relative motion and the lens out.

DUSt3R (Wang et al., CVPR 2024) lets a decoder say every point of the second picture in the first one's frame. With little
training that is much to ask; here each picture's points lie on the rays of one pinhole lens, and one motion for all of them
takes them to the other's frame, so that what comes out is always two cameras and a scene. Both orders come from one call.
"""

from __future__ import annotations

import json
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recon.pointmap.matches import CHANNELS, cell_matches
from splat.errors import InputError

PATCH = 8  # px of the small picture to a token; two by two cells of XFeat, which sees the picture at twice the size
USUAL_FOCAL = 1.1  # long sides
FORMAT = "splatsmith pointmap 1"
SIZES = ((8, 1024), (1, 32), (0, 24), (1, 24))  # least and most of each of `PointmapConfig` in weights that are read


@dataclass(frozen=True)
class PointmapConfig:
    """Size of the network."""

    width: int = 128  # of a token
    heads: int = 4
    encoder: int = 2  # blocks that see one picture
    decoder: int = 5  # blocks that see both


@dataclass(frozen=True)
class PairInput:
    """B pairs of pictures of one size."""

    images: Tensor  # [B, 2, 3, H, W] sRGB in [0, 1]; sides multiples of 8
    descriptors: Tensor  # [B, 2, 64, H/4, W/4] of XFeat, unit length, from the picture at twice the size
    trust: Tensor  # [B, 2, H/4, W/4] of XFeat
    focal: Tensor  # [B] in long sides, 0 where it is not known

    def to(self, device: torch.device | str) -> PairInput:
        return PairInput(*(x.to(device) for x in (self.images, self.descriptors, self.trust, self.focal)))


@dataclass(frozen=True)
class PairGeometry:
    """What the network says. Scale is free and shared by all of a pair."""

    log_depth: Tensor  # [B, 2, H, W] of z in the picture's own camera
    certainty: Tensor  # [B, 2, H, W] above 1, see DUSt3R eq. 4
    rotation: Tensor  # [B, 2, 3, 3] from a picture's camera frame to the other's: x_other = R x + t
    translation: Tensor  # [B, 2, 3]
    log_focal: Tensor  # [B] of the focal length in long sides

    def local_points(self) -> Tensor:
        """[B, 2, H, W, 3] in each picture's own camera frame."""
        return self.log_depth.exp()[..., None] * pixel_rays(self.log_focal.exp(), *self.log_depth.shape[-2:])[:, None]

    def points_in_other(self) -> Tensor:
        """[B, 2, H, W, 3] each picture's points in the other's camera frame."""
        turned = torch.einsum("bkij,bkhwj->bkhwi", self.rotation, self.local_points())
        return turned + self.translation[:, :, None, None]


def pixel_rays(focal: Tensor, height: int, width: int) -> Tensor:
    """[B, H, W, 3] with z = 1, for focal lengths [B] in long sides and a principal point in the middle."""
    side = max(height, width)
    x = (torch.arange(width, device=focal.device) + 0.5 - width / 2) / side
    y = (torch.arange(height, device=focal.device) + 0.5 - height / 2) / side
    flat = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(height, width, device=focal.device)], dim=-1)
    scale = torch.stack([1 / focal, 1 / focal, torch.ones_like(focal)], dim=-1)
    return flat * scale[:, None, None]


class Attention(nn.Module):
    """Queries of `x` [N, T, D] look at `to` [N, T', D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.norm_to = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, to: Tensor) -> Tensor:
        q = self.query(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(self.norm_to(to)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if x.device.type == "cpu":  # whose kernel is faster in float32: 25 ms against 38 there and back
            q, k, v = q.float(), k.float(), v.float()
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, attention to the other picture where wanted, and a step for each token alone."""

    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.own = Attention(width, heads)
        self.cross = Attention(width, heads) if cross else None
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[2 B, T, D], the pictures of a pair next to each other."""
        x = x + self.own(x, x)
        if self.cross is not None:
            other = x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
            x = x + self.cross(x, other)
        return x + self.mlp(x)


class PointmapNetwork(nn.Module):
    """See the module. Half a million to a few million weights by its config."""

    def __init__(self, config: PointmapConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PointmapConfig()
        d = config.width
        self.stem = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GELU(approximate="tanh"))
            for a, b in ((3, 24), (24, 48), (48, 96))
        )
        self.embed = nn.Linear(96 + 4 * CHANNELS + 4, d)
        self.place = nn.Sequential(nn.Linear(18, d), nn.GELU(approximate="tanh"), nn.Linear(d, d))
        self.matched = nn.Linear(20, d)
        self.encoder = nn.ModuleList(Block(d, config.heads, cross=False) for _ in range(config.encoder))
        self.decoder = nn.ModuleList(Block(d, config.heads, cross=True) for _ in range(config.decoder))
        self.register = nn.Parameter(0.02 * torch.randn(2, d))  # tokens for motion and lens
        self.known_focal = nn.Linear(2, d)
        self.norm = nn.LayerNorm(d)
        self.motion = nn.Sequential(nn.Linear(2 * d, d), nn.GELU(approximate="tanh"), nn.Linear(d, 9))
        self.lens = nn.Sequential(nn.Linear(d, d), nn.GELU(approximate="tanh"), nn.Linear(d, 1))
        self.grow = nn.ModuleList([_Grow(d, 48, 64), _Grow(64, 24, 32)])
        self.last = nn.Conv2d(32, 4 * 2, 3, padding=1, padding_mode="replicate")  # depth and certainty of 2 x 2 pixels
        with torch.no_grad():
            for layer in (self.motion[-1], self.lens[-1], self.last):
                layer.weight.mul_(0.1)
                layer.bias.zero_()
            self.motion[-1].bias[:6] = torch.tensor([1.0, 0, 0, 0, 1, 0])

    def forward(self, pair: PairInput) -> PairGeometry:
        """Scale free; lenses are taken to be one lens."""
        b, _, _, height, width = pair.images.shape
        pictures = pair.images.flatten(0, 1)
        assert height % PATCH == 0 and width % PATCH == 0, (height, width)
        fine, middle, coarse = self._stem(2 * pictures - 1)  # at 1/2, 1/4, 1/8
        cells = F.pixel_unshuffle(pair.descriptors.flatten(0, 1), 2) * CHANNELS**0.5
        trust = F.pixel_unshuffle(pair.trust.flatten(0, 1)[:, None], 2)
        h, w = coarse.shape[-2:]
        x = self.embed(torch.cat([coarse, cells, trust], dim=1).flatten(2).transpose(1, 2))  # [2 B, h w, D]
        x = x + self.place(_places(h, w, x.device))
        for block in self.encoder:
            x = block(x)
        x = x + self.matched(_match_tokens(pair.descriptors))
        known = pair.focal > 0
        lens = torch.where(known, (pair.focal.clamp_min(1e-3) / USUAL_FOCAL).log(), torch.zeros_like(pair.focal))
        told = self.known_focal(torch.stack([lens, known.to(lens)], dim=-1)).repeat_interleave(2, 0)
        registers = self.register + torch.stack([torch.zeros_like(told), told], dim=1)  # [2 B, 2, D]
        x = torch.cat([registers, x], dim=1)
        for block in self.decoder:
            x = block(x)
        x = self.norm(x)
        x, grid = x[:, :2].unflatten(0, (b, 2)), x[:, 2:].transpose(1, 2).unflatten(2, (h, w))
        grid = self.grow[1](self.grow[0](grid, middle), fine)
        out = F.pixel_shuffle(self.last(grid), 2).float().unflatten(0, (b, 2))  # [B, 2, 2, H, W]
        both = torch.cat([x[:, :, 0], x[:, :, 0].flip(1)], dim=-1)
        motion = self.motion(both).float()  # [B, 2, 9]
        log_focal = self.lens(x[:, :, 1]).float().mean((1, 2)) + torch.log(torch.tensor(USUAL_FOCAL))
        log_focal = torch.where(known, pair.focal.clamp_min(1e-3).log(), log_focal)
        return PairGeometry(
            out[:, :, 0], 1 + out[:, :, 1].clamp(-12, 12).exp(), _rotation(motion[..., :6]), motion[..., 6:], log_focal
        )

    def _stem(self, x: Tensor) -> list[Tensor]:
        levels = []
        for layer in self.stem:
            x = layer(x)
            levels.append(x)
        return levels

    def save(self, folder: Path, facts: dict | None = None) -> None:
        """config.json and model.safetensors (half precision) in `folder`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().half().contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        about = {"format": FORMAT, "network": asdict(self.config), **(facts or {})}
        (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> PointmapNetwork:
        """What `save` wrote, in float32, evaluating. Raises `InputError` where `folder` holds anything else."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']!r}")
            config = PointmapConfig(**about["network"])
            if not all(type(size) is int and low <= size <= high for size, (low, high) in zip(astuple(config), SIZES)):
                raise ValueError("its sizes are out of range")
            if config.width % config.heads:
                raise ValueError(f"{config.heads} heads do not divide a width of {config.width}")
            with torch.device("meta"):  # the file says how large it is before memory is taken for what the config claims
                network = PointmapNetwork(config)
            tensors = load_file(folder / "model.safetensors")
            if not all(bool(v.isfinite().all()) for v in tensors.values()):
                raise ValueError("a weight is not finite")
            network.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
        except (
            OSError,
            KeyError,
            TypeError,
            ValueError,
            OverflowError,
            AttributeError,
            RuntimeError,
            SafetensorError,
        ) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{folder} holds no weights of the pointmap network ({reason[:200]}); give the folder that "
                "`splatsmith train pointmap-pack` wrote."
            ) from error
        return network.eval()


class _Grow(nn.Module):
    """Twice the size, with what the stem saw at that size."""

    def __init__(self, channels: int, seen: int, out: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(channels, 4 * out, 1)
        self.mix = nn.Conv2d(out + seen, out, 3, padding=1, padding_mode="replicate")
        self.after = nn.Conv2d(out, out, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.before(x), 2)
        x = F.gelu(self.mix(torch.cat([x, seen], dim=1)), approximate="tanh")
        return x + F.gelu(self.after(x), approximate="tanh")


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """[h w, 18] where tokens lie, in long sides from the middle: plain, and as waves."""
    side = max(height, width)
    x = (torch.arange(width, device=device) + 0.5 - width / 2) / side
    y = (torch.arange(height, device=device) + 0.5 - height / 2) / side
    at = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)  # [h w, 2]
    waves = torch.cat([k * torch.pi * at for k in (2, 4, 8, 16)], dim=-1)
    return torch.cat([at, waves.sin(), waves.cos()], dim=-1)


def _match_tokens(descriptors: Tensor) -> Tensor:
    """[B, 2, C, 2h, 2w] -> [2 B, h w, 20] the matches of each token's four cells in the other picture."""
    with torch.no_grad():
        first, second = descriptors.float().unbind(1)
        found = torch.stack(cell_matches(first, second), dim=1).flatten(0, 1)
        shift, sure = 4 * found[..., :2], found[..., 2:]
        channels = torch.cat([shift, sure, sure * shift], dim=-1).permute(0, 3, 1, 2)  # [2 B, 5, 2h, 2w]
        return F.pixel_unshuffle(channels, 2).flatten(2).transpose(1, 2)


def _rotation(six: Tensor) -> Tensor:
    """[..., 6] -> [..., 3, 3] by Gram-Schmidt (Zhou et al., CVPR 2019)."""
    a, b = six[..., :3], six[..., 3:]
    a = F.normalize(a, dim=-1)
    b = F.normalize(b - (a * b).sum(-1, keepdim=True) * a, dim=-1)
    return torch.stack([a, b, torch.linalg.cross(a, b)], dim=-1)
