"""A contact sheet of text to 3-D that nobody picked from: the first prompts of a file, seed 0 for the first, 1 for the next ...

    python benchmarks/text_sheet.py --out sheet.png
    python benchmarks/text_sheet.py --weights DIR --prompts FILE --samples DIR --out sheet.png

One view of each, azimuth 30 and elevation 20 degrees, on white, with the prompt under it. With --samples the volumes are kept
there, one folder for one set of weights and settings, and a run that was cut goes on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

from sheets import Cell, page, save_page  # beside this file
from text_samples import Asked, Spent, pictures, read_prompts, splats_of, volumes_for

from diffusion.data.object_views import input_camera

PROMPTS = Path(__file__).resolve().parent.parent / "assets" / "prompts.txt"


def main() -> None:
    args = arguments()
    prompts = read_prompts(args.prompts)[: args.count]
    asked = [Asked(prompt, seed) for seed, prompt in enumerate(prompts)]
    with tempfile.TemporaryDirectory() as scratch:
        kept, spent = args.samples or Path(scratch), Spent()
        volumes_for(asked, args.weights, dict(args.set), kept, spent, args.batch)
        camera = input_camera(args.side)
        cells = [Cell(pictures(splats_of(a, kept), camera)[0][0], a.prompt) for a in asked]
    rows = [cells[i : i + args.columns] for i in range(0, len(cells), args.columns)]
    save_page(page(rows), args.out)
    print(f"{args.out}: {len(cells)} prompts, {args.out.stat().st_size / 1e6:.2f} MB")
    if spent.made:
        each = f"{spent.wall_seconds / spent.made:.1f} s ({spent.cpu_seconds / spent.made:.1f} CPU-s)"
        print(f"{spent.made} made now, {each} each")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="one a line")
    parser.add_argument("--count", type=int, default=64, help="prompts, from the first")
    parser.add_argument("--out", type=Path, required=True, help="the .png")
    parser.add_argument("--weights", type=Path, help="folder of weights; default: those that come with the package")
    parser.add_argument("--samples", type=Path, help="folder that keeps the volumes")
    parser.add_argument(
        "--set", type=setting, nargs="*", default=[], metavar="FIELD=VALUE", help="fields of the sampling config"
    )
    parser.add_argument("--batch", type=int, default=8, help="samples at a time")
    parser.add_argument("--side", type=int, default=160, help="px of a picture")
    parser.add_argument("--columns", type=int, default=8)
    return parser.parse_args()


def setting(text: str) -> tuple[str, int | float | str]:
    """ "steps=10" -> ("steps", 10)."""
    name, value = text.split("=")
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value


if __name__ == "__main__":
    main()
