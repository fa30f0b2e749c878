"""How much of the splats a textured mesh keeps: PSNR of its pictures against the splats', beside vertex colours.

    python benchmarks/textured_mesh.py RESULT... [--faces 10000] [--texture 1024] [--side 480] [--sheet FOLDER] [--json FILE]

For each result folder the mesh of the game preset is made and drawn through 16 cameras, and so is the result's own mesh with
its colours at the vertices, and that reduced to as many triangles. A capture is seen through its own cameras and, where it has
fewer than 16, others halfway between them; an object in an orbit at 15 degrees, turned by 11 degrees against the cameras that
the texture is made from.

PSNR "whole" is over whole pictures on white, "covered" over the pixels that the mesh covers, mean over the cameras. A capture's
mesh is only of its subject and what lies round it, so there the second counts, with the share of the splats' pixels in the
mesh's box that it covers. --sheet writes the pictures side by side and the texture.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))
import kernels

from app.machine import pick_place
from app.report import read_report
from app.scenes import load_scene, read_cameras
from app.textured_mesh import Pictures, textured_mesh
from splat.cameras import Cameras
from splat.decimate import decimated
from splat.extract_mesh import MeshConfig, surface_depth
from splat.gaussians import Splats
from splat.io.images import save_image
from splat.io.meshes import load_mesh
from splat.mesh import Mesh
from splat.raycast import raycast

VIEWS = 16


def drained(job):
    """The result of a generator, and its CPU-seconds."""
    start = time.process_time()
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value, time.process_time() - start


def test_cameras(result: Path, side: int) -> list[Cameras]:
    if read_report(result)["command"] in ("image", "text"):
        return [Cameras.orbit(VIEWS, 2.4, 15.0, 40.0, side, side, azimuth_deg=11.0)[[i]] for i in range(VIEWS)]
    captured = [c[[i]] for c in read_cameras(result / "cameras.json", side) for i in range(len(c))]
    captured = [
        c.resized(round(c.width * side / max(c.width, c.height)), round(c.height * side / max(c.width, c.height)))
        for c in captured
    ]
    captured = captured[:: max(1, len(captured) // VIEWS)][:VIEWS]
    alike = [(a, b) for a, b in itertools.combinations(captured, 2) if (a.width, a.height) == (b.width, b.height)]
    pairs = sorted(alike, key=lambda pair: float((pair[0].centers - pair[1].centers).norm()))[: len(captured)]
    return captured + [halfway(*pairs[i * len(pairs) // (VIEWS - len(captured))]) for i in range(VIEWS - len(captured))]


def halfway(a: Cameras, b: Cameras) -> Cameras:
    """A camera between two, which looks between where they look."""
    reach = (a.centers - b.centers).norm()
    target = (a.centers + a.forward * reach + b.centers + b.forward * reach) / 2
    return Cameras.look_at((a.centers + b.centers) / 2, target, torch.tensor([0.0, 1, 0]), a.K[0], a.width, a.height)


def on_white(splats: Splats, camera: Cameras) -> torch.Tensor:
    drawn = Pictures(splats, (), (), 1)._drawn(camera)
    return (drawn.images * drawn.masks[..., None] + 1 - drawn.masks[..., None])[0]


def decibels(error: torch.Tensor) -> float:
    return float(-10 * torch.log10(error.mean().clamp_min(1e-10)))


def compared(mesh: Mesh, splats: Splats, cameras: list[Cameras]) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Means over the cameras, and the mesh's pictures."""
    whole, covered, share, pictures = [], [], [], []
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    for camera in cameras:
        views, _ = raycast(mesh, camera, threads=1)
        error = (views.images[0] - on_white(splats, camera)).square()
        inside = views.masks[0] > 0.99
        whole.append(decibels(error))
        covered.append(decibels(error[inside]))
        depth, _, _ = surface_depth(splats, camera, MeshConfig())
        points = camera.unproject(camera.pixel_centers, depth)
        boxed = (depth > 0) & ((points > low) & (points < high)).all(-1)
        share.append(float((inside & boxed).sum() / boxed.sum().clamp_min(1)))
        pictures.append(views.images[0])
    means = {k: sum(v) / len(v) for k, v in (("whole", whole), ("covered", covered), ("share", share))}
    return means | {"least": min(covered)}, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--faces", type=int, default=10_000)
    parser.add_argument("--texture", type=int, default=1024)
    parser.add_argument("--side", type=int, default=480)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for result in args.results:
        splats, original, cameras = load_scene(result), load_mesh(result / "mesh.glb"), test_cameras(result, args.side)
        textured, seconds = drained(textured_mesh(result, args.faces, args.texture, pick_place("cpu", 1)))
        meshes = {"textured": textured, "vertex colours": original, "vertex colours, reduced": decimated(original, args.faces)}
        shots = [[on_white(splats, c) for c in cameras]]
        for name, mesh in meshes.items():
            row, pictures = compared(mesh, splats, cameras)
            row |= {
                "result": result.name,
                "mesh": name,
                "faces": len(mesh.faces),
                "cpu_seconds": seconds if name == "textured" else None,
            }
            rows.append(row)
            shots.append(pictures)
            cost = f"  {seconds:.0f} CPU-s" if name == "textured" else ""
            figures = f"whole {row['whole']:5.2f}  covered {row['covered']:5.2f} (least {row['least']:5.2f}) dB"
            print(
                f"{result.name:24} {name:24} {len(mesh.faces):7,} triangles  {figures}  share {row['share']:.3f}{cost}",
                flush=True,
            )
        if args.sheet:
            shown = [i for i in range(0, VIEWS, 4) if shots[0][i].shape == shots[0][0].shape]
            save_image(args.sheet / f"{result.name}.png", torch.cat([torch.cat([row[i] for i in shown], 1) for row in shots]))
            save_image(args.sheet / f"{result.name}-texture.png", textured.texture)
    if args.json:
        facts = {"machine": kernels.machine(), "texture": args.texture, "side": args.side, "views": VIEWS}
        args.json.write_text(json.dumps(facts | {"rows": rows}, indent=1))


if __name__ == "__main__":
    with torch.no_grad():
        main()
