"""Triangle meshes in and out by suffix; +Y up as glTF. GLB, OBJ and USDZ have modules of their own, trimesh does the rest."""

from __future__ import annotations

import json
import struct
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splat.errors import InputError, check_finite
from splat.io.atomic import atomically
from splat.io.glb import save_glb, srgb_from_linear
from splat.io.obj import save_obj
from splat.io.texture_file import TextureFormat
from splat.io.usdz import save_usdz
from splat.mesh import Mesh

SUFFIXES = (".glb", ".obj", ".ply", ".stl")  # read and written
WRITTEN = (*SUFFIXES, ".usdz")


def save_mesh(mesh: Mesh, path: str | PathLike[str], texture_format: TextureFormat = "png") -> None:
    """Write `mesh` as .glb, .obj, .ply, .stl or .usdz; the file appears whole or not at all.

    Texture and vertex colours are kept in GLB, USDZ and OBJ (whose texture lies beside it); PLY takes the colours at the
    vertices, STL has none. Raises `InputError` for an unknown suffix, a missing folder and vertices that are not finite,
    `BackendUnavailable` for .usdz without usd-core, `StoppedLate` when the disk refuses.
    """
    path = Path(path)
    suffix = _suffix(path, WRITTEN)
    check_finite(mesh.vertices, "The mesh's vertices")
    if suffix == ".glb":
        save_glb(mesh, path, texture_format)
    elif suffix == ".obj":
        save_obj(mesh, path, texture_format)
    elif suffix == ".usdz":
        save_usdz(mesh, path, texture_format)
    else:
        with atomically(path) as temporary:
            temporary.write_bytes(_plain(mesh).export(file_type=suffix[1:]))


def load_mesh(path: str | PathLike[str]) -> Mesh:
    """The triangles of `path` (.glb, .obj, .ply, .stl) in one mesh, node transforms applied; texture or vertex colours kept.

    Raises `InputError` when the file is missing, of another kind, damaged, without triangles, or holds NaN or infinity.
    """
    import trimesh

    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        raise InputError(f"There is no mesh file {path}; check the path.")
    if suffix == ".glb":
        _check_glb(path)
    try:
        parts = _placed_parts(trimesh.load_scene(path, process=False))
    except Exception as error:  # every reader of trimesh fails in its own way on damaged bytes
        raise InputError(
            f"{path.name} cannot be read as {suffix} ({error or type(error).__name__}); export it again."
        ) from error
    if not parts:
        raise InputError(f"{path.name} holds no triangles; splat scenes and point clouds are not meshes.")
    mesh = _joined(parts, colours_are_linear=suffix == ".glb")
    bad = int((~mesh.vertices.isfinite()).any(1).sum())
    if bad:
        raise InputError(f"{path.name} has {bad} of {len(mesh.vertices)} vertices that are NaN or infinite; export it again.")
    return mesh


def _placed_parts(scene) -> list:
    """Every triangle mesh of a trimesh scene, moved by its node, its visual untouched."""
    import trimesh

    parts = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        part = scene.geometry[name]
        if isinstance(part, trimesh.Trimesh) and len(part.faces):
            moved = part.copy()
            moved.apply_transform(transform)
            moved.visual = part.visual  # the copy loses the vertex colours beside a material
            parts.append(moved)
    return parts


def _suffix(path: Path, known: tuple[str, ...] = SUFFIXES) -> str:
    suffix = path.suffix.lower()
    if suffix not in known:
        raise InputError(f"{path.name} has the suffix '{suffix}'; meshes end in {', '.join(known)}.")
    return suffix


def _check_glb(path: Path) -> None:
    """A header that promises more than the file holds is refused before anything is allocated for it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(20)
        if len(head) < 20 or head[:4] != b"glTF":
            raise InputError(f"{path.name} is no binary glTF file ({size} bytes); export it again as .glb.")
        length, json_length = struct.unpack("<I", head[8:12])[0], struct.unpack("<I", head[12:16])[0]
        if length > size or json_length > size - 20:
            raise InputError(f"{path.name} is cut off: {size} of {max(length, json_length + 20)} bytes; copy it again.")
        try:
            tree = json.loads(file.read(json_length))
        except ValueError as error:
            raise InputError(f"{path.name} has a damaged header ({error}); export it again.") from error
    packed = "KHR_draco_mesh_compression" in str(tree)  # its counts say nothing about the file's size
    for accessor in tree.get("accessors", []) if isinstance(tree, dict) and not packed else []:
        count = accessor.get("count") if isinstance(accessor, dict) else None
        if not isinstance(count, int) or not 0 <= count <= size:
            raise InputError(f"{path.name} claims {count} values in {size} bytes; export it again.")


def _plain(mesh: Mesh):
    """A trimesh with colours at the vertices."""
    import trimesh

    colors = _vertex_colors(mesh)
    return trimesh.Trimesh(
        vertices=mesh.vertices.detach().cpu().numpy(),
        faces=mesh.faces.cpu().numpy(),
        vertex_colors=None if colors is None else (colors.clamp(0, 1) * 255).round().byte().cpu().numpy(),
        process=False,
    )


def _vertex_colors(mesh: Mesh) -> Tensor | None:
    """[V, 3] sRGB: its own, or the texture's at one corner of each vertex, or None."""
    if mesh.colors is not None or mesh.texture is None or mesh.uvs is None:
        return mesh.colors
    from splat.raycast import bilinear

    uv = torch.zeros(len(mesh.vertices), 2)
    uv[mesh.faces.reshape(-1)] = mesh.uvs.reshape(-1, 2).float()
    return torch.from_numpy(bilinear(mesh.texture.cpu().float().numpy(), uv.numpy()))


def _joined(parts: list, colours_are_linear: bool) -> Mesh:
    """One mesh of trimesh parts: one texture atlas where any part has a picture, else colours where any part has them."""
    import trimesh

    if any(_picture(p) is not None for p in parts):
        whole = parts[0] if len(parts) == 1 else trimesh.util.concatenate(parts)
        picture = _picture(whole)
        if picture is not None and getattr(whole.visual, "uv", None) is not None:
            faces = torch.from_numpy(np.array(whole.faces, dtype=np.int64))
            uv = torch.from_numpy(np.array(whole.visual.uv, dtype=np.float32))
            texture = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)
            return Mesh(torch.from_numpy(np.array(whole.vertices, dtype=np.float32)), faces, uvs=uv[faces], texture=texture)
    starts = np.cumsum([0, *(len(p.vertices) for p in parts)])
    colours = [_colours(p, colours_are_linear) for p in parts]
    known = any(c is not None for c in colours)
    filled = [np.full((len(p.vertices), 3), 0.7) if c is None else c for p, c in zip(parts, colours, strict=True)]
    return Mesh(
        torch.from_numpy(np.concatenate([p.vertices for p in parts]).astype(np.float32)),
        torch.from_numpy(np.concatenate([p.faces + s for p, s in zip(parts, starts, strict=False)]).astype(np.int64)),
        torch.from_numpy(np.concatenate(filled).astype(np.float32)) if known else None,
    )


def _picture(part):
    """The base colour picture of a part (PIL), or None."""
    material = getattr(part.visual, "material", None)
    return getattr(material, "baseColorTexture", None) or getattr(material, "image", None)


def _colours(part, colours_are_linear: bool) -> np.ndarray | None:
    """[V, 3] sRGB of a part without picture: vertex colours, or its material's colour, or None."""
    visual = part.visual
    raw = getattr(visual, "vertex_attributes", {}).get("color")  # glTF with a material: the accessor's own numbers
    if raw is None and visual.kind in ("vertex", "face"):
        raw = visual.vertex_colors  # of coloured faces, their mean at each vertex
    if raw is None:
        factor = getattr(getattr(visual, "material", None), "main_color", None)
        if factor is None:
            return None
        raw = np.broadcast_to(factor, (len(part.vertices), len(factor)))
    raw = np.asarray(raw)[:, :3]
    values = raw / np.iinfo(raw.dtype).max if raw.dtype.kind in "iu" else raw.astype(np.float64)
    return srgb_from_linear(values) if colours_are_linear else np.clip(values, 0, 1)
