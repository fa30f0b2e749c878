"""Splats in glTF 2.0 by KHR_gaussian_splatting, as ratified: a primitive of points whose attributes are the Gaussians.

ROTATION is xyzw, SCALE a standard deviation and OPACITY in [0, 1], both without logarithm or logit; SH coefficients are ours,
one attribute each. glTF's world (+Y up, front towards +Z) is ours. COLOR_0 lets programs without the extension draw coloured
points. `.glb` holds the arrays as they are, `.gltf` as text (base64) within the one file.
"""

from __future__ import annotations

import base64
import json
import logging
import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from splat.errors import InputError
from splat.gaussians import Splats
from splat.io.atomic import atomically
from splat.io.drawable import MAX_VALUE, MIN_LOG_SCALE, check_count, drawable, writable
from splat.io.glb import ARRAY_BUFFER, FLOAT, UNSIGNED_SHORT, linear_from_srgb
from splat.io.gltf_file import GltfFile
from splat.io.quantised import logits
from splat.rotations import matrix_from_quat
from splat.similarity import Similarity

log = logging.getLogger(__name__)

EXTENSION = "KHR_gaussian_splatting"
BYTE, UNSIGNED_BYTE, SHORT = 5120, 5121, 5122
KERNEL, COLOUR_SPACE = "ellipse", "srgb_rec709_display"
POINTS = 0  # mode of a primitive
SIGNED, UNSIGNED = (FLOAT, BYTE, SHORT), (FLOAT, UNSIGNED_BYTE, UNSIGNED_SHORT)
MAX_SCALE_EXPONENT = 80.0  # e^80 still fits float32
MIN_OPACITY = 1e-7  # keeps the logits of 0 and 1 finite, at +-16
MAX_DEPTH = 64  # of nodes within nodes


def save_gltf_splats(splats: Splats, path: Path) -> None:
    """Write `splats` as `.glb`, or as `.gltf` where the name ends so. Same splats, same bytes; lossless but for the rounding
    of exp and sigmoid in float32.

    The file appears whole or not at all. Raises `InputError` for an empty scene and for a `.glb` beyond 4 GiB, `StoppedLate`
    for NaN or infinite values and for a full disk.
    """
    path = Path(path)
    splats = writable(splats, path)
    views: list[dict] = []
    accessors: list[dict] = []
    blobs: list[bytes] = []

    def add(values: np.ndarray, kind: str, component: int = FLOAT, **facts: object) -> int:
        data = values.astype("<u2" if component == UNSIGNED_SHORT else "<f4").tobytes()
        views.append({"buffer": 0, "byteOffset": sum(map(len, blobs)), "byteLength": len(data), "target": ARRAY_BUFFER})
        blobs.append(data)  # of 4, 8, 12 or 16 bytes a row: always aligned
        shape = {"count": len(values), "type": kind}
        accessors.append({"bufferView": len(views) - 1, "componentType": component, **shape, **facts})
        return len(accessors) - 1

    means, opacities = splats.means.numpy(), splats.opacities.numpy()
    rgba = np.concatenate([linear_from_srgb(splats.rgb.double().numpy()), opacities[:, None]], axis=1)
    attributes = {
        "POSITION": add(means, "VEC3", min=means.min(0).tolist(), max=means.max(0).tolist()),
        "COLOR_0": add(np.rint(rgba * 65535), "VEC4", UNSIGNED_SHORT, normalized=True),
        f"{EXTENSION}:ROTATION": add(splats.quats.numpy()[:, [1, 2, 3, 0]], "VEC4"),
        f"{EXTENSION}:SCALE": add(splats.log_scales.clamp_max(MAX_SCALE_EXPONENT).exp().numpy(), "VEC3"),
        f"{EXTENSION}:OPACITY": add(opacities, "SCALAR"),
    }
    attributes |= {f"{EXTENSION}:{n}": add(splats.sh[:, i].numpy(), "VEC3") for i, n in enumerate(_sh_names(splats.sh_degree))}
    facts = {"kernel": KERNEL, "colorSpace": COLOUR_SPACE, "projection": "perspective", "sortingMethod": "cameraDistance"}
    data = b"".join(blobs)
    tree = {
        "asset": {"version": "2.0", "generator": "splatsmith"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "splats"}],
        "meshes": [{"primitives": [{"attributes": attributes, "mode": POINTS, "extensions": {EXTENSION: facts}}]}],
        "buffers": [{"byteLength": len(data)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    with atomically(path) as temporary:
        temporary.write_bytes(_text(tree, data) if path.suffix.lower() == ".gltf" else _binary(tree, data))


def load_gltf_splats(path: Path) -> Splats:
    """All splats of the default scene of `path`, moved by their nodes, float32 on the CPU, of the highest SH degree among them.

    Raises `InputError` when the file is damaged, holds no Gaussians, or holds them in a form that is not read here:
    compressed, of a kernel or colour space other than the extension's first, or under a node that shears or stretches.
    """
    file = GltfFile(path)
    placed = list(_placed(file))
    if not placed:
        raise InputError(f"{file.name} holds no Gaussians ({EXTENSION}); it may be a mesh, which has no splats to load.")
    counts = [_count(file, primitive) for primitive, _ in placed]
    check_count(sum(counts), file.name)
    parts = [_read(file, primitive).transformed(move) for primitive, move in placed]
    degree = max(part.sh_degree for part in parts)
    whole = Splats.cat([part.with_sh_degree(degree) for part in parts])
    return drawable(file.name, **{field.name: getattr(whole, field.name).numpy() for field in fields(whole)})


def _sh_names(degree: int) -> list[str]:
    return [f"SH_DEGREE_{band}_COEF_{i}" for band in range(degree + 1) for i in range(2 * band + 1)]


def _binary(tree: dict, data: bytes) -> bytes:
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(data)
    if length >= 2**32:
        raise InputError(f"A .glb ends at 4 GiB, and this scene takes {length / 2**30:.1f}; choose .gltf or .spz.")
    chunks = [struct.pack("<I4s", len(text), b"JSON"), text, struct.pack("<I4s", len(data), b"BIN\0"), data]
    return b"".join([struct.pack("<4sII", b"glTF", 2, length), *chunks])


def _text(tree: dict, data: bytes) -> bytes:
    uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    return json.dumps(tree | {"buffers": [{"byteLength": len(data), "uri": uri}]}, indent=1).encode()


def _placed(file: GltfFile) -> list[tuple[dict, Similarity]]:
    """Every primitive with splats, and how its nodes move it."""
    scenes = file.tree.get("scenes")
    if scenes:
        roots = file.item("scenes", file.tree.get("scene", 0)).get("nodes", [])
    else:  # a library of nodes: those that are nobody's child
        nodes = _listed(file.tree.get("nodes"))
        children = {c for n in nodes if isinstance(n, dict) for c in _listed(n.get("children")) if type(c) is int}
        roots = [i for i in range(len(nodes)) if i not in children]
    found: list[tuple[dict, Similarity]] = []
    waiting = [(index, Similarity.identity(), 0) for index in _listed(roots)]
    seen: set[int] = set()
    while waiting:
        index, move, depth = waiting.pop()
        node = file.item("nodes", index)
        if index in seen or depth > MAX_DEPTH:
            raise InputError(f"{file.name} has nodes in a circle or {MAX_DEPTH} deep; export it again.")
        seen.add(index)
        primitives = _listed(file.item("meshes", node["mesh"]).get("primitives")) if "mesh" in node else []
        splats = [p for p in primitives if isinstance(p, dict) and EXTENSION in _mapped(p.get("extensions"))]
        if splats or node.get("children"):
            move = _moved(move, node, file.name)
        found += [(primitive, move) for primitive in splats]
        waiting += [(child, move, depth + 1) for child in reversed(_listed(node.get("children")))]
    return found


def _listed(value: object) -> list:
    return value if isinstance(value, list) else []


def _mapped(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _moved(outer: Similarity, node: dict, name: str) -> Similarity:
    """What `node` does to what is in it, and then `outer`."""
    try:
        if "matrix" in node:
            matrix = torch.tensor(node["matrix"], dtype=torch.float64).reshape(4, 4).T  # stored column by column
        else:
            x, y, z, w = node.get("rotation", (0, 0, 0, 1))
            matrix = torch.eye(4, dtype=torch.float64)
            stretch = torch.tensor(node.get("scale", (1, 1, 1)), dtype=torch.float64).reshape(3)
            matrix[:3, :3] = matrix_from_quat(torch.tensor([w, x, y, z], dtype=torch.float64)) * stretch
            matrix[:3, 3] = torch.tensor(node.get("translation", (0, 0, 0)), dtype=torch.float64).reshape(3)
        if not (matrix.abs() <= MAX_VALUE).all():
            raise ValueError("values that are no numbers or too large")
        return outer @ Similarity.from_matrix(matrix)
    except (AssertionError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} has a node that stretches, mirrors or is damaged; apply its transform and export it again."
        ) from error


def _attributes(file: GltfFile, primitive: dict) -> dict:
    attributes, facts = primitive.get("attributes"), primitive["extensions"][EXTENSION]
    if not isinstance(attributes, dict) or not isinstance(facts, dict):
        raise InputError(f"{file.name} has splats without attributes; export it again.")
    if facts.get("extensions"):
        raise InputError(f"{file.name} holds compressed splats ({facts['extensions']!s:.80}); export it without compression.")
    kernel, space = str(facts.get("kernel", KERNEL)), str(facts.get("colorSpace", COLOUR_SPACE))
    if kernel != KERNEL or space.lower() != COLOUR_SPACE:  # drafts wrote it in capitals
        raise InputError(
            f"{file.name} holds splats of kernel '{kernel:.30}' in '{space:.30}'; export them as {KERNEL} in {COLOUR_SPACE}."
        )
    return attributes


def _count(file: GltfFile, primitive: dict) -> int:
    """Gaussians of a primitive; all its attributes must agree."""
    counts = [file.item("accessors", index).get("count") for index in _attributes(file, primitive).values()]
    if not counts or type(counts[0]) is not int or counts[0] < 0 or any(count != counts[0] for count in counts):
        raise InputError(f"{file.name} has splats whose attributes differ in number; export it again.")
    return counts[0]


def _read(file: GltfFile, primitive: dict) -> Splats:
    """The splats of one primitive, in its own frame, their values not yet checked."""
    attributes = _attributes(file, primitive)

    def column(name: str, kind: str, components: tuple[int, ...] = (FLOAT,)) -> np.ndarray:
        if name not in attributes:
            raise InputError(f"{file.name} has splats without {name}, which the extension requires; export it again.")
        return file.array(attributes[name], kind, components)

    higher = sum(f"{EXTENSION}:SH_DEGREE_{band}_COEF_0" in attributes for band in (1, 2, 3))
    scales = column(f"{EXTENSION}:SCALE", "VEC3", (*UNSIGNED, BYTE, SHORT))
    opacities = column(f"{EXTENSION}:OPACITY", "SCALAR", UNSIGNED)[:, 0]
    if not ((opacities >= 0) & (opacities <= 1)).all():
        raise InputError(f"{file.name} has opacities outside 0 to 1; it was not written to the extension, so export it again.")
    return Splats(
        means=torch.from_numpy(column("POSITION", "VEC3")),
        quats=torch.from_numpy(column(f"{EXTENSION}:ROTATION", "VEC4", SIGNED)[:, [3, 0, 1, 2]]),
        log_scales=torch.from_numpy(_log_scales(scales, file.name)),
        opacity_logits=torch.from_numpy(logits(opacities.astype(np.float64).clip(MIN_OPACITY, 1 - MIN_OPACITY))).float(),
        sh=torch.from_numpy(np.stack([column(f"{EXTENSION}:{n}", "VEC3") for n in _sh_names(higher)], axis=1)),
    )


def _log_scales(scales: np.ndarray, name: str) -> np.ndarray:
    if (scales < 0).any():
        log.warning("%s holds the logarithms of scales, as drafts of %s did; they are read as such", name, EXTENSION)
        return scales
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(scales), MIN_LOG_SCALE)
