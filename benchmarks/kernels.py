"""How fast the CPU kernels are: rendering forward and backward, the loss, a whole training step; beside a PyTorch peer.

    python benchmarks/kernels.py                        every row, peer on the two smallest sizes
    python benchmarks/kernels.py --threads 1 2 --peer-rows 0 --json kernels.json
    python benchmarks/kernels.py --only scaling --threads 1 2 --plot scaling.png
    python benchmarks/kernels.py --device cuda          gsplat's kernels behind the same call, on a GPU

Scene: a Gaussian ball of splats seen from outside, sizes falling as their number grows. Medians in milliseconds of wall time;
rgb, alpha and depth all with gradients. Figures from a busy machine are worthless: the load average is printed and written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.losses import photometric
from splat.metrics import ssim_map
from splat.render import RenderOptions, render
from splat.render.native import build
from splat.render.native.adam import NativeAdam
from splat.render.native.loss import fused_l1_ssim
from splat.render.native.step import FusedSteps, Turn

# splats, pixels a side, mean log-scale
SIZES = [(10_000, 256, -3.9), (50_000, 256, -4.4), (100_000, 512, -4.7), (500_000, 1024, -5.2)]
SCALING = [(10_000, 256, -3.9), (30_000, 256, -4.2), (100_000, 256, -4.7), (300_000, 256, -5.0), (1_000_000, 256, -5.5)]
SCALING += [(100_000, 128, -4.7), (100_000, 512, -4.7), (100_000, 1024, -4.7)]
KINDS = ("memory", "render", "peer", "loss", "training")
TRAINING = [(20_000, 256, -4.1), (50_000, 512, -4.4)]


def ball(count: int, log_scale: float, degree: int) -> Splats:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    sh = 0.3 * normal(count, (degree + 1) ** 2, 3)
    return Splats(0.6 * normal(count, 3), normal(count, 4), log_scale + 0.7 * normal(count, 3), 2 * normal(count), sh)


def camera(side: int) -> Cameras:
    return Cameras.orbit(1, 3.0, 20.0, 50.0, side, side)


def median_ms(body: Callable[[], None], seconds: float = 3.0) -> float:
    body()
    times: list[float] = []
    while len(times) < 5 or (sum(times) < seconds and len(times) < 50):
        start = time.perf_counter()
        body()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def kernel_row(count: int, side: int, log_scale: float, degree: int, threads: int, device: str = "cpu") -> dict:
    splats = ball(count, log_scale, degree).to(device).map(lambda x: x.requires_grad_())
    leaves = [splats.means, splats.quats, splats.log_scales, splats.opacity_logits, splats.sh]
    options, view = RenderOptions(threads=threads), camera(side).to(device)
    upstream = tuple(torch.ones(1, side, side, *more, device=device) for more in ((3,), (), ()))
    name = "native" if device == "cpu" else "gsplat"

    def forward() -> None:
        with torch.no_grad():
            render(splats, view, options, name)
        finish(device)

    def both() -> None:
        out = render(splats, view, options, name)
        torch.autograd.grad((out.rgb, out.alpha, out.depth), leaves, upstream)
        finish(device)

    return {
        "row": "render", "splats": count, "side": side, "sh_degree": degree, "threads": threads,
        "forward_ms": median_ms(forward), "forward_backward_ms": median_ms(both),
    }  # fmt: skip


def finish(device: str) -> None:
    """Waits for the GPU."""
    if device != "cpu":
        torch.cuda.synchronize()


def peer_row(count: int, side: int, log_scale: float, degree: int, threads: int) -> dict:
    import torch_peer  # beside this file

    torch.set_num_threads(threads)
    splats, view = ball(count, log_scale, degree).map(lambda x: x.requires_grad_()), camera(side)

    def both() -> None:
        sum(x.sum() for x in torch_peer.render(splats, view)).backward()

    start = time.perf_counter()
    both()
    return {
        "row": "peer", "splats": count, "side": side, "sh_degree": degree, "threads": threads,
        "forward_backward_ms": 1e3 * (time.perf_counter() - start),
    }  # fmt: skip


def loss_row(side: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    target = torch.rand(1, side, side, 3)
    image = torch.rand(1, side, side, 3, requires_grad=True)

    def fused() -> None:
        fused_l1_ssim(image, target, 0.2, threads=threads).backward()

    def plain() -> None:
        (0.8 * (image - target).abs().mean() + 0.2 * (1 - ssim_map(image, target).mean())).backward()

    return {
        "row": "loss", "side": side, "threads": threads, "fused_ms": median_ms(fused, 1), "conv2d_ms": median_ms(plain, 1)
    }  # fmt: skip


def training_row(count: int, side: int, log_scale: float, degree: int, threads: int, device: str = "cpu") -> dict:
    """Render, L1 + SSIM, Adam: what a step of the fit costs at least."""
    torch.set_num_threads(threads)
    splats, view = ball(count, log_scale, degree).to(device), camera(side).to(device)
    options = RenderOptions(threads=threads)
    with torch.no_grad():
        target = render(splats, view, options).rgb
    splats = splats.map(lambda x: (x + 0.01 * torch.randn_like(x)).requires_grad_())
    leaves = [splats.means, splats.quats, splats.log_scales, splats.opacity_logits, splats.sh]
    rates = [{"params": leaves, "lr": 1e-4}]
    if device == "cpu":
        fused = FusedSteps(NativeAdam(rates, threads=threads), options, 0.2)  # what `fit` uses, too
        turn = Turn(target[0], view.cam_from_world[0], view.K[0], degree, lr_means=1e-4)
    else:
        adam = torch.optim.Adam(rates, fused=True)

    def step() -> None:
        if device == "cpu":
            fused(splats, [turn])
            return
        image = render(splats, view, options).rgb
        loss = photometric(image, target, 0.2)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        finish(device)

    ms = median_ms(step)
    return {
        "row": "training", "splats": count, "side": side, "sh_degree": degree, "threads": threads, "step_ms": ms,
        "steps_per_second": 1e3 / ms,
    }  # fmt: skip


def memory_row(threads: int) -> dict:
    """What drawing a million splats once adds to the peak memory of this process; meaningful as the first row only."""
    splats, view = ball(1_000_000, -5.5, 0), camera(1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        render(splats, view, RenderOptions(threads=threads), "native")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"row": "memory", "splats": len(splats), "side": 1024, "extra_mb": (peak - before) / 1024}


def show(row: dict) -> None:
    words = []
    for key, value in row.items():
        words.append(f"{key} {value:.2f}" if isinstance(value, float) else str(value) if key == "row" else f"{key} {value}")
    print("  ".join(words), flush=True)


def machine() -> dict:
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "kernels": build.cpu_variants()[-1],
        "python": platform.python_version(), "torch": torch.__version__, "gsplat": version("gsplat"),
        "date": time.strftime("%Y-%m-%d"), "load_average": os.getloadavg()[0],
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count() or 1], help="measure with each of these")
    parser.add_argument("--sh-degrees", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sizes, smallest first")
    parser.add_argument(
        "--peer-rows", type=int, default=2, help="how many sizes the PyTorch peer draws; the largest takes a minute"
    )
    parser.add_argument("--only", nargs="+", choices=(*KINDS, "scaling"), default=KINDS, help="kinds of rows")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--plot", type=Path, help="PNG of the scaling rows; needs matplotlib")
    args = parser.parse_args()
    facts = machine()
    print("  ".join(f"{k} {v}" for k, v in facts.items()))
    rows: list[dict] = []

    def record(row: dict) -> None:
        rows.append(row)
        show(row)

    cpu = args.device == "cpu"
    if "memory" in args.only and cpu:
        record(memory_row(args.threads[0]))
    for threads in args.threads if cpu else args.threads[:1]:
        if "render" in args.only:
            for degree in args.sh_degrees:
                for size in SIZES[: args.sizes]:
                    record(kernel_row(*size, degree, threads, args.device))
        if "scaling" in args.only:
            for size in SCALING:
                record(kernel_row(*size, 0, threads, args.device) | {"row": "scaling"})
        if "peer" in args.only and cpu:
            for size in SIZES[: args.peer_rows]:
                record(peer_row(*size, args.sh_degrees[0], threads))
        if "loss" in args.only and cpu:
            for side in (256, 512, 1024):
                record(loss_row(side, threads))
        if "training" in args.only:
            for size in TRAINING:
                record(training_row(*size, 3, threads, args.device))
    facts["load_average_after"] = os.getloadavg()[0]
    facts["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("  ".join(f"{k} {v}" for k, v in list(facts.items())[-3:]))
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1))
    if args.plot:
        plot([row for row in rows if row["row"] == "scaling"], args.plot)


def plot(rows: list[dict], file: Path) -> None:
    """Milliseconds over the number of splats at 256 pixels, and over the side of the image with 100,000 splats."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.2), dpi=100, sharey=True)
    for axes, along, label, fixed in (
        (panels[0], "splats", "splats at 256 x 256 pixels", lambda row: row["side"] == 256),
        (panels[1], "side", "pixels a side, 100,000 splats", lambda row: row["splats"] == 100_000),
    ):
        for threads in dict.fromkeys(row["threads"] for row in rows):
            for key, style in (("forward_ms", "--"), ("forward_backward_ms", "-")):
                points = sorted((row[along], row[key]) for row in rows if fixed(row) and row["threads"] == threads)
                name = f"{'forward' if style == '--' else 'with backward'}, {threads} thread{'s' * (threads > 1)}"
                axes.loglog(*zip(*points), style, marker="o", color=f"C{threads}", label=name)
        axes.set(xlabel=label)
        axes.grid(alpha=0.3, which="both")
        if along == "side":
            sides = sorted({row["side"] for row in rows})
            axes.set_xticks(sides, [str(side) for side in sides])
            axes.minorticks_off()
    panels[0].set(ylabel="milliseconds")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    main()
