"""Closed forms as our meshes, for tests of meshes."""

import numpy as np
import torch

from splat.mesh import Mesh


def from_trimesh(shape) -> Mesh:
    return Mesh(
        torch.from_numpy(np.array(shape.vertices, dtype=np.float32)), torch.from_numpy(np.array(shape.faces, dtype=np.int64))
    )


def to_trimesh(mesh: Mesh):
    import trimesh

    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)


def sphere(subdivisions: int, radius: float = 1.0) -> Mesh:
    import trimesh

    return from_trimesh(trimesh.creation.icosphere(subdivisions, radius))


def box(*sides: float) -> Mesh:
    import trimesh

    return from_trimesh(trimesh.creation.box(sides))


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    return Mesh(
        torch.cat([m.vertices for m in meshes]), torch.cat([m.faces + int(s) for m, s in zip(meshes, starts, strict=False)])
    )


def moved(mesh: Mesh, *offset: float) -> Mesh:
    return Mesh(mesh.vertices + torch.tensor(offset), mesh.faces, mesh.colors)


def hill(n: int = 20, height: float = 0.2) -> Mesh:
    """A square sheet of sides 1 over the xz plane with a hill in the middle, seen from above; level edges."""
    x, z = np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij")
    y = height * np.sin(np.pi * x) * np.sin(np.pi * z)
    index = np.arange(n * n).reshape(n, n)
    a, b, c, d = (i.reshape(-1) for i in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([c, b, d], 1)])
    return Mesh(torch.from_numpy(np.stack([x, y, z], -1).reshape(-1, 3).astype(np.float32)), torch.from_numpy(faces))


def painted(points: torch.Tensor) -> torch.Tensor:
    """A smooth colour [N, 3] in [0, 1] for every place of a shape about the origin."""
    return 0.5 + 0.4 * torch.sin(3.0 * points + torch.tensor([0.0, 1.0, 2.0]))
