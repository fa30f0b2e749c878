"""`SplatVolume`: splats as a dense grid, one Gaussian per node, which is what a 3-D network can read and write.

GVGEN's GaussianVolume (He et al. 2024, section 3.1) with two differences. Lengths are in units of the node spacing, so that
the channels have the same statistics at every resolution. And the shape of a Gaussian is the logarithm of its covariance's
square root, a symmetric matrix of six numbers, in place of three log scales and three angles: equal Gaussians then have equal
channels, whatever the order and the signs of their axes, also where two axes are almost equally long and any rotation
between them will do (flat Gaussians on a surface, which are most). Networks regress to a blur between equivalent
targets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splat.errors import InputError, check_finite
from splat.gaussians import Splats
from splat.io.atomic import atomically
from splat.rotations import matrix_from_quat, quat_from_matrix, quat_multiply

CHANNELS = 13
OFFSET = slice(0, 3)  # x, y, z from the node, spacings
COLOUR = slice(3, 6)  # degree-0 SH
STRETCH = slice(6, 12)  # xx, yy, zz, xy, xz, yz of log sqrt(covariance), covariance in spacings squared
OPACITY = 12  # logit

ACTIVE_LOGIT = -5.0  # nodes below hold nothing (GVGEN's export); an opacity of .0067, drawn by less than two grey levels
LOGIT_LIMIT = 7.0
SCALES = (0.02, 4.0)  # standard deviations in spacings that a volume can hold; GVGEN's are .08 and 4.2
EMPTY = torch.tensor([0.0] * 6 + [math.log(0.3)] * 3 + [0.0] * 3 + [-LOGIT_LIMIT])  # what a node without a Gaussian holds
FIELD_LIMIT = 0.15  # world units at which GVGEN cuts the distance field off
RESOLUTIONS = range(1, 257)
FORMAT = "splatsmith volume 1"


@dataclass(frozen=True)
class SplatVolume:
    """B cubes of Gaussians around the origin, R nodes to a side at the centres of its cells."""

    features: Tensor  # [B, 13, R, R, R], grid indexed (z, y, x)
    side: float = 1.0  # world units; the cube is [-side / 2, side / 2]^3
    max_offset: float = 1.5  # spacings, per axis; what is beyond counts as this

    def __post_init__(self) -> None:
        b, r = self.features.shape[0], self.features.shape[-1]
        assert self.features.shape == (b, CHANNELS, r, r, r), self.features.shape
        assert self.side > 0 and self.max_offset >= 0, (self.side, self.max_offset)

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def resolution(self) -> int:
        return self.features.shape[-1]

    @property
    def spacing(self) -> float:
        """World units from one node to the next."""
        return self.side / self.resolution

    @property
    def active(self) -> Tensor:
        """[B, R, R, R] where there is a Gaussian."""
        return self.features[:, OPACITY] > ACTIVE_LOGIT

    def to_splats(self, index: int = 0) -> Splats:
        """The active Gaussians of one cube, in the order of the grid. Differentiable in `features`.

        Offsets, scales and opacities beyond the limits of the format count as the limits. Rotations are canonical
        (`axes_of_stretch`), and their gradient is right for whatever depends on the covariances alone, as renderings do.
        """
        nodes = self.active[index].flatten().nonzero().squeeze(-1)
        rows = self.features[index].flatten(1).T[nodes]  # [N, 13]
        offsets = rows[:, OFFSET].clamp(-self.max_offset, self.max_offset)
        quats, log_scales = axes_of_stretch(rows[:, STRETCH])
        return Splats(
            node_positions(nodes, self.resolution, self.side) + offsets * self.spacing,
            quats,
            log_scales.clamp(*map(math.log, SCALES)) + math.log(self.spacing),
            rows[:, OPACITY].clamp(-LOGIT_LIMIT, LOGIT_LIMIT),
            rows[:, None, COLOUR],
        )

    def distance_field(self, limit: float = FIELD_LIMIT) -> Tensor:
        """[B, 1, R, R, R] world units from each node to the nearest centre of an active Gaussian, at most `limit`.

        GVGEN's Gaussian distance field (section 3.2). An empty cube is `limit` everywhere. Not differentiable.
        """
        from scipy.spatial import KDTree

        everywhere = torch.arange(self.resolution**3)
        nodes = node_positions(everywhere, self.resolution, self.side).numpy()
        fields = []
        for i in range(len(self)):
            means = self.to_splats(i).means.detach().cpu().numpy()
            distance = KDTree(means).query(nodes, distance_upper_bound=limit)[0] if len(means) else np.full(len(nodes), limit)
            fields.append(torch.from_numpy(np.minimum(distance, limit)))
        shape = (len(self), 1, *self.features.shape[2:])
        return torch.stack(fields).reshape(shape).to(self.features)

    def mirrored(self) -> SplatVolume:
        """Left and right swapped."""
        features = self.features.flip(-1).clone()
        features[:, [0, 9, 10]] *= -1  # x of the offset, xy and xz of the stretch
        return replace(self, features=features)

    @staticmethod
    def from_splats(splats: Splats, nodes: Tensor, resolution: int, side: float = 1.0, max_offset: float = 1.5) -> SplatVolume:
        """One cube with Gaussian i at flat node `nodes[i]` [N], no node twice; SH bands above 0 are dropped.

        Means further than `max_offset` from their node are moved to it, and scales and opacities likewise. Differentiable.
        """
        assert nodes.shape == (len(splats),), (nodes.shape, len(splats))
        assert len(nodes.unique()) == len(nodes), "two Gaussians on one node"
        spacing = side / resolution
        positions = node_positions(nodes, resolution, side).to(splats.means)
        rows = torch.cat(
            [
                ((splats.means - positions) / spacing).clamp(-max_offset, max_offset),
                splats.sh[:, 0],
                stretch_of(splats.quats, (splats.log_scales - math.log(spacing)).clamp(*map(math.log, SCALES))),
                splats.opacity_logits[:, None].clamp(-LOGIT_LIMIT, LOGIT_LIMIT),
            ],
            dim=1,
        )
        grid = EMPTY.to(rows).repeat(resolution**3, 1).index_put((nodes,), rows)
        return SplatVolume(grid.T.reshape(1, CHANNELS, *[resolution] * 3), side, max_offset)

    @staticmethod
    def cat(parts: list[SplatVolume]) -> SplatVolume:
        """All cubes in order; resolution, side and largest offset must agree."""
        assert len({(p.resolution, p.side, p.max_offset) for p in parts}) == 1, "volumes of different grids"
        return replace(parts[0], features=torch.cat([p.features for p in parts]))

    def to(self, target: torch.device | str | torch.dtype) -> SplatVolume:
        return replace(self, features=self.features.to(target))


def canonical_nodes(means: Tensor, nodes: Tensor, resolution: int, side: float = 1.0) -> Tensor:
    """World means [N, 3] and their flat nodes [N] -> [N] nodes: each Gaussian at the free node nearest to it, if there is one.

    Which node a fitted Gaussian sits on is partly chance, and networks regress to the mean of chances. Nodes within one
    spacing per axis of a mean's own cell are offered in order of distance; whoever is nearer takes a contested one, and who
    finds none keeps the node it had (then nobody else gets it). Deterministic.
    """
    r, count = resolution, len(means)
    cell = ((means / side + 0.5) * r).floor().long().clamp(0, r - 1)
    span = torch.arange(-1, 2, device=means.device)
    steps = torch.stack(torch.meshgrid(span, span, span, indexing="ij"), dim=-1).reshape(1, 27, 3)
    offered = (cell[:, None] + steps).clamp(0, r - 1)
    flat = offered[..., 0] + r * (offered[..., 1] + r * offered[..., 2])
    distance = (means[:, None] - node_positions(flat.flatten(), r, side).to(means).reshape(count, 27, 3)).norm(dim=-1)
    order = distance.flatten().argsort(stable=True)
    who, where = (order // 27).tolist(), flat.flatten()[order].tolist()
    taken, result = {}, {}
    for i, node in zip(who, where, strict=True):
        if i not in result and node not in taken:
            result[i], taken[node] = node, i
            if len(result) == count:
                break
    old = nodes.tolist()
    homeless = [i for i in range(count) if i not in result]
    while homeless:  # its old node may have gone to another, who then returns to its own old one
        i = homeless.pop()
        other = taken.get(old[i])
        result[i], taken[old[i]] = old[i], i
        if other is not None and other != i:
            homeless.append(other)
    return torch.tensor([result[i] for i in range(count)], dtype=nodes.dtype, device=nodes.device)


def node_positions(nodes: Tensor, resolution: int, side: float = 1.0) -> Tensor:
    """Flat nodes [N] (x fastest, then y, then z) -> [N, 3] world x, y, z of the cells' centres, float32."""
    x, y, z = nodes % resolution, nodes // resolution % resolution, nodes // resolution**2
    return ((torch.stack([x, y, z], dim=-1) + 0.5) / resolution - 0.5).float() * side


def nearest_nodes(points: Tensor, resolution: int, side: float = 1.0) -> Tensor:
    """World points [N, 3] -> [N] the flat node of the cell that holds each; points outside go to the nearest cell."""
    x, y, z = ((points / side + 0.5) * resolution).floor().long().clamp(0, resolution - 1).unbind(-1)
    return x + resolution * (y + resolution * z)


def stretch_of(quats: Tensor, log_scales: Tensor) -> Tensor:
    """quats [N, 4], log_scales [N, 3] -> [N, 6] xx, yy, zz, xy, xz, yz of R diag(log_scales) R^T. Differentiable."""
    axes = matrix_from_quat(quats)
    m = (axes * log_scales[:, None]) @ axes.mT
    return torch.stack([m[:, 0, 0], m[:, 1, 1], m[:, 2, 2], m[:, 0, 1], m[:, 0, 2], m[:, 1, 2]], dim=-1)


def axes_of_stretch(stretch: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 6] -> canonical quats [N, 4] wxyz unit and log scales [N, 3]: the inverse of `stretch_of` up to the order of axes.

    Canonical: the longest axis first, and of the four proper rotations that differ by the axes' signs the one nearest to
    the identity, w >= 0. Differentiable for functions of the covariance alone, for which equal axes are no singularity.
    """
    return _AxesOfStretch.apply(stretch)


class _AxesOfStretch(torch.autograd.Function):
    """The eigendecomposition, with a backward that stays finite where eigenvalues meet."""

    @staticmethod
    def forward(ctx, stretch: Tensor) -> tuple[Tensor, Tensor]:
        log_scales, axes = torch.linalg.eigh(_symmetric(stretch))
        log_scales, axes = log_scales.flip(-1), axes.flip(-1)
        axes = axes * torch.linalg.det(axes).sign()[:, None, None]
        half_turns = torch.eye(4, dtype=axes.dtype, device=axes.device)  # 1, i, j, k: about no axis, x, y, z
        quats = quat_from_matrix(axes)
        turned = quat_multiply(quats[:, None].expand(-1, 4, 4), half_turns.expand(len(quats), 4, 4))  # [N, 4, 4]
        best = turned[..., 0].abs().argmax(-1)
        quats = turned.gather(1, best[:, None, None].expand(-1, 1, 4)).squeeze(1)
        quats = torch.where(quats[:, :1] < 0, -quats, quats)
        ctx.save_for_backward(quats, log_scales)
        return quats, log_scales

    @staticmethod
    def backward(ctx, v_quats: Tensor, v_log_scales: Tensor) -> Tensor:
        quats, l = ctx.saved_tensors
        units = torch.eye(4, dtype=quats.dtype, device=quats.device)[1:]
        turns = 0.5 * quat_multiply(quats[:, None].expand(-1, 3, 4), units.expand(len(quats), 3, 4))  # d quat / d turn
        v_x, v_y, v_z = (turns * v_quats[:, None]).sum(-1).unbind(-1)

        # A change M of the matrix, in its own axes, turns x by M12 / (l1 - l2), y by M02 / (l2 - l0), z by M01 / (l0 - l1).
        # For functions of the covariance the turn's gradient vanishes with the difference; below 1e-3 what is left is rounding,
        # and the damping lets it fade out.
        def over(x: Tensor, difference: Tensor) -> Tensor:
            return x * difference / (difference.square() + 1e-6)

        v = torch.diag_embed(v_log_scales)
        v_01 = over(v_z, l[:, 0] - l[:, 1])
        v_02 = over(v_y, l[:, 2] - l[:, 0])
        v_12 = over(v_x, l[:, 1] - l[:, 2])
        for i, j, value in ((0, 1, v_01), (0, 2, v_02), (1, 2, v_12)):
            v[:, i, j] = v[:, j, i] = value / 2
        axes = matrix_from_quat(quats)
        m = axes @ v @ axes.mT
        off = 2 * torch.stack([m[:, 0, 1], m[:, 0, 2], m[:, 1, 2]], dim=-1)
        return torch.cat([m.diagonal(dim1=-2, dim2=-1), off], dim=-1)


def _symmetric(stretch: Tensor) -> Tensor:
    xx, yy, zz, xy, xz, yz = stretch.unbind(-1)
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=-1).unflatten(-1, (3, 3))


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel over active nodes: what networks see has mean 0 and deviation 1."""

    mean: Tensor  # [13]
    std: Tensor  # [13]

    @staticmethod
    def of(volumes: Iterable[SplatVolume]) -> ChannelStatistics:
        """Over the active nodes of all volumes, each node counting once; one pass, float64. A constant channel gets 1."""
        count, total, squares = 0, torch.zeros(CHANNELS).double(), torch.zeros(CHANNELS).double()
        for volume in volumes:
            rows = volume.features.movedim(1, -1)[volume.active].double().cpu()
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
        if count == 0:
            raise InputError("The volumes hold no Gaussian, so there are no statistics; fit some objects first.")
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        return ChannelStatistics(mean.float(), torch.where(std > 1e-6, std, 1).float())

    def standardised(self, features: Tensor) -> Tensor:
        """[B, 13, ...] of a volume -> the same, in deviations from the mean."""
        mean, std = self._like(features)
        return (features - mean) / std

    def restored(self, standardised: Tensor) -> Tensor:
        """The inverse of `standardised`."""
        mean, std = self._like(standardised)
        return standardised * std + mean

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (x.ndim - 2))
        return self.mean.to(x).reshape(shape), self.std.to(x).reshape(shape)


def save_volume(path: Path, volume: SplatVolume, dtype: torch.dtype = torch.float32, facts: dict | None = None) -> None:
    """Active nodes alone, as safetensors, whole or not at all; `facts` is anything JSON holds.

    float16 halves the file. Raises InputError for values that are not finite.
    """
    from safetensors.torch import save

    rows = volume.features.movedim(1, -1).flatten(0, 3).detach().cpu()  # [B R R R, 13]
    check_finite(rows, f"the volume for {Path(path).name}")
    nodes = volume.active.cpu().flatten().nonzero().squeeze(-1)
    about = {
        "format": FORMAT, "resolution": volume.resolution, "volumes": len(volume), "side": volume.side,
        "max_offset": volume.max_offset, "facts": facts or {},
    }  # fmt: skip
    tensors = {"nodes": nodes.int(), "features": rows[nodes].to(dtype).contiguous()}
    with atomically(Path(path)) as temporary:
        temporary.write_bytes(save(tensors, metadata={"volume": json.dumps(about)}))  # `save_file` hides what the disk says


def load_volume(path: Path) -> tuple[SplatVolume, dict]:
    """What `save_volume` wrote, in float32, and its facts. Raises InputError when the file is missing, damaged or foreign."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(str(path), framework="pt") as f:
            about = json.loads((f.metadata() or {})["volume"])
            nodes, rows = f.get_tensor("nodes").long(), f.get_tensor("features").float()
        known = about["format"] == FORMAT
        resolution, count, side, max_offset = (about[k] for k in ("resolution", "volumes", "side", "max_offset"))
        facts = dict(about["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} is not a readable volume ({error}); fit the object again.") from error
    whole = known and type(resolution) is int and resolution in RESOLUTIONS and type(count) is int and 0 <= count <= 4096
    whole = whole and all(isinstance(x, int | float) and 0 <= x < 1e6 for x in (side, max_offset)) and side > 0
    whole = whole and nodes.ndim == 1 and rows.shape == (len(nodes), CHANNELS)
    whole = whole and (len(nodes) == 0 or (0 <= int(nodes[0]) and int(nodes[-1]) < count * resolution**3))
    if not whole or bool((nodes.diff() <= 0).any()):
        raise InputError(f"{path} holds numbers that no volume has; fit the object again.")
    check_finite(rows, str(path))
    grid = EMPTY.repeat(count * resolution**3, 1)
    grid[nodes] = rows
    features = grid.reshape(count, *[resolution] * 3, CHANNELS).movedim(-1, 1).contiguous()
    return SplatVolume(features, float(side), float(max_offset)), facts
