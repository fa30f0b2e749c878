"""Camera poses solved from photos alone: how many are placed, how exact they are where the truth is known, how long it takes.

    python benchmarks/poses.py banana/images lund/images berlin/images
    python benchmarks/poses.py chair/train --every 4 --count 24 --truth chair/transforms_train.json

One row per folder. AUC@t is the area under the recall of pairwise pose errors (the larger of rotation and direction) up to
t degrees, unplaced photos counting as failures; it needs --truth, a transforms.json or COLMAP folder with the same file
names. --json FILE writes the rows with machine, versions and settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

import torch

from recon.photos import PhotoConfig, read_photos
from recon.pose_error import LIMITS_DEG, pose_auc, poses_of, relative_errors
from recon.poses import PoseConfig, solve_poses
from recon.poses.from_file import load_poses
from splat.errors import SplatsmithError


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(args.threads)
    config = PoseConfig(features=args.features, seed=args.seed, device=args.device)
    titles = ("placed", "AUC@5", "@10", "@20", "px", "explained", "focal", "s", "CPU-s")
    print(f"{'set':24}", *(f"{title:>{width}}" for title, width in zip(titles, (8, 6, 6, 6, 5, 9, 6, 6, 6))))
    rows = [measured(folder, config, args) for folder in args.folders]
    if args.json:
        about = {
            "machine": f"{platform.machine()} {platform.processor()}",
            "threads": args.threads,
            "versions": {name: version(name) for name in ("torch", "kornia", "pycolmap", "opencv-python-headless")},
            "config": dataclasses.asdict(config),
        }
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


def measured(folder: Path, config: PoseConfig, args: argparse.Namespace) -> dict:
    """One row: solve the photos of `folder` and print what came out."""
    photos = read_photos([folder], PhotoConfig(max_side=args.max_side, max_photos=0)).photos
    photos = photos[:: args.every][: args.count]
    name = f"{folder.parent.name}/{folder.name} {len(photos)}"
    wall, cpu = time.monotonic(), cpu_seconds()
    try:
        poses = result_of(solve_poses(photos, config))
    except SplatsmithError as error:
        print(f"{name:24} {type(error).__name__}: {error}")
        return {"set": name, "photos": len(photos), "placed": 0, "refused": str(error), "cpu_s": cpu_seconds() - cpu}
    row = {
        "set": name,
        "photos": len(photos),
        "placed": len(poses.placed),
        "seconds": time.monotonic() - wall,
        "cpu_s": cpu_seconds() - cpu,
        "warnings": list(poses.warnings),
        "reasons": {p.name: r for p, r in zip(photos, poses.reasons) if r},
        **poses.facts,
    }
    auc = ["", "", ""]
    if args.truth:
        truth = load_poses(args.truth, photos)
        errors = relative_errors(poses_of(poses.cameras), poses_of(truth.cameras))
        row |= {f"auc{limit}": 100 * pose_auc(errors, limit) for limit in LIMITS_DEG}
        auc = [f"{row[f'auc{limit}']:.1f}" for limit in LIMITS_DEG]
    print(
        f"{name:24} {len(poses.placed):>4}/{len(photos):<3} {auc[0]:>6} {auc[1]:>6} {auc[2]:>6} {row['reprojection_px']:5.2f} "
        f"{row['explained']:9.2f} {row['focal_ratio']:6.2f} {row['seconds']:6.1f} {row['cpu_s']:6.1f}",
        *(f"\n    {warning}" for warning in poses.warnings),
        *(f"\n    {photo}: {reason}" for photo, reason in row["reasons"].items()),
    )
    return row


def result_of(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def cpu_seconds() -> float:
    """Of this process and the solver's own, which have ended."""
    return sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of photos")
    parser.add_argument("--truth", type=Path, help="transforms.json or COLMAP folder that names the photos")
    parser.add_argument("--every", type=int, default=1, help="take every n-th photo")
    parser.add_argument("--count", type=int, default=None, help="and at most so many")
    parser.add_argument("--max-side", type=int, default=1024, help="long side of the photos, pixels")
    parser.add_argument("--features", choices=("auto", "sift", "xfeat", "both"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
