"""`refine --with multiview` and `--with volume` beside the splats that they refine: objects from three photos, seen all round.

    python benchmarks/refine_generators.py --objects DIR --split val --json rows.json --sheet sheet.png

Every object is photographed three times, either from one side (40 degrees between neighbours) or from all round (120), with
known poses and masks, and fitted as `photos` fits few photos. Rows are these splats, as many further steps as the generators'
rows have, and each generator at several strengths. Scored on 14 views all round on white: PSNR and SSIM over the picture, PSNR
within the box of both silhouettes, and PSNR of the views that stand more than 60 degrees from every photo ("far"). With --json,
rows that the file already has are not made again, so that a cut run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import kernels  # beside this file
import torch
from image_objects import _box, refined, scored_cameras, truth_of
from image_objects import generated as generated_from_picture
from torch import Tensor

from diffusion.data.object_set import ObjectSet, open_objects, rows_of
from diffusion.data.object_views import object_views, protocol_cameras
from diffusion.graft import GraftConfig, grafted, settled
from diffusion.image_config import ImageSampleConfig
from diffusion.image_to_3d import ImageTo3D
from diffusion.object_frame import framed_photos, object_frame
from diffusion.refine_object import RefineConfig
from diffusion.regenerate_views import known_views, regenerated_views
from diffusion.regenerate_volume import regenerated_volume
from diffusion.text_config import TextSampleConfig
from diffusion.text_to_volume import TextToVolume
from recon.photos import Photo
from recon.poses.from_file import write_transforms
from recon.reconstruct import ReconstructConfig, reconstruct
from splat.cameras import Cameras
from splat.densify import MCMCDensify
from splat.few_photos import for_few_photos
from splat.gaussians import Splats
from splat.metrics import psnr, ssim
from splat.optimise import FitConfig, FitResult, fit
from splat.progress import result_of
from splat.render import RenderOptions, render
from splat.similarity import Similarity
from splat.views import Views

LAYOUTS = {"one side": 40.0, "all round": 120.0, "picture": 0.0}  # degrees between neighbouring photos; a result of `image`
FAR_DEG = 60.0
DISTANCE, FOV_DEG, ELEVATIONS_DEG = 2.3, 42.0, (12.0, 25.0, 18.0)  # of the photos: not the networks' own
WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """One object as the command finds it, and the truth."""

    name: str
    layout: str
    train: list[Views]  # in the result's world
    truth: Views  # 14 there
    far: Tensor  # [14] bool
    fitted: FitResult
    fit_seconds: float


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(args.threads)
    objects = open_objects(args.objects)
    rows = rows_of(objects, lambda f: f.split == args.split)
    count = min(args.count, len(rows))
    rows = [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]
    done = json.loads(args.json.read_text())["rows"] if args.json and args.json.is_file() else []
    image, text = ImageTo3D.load(), TextToVolume.load()
    begun, sheet = time.monotonic(), []
    for row in rows:
        for layout in args.layouts:
            key = objects.facts[row].key
            missing = [w for w in ways(args) if not any((d["object"], d["layout"], d["row"]) == (key, layout, w) for d in done)]
            if not missing or time.monotonic() - begun > 60 * args.minutes:
                continue
            case = pictured(objects, row, image, args) if layout == "picture" else case_of(objects, row, layout, args)
            drawn = {}
            for way in missing:
                before = time.process_time()
                splats = made(way, case, image, text, args)
                seconds = time.process_time() - before if way != "unrefined" else case.fit_seconds
                drawn[way] = seen(splats, case)
                done.append({"object": key, "layout": layout, "row": way, **score(*drawn[way], case), "cpu_seconds": seconds})
                told = "  ".join(f"{k} {v:.3f}" for k, v in done[-1].items() if isinstance(v, float))
                print(f"{key:44} {layout:10} {way:16} {told}", flush=True)
            write(args, done)
            if args.sheet and len(sheet) < args.sheet_rows:
                shown = {"unrefined", f"multiview {args.strengths[-1]:g}", f"volume {args.strengths[-1]:g}"}
                sheet += [(f"{layout}: {way}", pictures[0]) for way, pictures in drawn.items() if way in shown]
                sheet.append(("truth", case.truth.images))
    summary(done, args)
    if args.sheet and sheet:
        save_sheet(sheet, args.sheet)


def case_of(objects: ObjectSet, row: int, layout: str, args: argparse.Namespace) -> Case:
    """Photographs the object and reconstructs it, as `photos --poses transforms.json --masks DIR` would."""
    mesh, step = objects[row], LAYOUTS[layout]
    azimuths = [args.azimuth_deg + step * k for k in (-1, 0, 1)]
    around = [
        Cameras.orbit(1, DISTANCE, elevation, FOV_DEG, args.side, args.side, azimuth_deg=azimuth)
        for azimuth, elevation in zip(azimuths, ELEVATIONS_DEG, strict=True)
    ]
    cameras = Cameras.cat(around)
    shots = object_views(mesh, cameras).views()
    focal = float(cameras.K[0, 0, 0])
    names = [f"photo_{i}.png" for i in range(len(shots))]
    photos = [
        Photo(name, Path(name), "", image, mask, focal, shots.size)
        for name, image, mask in zip(names, shots.images, shots.masks)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transforms.json"
        write_transforms(path, [cameras], names)
        config = ReconstructConfig(poses_from=path, fit_side=args.side, priors=True)
        scene = result_of(reconstruct(photos, config))
    before = time.process_time()
    settings = {"steps": args.steps, "max_gaussians": args.max_gaussians, "sh_degree": 1, "threads": args.threads}
    config = for_few_photos(len(photos), poses_given=True, masked=True, random_background="masked", **settings)
    fitted = result_of(fit(scene.train, scene.initial, config, None, scene.priors))
    test = protocol_cameras(args.side)
    truth = object_views(mesh, test).views()
    moved = dataclasses.replace(truth, cameras=test.transformed(scene.result_from_input))
    towards, photographed = (torch.nn.functional.normalize(c.centers, dim=-1) for c in (test, cameras))
    far = (towards @ photographed.T).amax(1) < math.cos(math.radians(FAR_DEG))
    return Case(objects.facts[row].key, layout, scene.train, moved, far, fitted, time.process_time() - before)


def pictured(objects: ObjectSet, row: int, image: ImageTo3D, args: argparse.Namespace) -> Case:
    """The object as `image` makes it from one picture: in the networks' frame already."""
    facts = truth_of(objects, row, args.side, None)
    before = time.process_time()
    sampled = generated_from_picture(image, facts, 0, ImageSampleConfig())
    splats = refined(sampled, facts)
    cameras = scored_cameras(args.side)
    truth = Views(facts.images[1:], tuple(f"view_{i}" for i in range(14)), cameras, facts.masks[1:])
    view = facts.subject().view("picture_0")
    directions = torch.nn.functional.normalize(torch.cat([cameras.centers, view.cameras.centers]), dim=-1)
    far = (directions[:-1] @ directions[-1]) < math.cos(math.radians(FAR_DEG))
    fitted = FitResult(splats, [view.cameras], torch.zeros(1, 2, 3), 0.0, 0)
    return Case(objects.facts[row].key, "picture", [view], truth, far, fitted, time.process_time() - before)


def ways(args: argparse.Namespace) -> list[str]:
    generators = [f"{way} {s:g}" for way in ("multiview", "volume") for s in args.strengths]
    return ["unrefined", "steps", *generators]


def made(way: str, case: Case, image: ImageTo3D, text: TextToVolume, args: argparse.Namespace) -> Splats:
    """The splats of one row, in the world of `case.train`."""
    splats = case.fitted.splats
    config = GraftConfig(fit=RefineConfig(steps=args.refine_steps, max_gaussians=args.max_gaussians, threads=args.threads))
    photos = sum(len(v) for v in case.train)
    if way == "unrefined":
        return splats
    if way == "steps":
        steps = config.fit.fit(photos).steps
        settings = {"lr_means": 1.6e-5, "densify": MCMCDensify(stop=0.5), "sh_every": 0.0, "sh_degree": splats.sh_degree}
        further = FitConfig(steps=steps, max_gaussians=args.max_gaussians, random_background="masked", **settings)
        return result_of(fit(case.train, splats, further)).splats
    name, _, strength = way.partition(" ")
    new, frame = generated(name, case, image, text, float(strength), args)
    config = dataclasses.replace(config, taught=0.5 if name == "multiview" else 0.0)  # as the command does
    joined = grafted(splats, new, case.train, frame, config)
    return result_of(settled(joined, new, case.train, frame, config)).splats


def generated(
    name: str, case: Case, image: ImageTo3D, text: TextToVolume, strength: float, args: argparse.Namespace
) -> tuple[Splats, Similarity]:
    """What a generator makes of the object, in the world of the photos, and the similarity to the generator's frame."""
    splats, guess = case.fitted.splats, case.fitted.splats.means.median(0).values
    frame = object_frame(case.train, guess, turned=name == "multiview")
    if case.layout == "picture":
        frame = Similarity.identity()
    there = splats.transformed(frame)
    if name == "multiview":
        given = known_views(there, *framed_photos(case.train, frame, image.side, WHITE), args.threads)
        job = regenerated_views(image, given, 0, ImageSampleConfig(strength=strength, threads=args.threads))
    else:
        job = regenerated_volume(text, there, "", 0, TextSampleConfig(strength=strength, threads=args.threads))
    return result_of(job).transformed(frame.inverse()), frame


def seen(splats: Splats, case: Case) -> tuple[Tensor, Tensor]:
    """[14, H, W, 3] on white and [14, H, W] coverage."""
    out = render(splats, case.truth.cameras, RenderOptions(background=torch.ones(3)))
    return out.rgb.clamp(0, 1), out.alpha


def score(images: Tensor, masks: Tensor, case: Case) -> dict[str, float]:
    true = case.truth
    every = psnr(images, true.images)
    boxes = [_box(a, b) for a, b in zip(masks, true.masks, strict=True)]
    box = [float(psnr(m[b], t[b])) for m, t, b in zip(images, true.images, boxes, strict=True)]
    far = every[case.far]
    return {
        "psnr": float(every.mean()),
        "ssim": float(ssim(images, true.images).mean()),
        "box": sum(box) / len(box),
        "far": float(far.mean()) if len(far) else float("nan"),
    }


def summary(rows: list[dict], args: argparse.Namespace) -> None:
    """Means over the objects, beside the mean change of PSNR and how many objects got better."""
    for layout in args.layouts:
        base = {r["object"]: r for r in rows if (r["row"], r["layout"]) == ("unrefined", layout)}
        for way in ways(args):
            mine = [r for r in rows if (r["row"], r["layout"]) == (way, layout) and r["object"] in base]
            if not mine:
                continue
            means = {k: sum(r[k] for r in mine) / len(mine) for k in ("psnr", "ssim", "box", "far", "cpu_seconds")}
            better = sum(r["psnr"] > base[r["object"]]["psnr"] for r in mine)
            told = "  ".join(f"{k} {v:.3f}" for k, v in means.items())
            print(f"{layout:10} {way:16} {told}  better {better} of {len(mine)}")


def write(args: argparse.Namespace, rows: list[dict]) -> None:
    if args.json:
        facts = {"machine": kernels.machine(), "arguments": {k: str(v) for k, v in vars(args).items()}}
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1))


def save_sheet(rows: list[tuple[str, Tensor]], path: Path) -> None:
    from app.contact_sheet import object_sheet
    from splat.io.images import save_image

    save_image(path, object_sheet([(label, list(pictures[:8])) for label, pictures in rows]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=Path, required=True, help="packed set or folder of meshes")
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=8, help="objects, evenly over the split")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.3, 0.6, 0.9, 1.0])
    parser.add_argument("--side", type=int, default=160, help="px of photos and scored views")
    parser.add_argument("--azimuth-deg", type=float, default=30.0, help="of the middle photo")
    parser.add_argument("--steps", type=int, default=500, help="of the first fit")
    parser.add_argument("--refine-steps", type=int, default=150, help="as RefineConfig.steps")
    parser.add_argument("--max-gaussians", type=int, default=15_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no object after that")
    parser.add_argument("--json", type=Path, help="rows")
    parser.add_argument("--sheet", type=Path, help="PNG: rows of the first objects")
    parser.add_argument("--sheet-rows", type=int, default=24)
    return parser.parse_args()


if __name__ == "__main__":
    main()
