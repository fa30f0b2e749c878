"""Meshes written as binary glTF 2.0.

The colours of our meshes are photographs: the light is in them already. So the material is unlit
(KHR_materials_unlit), which shows a mesh as the splats look; viewers without the extension draw it fully rough.
Vertex colours are linear light, as the specification asks of COLOR_0, in 16 bits: eight would band in the shadows.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from splat.io.atomic import atomically
from splat.io.texture_file import TextureFormat, encoded
from splat.mesh import Mesh

ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
UNSIGNED_SHORT, UNSIGNED_INT, FLOAT = 5123, 5125, 5126


def linear_from_srgb(x: np.ndarray) -> np.ndarray:
    """The sRGB transfer curve, IEC 61966-2-1; values in [0, 1], clipped."""
    x = np.clip(x, 0, 1)
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(x: np.ndarray) -> np.ndarray:
    """The inverse of `linear_from_srgb`."""
    x = np.clip(x, 0, 1)
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055)


def save_glb(mesh: Mesh, path: Path, texture_format: TextureFormat = "png") -> None:
    """Write `mesh` (+Y up, as glTF has it) with its texture, or its vertex colours, or neither."""
    blobs: list[bytes] = []
    views: list[dict] = []
    accessors: list[dict] = []

    def add_view(data: bytes, **facts: object) -> int:
        views.append({"buffer": 0, "byteOffset": sum(map(len, blobs)), "byteLength": len(data), **facts})
        blobs.append(data + b"\0" * (-len(data) % 4))
        return len(views) - 1

    def add(array: np.ndarray, kind: str, component: int, target: int, **facts: object) -> int:
        view = add_view(array.tobytes(), target=target)
        accessors.append({"bufferView": view, "componentType": component, "count": len(array), "type": kind, **facts})
        return len(accessors) - 1

    vertices, faces, uvs = _one_uv_per_vertex(mesh)
    low, high = (vertices.min(0).tolist(), vertices.max(0).tolist()) if len(vertices) else ([0.0] * 3, [0.0] * 3)
    attributes = {"POSITION": add(vertices, "VEC3", FLOAT, ARRAY_BUFFER, min=low, max=high)}
    surface: dict = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    tree: dict = {}
    if uvs is not None and mesh.texture is not None:
        # glTF's texture coordinates run down from the upper left corner.
        attributes["TEXCOORD_0"] = add((uvs * [1, -1] + [0, 1]).astype("<f4"), "VEC2", FLOAT, ARRAY_BUFFER)
        surface["baseColorTexture"] = {"index": 0}
        tree = {
            "textures": [{"source": 0, "sampler": 0}],
            "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],  # linear, mipmaps, clamped
            "images": [{"bufferView": add_view(encoded(mesh.texture, texture_format)), "mimeType": f"image/{texture_format}"}],
        }
    elif mesh.colors is not None:
        light = linear_from_srgb(mesh.colors.detach().cpu().double().numpy())
        rgba = np.concatenate([light, np.ones((len(light), 1))], axis=1)
        whole = np.round(rgba * 65535).astype("<u2")
        attributes["COLOR_0"] = add(whole, "VEC4", UNSIGNED_SHORT, ARRAY_BUFFER, normalized=True)
    indices = add(faces.reshape(-1).astype("<u4"), "SCALAR", UNSIGNED_INT, ELEMENT_ARRAY_BUFFER)
    data = b"".join(blobs)
    tree |= {
        "asset": {"version": "2.0", "generator": "splatsmith"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "mesh"}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0, "mode": 4}]}],
        "materials": [{"pbrMetallicRoughness": surface, "doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}],
        "buffers": [{"byteLength": len(data)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    with atomically(path) as temporary:
        header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(data))
        chunks = [struct.pack("<I4s", len(text), b"JSON"), text, struct.pack("<I4s", len(data), b"BIN\0"), data]
        temporary.write_bytes(b"".join([header, *chunks]))


def _one_uv_per_vertex(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Vertices [V', 3] float32, faces [F, 3], uvs [V', 2] or None; a vertex with several uvs appears once for each."""
    vertices = mesh.vertices.detach().cpu().numpy().astype("<f4")
    faces = mesh.faces.cpu().numpy()
    if mesh.uvs is None:
        return vertices, faces, None
    uvs = mesh.uvs.detach().cpu().numpy().reshape(-1, 2)
    corners = np.concatenate([faces.reshape(-1, 1).astype(np.float64), uvs], axis=1)
    unique, where = np.unique(corners, axis=0, return_inverse=True)
    return vertices[unique[:, 0].astype(np.int64)], where.reshape(-1, 3), unique[:, 1:]
