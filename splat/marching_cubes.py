"""The zero level of a grid of signed distances as triangles: marching cubes (Lorensen and Cline 1987) by open3d."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from splat.mesh import Mesh
from splat.open3d_import import open3d

BLOCK = 8  # voxels along the side of one of open3d's blocks


def marching_cubes(signed: Tensor, low: Tensor, voxel: float, colors: Tensor | None = None) -> Mesh | None:
    """The surface between negative (inside) and positive values of `signed` [X, Y, Z] at low + voxel * index; None if none.

    `colors` [X, Y, Z, 3] are blended along the edges. The surface is closed where it does not reach the edge of the grid.
    """
    blocks = [-(-n // BLOCK) for n in signed.shape]
    pad = [x for n, b in zip(reversed(signed.shape), reversed(blocks), strict=True) for x in (0, b * BLOCK - n)]
    signed = torch.nn.functional.pad(signed.float(), pad, value=float(signed.abs().max()) or 1.0)
    tiles = signed.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).unfold(2, BLOCK, BLOCK)  # [bx, by, bz, 8, 8, 8]
    inside = (tiles < 0).flatten(3).any(-1).float()[None]
    near = torch.nn.functional.max_pool3d(inside, 3, 1, 1)[0] > 0  # neighbours too: cells reach into the next block
    keys = torch.nonzero(near).int()
    if not len(keys):
        return None
    o3d = open3d()
    core = o3d.core
    grid = o3d.t.geometry.VoxelBlockGrid(
        attr_names=("tsdf", "weight", "color"),
        attr_dtypes=(core.float32, core.float32, core.float32),
        attr_channels=(core.SizeVector((1,)), core.SizeVector((1,)), core.SizeVector((3,))),
        voxel_size=voxel,
        block_resolution=BLOCK,
        block_count=len(keys) + 8,
    )
    buffers, _ = grid.hashmap().activate(core.Tensor(keys.numpy()))
    where, flat = grid.voxel_coordinates_and_flattened_indices(buffers)
    index = torch.from_numpy(where.numpy() / voxel).round().long().unbind(-1)
    flat = flat.to(core.int64)
    values = {"tsdf": signed[index][:, None], "weight": torch.ones(len(index[0]), 1)}
    if colors is not None:
        values["color"] = 255 * torch.nn.functional.pad(colors, [0, 0, *pad])[index]  # as open3d keeps colours
    for name, value in values.items():
        grid.attribute(name).reshape((-1, value.shape[1]))[flat] = core.Tensor(value.float().contiguous().numpy())
    surface = grid.extract_triangle_mesh(weight_threshold=0.5)
    if "indices" not in surface.triangle or not len(surface.triangle.indices):
        return None
    return Mesh(
        torch.from_numpy(surface.vertex.positions.numpy().astype(np.float32)) + low,
        torch.from_numpy(surface.triangle.indices.numpy().astype(np.int64)),
        None if colors is None else torch.from_numpy(surface.vertex.colors.numpy().astype(np.float32).clip(0, 1)),
    )
