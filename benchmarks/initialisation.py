"""What the fit should start from: random splats, the pose solver's points, the stereo prior's, or the union.

    python benchmarks/initialisation.py --photos chair/transforms_train.json --poses chair/transforms_train.json \
        --only r_2 r_16 r_26 r_55 r_73 r_76 r_86 r_93 --test chair/transforms_test.json --side 400
    python benchmarks/initialisation.py --photos banana/images --holdout 8

Without --test every n-th photo is held out of the fit (its pose is solved or given together with the others: the
posed protocol). Prints one row per start; --json writes the rows with machine, versions and settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a spinning thread pool ruins timings on a busy machine

import torch

from recon.complete import complete
from recon.fuse import FuseConfig, clean_depths, fuse
from recon.initialise import InitialConfig, choose_points, initial_splats, nearest_spacing, random_splats, viewing_bound
from recon.photos import Photo, PhotoConfig, composited, read_photos
from recon.poses import PoseConfig, Poses, solve_poses, undistort
from recon.poses.from_file import load_poses, photos_of_transforms
from recon.priors import DepthMap
from recon.priors.plane_sweep import PlaneSweepConfig, estimate_depths
from splat.gaussians import Splats
from splat.metrics import psnr, ssim
from splat.optimise import FitConfig, fit
from splat.points import PointCloud
from splat.render import RenderOptions, render
from splat.views import Views

STARTS = ("random", "sparse", "dense", "union")


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(args.threads)
    train, test, sparse = load(args)
    before = time.process_time()
    maps = result_of(estimate_depths(train, sparse if len(sparse) else None, PlaneSweepConfig()))
    maps = clean_depths(train, maps, FuseConfig())
    dense = fuse(train, maps, FuseConfig())
    stereo = time.process_time() - before
    photos = sum(len(v) for v in train)
    sizes = " ".join(f"{v.size[0]}x{v.size[1]}" for v in train)
    print(f"{photos} training and {sum(len(v) for v in test)} test photos of {sizes}")
    print(f"{len(sparse)} sparse and {len(dense)} dense points; stereo {stereo / photos:.2f} CPU-s a photo")
    print(f"{'start':8} {'seed':>4} {'at first':>16} {'splats':>15} {'train':>6} {'PSNR':>6} {'SSIM':>6} {'CPU-s':>6}")
    rows = []
    for start in args.rows:
        if start == "sparse" and len(sparse) == 0:
            print(f"{start:8} given poses came without points")
            continue
        for seed in args.seeds:
            rows.append(measured(start, seed, train, test, sparse, dense, maps, args))
            r = rows[-1]
            print(
                f"{start:8} {seed:4} {r['first_psnr']:8.2f} {r['first_ssim']:7.4f} {r['splats_first']:7}->{r['splats']:6} "
                f"{r['train_psnr']:6.2f} {r['psnr']:6.2f} {r['ssim']:6.4f} {r['cpu_seconds']:6.1f}",
                flush=True,
            )
    if args.json:
        facts = {
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "splatsmith": version("splatsmith"),
            "settings": {k: v for k, v in vars(args).items() if k != "json"},
            "protocol": "posed",
            "stereo_cpu_seconds_per_photo": stereo / photos,
            "sparse_points": len(sparse),
            "dense_points": len(dense),
        }
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1, default=str))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folder, picture files, or a transforms.json")
    parser.add_argument("--poses", type=Path, help="transforms.json or COLMAP folder; solved from the photos without it")
    parser.add_argument("--only", nargs="+", help="names (without suffix) of the training photos")
    parser.add_argument("--test", type=Path, help="transforms.json of test photos in the same world")
    parser.add_argument("--holdout", type=int, default=8, help="without --test: every n-th photo is a test photo")
    parser.add_argument("--side", type=int, default=480, help="px, long side of the fit")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--max-gaussians", type=int, default=60_000)
    parser.add_argument("--random-count", type=int, default=20_000)
    parser.add_argument("--holes", action="store_true", help="leave what no point covers empty, instead of continuing surfaces")
    parser.add_argument("--rows", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the rows")
    return parser.parse_args()


def load(args: argparse.Namespace) -> tuple[list[Views], list[Views], PointCloud]:
    """(train, test, sparse points), all in the world of the poses, images at `--side`."""
    photos = read(args.photos)
    if args.only:
        photos = [p for p in photos if Path(p.name).stem in args.only]
    poses = load_poses(args.poses, photos) if args.poses else result_of(solve_poses(photos, PoseConfig()))
    if args.test:
        others = read([args.test])
        return views_of(photos, poses, args.side), views_of(others, load_poses(args.test, others), args.side), poses.points
    test = [i for i in range(len(photos)) if i % args.holdout == 0]
    train = [i for i in range(len(photos)) if i % args.holdout]
    return views_of(*chosen(photos, poses, train), args.side), views_of(*chosen(photos, poses, test), args.side), poses.points


def read(inputs: list[Path]) -> list[Photo]:
    files = [f for path in inputs for f in (photos_of_transforms(path) if path.suffix == ".json" else [path])]
    return [composited(p) for p in read_photos(files, PhotoConfig(max_photos=0)).photos]


def chosen(photos: list[Photo], poses: Poses, rows: list[int]) -> tuple[list[Photo], Poses]:
    part = dataclasses.replace(
        poses,
        cameras=tuple(poses.cameras[i] for i in rows),
        k1=tuple(poses.k1[i] for i in rows),
        reasons=tuple(poses.reasons[i] for i in rows),
        observations=(),
    )
    return [photos[i] for i in rows], part


def views_of(photos: list[Photo], poses: Poses, side: int) -> list[Views]:
    return [v.limited(side) for v in undistort(photos, poses)]


def first_splats(
    start: str,
    seed: int,
    train: list[Views],
    sparse: PointCloud,
    dense: PointCloud,
    maps: list[DepthMap],
    args: argparse.Namespace,
) -> Splats:
    config = InitialConfig(seed=seed)
    if start == "random":
        centre, radius = viewing_bound([v.cameras for v in train], sparse if len(sparse) else None)
        return random_splats(args.random_count, centre, radius, config)
    points = choose_points(dense, sparse, start)
    if not args.holes:
        points = dataclasses.replace(points, radius=nearest_spacing(points.xyz)) if points.radius is None else points
        points = PointCloud.cat([points, complete(train, points, maps)])
    return initial_splats(points, config)


def measured(
    start: str,
    seed: int,
    train: list[Views],
    test: list[Views],
    sparse: PointCloud,
    dense: PointCloud,
    maps: list[DepthMap],
    args: argparse.Namespace,
) -> dict:
    initial = first_splats(start, seed, train, sparse, dense, maps, args)
    first = scores(initial, test, args.threads)
    masked = all(v.masks is not None for v in train)
    settings = {"steps": args.steps, "max_gaussians": args.max_gaussians, "seed": seed, "threads": args.threads}
    config = FitConfig.for_photos(sum(len(v) for v in train), exposure=not masked, **settings)
    before = time.process_time()
    result = result_of(fit(train, initial, config))
    seconds = time.process_time() - before
    last = scores(result.splats, test, args.threads)
    return {
        "start": start,
        "seed": seed,
        "first_psnr": first[0],
        "first_ssim": first[1],
        "splats_first": len(initial),
        "splats": len(result.splats),
        "train_psnr": result.train_psnr,
        "psnr": last[0],
        "ssim": last[1],
        "cpu_seconds": seconds,
    }


@torch.no_grad()
def scores(splats: Splats, test: list[Views], threads: int) -> tuple[float, float]:
    """Mean (PSNR, SSIM) over the test photos on white."""
    options = RenderOptions(background=torch.ones(3), threads=threads)
    values = []
    for view in test:
        for i in range(len(view)):
            image = render(splats, view.cameras[i], options).rgb[0].clamp(0, 1)
            values.append((float(psnr(image, view.images[i])), float(ssim(image, view.images[i]))))
    return tuple(sum(column) / len(values) for column in zip(*values))


def result_of(job):
    """The value that a generator of `Progress` returns."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


if __name__ == "__main__":
    main()
