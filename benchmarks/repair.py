"""What rounds of repair bring to fits of few photos, on held-out views of scenes that the network has not seen.

    python benchmarks/repair.py --objects DIR --views 3 6 --work WORK --json rows.json     rendered rooms, poses known
    python benchmarks/repair.py nerf_synthetic/chair --work WORK --json rows.json          8 views, as published

Each scene is fitted once as `photos` does it (`splat.few_photos`) and kept in WORK; rows start from that fit. `pictures` is the
network alone: the held-out views' own renders mended, without a fit. `more steps` are the rounds without a repaired view.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import fewviews
import rendered

from app.saved_stages import load_stage, save_stage
from diffusion.repair import RepairConfig, load_repair_network, mended
from recon.complete import complete
from recon.fit_priors import fit_priors
from recon.fuse import clean_depths, fuse
from recon.initialise import initial_splats
from recon.priors.plane_sweep import PlaneSweepConfig, estimate_depths
from recon.rendered_scenes import SceneConfig
from recon.repair.request import repair_request
from recon.repair.rounds import RepairRoundsConfig, repair_rounds
from splat.cameras import Cameras
from splat.few_photos import for_few_photos
from splat.gaussians import Splats
from splat.io.images import save_image
from splat.metrics import psnr, ssim
from splat.optimise import FitConfig, FitResult, fit
from splat.points import PointCloud
from splat.regularise import Priors
from splat.render import RenderOptions, render
from splat.repair_request import RepairRequest
from splat.views import Views

# name of the row -> (changes of RepairRoundsConfig, network calls, photos shown to the network)
ROWS: dict[str, tuple[dict, int, bool]] = {
    "more steps": ({"weight": 0.0}, 1, True),
    "1 round": ({"rounds": 1}, 1, True),
    "2 rounds": ({"rounds": 2}, 1, True),
    "3 rounds": ({}, 1, True),
    "4 calls": ({}, 4, True),
    "no photos in view": ({}, 1, False),
    "weight 0.2": ({"weight": 0.2}, 1, True),
    "weight 1": ({"weight": 1.0}, 1, True),
    "doubt 1": ({"doubt": 1.0}, 1, True),
    "doubt 0": ({"doubt": 0.0}, 1, True),
    "no distance": ({"distance": False}, 1, True),
    "L1 alone": ({"ssim_weight": 0.0}, 1, True),
    "holes left": ({"fill_stride": 0}, 1, True),
    "no margin": ({"margin": 0.0}, 1, True),
}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A scene with the fit that repair starts from."""

    views: list[Views]
    test: list[Views]
    fitted: FitResult
    priors: Priors
    cpu_seconds: float  # of stereo and fit


TYPES = (Fitted, Views, Cameras, FitResult, Splats, Priors)


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(args.threads)
    network = functools.cache(lambda: load_repair_network(args.weights))
    args.work.mkdir(parents=True, exist_ok=True)
    done = json.loads(args.json.read_text())["rows"] if args.json and args.json.is_file() else []
    begun = time.monotonic()
    for name, make in scenes(args):
        missing = [r for r in args.rows if not any((d["scene"], d["row"]) == (name, r) for d in done)]
        if not missing:
            continue
        path = args.work / f"{name.replace(' ', '-')}.safetensors"
        if path.is_file():
            scene = load_stage(path, TYPES)
        else:
            if time.monotonic() - begun > 60 * args.minutes:
                return
            scene = make()
            save_stage(path, scene)
        before = quality(scene.fitted.splats, scene.test)
        for row in missing:
            if time.monotonic() - begun > 60 * args.minutes:
                return
            started = time.process_time()
            found = (
                alone(scene, network(), args, name) if row.startswith("pictures") else rounds(scene, row, network, args, name)
            )
            done.append({"scene": name, "row": row, "before": before, **found, "cpu_seconds": time.process_time() - started})
            r = done[-1]
            print(
                f"{name:12} {row:18} {before['psnr']:6.2f} -> {r['psnr']:6.2f} dB {r['psnr'] - before['psnr']:+.2f}   "
                f"{before['ssim']:.4f} -> {r['ssim']:.4f} {r['ssim'] - before['ssim']:+.4f}  {r['cpu_seconds']:.0f} CPU-s",
                flush=True,
            )
            if args.json:
                settings = {k: str(v) for k, v in vars(args).items()}
                args.json.write_text(json.dumps({"torch": torch.__version__, "settings": settings, "rows": done}, indent=1))
    summary(done, args)


def summary(rows: list[dict], args: argparse.Namespace) -> None:
    for row in args.rows:
        mine = [r for r in rows if r["row"] == row]
        if mine:
            gains = [sum(r[k] - r["before"][k] for r in mine) / len(mine) for k in ("psnr", "ssim")]
            least = min(r["psnr"] - r["before"]["psnr"] for r in mine)
            print(f"mean of {len(mine):2} {row:18} {gains[0]:+.3f} dB  SSIM {gains[1]:+.4f}   worst {least:+.2f} dB")


def scenes(args: argparse.Namespace):
    """(name, function that makes the `Fitted`)."""
    if args.objects:
        config = SceneConfig(width=args.side, height=3 * args.side // 4)
        for views in args.views:
            for name, make in rendered.scenes(args.objects, views, config):
                if not args.rooms or name in args.rooms:
                    yield f"{name} {views}", lambda make=make: room(make(), args)
    for folder in args.scenes:
        yield folder.name, lambda folder=folder: published(folder, args)


def room(scene, args: argparse.Namespace) -> Fitted:
    before = time.process_time()
    maps = clean_depths([scene.train], fewviews.result_of(estimate_depths([scene.train], None, PlaneSweepConfig())))
    dense = fuse([scene.train], maps)
    points = PointCloud.cat([dense, complete([scene.train], dense, maps)])
    return first_fit([scene.train], [scene.test], points, fit_priors([scene.train], maps), before, args)


def published(folder: Path, args: argparse.Namespace) -> Fitted:
    before = time.process_time()
    args.protocol, args.test_masks = "blender", None
    scene = fewviews.published(folder, 8, args)
    return first_fit(scene.train, scene.test, scene.dense, fit_priors(scene.train, scene.maps), before, args)


def first_fit(views, test, points: PointCloud, priors: Priors, before: float, args: argparse.Namespace) -> Fitted:
    config = fit_config(views, args)
    fitted = fewviews.result_of(fit(views, initial_splats(points), config, None, priors))
    return Fitted(views, test, fitted, priors, time.process_time() - before)


def fit_config(views: list[Views], args: argparse.Namespace, **changes) -> FitConfig:
    count = sum(len(v) for v in views)
    settings = {"steps": args.steps, "max_gaussians": 60_000, "seed": args.seed, "threads": args.threads, "exposure": False}
    masked = all(v.masks is not None for v in views)
    return for_few_photos(count, poses_given=True, masked=masked, **(settings | changes))


def rounds(scene: Fitted, row: str, network, args: argparse.Namespace, name: str) -> dict:
    changes, calls, shown = ROWS[row]
    config = dataclasses.replace(RepairRoundsConfig(lr_means=args.lr_means), **changes)

    def repairer(request: RepairRequest) -> Tensor:
        if config.weight == 0:
            return request.images
        return mended(network(), request if shown else blinded(request), RepairConfig(calls))

    # The number of fit steps is the same in every row.
    config = dataclasses.replace(config, steps=3 * args.round_steps // config.rounds)
    job = repair_rounds(
        scene.views,
        scene.fitted.splats,
        fit_config(scene.views, args),
        repairer,
        config,
        scene.priors,
    )
    last = fewviews.result_of(job)
    if args.sheets:
        sheet(scene, last.fitted.splats, args.sheets / f"{name}-{row}.png".replace(" ", "-"))
    return quality(last.fitted.splats, scene.test) | {"invented": last.invented, "splats": len(last.fitted.splats)}


def alone(scene: Fitted, network, args: argparse.Namespace, name: str) -> dict:
    white, lines, values = torch.ones(3), [], []
    for view in scene.test:
        for i in range(0, len(view), max(len(view) // 8, 1)):
            request = repair_request(scene.fitted.splats, scene.views, view.cameras[i], white, args.seed)
            made = mended(network, request, RepairConfig(args.calls))
            truth, drawn = view.images[i], request.images[0]
            values.append([float(f(x, truth)) for x in (drawn, made[0]) for f in (psnr, ssim)])
            trust = request.trust[0][..., None].expand(-1, -1, 3)
            lines.append(torch.cat([drawn, made[0], truth, request.warped[0, 0], trust], dim=1))
    if args.sheets:
        save_image(args.sheets / f"{name}-pictures.png".replace(" ", "-"), torch.cat(lines[:4]))
    b, s, p, q = (sum(column) / len(column) for column in zip(*values))
    return {"psnr": p, "ssim": q, "before": {"psnr": b, "ssim": s}}


def blinded(request: RepairRequest) -> RepairRequest:
    nothing = {name: torch.zeros_like(getattr(request, name)) for name in ("warped", "known")}
    return dataclasses.replace(request, **nothing)


def quality(splats: Splats, test: list[Views]) -> dict[str, float]:
    values = []
    for view in test:
        for i in range(len(view)):
            image = drawn(splats, view.cameras[i])
            values.append((float(psnr(image, view.images[i])), float(ssim(image, view.images[i]))))
    return dict(zip(("psnr", "ssim"), (sum(column) / len(column) for column in zip(*values))))


@torch.no_grad()
def drawn(splats: Splats, camera: Cameras) -> Tensor:
    return render(splats, camera, RenderOptions(background=torch.ones(3))).rgb[0].clamp(0, 1)


def sheet(scene: Fitted, splats: Splats, path: Path) -> None:
    """Held-out views by row: before, after, truth."""
    view = scene.test[0]
    lines = [
        torch.cat([drawn(scene.fitted.splats, view.cameras[i]), drawn(splats, view.cameras[i]), view.images[i]], dim=1)
        for i in range(0, len(view), max(len(view) // 4, 1))
    ]
    save_image(path, torch.cat(lines[:4]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", type=Path, help="folders of scenes with transforms_train.json")
    parser.add_argument("--objects", type=Path, help="packed objects: the six rooms")
    parser.add_argument("--rooms", nargs="+", choices=rendered.ROOMS, default=[])
    parser.add_argument("--views", nargs="+", type=int, default=[3, 6])
    parser.add_argument("--weights", type=Path, help="folder of the repair network; without it the one that ships")
    parser.add_argument("--work", type=Path, required=True, help="folder of the fits that rows start from")
    parser.add_argument("--sheets", type=Path, help="folder for pictures")
    parser.add_argument("--side", type=int, default=320, help="px, long side of fit and test")
    parser.add_argument("--steps", type=int, default=800, help="of the first fit")
    parser.add_argument("--round-steps", type=int, default=150, help="of each of 3 rounds; fewer rounds have longer ones")
    parser.add_argument("--lr-means", type=float, default=1.6e-4)
    parser.add_argument("--calls", type=int, default=1, help="network calls of the row pictures")
    parser.add_argument("--rows", nargs="+", default=["pictures", "more steps", "3 rounds"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no row later than this; --json goes on from there")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="file for the rows; what it has is not run again")
    args = parser.parse_args()
    if not args.scenes and not args.objects:
        parser.error("give scenes or --objects")
    if args.sheets:
        args.sheets.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
