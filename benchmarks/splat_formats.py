"""What each splat format keeps of a scene: bytes a Gaussian, the largest errors of its numbers, and the pictures.

    python benchmarks/splat_formats.py RESULT|SCENE [--side 400] [--json FILE]

Every format is written and read again. The errors are those of a random scene within the ranges of all formats, and of the
given one; PSNR is between pictures of the given scene before and after, drawn at the result's cameras (8 of them), or in an
orbit round a bare scene file. --json writes the rows with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests" / "splat")]
import kernels
from format_samples import differences, random_splats

from app.scenes import _orbit, load_scene, read_cameras
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.io import load, save, spz
from splat.io.compressed_ply import morton_order
from splat.metrics import psnr
from splat.render import RenderOptions, render

WRITERS = {
    ".ply": save,
    ".gs.glb": save,
    ".compressed.ply": save,
    ".spz": save,
    ".v4.spz": lambda splats, path: spz.save_spz(splats, path, version=4),
    ".v2.spz": lambda splats, path: spz.save_spz(splats, path, version=2),
    ".splat": save,
}


def pictures(splats: Splats, cameras: Cameras) -> torch.Tensor:
    white = RenderOptions(background=torch.ones(3))
    return torch.cat([render(splats, cameras[i : i + 1], white).rgb for i in range(len(cameras))]).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--side", type=int, default=400)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    scene, artificial = load_scene(args.scene), random_splats(20_000)
    if args.scene.is_dir():
        whole = read_cameras(args.scene / "cameras.json", args.side)[0]
        scale = args.side / max(whole.width, whole.height)
        cameras = whole[:: max(1, len(whole) // 8)][:8].resized(round(whole.width * scale), round(whole.height * scale))
    else:
        cameras = _orbit(scene, 8, args.side)
    before = pictures(scene, cameras)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix, write in WRITERS.items():
            path = Path(folder) / f"scene{suffix}"
            row = {"format": suffix}
            for name, splats in (("random", artificial), ("scene", scene)):
                write(splats, path)
                back = load(path)
                row[name] = differences(in_order(splats, suffix, back), back)
                row["bytes"] = path.stat().st_size / len(splats)
            row["psnr"] = float(psnr(before, pictures(back, cameras)).mean())
            rows.append(row)
            kinds = "  ".join(f"{k} {row['random'][k]:.2g}|{row['scene'][k]:.2g}" for k in row["random"])
            print(f"{suffix:16} {row['bytes']:6.1f} B  {row['psnr']:6.1f} dB  {kinds}", flush=True)
    if args.json:
        facts = {"machine": kernels.machine(), "scene": str(args.scene), "gaussians": len(scene), "sh_degree": scene.sh_degree}
        args.json.write_text(json.dumps(facts | {"rows": rows}, indent=1))


def in_order(splats: Splats, suffix: str, back: Splats) -> Splats:
    """`splats` in the order of the file: two formats choose their own."""
    if suffix == ".compressed.ply":
        return splats[morton_order(splats.means.numpy())]
    if suffix == ".splat":  # positions are exact, so that sorting both by them pairs the rows
        rank = np.lexsort(back.means.numpy().T).argsort()
        return splats[np.lexsort(splats.means.numpy().T)][rank]
    return splats


if __name__ == "__main__":
    with torch.no_grad():
        main()
