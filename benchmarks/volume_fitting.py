"""How well a volume of Gaussians can show an object: PSNR at the object protocol's 14 views, by what the fit may do.

    python benchmarks/volume_fitting.py --objects DIR --split val --count 8
    python benchmarks/volume_fitting.py --objects DIR --split val --count 0 --rows surface full --json volumes.json

`--objects` is a packed object set or a folder of .glb, .obj or .ply files. Objects are taken evenly from the split; --count 0
takes all. Each is fitted on one thread to views that are not scored; --workers objects at a time. Seconds are of the start from
the surface and the fit; drawing the views to fit to is a column of its own (drawing, CPU seconds).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one thread to an object
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import kernels  # beside this file
import torch

from diffusion.data.object_set import open_objects, rows_of
from diffusion.data.object_views import protocol_cameras
from diffusion.fit_volume import VolumeFitConfig, fit_volume, fitting_cameras
from diffusion.surface_volume import surface_volume
from splat.mesh import Mesh
from splat.metrics import psnr, ssim
from splat.raycast import raycast
from splat.render import RenderOptions, render

ROWS = {
    "surface": {"steps": 0},
    "no offsets, no pool": {"max_offset": 0.0, "pool": False},
    "no offsets": {"max_offset": 0.0},
    "no pool": {"pool": False},
    "full": {},
}


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    config = VolumeFitConfig(resolution=args.resolution, steps=args.steps, views=args.views, seed=args.seed, threads=1)
    objects = open_objects(args.objects)
    rows = rows_of(objects, lambda facts: facts.split == args.split)
    count = min(args.count or len(rows), len(rows))
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    jobs = ((objects.facts[row].key, objects[row], config, tuple(args.rows), args.side) for row in chosen)
    facts = kernels.machine()
    print("  ".join(f"{k} {v}" for k, v in facts.items()))
    print(
        f"{count} of {len(rows)} objects of {args.split}, {args.resolution}^3, {args.steps} steps, seed {args.seed}", flush=True
    )
    measured = []
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for result in pool.map(measure, *zip(*jobs)):
            measured.append(result)
            if args.each:
                print(f"{result['object']:40} " + "  ".join(f"{r['row']} {r['psnr']:.2f}" for r in result["rows"]), flush=True)
    table(measured, args.rows)
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        args.json.write_text(json.dumps({"machine": facts, "settings": settings, "objects": measured}, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, required=True, help="packed object set or folder of meshes")
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=8, help="objects, evenly over the split; 0 takes all")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--steps", type=int, default=VolumeFitConfig.steps)
    parser.add_argument("--views", type=int, default=VolumeFitConfig.views, help="pictures that are fitted")
    parser.add_argument("--side", type=int, default=128, help="px of the views, fitted and scored")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="objects at a time, one thread each")
    parser.add_argument("--each", action="store_true", help="also a line for every object")
    parser.add_argument("--json", type=Path, help="file for the rows")
    return parser.parse_args()


def measure(name: str, mesh: Mesh, config: VolumeFitConfig, rows: tuple[str, ...], side: int) -> dict:
    torch.set_num_threads(1)
    start = time.process_time()
    views, _ = raycast(mesh, fitting_cameras(config.views, side, config.seed), threads=1)
    drawing = time.process_time() - start
    truth, _ = raycast(mesh, protocol_cameras(side), threads=1)
    results = []
    for row in rows:
        wall, cpu = time.perf_counter(), time.process_time()
        own = replace(config, **ROWS[row])
        volume = result_of(fit_volume(surface_volume(mesh, own.resolution, max_offset=own.max_offset), views, own))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        options = RenderOptions(background=torch.ones(3), threads=1)
        with torch.no_grad():
            image = render(volume.to_splats(), truth.cameras, options).rgb.clamp(0, 1)
        results.append(
            {
                "row": row, "psnr": float(psnr(image, truth.images).mean()), "ssim": float(ssim(image, truth.images).mean()),
                "gaussians": int(volume.active.sum()), "wall_seconds": wall, "cpu_seconds": cpu,
            }
        )  # fmt: skip
    return {"object": name, "drawing_cpu_seconds": drawing, "rows": results}


def result_of(job):
    """The value that a generator of `Progress` returns."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def table(measured: list[dict], rows: list[str]) -> None:
    drawing = sum(m["drawing_cpu_seconds"] for m in measured) / len(measured)
    print(
        f"{'row':20} {'PSNR':>6} {'median':>6} {'least':>6} {'SSIM':>6} {'splats':>7} {'wall s':>7} {'CPU s':>7} {'drawing':>8}"
    )
    for i, row in enumerate(rows):
        own = [m["rows"][i] for m in measured]

        def mean(key: str, own=own) -> float:
            return sum(r[key] for r in own) / len(own)

        values = torch.tensor([r["psnr"] for r in own])
        print(
            f"{row:20} {mean('psnr'):6.2f} {float(values.median()):6.2f} {float(values.min()):6.2f} {mean('ssim'):6.4f} "
            f"{mean('gaussians'):7.0f} {mean('wall_seconds'):7.2f} {mean('cpu_seconds'):7.2f} {drawing:8.2f}"
        )


if __name__ == "__main__":
    main()
