"""How well text-to-3D's later stages turn a field into Gaussians: PSNR at the object protocol's 14 views.

    python benchmarks/text_fields.py --objects DIR --volumes DIR --split val --json fields.json
    python benchmarks/text_fields.py --objects DIR --volumes DIR --work DIR       networks of a training folder

`--volumes` holds fitted volumes (`splatsmith train text-volumes`). Rows: the fitted volumes themselves (what the networks learn
from); attributes predicted from their true 32^3 fields; from true 16^3 fields upsampled; from 16^3 fields that have been
through the codec of the first stage, upsampled. No row has seen the pictures it is scored on; sentences are the objects' plain
captions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import kernels  # beside this file
import torch

from diffusion.data.captions import plain_caption
from diffusion.data.object_set import open_objects, rows_of
from diffusion.data.object_views import protocol_cameras
from diffusion.data.words import describe
from diffusion.field import field_of_volume
from diffusion.fit_volumes import volume_path
from diffusion.text_config import TextSampleConfig
from diffusion.text_encoder import load_text_encoder
from diffusion.text_stages import Draft
from diffusion.text_to_volume import TextToVolume
from diffusion.volume import load_volume
from splat.metrics import psnr
from splat.raycast import raycast
from splat.render import RenderOptions, render

ROWS = ("fitted", "true 32^3 field", "true 16^3 field", "encoded 16^3 field")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    facts = kernels.machine()
    print("  ".join(f"{k} {v}" for k, v in facts.items()))
    encoder = load_text_encoder()
    if args.work is not None:
        from diffusion.train_text import load_stages

        shape, detail, attributes = load_stages(args.work)
    else:
        shape, detail, attributes = TextToVolume.load(args.weights, encoder=encoder).stages
    objects = open_objects(args.objects)
    rows = rows_of(objects, lambda f: f.split == args.split and volume_path(args.volumes, f.key).is_file())
    count = min(args.count or len(rows), len(rows))
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    options, config = RenderOptions(background=torch.ones(3), threads=args.threads), TextSampleConfig()
    measured = []
    for row in chosen:
        volume = load_volume(volume_path(args.volumes, objects.facts[row].key))[0]
        truth, _ = raycast(objects[row], protocol_cameras(args.side), threads=args.threads)
        text = encoder.encode([plain_caption(describe(objects.facts[row], objects[row]))])
        fine, coarse = field_of_volume(volume, 32)[None], field_of_volume(volume, 16, shape.codec.limit)[None]
        starts = {
            "true 32^3 field": Draft(text, 0, field=fine),
            "true 16^3 field": detail(Draft(text, 0, field=coarse, limit=shape.codec.limit), config),
            "encoded 16^3 field": detail(
                Draft(text, 0, field=shape.codec.decode(shape.codec.encode(coarse)), limit=shape.codec.limit), config
            ),
        }
        results = {"object": objects.facts[row].key}
        for name in ROWS:
            start = time.process_time()
            splats = volume.to_splats() if name == "fitted" else attributes(starts[name], config).volume.to_splats()
            splats = splats.widened(args.widen) if args.widen else splats
            seconds = time.process_time() - start
            with torch.no_grad():
                image = render(splats, truth.cameras, options).rgb.clamp(0, 1)
            results[name] = {"psnr": float(psnr(image, truth.images).mean()), "gaussians": len(splats), "cpu_seconds": seconds}
        measured.append(results)
    print(f"{len(measured)} objects of {args.split}, {args.side} px, 14 views, seed 0")
    print(f"{'row':20} {'PSNR':>6} {'median':>6} {'least':>6} {'splats':>7} {'CPU s':>6}")
    for name in ROWS:
        own = [m[name] for m in measured]
        values = torch.tensor([r["psnr"] for r in own])
        mean = {k: sum(r[k] for r in own) / len(own) for k in ("gaussians", "cpu_seconds")}
        print(
            f"{name:20} {float(values.mean()):6.2f} {float(values.median()):6.2f} {float(values.min()):6.2f} "
            f"{mean['gaussians']:7.0f} {mean['cpu_seconds']:6.2f}"
        )
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        args.json.write_text(json.dumps({"machine": facts, "settings": settings, "objects": measured}, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, required=True, help="packed object set or folder of meshes")
    parser.add_argument("--volumes", type=Path, required=True, help="folder of fitted volumes")
    parser.add_argument("--weights", type=Path, help="packed weights; default: those that ship with the package")
    parser.add_argument("--work", type=Path, help="a training folder instead")
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=0, help="objects, evenly over the split; 0 takes all")
    parser.add_argument("--side", type=int, default=128, help="px of the views")
    parser.add_argument("--widen", type=float, default=0.0, help="deviation in world units that is added to every Gaussian")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
