"""Hand-made objects and a packed set of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from splat.mesh import Mesh

QUARTERS = torch.tensor([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                         [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])  # fmt: skip


def box(color=(200, 30, 30), size=(1.0, 0.5, 0.25), center=(0.0, 0.0, 0.0)) -> Mesh:
    """An axis-aligned box of one colour, triangles counter-clockwise from outside."""
    corners = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    colors = (torch.tensor(color, dtype=torch.float32) / 255).expand(8, 3).contiguous()
    return Mesh(corners * torch.tensor(size) + torch.tensor(center), QUARTERS, colors)


def joined(*parts: Mesh) -> Mesh:
    starts = np.cumsum([0, *(len(p.vertices) for p in parts)])
    return Mesh(
        torch.cat([p.vertices for p in parts]),
        torch.cat([p.faces + int(s) for p, s in zip(parts, starts, strict=False)]),
        torch.cat([p.colors for p in parts]),
    )


def write_packed(folder: Path, meshes: list[Mesh], rows: list[dict], **replaced) -> None:
    """One shard `train-00.npz` and its index, packed as the format says; `replaced` arrays take the place of its own."""
    steps = np.concatenate([np.round((m.vertices.numpy() + 0.5) * 8190) for m in meshes]).T.astype(np.int64)  # [3, V]
    corners = np.concatenate([m.faces.numpy().reshape(-1) for m in meshes])
    arrays = {
        "vert_delta": np.diff(steps, axis=1, prepend=0).astype(np.uint16),
        "face_delta": np.diff(corners, prepend=0).astype(np.uint16),
        "color": np.concatenate([(m.colors.numpy() * 255).round() for m in meshes]).astype(np.uint8),
        "vert_offset": np.cumsum([0, *(len(m.vertices) for m in meshes)]).astype(np.int64),
        "face_offset": np.cumsum([0, *(len(m.faces) for m in meshes)]).astype(np.int64),
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "train-00.npz", **(arrays | replaced))
    lines = [
        json.dumps({"shard": "train-00.npz", "i": i, "split": "train", "name": "thing"} | row) for i, row in enumerate(rows)
    ]
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n")
