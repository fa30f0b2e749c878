"""How good a fit becomes in how much time: PSNR of test photos against seconds and Gaussians, for photos with known poses.

    python benchmarks/training.py --data chair --side 400 --steps 1500 3000 4000
    python benchmarks/training.py --data chair --side 400 --densify default error mcmc --plot training.png
    python benchmarks/training.py --data chair --side 800 --steps 7000 --device cuda --densify default gsplat gsplat-mcmc
    python benchmarks/training.py --overhead            what a step on the CPU costs beside the kernels; needs no data

`--data` is a folder with transforms_train.json and transforms_test.json (NeRF-synthetic's form); every n-th test photo counts.
The fit starts from random splats and does all that a fit does: random backgrounds, densification, pruning. Photos and the
import of torch are not in the time; everything else is.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import time
import types
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a spinning thread pool takes the renderer's cores

import kernels  # beside this file
import torch

from recon.initialise import random_splats, viewing_bound
from recon.photos import PhotoConfig, composited, read_photos
from recon.poses import undistort
from recon.poses.from_file import load_poses, photos_of_transforms
from splat.cameras import Cameras
from splat.densify import ClassicDensify, ErrorDensify, MCMCDensify, NoDensify
from splat.gaussians import Splats
from splat.metrics import psnr, ssim
from splat.optimise import FitConfig, fit
from splat.render import RenderOptions, cuda_gsplat, render
from splat.render.native import library
from splat.views import Views

# "default" is what the product does with so many photos; the others change nothing but the densification of `FitConfig`.
STRATEGIES = {"default": None, "error": ErrorDensify, "mcmc": MCMCDensify, "classic": ClassicDensify}
# Whose steps `--overhead` takes, all of them of masked photos on random backgrounds: the loop alone, and the defaults for few
# photos with jitter, edits and exposures.
FITS = {"loop": {"densify": NoDensify()}, "few photos": {"exposure": True}}
PEERS = {"gsplat": "default", "gsplat-mcmc": "mcmc"}  # gsplat's own trainer, on a GPU


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.overhead:
        overhead(args)
        return
    if args.device == "cpu" and set(args.densify) & PEERS.keys():
        raise SystemExit("gsplat's trainer needs a GPU: add --device cuda.")
    train, test = (load(args.data / f"transforms_{part}.json", args.side).to(args.device) for part in ("train", "test"))
    test = test[range(0, len(test), args.every)]
    facts = kernels.machine()
    print("  ".join(f"{k} {v}" for k, v in facts.items()))
    print(f"{len(train)} training and {len(test)} test photos of {train.size[0]} x {train.size[1]}, {args.threads} threads")
    print(f"{'densify':8} {'steps':>6} {'PSNR':>6} {'SSIM':>6} {'splats':>7} {'wall s':>7} {'CPU s':>7} {'it/s':>6}")
    rows = []
    for name in args.densify:
        for steps in args.steps:
            row = measured(name, steps, train, test, args)
            rows.append(row)
            print(
                f"{name:8} {steps:6} {row['psnr']:6.2f} {row['ssim']:6.4f} {row['splats']:7} "
                f"{row['wall_seconds']:7.1f} {row['cpu_seconds']:7.1f} {steps / row['wall_seconds']:6.1f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1))
    if args.plot:
        plot(rows, args.plot)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="folder with transforms_train.json and transforms_test.json")
    what.add_argument("--overhead", action="store_true", help="measure the share of a step that is spent outside the kernels")
    parser.add_argument("--side", type=int, default=400, help="px, long side of the photos in the fit and the test")
    parser.add_argument("--every", type=int, default=1, help="every n-th of the test photos that are there")
    parser.add_argument("--steps", type=int, nargs="+", default=[3000])
    parser.add_argument("--densify", nargs="+", choices=[*STRATEGIES, *PEERS], default=["default"])
    parser.add_argument("--max-gaussians", type=int, default=46_000)
    parser.add_argument("--first", type=int, default=10_000, help="random splats at the start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: gsplat's kernels in the same fit")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--plot", type=Path, help="PNG of test PSNR over seconds; needs matplotlib")
    return parser.parse_args()


def overhead(args: argparse.Namespace) -> None:
    """Prints the time of a step of `fit` on the CPU and how much of it lies outside the compiled kernels."""
    facts, rows = kernels.machine(), []
    print("  ".join(f"{k} {v}" for k, v in facts.items()))
    for name, changes in FITS.items():
        for count, side, log_scale in kernels.TRAINING:
            row = {"fit": name} | overhead_row(count, side, log_scale, changes, args)
            rows.append(row)
            kernels.show(row)
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1))


def overhead_row(count: int, side: int, log_scale: float, changes: dict, args: argparse.Namespace) -> dict:
    cameras = Cameras.orbit(8, 3.0, 20.0, 50.0, side, side)
    splats = kernels.ball(count, log_scale, 3)
    with torch.no_grad():
        drawn = render(splats, cameras, RenderOptions(threads=args.threads), "native")
    views = Views(drawn.rgb.clamp(0, 1), tuple(f"{k}" for k in range(8)), cameras, drawn.alpha)
    config = FitConfig(
        steps=300, sh_every=0.0, max_gaussians=count, seed=args.seed, threads=args.threads, background=(0, 0, 0), **changes
    )
    start = splats.map(lambda x: x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(args.seed)))
    ends: list[tuple[int, float, float]] = []  # step, seconds, of them in the kernels
    with timed_kernels() as spent:
        job = fit([views], start, config)
        for progress in job:
            ends.append((progress.step, time.perf_counter(), spent[0]))
    # The median over the 25 steps between two reports; the first ones prepare memory.
    parts = [((c - a) / n, (d - b) / n) for (k, a, b), (m, c, d) in itertools.pairwise(ends[1:]) if (n := m - k)]
    step, inside = (1e3 * statistics.median(x) for x in zip(*parts))
    share = statistics.median(1 - inside / whole for whole, inside in parts)
    return {
        "row": "overhead", "splats": count, "side": side, "sh_degree": 3, "threads": args.threads, "step_ms": step,
        "kernels_ms": inside, "outside_percent": 100 * share,
    }  # fmt: skip


@contextlib.contextmanager
def timed_kernels() -> Iterator[list[float]]:
    """[seconds spent inside the compiled functions so far]"""
    spent, kernel_library = [0.0], library.load()

    def timed(name: str):
        function = getattr(kernel_library, name)

        def call(*arguments):
            start = time.perf_counter()
            status = function(*arguments)
            spent[0] += time.perf_counter() - start
            return status

        return call

    names = ("forward", "backward", "release", "l1_ssim", "adam", "run")
    stand_in = types.SimpleNamespace(**{f"splatsmith_{name}": timed(f"splatsmith_{name}") for name in names})
    original, library.load = library.load, lambda: stand_in
    try:
        yield spent
    finally:
        library.load = original


def load(file: Path, side: int) -> Views:
    photos = [composited(p) for p in read_photos(photos_of_transforms(file), PhotoConfig(max_photos=0)).photos]
    (views,) = undistort(photos, load_poses(file, photos))
    return views.limited(side)


def measured(name: str, steps: int, train: Views, test: Views, args: argparse.Namespace) -> dict:
    wall, cpu = time.perf_counter(), time.process_time()
    centre, radius = viewing_bound([train.cameras.to("cpu")])
    first = random_splats(args.first, centre, radius).to(args.device)
    if name in PEERS:
        import gsplat_trainer  # beside this file

        rasterization = cuda_gsplat.load_rasterization()
        splats = gsplat_trainer.fit(train, first, steps, PEERS[name], args.max_gaussians, args.seed, rasterization)
    else:
        settings = {"steps": steps, "max_gaussians": args.max_gaussians, "seed": args.seed, "threads": args.threads}
        many = FitConfig.for_photos(len(train), **settings)
        splats = result_of(
            fit([train], first, many if name == "default" else FitConfig(densify=STRATEGIES[name](), **settings))
        )
    kernels.finish(args.device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    scores = list(quality(splats, test, args.threads))
    return {
        "densify": name, "steps": steps, "seed": args.seed, "threads": args.threads, "splats": len(splats),
        "psnr": sum(p for p, _ in scores) / len(scores), "ssim": sum(s for _, s in scores) / len(scores),
        "wall_seconds": wall, "cpu_seconds": cpu,
    }  # fmt: skip


def result_of(job) -> Splats:
    """The splats of the `FitResult` that the generator `fit` returns."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value.splats


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
