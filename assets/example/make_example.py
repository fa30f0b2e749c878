"""Takes the bundled example photos: a painted toy locomotive on a patchwork rug, all of it procedural.

    python assets/example/make_example.py [--out FOLDER]

Writes `picture.png`, the locomotive alone on a transparent background, as an example of one picture of an object, and
`photos/*.jpg` with the traits of a phone's pictures (perspective, exposure, vignetting, noise, JPEG, EXIF focal
length, one of them upright) and, outside that folder, `truth.json`: the true cameras in the transforms.json format of
nerfstudio. The photos say nothing about where they were taken from.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from paints import (
    Paint,
    banded,
    checked,
    coat,
    floor_boards,
    flowered,
    lettered,
    papered_wall,
    patched,
    patchwork_rug,
    wheel,
    wood,
)  # fmt: skip
from PIL import Image, ImageDraw, ImageFont

from splat.cameras import Cameras, intrinsics
from splat.open3d_import import open3d
from splat.raycast import pixel_rays

LONG, SHORT = 960, 720  # pixels
FOCAL_35MM = 35.0  # mm, over the 43.27 mm diagonal of full frame
FOCAL = FOCAL_35MM / 43.27 * math.hypot(LONG, SHORT)  # pixels
FRAME_DIAGONAL = 7.06  # mm, a 1/2.55" sensor
JPEG_QUALITY = 84
SAMPLES = 2  # per pixel and axis
LIGHT_RAYS = 4  # towards the window, and as many towards the sky, a sample
SUN = np.array([-0.52, 0.74, 0.42]) / np.linalg.norm([-0.52, 0.74, 0.42])


@dataclass(frozen=True)
class Thing:
    """One painted object; `place` takes its own frame, in which it is painted, to the world."""

    mesh: trimesh.Trimesh
    place: np.ndarray  # [4, 4] rigid
    paint: Paint
    gloss: float = 0.0


def at(x: float, y: float, z: float, turn_deg: float = 0.0) -> np.ndarray:
    """Placed at (x, y, z), turned about the vertical."""
    return trimesh.transformations.translation_matrix([x, y, z]) @ trimesh.transformations.rotation_matrix(
        math.radians(turn_deg), [0, 1, 0]
    )


def box(size: tuple[float, float, float]) -> trimesh.Trimesh:
    return trimesh.creation.box(size)


def rod(radius: float, length: float, axis: str, top: float | None = None) -> trimesh.Trimesh:
    """A cylinder, or a cone cut off at radius `top`, along +x, +y or +z, centred."""
    profile = [[0, -length / 2], [radius, -length / 2], [radius if top is None else top, length / 2], [0, length / 2]]
    mesh = trimesh.creation.revolve(profile, sections=120)
    turn = {"x": [0, 1, 0], "y": [1, 0, 0], "z": None}[axis]
    if turn is not None:
        angle = math.pi / 2 if axis == "x" else -math.pi / 2
        mesh.apply_transform(trimesh.transformations.rotation_matrix(angle, turn))
    return mesh


def written(text: str, width: int, height: int, frame: bool = True) -> np.ndarray:
    """Text as a bitmap [height, width] in [0, 1], framed."""
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    draw.text((width / 2, height / 2), text, 255, ImageFont.load_default(size=int(height * 0.72)), anchor="mm", stroke_width=4)
    if frame:
        draw.rectangle((8, 8, width - 9, height - 9), outline=255, width=9)
    return np.asarray(picture, dtype=float) / 255


def locomotive() -> Iterator[Thing]:
    """About 2.4 long, standing on y = 0, facing +x; its two sides differ."""
    red, blue, green, cream, gold = (
        (0.74, 0.15, 0.12),
        (0.13, 0.30, 0.52),
        (0.16, 0.38, 0.26),
        (0.94, 0.88, 0.72),
        (0.90, 0.68, 0.20),
    )
    chassis = lettered(
        coat(green, 1),
        {(2, 1): written("• EXPRESS •", 1100, 90), (2, -1): written("1 8 4 7 — LILI", 1100, 90)},
        (1.1, 0.09, 0.36),
        gold,
    )
    yield Thing(box((2.2, 0.18, 0.72)), at(0, 0.38, 0), chassis, 0.25)
    boiler = banded(flowered(coat(red, 2), 0.36, 60), [(-0.52, 0.03), (0.0, 0.025), (0.52, 0.03)], gold)
    yield Thing(rod(0.36, 1.2, "x"), at(0.32, 0.83, 0), boiler, 0.35)
    yield Thing(rod(0.385, 0.14, "x"), at(0.98, 0.83, 0), patched(5, 0.36), 0.3)
    yield Thing(rod(0.10, 0.08, "x"), at(1.08, 0.83, 0), coat(gold, 7), 0.5)
    yield Thing(rod(0.11, 0.34, "y", 0.10), at(0.74, 1.32, 0), checked(coat(blue, 8), (0, 1), 0.07, cream, -0.2, 0.2, 1), 0.3)
    yield Thing(rod(0.12, 0.14, "y", 0.20), at(0.74, 1.55, 0), coat(gold, 9), 0.4)
    yield Thing(trimesh.creation.icosphere(4, 0.19), at(0.24, 1.19, 0), flowered(coat(gold, 10), 0.19, 80), 0.5)
    yield Thing(rod(0.05, 0.22, "y"), at(-0.10, 1.26, 0.08), coat(red, 11), 0.4)
    cab = lettered(
        checked(coat(blue, 12), (0, 1), 0.075, cream, -0.46, -0.31, 1),
        {(2, 1): written("07", 560, 820, False), (2, -1): written("S", 560, 820), (0, -1): written("5", 700, 820)},
        (0.33, 0.46, 0.42), gold,
    )  # fmt: skip
    yield Thing(box((0.66, 0.92, 0.84)), at(-0.62, 0.93, 0), cab, 0.25)
    for side in (-1, 1):
        yield Thing(box((0.30, 0.24, 0.03)), at(-0.62, 1.20, side * 0.42), wood((0.30, 0.24, 0.2), (0.2, 0.14, 0.1), 12, 15))
    roof = checked(coat(red, 16, 0.5), (0, 2), 0.13, cream, -1, -0.30, 0)
    yield Thing(box((0.90, 0.09, 1.02)), at(-0.62, 1.43, 0), roof, 0.3)
    for i, (x, radius, spokes) in enumerate([(0.78, 0.24, 6), (0.22, 0.24, 8), (-0.62, 0.36, 10)]):
        for side in (-1, 1):
            rim = [gold, cream, red][(i + (side > 0)) % 3]
            paint = wheel(radius, rim, [blue, red, green][(i + 2 * (side > 0)) % 3], spokes, 20 + 3 * i + side)
            yield Thing(rod(radius, 0.12, "z"), at(x, radius, side * 0.43), paint, 0.25)
    for side in (-1, 1):
        yield Thing(rod(0.075, 0.14, "x"), at(1.16, 0.40, side * 0.22), coat([cream, gold][side > 0], 30 + side), 0.4)
    yield Thing(box((0.26, 0.06, 0.10)), at(-1.2, 0.38, 0), coat(gold, 33), 0.3)


def scene() -> list[Thing]:
    """Everything, in a world with +Y up and the floor at y = 0."""
    turn = at(0, 0.03, 0, 24)
    things = [Thing(t.mesh, turn @ t.place, t.paint, t.gloss) for t in locomotive()]
    blocks = [  # a letter for each visible side, where, how it is turned, colour
        ("AXMJt", (1.62, 0.03, 1.10), 17, (0.86, 0.50, 0.12)),
        ("BRQhd", (1.86, 0.03, 0.62), 52, (0.12, 0.40, 0.28)),
        ("CKWey", (1.71, 0.39, 0.86), 33, (0.72, 0.16, 0.12)),
        ("G7SZp", (-1.5, 0.03, -0.75), 70, (0.12, 0.28, 0.52)),
    ]
    for letters, (x, y, z), angle, colour in blocks:
        sides = dict(zip([(0, 1), (0, -1), (1, 1), (2, 1), (2, -1)], letters, strict=True))
        marks = {side: written(text, 300, 300) for side, text in sides.items()}
        paint = lettered(wood((0.88, 0.74, 0.54), (0.74, 0.57, 0.37), 8, ord(letters[0])), marks, (0.18, 0.18, 0.18), colour)
        things.append(Thing(box((0.36, 0.36, 0.36)), at(x, y + 0.18, z, angle), paint, 0.15))
    things.append(Thing(trimesh.creation.icosphere(5, 0.29), at(-0.75, 0.32, 1.5), patched(12, 0.25), 0.4))
    things.append(Thing(trimesh.creation.icosphere(4, 0.16), at(0.45, 0.19, 1.30), patched(23, 0.14), 0.4))
    things.append(Thing(box((5.5, 0.06, 4.1)), at(0, 0, 0, -8), patchwork_rug))
    room = 7.0
    things.append(Thing(box((2 * room, 0.1, 2 * room)), at(0, -0.05, 0, 0), floor_boards, 0.1))
    for i, angle in enumerate((0, 90, 180, 270)):
        wall = at(0, 0, 0, angle) @ at(0, 2.5, -room)
        lift = np.array([11.0 * i, 2.5, 0])  # every wall shows another part of the paper
        things.append(Thing(box((2 * room, 5.0, 0.1)), wall, lambda p, n, lift=lift: papered_wall(p + lift, n)))
        for k, (x, width, height) in enumerate([(-3.6, 1.5, 1.1), (-0.4, 1.0, 1.5), (2.9, 2.0, 1.3)]):
            picture = wall @ at(x + 0.4 * i, -0.2 + 0.2 * k, 0.08)
            things.append(
                Thing(box((width + 0.24, height + 0.24, 0.08)), picture, wood((0.5, 0.33, 0.2), (0.3, 0.19, 0.1), 7, i))
            )
            things.append(Thing(box((width, height, 0.12)), picture, patched(100 + 10 * i + k, 0.8)))
    return things


def cameras() -> list[Cameras]:
    """Fifteen hand-held views over three quarters of a circle; the sixth is taken upright."""
    rng = np.random.default_rng(7)
    views = []
    for i in range(15):
        azimuth = math.radians(-62 + 270 / 14 * i + rng.uniform(-2.5, 2.5))
        elevation = math.radians([25, 31, 27, 36, 29, 34, 26, 32, 40, 28, 33, 27, 37, 30, 26][i] + rng.uniform(-2, 2))
        distance = 4.4 + rng.uniform(-0.35, 0.35)
        eye = distance * np.array(
            [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
        )
        target = np.array([0.05, 0.55, 0.1]) + rng.uniform(-0.12, 0.12, 3)
        roll = np.array([rng.uniform(-0.03, 0.03), 1, rng.uniform(-0.03, 0.03)])
        width, height = (SHORT, LONG) if i == 5 else (LONG, SHORT)
        K = intrinsics(FOCAL, width, height)
        views.append(Cameras.look_at(*(torch.tensor(x)[None] for x in (eye, target)), torch.tensor(roll), K, width, height))
    return views


def linear(srgb: np.ndarray) -> np.ndarray:
    srgb = np.clip(srgb, 0, 1)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def encoded(light: np.ndarray) -> np.ndarray:
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-9)


class Stage:
    """The things in a ray caster."""

    def __init__(self, things: list[Thing]) -> None:
        o3d = open3d()
        self.things = things
        self.tensor = o3d.core.Tensor
        self.scene = o3d.t.geometry.RaycastingScene()
        for thing in things:
            moved = thing.mesh.copy().apply_transform(thing.place)
            self.scene.add_triangles(self.tensor(moved.vertices.astype(np.float32)), self.tensor(moved.faces.astype(np.uint32)))

    def reaches(self, points: np.ndarray, directions: np.ndarray, far: float) -> np.ndarray:
        """[M] 1 where nothing within `far` lies between a point and the light."""
        rays = np.concatenate([points + 2e-3 * directions, directions], axis=1).astype(np.float32)
        return ~self.scene.test_occlusions(self.tensor(rays), tfar=far).numpy()

    def light(self, rays: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rays [M, 6] -> linear light [M, 3]: a window as key light, soft sky with occlusion, a little varnish."""
        hits = self.scene.cast_rays(self.tensor(rays))
        points = (rays[:, :3] + hits["t_hit"].numpy()[:, None] * rays[:, 3:]).astype(np.float64)
        normals = hits["primitive_normals"].numpy().astype(np.float64)
        towards = -unit(rays[:, 3:])
        normals = unit(normals)
        normals *= np.sign((normals * towards).sum(1, keepdims=True))
        ids = hits["geometry_ids"].numpy()
        albedo, gloss = np.zeros_like(points), np.zeros(len(points))
        for k, thing in enumerate(self.things):
            rows = np.flatnonzero(ids == k)
            if len(rows):
                own = np.linalg.inv(thing.place)
                albedo[rows] = linear(thing.paint(points[rows] @ own[:3, :3].T + own[:3, 3], normals[rows] @ own[:3, :3].T))
                gloss[rows] = thing.gloss
        lifted = points + 1e-3 * normals
        lit, open_sky = np.zeros(len(points)), np.zeros(len(points))
        for _ in range(LIGHT_RAYS):
            sun = unit(SUN + 0.14 * rng.normal(size=points.shape))
            lit += self.reaches(lifted, sun, 5.0) * (normals * sun).sum(1).clip(0) / LIGHT_RAYS
            sky = unit(unit(rng.normal(size=points.shape)) + normals)  # cosine distribution about the normal
            open_sky += self.reaches(lifted, sky, 1.5) * (0.75 + 0.25 * sky[:, 1]) / LIGHT_RAYS
        shine = gloss * (normals * unit(SUN + towards)).sum(1).clip(0) ** 40 * (lit > 0)
        light = 0.95 * lit[:, None] * [1.0, 0.95, 0.86] + open_sky[:, None] * [0.42, 0.46, 0.52] + 0.05
        return albedo * light + 0.16 * shine[:, None]


def photograph(stage: Stage, camera: Cameras, seed: int) -> Image.Image:
    """One 8-bit picture: averaged samples, exposure, vignetting, sensor noise, gamma."""
    rng = np.random.default_rng(1000 + seed)
    total = np.zeros((camera.height, camera.width, 3))
    for i in range(SAMPLES**2):
        shift = (np.array([i % SAMPLES, i // SAMPLES]) + rng.uniform(0, 1, 2)) / SAMPLES - 0.5
        moved = camera.K.clone()
        moved[0, :2, 2] -= torch.tensor(shift, dtype=moved.dtype)
        rays = pixel_rays(Cameras(camera.cam_from_world, moved, camera.width, camera.height))
        total += stage.light(rays.reshape(-1, 6), rng).reshape(total.shape)
    light = total / SAMPLES**2 * 1.25 * 2 ** rng.uniform(-0.12, 0.12)
    y, x = np.mgrid[: camera.height, : camera.width] + 0.5
    off_axis = np.hypot(x - camera.width / 2, y - camera.height / 2) / FOCAL
    light *= (1 / (1 + 0.45 * off_axis**2) ** 2)[..., None]
    light += rng.normal(size=light.shape) * np.sqrt(light.clip(0) * 6e-5 + 2e-6)
    return Image.fromarray((encoded(light) * 255 + 0.5).astype(np.uint8))


def portrait(side: int = 512) -> Image.Image:
    """The locomotive alone, with straight alpha, as its front right is seen from 20 degrees above."""
    stage, rng = Stage(list(locomotive())), np.random.default_rng(0)
    azimuth, elevation, distance, middle = math.radians(50), math.radians(20), 5.4, np.array([0, 0.62, 0])
    away = np.array([math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)])
    eye, up = middle + distance * away, torch.tensor([0.0, 1, 0])
    camera = Cameras.look_at(
        torch.tensor(eye)[None], torch.tensor(middle)[None], up, intrinsics(1.6 * side, side, side), side, side
    )
    light, alpha = np.zeros((side * side, 3)), np.zeros(side * side)
    for i in range(SAMPLES**2):
        shift = (np.array([i % SAMPLES, i // SAMPLES]) + 0.5) / SAMPLES - 0.5
        K = camera.K.clone()
        K[0, :2, 2] -= torch.tensor(shift, dtype=K.dtype)
        rays = pixel_rays(Cameras(camera.cam_from_world, K, side, side)).reshape(-1, 6)
        seen = np.isfinite(stage.scene.cast_rays(stage.tensor(rays))["t_hit"].numpy())
        light[seen] += stage.light(rays[seen], rng)
        alpha += seen
    colour = encoded(1.25 * light / alpha.clip(1)[:, None])
    pixels = np.concatenate([colour, alpha[:, None] / SAMPLES**2], axis=1).reshape(side, side, 4)
    return Image.fromarray((pixels * 255 + 0.5).astype(np.uint8))


def save_photo(picture: Image.Image, path: Path) -> None:
    """As a phone does: an upright picture is stored lying, with the EXIF orientation that turns it."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "splatsmith", "procedural camera"  # Make, Model
    if picture.height > picture.width:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6  # Orientation: turn 90 degrees clockwise to view
    details = exif.get_ifd(0x8769)
    details[0x920A] = round(FOCAL / math.hypot(LONG, SHORT) * FRAME_DIAGONAL, 3)  # FocalLength, mm
    details[0xA405] = int(FOCAL_35MM)  # FocalLengthIn35mmFilm
    picture.save(path, quality=JPEG_QUALITY, subsampling=2, optimize=True, exif=exif)


def transforms(views: list[Cameras], names: list[str]) -> dict:
    """The true cameras as nerfstudio writes them: OpenGL camera axes, intrinsics per frame; sizes as displayed."""
    frames = []
    for view, name in zip(views, names, strict=True):
        K = view.K[0].tolist()
        frames.append(
            {
                "file_path": f"photos/{name}", "w": view.width, "h": view.height,
                "fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2],
                "transform_matrix": view.to_opengl()[0].tolist(),
            }
        )  # fmt: skip
    return {"camera_model": "PINHOLE", "frames": frames}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", type=int, nargs="*", help="take only these of the fifteen photos")
    args = parser.parse_args()
    (args.out / "photos").mkdir(parents=True, exist_ok=True)
    if args.only is None:
        portrait().save(args.out / "picture.png", optimize=True)
    stage, views = Stage(scene()), cameras()
    names = [f"IMG_{2041 + i}.jpg" for i in range(len(views))]
    for i in range(len(views)) if args.only is None else args.only:
        save_photo(photograph(stage, views[i], i), args.out / "photos" / names[i])
        print(args.out / "photos" / names[i])
    (args.out / "truth.json").write_text(json.dumps(transforms(views, names), indent=1) + "\n")


if __name__ == "__main__":
    main()
