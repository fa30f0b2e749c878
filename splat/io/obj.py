"""Meshes written as Wavefront OBJ, with MTL and texture beside it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from splat.io.atomic import atomically
from splat.io.texture_file import SUFFIXES, TextureFormat, encoded
from splat.mesh import Mesh


def save_obj(mesh: Mesh, path: Path, texture_format: TextureFormat = "png") -> None:
    """Positions and sRGB colours in full precision; a texture as NAME_texture.png or .jpg and NAME.mtl in the same folder.

    All files are written before the first gets its name, and the .obj, which refers to the others, gets its own last. In their
    names everything but letters, digits, dot, dash and underscore is an underscore, because readers split lines at blanks.
    """
    textured = mesh.uvs is not None and mesh.texture is not None
    if not textured:
        with atomically(path) as temporary:
            temporary.write_bytes(_text(mesh, None))
        return
    stem = safe_stem(path.stem)
    material, texture = path.with_name(f"{stem}.mtl"), path.with_name(f"{stem}_texture{SUFFIXES[texture_format]}")
    with atomically(path) as obj, atomically(material) as mtl, atomically(texture) as picture:  # renamed from right to left
        picture.write_bytes(encoded(mesh.texture, texture_format))
        mtl.write_text(f"newmtl surface\nKd 1 1 1\nKa 0 0 0\nKs 0 0 0\nillum 1\nmap_Kd {texture.name}\n")
        obj.write_bytes(_text(mesh, material.name))


def safe_stem(stem: str) -> str:
    """A name that every reader of MTL files finds again."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", stem).lstrip("-.") or "mesh"


def _text(mesh: Mesh, material: str | None) -> bytes:
    vertices = mesh.vertices.detach().cpu().double().numpy()
    rows, head = vertices, []  # which axis is up is the caller's: prints stand on +Z
    if mesh.colors is not None and material is None:
        rows = np.concatenate([vertices, mesh.colors.detach().cpu().double().numpy()], axis=1)
        head = ["# colours after the positions are sRGB"]
    corners = mesh.faces.cpu().numpy() + 1
    lines = [*head, _lines("v " + " ".join(["%.7g"] * rows.shape[1]), rows)]
    if material is None:
        lines += [_lines("f %d %d %d", corners)]
    else:
        uvs, own = np.unique(mesh.uvs.detach().cpu().double().numpy().reshape(-1, 2), axis=0, return_inverse=True)
        both = np.stack([corners, own.reshape(-1, 3) + 1], axis=-1).reshape(-1, 6)
        lines = [
            f"mtllib {material}",
            *lines,
            _lines("vt %.7g %.7g", uvs),
            "usemtl surface",
            _lines("f %d/%d %d/%d %d/%d", both),
        ]
    return ("\n".join(lines) + "\n").encode()


def _lines(form: str, rows: np.ndarray) -> str:
    return "\n".join([form % tuple(row) for row in rows.tolist()])
