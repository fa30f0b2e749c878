"""How good a fit becomes in how much time: PSNR of test photos against seconds and Gaussians, for photos with known poses.

    python benchmarks/training.py --data chair --side 400 --steps 1500 3000 4000
    python benchmarks/training.py --data chair --side 400 --densify default error mcmc --plot training.png
    python benchmarks/training.py --data chair --side 800 --steps 7000 --max-gaussians 300000 --device cuda

`--data` is a folder with transforms_train.json and transforms_test.json (NeRF-synthetic's form); every n-th test photo counts.
The fit starts from random splats and does all that a fit does: random backgrounds, densification, pruning. Photos and the
import of torch are not in the time; everything else is.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a spinning thread pool takes the renderer's cores

import kernels  # beside this file
import torch

from recon.initialise import random_splats, viewing_bound
from recon.photos import PhotoConfig, composited, read_photos
from recon.poses import undistort
from recon.poses.from_file import load_poses, photos_of_transforms
from splat.densify import ClassicDensify, ErrorDensify, MCMCDensify
from splat.gaussians import Splats
from splat.metrics import psnr, ssim
from splat.optimise import FitConfig, fit
from splat.render import RenderOptions, render
from splat.views import Views

# "default" is what the product does with so many photos; the others change nothing but the densification of `FitConfig`.
STRATEGIES = {"default": None, "error": ErrorDensify, "mcmc": MCMCDensify, "classic": ClassicDensify}


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    train, test = (load(args.data / f"transforms_{part}.json", args.side).to(args.device) for part in ("train", "test"))
    test = test[range(0, len(test), args.every)]
    facts = kernels.machine()
    print("  ".join(f"{k} {v}" for k, v in facts.items()))
    print(f"{len(train)} training and {len(test)} test photos of {train.size[0]} x {train.size[1]}, {args.threads} threads")
    print(
        f"{'densify':8} {'steps':>6} {'PSNR':>6} {'SSIM':>6} {'train':>6} {'splats':>7} {'wall s':>7} {'CPU s':>7} {'it/s':>6}"
    )
    rows = []
    for name in args.densify:
        for steps in args.steps:
            row = measured(name, steps, train, test, args)
            rows.append(row)
            print(
                f"{name:8} {steps:6} {row['psnr']:6.2f} {row['ssim']:6.4f} {row['train_psnr']:6.2f} {row['splats']:7} "
                f"{row['wall_seconds']:7.1f} {row['cpu_seconds']:7.1f} {steps / row['wall_seconds']:6.1f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1))
    if args.plot:
        plot(rows, args.plot)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with transforms_train.json and transforms_test.json")
    parser.add_argument("--side", type=int, default=400, help="px, long side of the photos in the fit and the test")
    parser.add_argument("--every", type=int, default=1, help="every n-th of the test photos that are there")
    parser.add_argument("--steps", type=int, nargs="+", default=[3000])
    parser.add_argument("--densify", nargs="+", choices=STRATEGIES, default=["default"])
    parser.add_argument("--max-gaussians", type=int, default=46_000)
    parser.add_argument("--first", type=int, default=10_000, help="random splats at the start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: gsplat's kernels in the same fit")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--plot", type=Path, help="PNG of test PSNR over seconds; needs matplotlib")
    return parser.parse_args()


def load(file: Path, side: int) -> Views:
    photos = [composited(p) for p in read_photos(photos_of_transforms(file), PhotoConfig(max_photos=0)).photos]
    (views,) = undistort(photos, load_poses(file, photos))
    return views.limited(side)


def measured(name: str, steps: int, train: Views, test: Views, args: argparse.Namespace) -> dict:
    settings = {"steps": steps, "max_gaussians": args.max_gaussians, "seed": args.seed, "threads": args.threads}
    config = (
        FitConfig.for_photos(len(train), **settings) if name == "default" else FitConfig(densify=STRATEGIES[name](), **settings)
    )
    wall, cpu = time.perf_counter(), time.process_time()
    centre, radius = viewing_bound([train.cameras.to("cpu")])
    first = random_splats(args.first, centre, radius).to(args.device)
    result = result_of(fit([train], first, config))
    kernels.finish(args.device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    scores = list(quality(result.splats, test, args.threads))
    return {
        "densify": name, "steps": steps, "seed": args.seed, "threads": args.threads, "splats": len(result.splats),
        "psnr": sum(p for p, _ in scores) / len(scores), "ssim": sum(s for _, s in scores) / len(scores),
        "train_psnr": result.train_psnr, "wall_seconds": wall, "cpu_seconds": cpu,
    }  # fmt: skip


def result_of(job):
    """The value that a generator of `Progress` returns."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


@torch.no_grad()
def quality(splats: Splats, test: Views, threads: int) -> Iterator[tuple[float, float]]:
    """(PSNR, SSIM) of every test photo on white."""
    options = RenderOptions(background=torch.ones(3, device=test.images.device), threads=threads)
    for i in range(len(test)):
        image = render(splats, test.cameras[i], options).rgb[0].clamp(0, 1)
        yield float(psnr(image, test.images[i])), float(ssim(image, test.images[i]))


def plot(rows: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), dpi=100)
    for name in dict.fromkeys(row["densify"] for row in rows):
        points = [(row["wall_seconds"], row["psnr"]) for row in rows if row["densify"] == name]
        axes.plot(*zip(*points), marker="o", label=name)
    axes.set(xlabel="seconds of the fit", ylabel="test PSNR, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    main()
