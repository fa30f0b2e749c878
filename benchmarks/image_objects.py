"""Image to 3-D by the object protocol: one picture in, 14 views scored, beside rows that need no network.

    python benchmarks/image_objects.py --objects DIR --split val --json image.json
    python benchmarks/image_objects.py --objects DIR --bank DIR --weights DIR --sizes 64 256 --sheet sheet.png

`--objects` is a packed set or a folder of meshes; `--bank` a bank of views of the training objects (`splatsmith train
image-views`) for the rows of nearest neighbours. The input is at azimuth 30, elevation 20 degrees; no row knows the azimuth,
all know the elevation. PSNR, SSIM over the full image on white, and PSNR over the box of the union of both silhouettes; means
over views, then over objects. `without` leaves out the noun that dominates the split.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import kernels  # beside this file
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.data.object_set import ObjectSet, open_objects, rows_of
from diffusion.data.object_views import (
    ObjectViews,
    input_camera,
    load_views,
    object_views,
    protocol_cameras,
    save_views,
)
from diffusion.image_config import ImageSampleConfig
from diffusion.image_to_3d import ImageTo3D
from diffusion.refine_object import RefineConfig, refine_object
from diffusion.subject import Subject
from diffusion.view_bank import ViewBank, cameras_at, open_view_bank
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.metrics import psnr, ssim
from splat.render import RenderOptions, render

INPUT_AZIMUTH_DEG, INPUT_ELEVATION_DEG = 30.0, 20.0
AZIMUTHS_DEG = (*range(0, 360, 45), *range(0, 360, 60))
ELEVATIONS_DEG = (10,) * 8 + (35,) * 6
NEIGHBOURS = 8
COMPARED = 16  # px at which pictures are compared to find them


@dataclass(frozen=True)
class Truth:
    """One object's pictures at one size: the input, then the scored views."""

    name: str
    noun: str
    row: int
    images: Tensor  # [15, S, S, 3] on white
    masks: Tensor  # [15, S, S]

    def subject(self) -> Subject:
        alpha = self.masks[0]
        straight = (self.images[0] - (1 - alpha[..., None])) / alpha.clamp(min=1 / 255)[..., None]
        return Subject(straight.clamp(0, 1), alpha, 0.0, INPUT_ELEVATION_DEG)


@dataclass(frozen=True)
class Prediction:
    """Of one row for one object: images [14, S, S, 3] on white and coverage [14, S, S]."""

    images: Tensor
    masks: Tensor


def truth_of(objects: ObjectSet, row: int, size: int, cache: Path | None) -> Truth:
    """Ray cast, or as it was kept."""
    facts = objects.facts[row]
    path = None if cache is None else cache / f"{facts.key.replace('/', '_')}-{size}.npz"
    if path is not None and path.is_file():
        seen: ObjectViews = load_views(path)
    else:
        seen = object_views(objects[row], Cameras.cat([input_camera(size), protocol_cameras(size)]))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_views(seen, path)
    views = seen.views()
    return Truth(facts.name, facts.noun, row, views.images, views.masks)


def scored_cameras(size: int) -> Cameras:
    """The protocol's 14, in the frame where the input is at azimuth 0."""
    radians = [torch.tensor([math.radians(d) for d in degrees]) for degrees in (AZIMUTHS_DEG, ELEVATIONS_DEG)]
    return cameras_at(radians[0] - math.radians(INPUT_AZIMUTH_DEG), radians[1], size)


def seen(splats: Splats, size: int) -> Prediction:
    out = render(splats, scored_cameras(size), RenderOptions(background=torch.ones(3)))
    return Prediction(out.rgb.clamp(0, 1), out.alpha)


def score(made: Prediction, truth: Truth) -> dict[str, list[float]]:
    """Per view: PSNR, SSIM, and PSNR within the box of both silhouettes."""
    true, masks = truth.images[1:], truth.masks[1:]
    box = [
        float(psnr(m[rows, columns], t[rows, columns]))
        for m, t, (rows, columns) in (
            (m, t, _box(a, b)) for m, t, a, b in zip(made.images, true, made.masks, masks, strict=True)
        )
    ]
    return {"psnr": psnr(made.images, true).tolist(), "ssim": ssim(made.images, true).tolist(), "box": box}


def _box(a: Tensor, b: Tensor) -> tuple[slice, slice]:
    shown = (a > 0.5) | (b > 0.5)
    if not bool(shown.any()):
        return slice(None), slice(None)
    rows, columns = (torch.nonzero(shown.any(axis)).squeeze(1) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


# Rows without a network


def white(truth: Truth) -> Prediction:
    return Prediction(torch.ones_like(truth.images[1:]), torch.zeros_like(truth.masks[1:]))


def copied(truth: Truth) -> Prediction:
    return Prediction(truth.images[:1].expand(14, -1, -1, -1), truth.masks[:1].expand(14, -1, -1))


def billboard(truth: Truth) -> Prediction:
    """The picture as a flat card that faces its camera, seen from both sides."""
    size = truth.images.shape[1]
    source, targets = cameras_at(torch.zeros(1), torch.tensor([math.radians(INPUT_ELEVATION_DEG)]), size), scored_cameras(size)
    normal = F.normalize(source.centers[0], dim=0)  # of the plane through the origin
    images, masks = [], []
    for i in range(14):
        camera = targets[i]
        y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
        rays = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.linalg.inv(camera.K[0]).T @ camera.cam_from_world[0, :3, :3]
        center = camera.centers[0]
        points = center + rays * (-(center @ normal) / (rays @ normal))[..., None]
        in_cam = points @ source.cam_from_world[0, :3, :3].T + source.cam_from_world[0, :3, 3]
        at = (in_cam @ source.K[0].T)[..., :2] / in_cam[..., 2:].clamp(min=1e-3)
        picture = torch.cat([1 - truth.images[0], truth.masks[0][..., None]], -1).permute(2, 0, 1)  # 0 outside
        got = F.grid_sample(picture[None], (2 * at / size - 1)[None], align_corners=False)[0]
        front = (rays @ normal).abs() > 1e-4
        images.append(torch.where(front[..., None], 1 - got[:3].permute(1, 2, 0), 1.0))
        masks.append(got[3] * front)
    return Prediction(torch.stack(images), torch.stack(masks))


class Neighbours:
    """Training objects that look most like the input, from whichever azimuth they do."""

    def __init__(self, bank: ViewBank, objects: ObjectSet) -> None:
        self.bank, self.objects = bank, objects
        self.mark = hashlib.sha256(repr((bank.keys, bank.config)).encode()).hexdigest()[:8]
        self.rows = [i for i in bank.examples("train") if bank.shapes[i] == 0]
        small = []
        for row in self.rows:
            ring = torch.tensor(bank.views[row, : bank.config.ring, ..., :4]).permute(0, 3, 1, 2).float() / 255
            small.append(F.interpolate(ring[:, :3] + 1 - ring[:, 3:], size=COMPARED, mode="area"))
        self.pictures = torch.stack(small)  # [N, ring, 3, 16, 16] on white
        self.row_of = {facts.key: row for row, facts in enumerate(objects.facts)}

    def of(self, truth: Truth) -> list[Prediction]:
        """The nearest `NEIGHBOURS` by squared error of the input picture, turned as they were found."""
        given = F.interpolate(truth.images[:1].permute(0, 3, 1, 2), size=COMPARED, mode="area")
        errors = (self.pictures - given).square().mean((2, 3, 4))  # [N, ring]
        best, turn = errors.min(dim=1)
        size, found = truth.images.shape[1], []
        for i in best.argsort()[:NEIGHBOURS].tolist():
            azimuth = 2 * math.pi * int(turn[i]) / self.bank.config.ring
            relative = torch.tensor([math.radians(a - INPUT_AZIMUTH_DEG) for a in AZIMUTHS_DEG])
            elevations = torch.tensor([math.radians(e) for e in ELEVATIONS_DEG])
            mesh = self.objects[self.row_of[self.bank.keys[self.bank.objects[self.rows[i]]]]]
            views = object_views(mesh, cameras_at(relative + azimuth, elevations, size), 2 if size <= 64 else 1).views()
            found.append(Prediction(views.images, views.masks))
        return found


def mean_of(predictions: list[Prediction]) -> Prediction:
    images = torch.stack([p.images for p in predictions]).mean(0)
    return Prediction(images, torch.stack([p.masks for p in predictions]).mean(0))


# Rows of the network


def generated(generator: ImageTo3D, truth: Truth, seed: int, config: ImageSampleConfig) -> Splats:
    job = generator.generate([_at(truth, generator.side)], seed, config)
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value.splats


def _at(truth: Truth, side: int) -> Subject:
    """The input as the network takes it: the pictures of another size are of the same camera."""
    subject = truth.subject()
    if subject.side == side:
        return subject
    rgba = torch.cat([subject.image * subject.alpha[..., None], subject.alpha[..., None]], -1).permute(2, 0, 1)[None]
    small = F.interpolate(rgba, size=side, mode="area")[0].permute(1, 2, 0)
    straight = (small[..., :3] / small[..., 3:].clamp(min=1 / 255)).clamp(0, 1)
    return Subject(straight, small[..., 3], 0.0, INPUT_ELEVATION_DEG)


def refined(splats: Splats, truth: Truth) -> Splats:
    job = refine_object(splats, [truth.subject()], RefineConfig())
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value.splats


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    facts = kernels.machine()
    print("  ".join(f"{k} {v}" for k, v in facts.items()))
    objects = open_objects(args.objects)
    rows = rows_of(objects, lambda f: f.split == args.split)
    count = min(args.count or len(rows), len(rows))
    rows = [rows[i * len(rows) // count] for i in range(count)]
    generator = None if args.no_network else ImageTo3D.load(args.weights)
    neighbours = None if args.bank is None else Neighbours(open_view_bank(args.bank), objects)
    table, seconds = [], Counter()
    for size in args.sizes:
        for i, row in enumerate(rows):
            truth = truth_of(objects, row, size, args.cache)
            scores = _scores(truth, i, generator, neighbours, args, seconds)
            table.append({"size": size, "object": objects.facts[row].key, "noun": truth.noun, "scores": scores})
            if (i + 1) % 20 == 0:
                print(f"  {size} px: {i + 1} of {len(rows)}", flush=True)
    summary = report(table, args)
    for name, spent in seconds.items():
        print(f"{name}: {spent / len(rows) / len(args.sizes):.2f} CPU-s an object")
    if args.sheet is not None:
        from splat.io.images import save_image

        save_image(
            args.sheet, sheet(objects, rows[:: max(len(rows) // args.sheet_rows, 1)][: args.sheet_rows], generator, args)
        )
    if args.json is not None:
        spent = {k: v / len(rows) / len(args.sizes) for k, v in seconds.items()}
        rest = {"machine": facts, "arguments": {k: str(v) for k, v in vars(args).items()}, "cpu_seconds": spent}
        args.json.write_text(json.dumps({**rest, "summary": summary, "objects": table}, indent=1))


def _scores(truth: Truth, seed: int, generator: ImageTo3D, neighbours, args, seconds: Counter) -> dict[str, dict]:
    size = truth.images.shape[1]
    out = _without_network(truth, neighbours, args)

    if generator is None:
        return out

    def timed(name: str, make: Callable[[], Splats]) -> Splats:
        start = time.process_time()
        splats = make()
        seconds[name] += time.process_time() - start
        out[name] = score(seen(splats, size), truth)
        return splats

    timed("ours, one step", lambda: generated(generator, truth, seed, ImageSampleConfig(steps=1)))
    default = ImageSampleConfig(steps=args.steps)
    sampled = timed(f"ours, {args.steps} steps", lambda: generated(generator, truth, seed, default))
    for steps, plan in args.also:
        config = ImageSampleConfig(steps=steps, plan=plan)
        timed(f"ours, {steps} {plan} steps", lambda config=config: generated(generator, truth, seed, config))
    if args.tries > 1:
        tries = [score(seen(sampled, size), truth)]
        for k in range(1, args.tries):
            made = generated(generator, truth, seed + 1_000_003 * k, default)
            tries.append(score(seen(made, size), truth))
        out[f"ours, best of {args.tries} (knows the truth)"] = max(tries, key=lambda s: sum(s["psnr"]))
    if args.refine:
        timed("ours, refined", lambda: refined(sampled, truth))
    return out


def _without_network(truth: Truth, neighbours, args) -> dict[str, dict]:
    """Rows that do not change with the weights, kept beside the true pictures."""
    size = truth.images.shape[1]
    path = (
        None
        if args.cache is None
        else args.cache
        / f"rows-{truth.name.replace('/', '_')}-{truth.row}-{size}-{'' if neighbours is None else neighbours.mark}.json"
    )
    if path is not None and path.is_file():
        return json.loads(path.read_text())
    out = {"white": score(white(truth), truth), "billboard": score(billboard(truth), truth)}
    out["input copied"] = score(copied(truth), truth)
    if neighbours is not None:
        found = neighbours.of(truth)
        out["nearest training object"] = score(found[0], truth)
        out[f"mean of {NEIGHBOURS} nearest"] = score(mean_of(found), truth)
    if path is not None:
        path.write_text(json.dumps(out))
    return out


def report(table: list[dict], args) -> list[dict]:
    """Prints means and medians by row, and the curve over views; returns the rows."""
    summary = []
    frequent = Counter(entry["noun"] for entry in table).most_common(1)[0][0]
    for size in args.sizes:
        entries = [entry for entry in table if entry["size"] == size]
        print(f"\n{size} px, {len(entries)} objects ({args.split}); without: no {frequent}")
        columns = ("mean", "median", "box", "box_median", "ssim", "back_ssim", "without", "without_box")
        print(f"{'row':34} " + " ".join(f"{name:>11}" for name in columns))
        for name in entries[0]["scores"]:
            line = {"size": size, "row": name, **_line([e["scores"][name] for e in entries])}
            others = _line([e["scores"][name] for e in entries if e["noun"] != frequent])
            line |= {"without": others["mean"], "without_median": others["median"], "without_box": others["box"]}
            summary.append(line)
            print(f"{name:34} " + " ".join(f"{line[c]:11.3f}" if "ssim" in c else f"{line[c]:11.2f}" for c in columns))
            print(f"{'':34} by view: {' '.join(f'{x:.1f}' for x in line['by_view'])}")
    return summary


def _line(scores: list[dict]) -> dict:
    each = {k: torch.tensor([s[k] for s in scores]) for k in ("psnr", "ssim", "box")}  # [objects, 14]
    away = torch.tensor([math.cos(math.radians(a - INPUT_AZIMUTH_DEG)) < -0.3 for a in AZIMUTHS_DEG])  # views of the back
    return {
        "mean": float(each["psnr"].mean()), "median": float(each["psnr"].mean(1).median()), "box": float(each["box"].mean()),
        "box_median": float(each["box"].mean(1).median()), "ssim": float(each["ssim"].mean()),
        "back_ssim": float(each["ssim"][:, away].mean()), "by_view": each["psnr"].mean(0).tolist(),
    }  # fmt: skip


def sheet(objects: ObjectSet, rows: list[int], generator: ImageTo3D, args) -> Tensor:
    """[H, W, 3] by line: the input, one step from four sides, sampled from four sides, refined, the truth."""
    lines, size = [], args.sizes[-1]
    sides = [0, 2, 4, 6]
    for seed, row in enumerate(rows):
        truth = truth_of(objects, row, size, args.cache)
        line = [truth.images[0]]
        sampled = None
        for steps in (1, args.steps):
            sampled = generated(generator, truth, seed, ImageSampleConfig(steps=steps))
            line += list(seen(sampled, size).images[sides])
        if args.refine:
            line += list(seen(refined(sampled, truth), size).images[sides])
        lines.append(torch.cat([*line, *truth.images[1:][sides]], dim=1))
    picture = torch.cat(lines, dim=0).permute(2, 0, 1)[None]
    return F.interpolate(picture, scale_factor=min(96 / size, 1.0), mode="area")[0].permute(1, 2, 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, help="objects, evenly over the split; all by default")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--steps", type=int, default=ImageSampleConfig().steps)
    parser.add_argument("--also", type=_plan, nargs="*", default=[], help="further rows, such as 50:ddim")
    parser.add_argument("--tries", type=int, default=1, help="samples of which the best by PSNR is shown as a further row")
    parser.add_argument("--refine", action="store_true", help="add the row of the fit to the picture")
    parser.add_argument("--no-network", action="store_true", help="only the rows that need none, for a --cache")
    parser.add_argument("--cache", type=Path, help="folder that keeps the true pictures and the rows without a network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--sheet-rows", type=int, default=16)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _plan(text: str) -> tuple[int, str]:
    steps, _, plan = text.partition(":")
    return int(steps), plan


if __name__ == "__main__":
    main()
