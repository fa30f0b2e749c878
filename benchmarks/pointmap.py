"""What a learned prior brings on real photos: held-out PSNR of fits with and without it, and the poses it finds by itself.

    python benchmarks/pointmap.py photos/banana photos/lund --prior pointmap --prior-weights WORK/weights --views 3 6

Of the first --of photos of each folder in name order, --views are fitted, evenly spread, and up to 4 of the others are held
out. Cameras are solved once from all of these together, kept with --cache, and given to both fits, so that the rows differ by
the prior alone. "Poses" are the network's own of the training photos, by pairs and global alignment, against the solved ones.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import mean

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from recon.photos import Photo, PhotoConfig, read_photos
from recon.pose_error import LIMITS_DEG, pose_auc, poses_of, relative_errors
from recon.poses import PoseConfig, solve_poses, undistort
from recon.poses.from_file import load_poses, write_transforms
from recon.poses.from_prior import cameras_and_depths
from recon.priors.learned import PriorWeights, find_weights
from recon.reconstruct import ReconstructConfig, reconstruct
from splat.errors import SplatsmithError
from splat.few_photos import for_few_photos
from splat.metrics import psnr, ssim
from splat.optimise import fit
from splat.progress import result_of
from splat.render import RenderOptions, render


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    weights = None if args.rows == ["built-in"] else find_weights(args.prior, args.prior_weights)
    rows = []
    print(f"{'scene':24} {'row':14} {'PSNR':>6} {'SSIM':>6} {'points':>7} {'AUC@5/10/20':>18} {'CPU-s':>6}")
    for folder in args.scenes:
        photos, transforms = posed(folder, args)
        for count in args.views:
            train, test = split(photos, count)
            name = f"{folder.name} {count}"
            for row in args.rows:
                if row == "poses":
                    rows.append(placed(name, [photos[i] for i in train], transforms, weights))
                else:
                    rows.append(fitted(name, row, photos, train, test, transforms, weights, args))
                tell(rows[-1])
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1))


def posed(folder: Path, args: argparse.Namespace) -> tuple[list[Photo], Path]:
    """The photos of a folder that the solver placed, and a transforms.json with their cameras."""
    images = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(p for p in images.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[: args.of]
    photos = list(read_photos(files, PhotoConfig(max_photos=0, min_photos=1)).photos)
    args.cache.mkdir(parents=True, exist_ok=True)
    path, known = args.cache / f"{folder.name}-{args.of}.json", {}
    if not path.is_file():
        poses = result_of(solve_poses(photos, PoseConfig()))
        if any(poses.k1):  # fits see pinhole photos alone; a small k1 is left in, alike for all rows
            print(f"{folder.name}: k1 up to {max(map(abs, poses.k1)):.3f} is ignored")
        known = {p.name: c for p, c in zip(photos, poses.cameras) if c is not None}
        write_transforms(path, list(known.values()), list(known))
    names = {Path(frame["file_path"]).name for frame in json.loads(path.read_text())["frames"]}
    return [p for p in photos if p.name in names or Path(p.name).stem in names], path


def split(photos: list[Photo], count: int) -> tuple[list[int], list[int]]:
    """Training photos evenly over all, ends included; up to 4 of the others, evenly."""
    train = sorted({round(i * (len(photos) - 1) / (count - 1)) for i in range(count)})
    rest = [i for i in range(len(photos)) if i not in train]
    return train, rest[:: max(1, len(rest) // 4)][:4]


def fitted(name, row, photos, train, test, transforms, weights: PriorWeights | None, args: argparse.Namespace) -> dict:
    begun = time.process_time()
    config = ReconstructConfig(
        poses_from=transforms, learned=() if row == "built-in" else (weights,), fit_side=args.side, priors=True
    )
    scene = result_of(reconstruct([photos[i] for i in train], config))
    masked = all(photos[i].mask is not None for i in train)
    settings = for_few_photos(len(train), poses_given=True, masked=masked, steps=args.steps, exposure=False)
    result = result_of(fit(scene.train, scene.initial, settings, None, scene.priors))
    tests = {photos[i].name for i in test}
    found, true = [], []
    for view in (v.limited(args.side) for v in undistort(photos, load_poses(transforms, photos))):
        cameras = view.cameras.transformed(scene.result_from_input)
        for i in (i for i, photo in enumerate(view.names) if photo in tests):
            found.append(render(result.splats, cameras[i], RenderOptions()).rgb[0].clamp(0, 1))
            true.append(view.images[i])
    scores = [(float(psnr(a, b)), float(ssim(a, b))) for a, b in zip(found, true)]
    if args.pictures:
        from splat.io.images import save_image

        args.pictures.mkdir(parents=True, exist_ok=True)
        save_image(
            args.pictures / f"{name.replace(' ', '-')}-{row}.png",
            torch.cat([torch.cat([a, b], 0) for a, b in zip(found, true)], 1),
        )
    return {
        "scene": name, "row": row, "psnr": mean([p for p, _ in scores]), "ssim": mean([s for _, s in scores]),
        "points": len(scene.initial), "warnings": list(scene.warnings), "cpu": time.process_time() - begun,
    }  # fmt: skip


def placed(name: str, photos: list[Photo], transforms: Path, weights: PriorWeights) -> dict:
    """The network's own cameras against the solved ones."""
    begun = time.process_time()
    truth = load_poses(transforms, photos)
    out = {"scene": name, "row": "poses"}
    try:
        images, focals = [p.image for p in photos], [p.focal_px for p in photos]
        found, _ = result_of(cameras_and_depths(images, [p.name for p in photos], weights, "cpu", focals))
        errors = relative_errors(poses_of([None if f is None else f[0] for f in found]), poses_of(truth.cameras))
        out |= {"auc": [pose_auc(errors, limit) for limit in LIMITS_DEG], "errors_deg": errors.tolist()}
    except SplatsmithError as error:
        out |= {"auc": [0.0] * 3, "stopped": str(error)}
    return out | {"cpu": time.process_time() - begun}


def tell(row: dict) -> None:
    quality = f"{row['psnr']:6.2f} {row['ssim']:6.4f} {row['points']:7}" if "psnr" in row else " " * 21
    auc = " / ".join(f"{100 * a:.1f}" for a in row["auc"]) if "auc" in row else ""
    print(f"{row['scene']:24} {row['row']:14} {quality} {auc:>18} {row['cpu']:6.0f}", flush=True)
    for warning in row.get("warnings", ()):
        print("    " + warning)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--prior", default="pointmap")
    parser.add_argument("--prior-weights", default=None)
    parser.add_argument("--rows", nargs="+", choices=["built-in", "prior", "poses"], default=["built-in", "prior", "poses"])
    parser.add_argument("--views", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--of", type=int, default=9, help="photos of each folder")
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("build/pointmap"))
    parser.add_argument("--pictures", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
