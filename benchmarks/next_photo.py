"""Does the photo that the disagreement of quick fits asks for help more than others? Rendered rooms with truth.

    python benchmarks/next_photo.py --objects DIR --scenes 12 --json rows.json

Every scene is a room of one to three objects (its own seed), photographed three or four times with steps that differ from
scene to scene. Held out are 12 views spread evenly round the subject from 45 degrees before the first photo to 45 beyond the
last, 10 to 45 degrees high. One more photo is taken from the suggested place, from three random places of the same list and
from the one farthest from all photos; stereo and fit begin anew with each, cameras given, and the held-out views say what it
brought. Rows are kept with --json, so a run may be cut and gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from diffusion.data.object_set import open_objects
from recon.complete import complete
from recon.fuse import clean_depths, fuse
from recon.initialise import initial_splats
from recon.next_photo import NextPhotoConfig, Survey, survey
from recon.priors.plane_sweep import estimate_depths
from recon.rendered_scenes import SceneConfig, furnished, hand_held, rng_of
from recon.standpoints import Around
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.mesh import Mesh
from splat.metrics import psnr, ssim
from splat.optimise import FitConfig, fit
from splat.progress import result_of
from splat.raycast import raycast
from splat.render import RenderOptions, render
from splat.views import Views

ROOM = SceneConfig(detail=0.03, width=160, height=120)
BEYOND_DEG = 45.0
RANDOM = 3


@dataclass(frozen=True)
class Room:
    mesh: Mesh
    photos: Views
    test: Views


def room(objects, seed: int) -> Room:
    """Objects, number and places of the photos all follow from `seed`."""
    rng = rng_of(seed, 10)
    rows = rng.choice(len(objects), int(rng.integers(1, 4)), replace=False)
    mesh = furnished([objects[int(row)] for row in rows], seed, ROOM)
    steps = rng.uniform(12, 40, int(rng.integers(2, 4)))
    azimuths = rng.uniform(0, 360) + np.concatenate([[0.0], np.cumsum(steps)])
    cameras = hand_held(azimuths, rng_of(seed, 11), ROOM)
    return Room(mesh, photographed(mesh, cameras, seed, "photo"), held_out(mesh, azimuths, seed))


def held_out(mesh: Mesh, azimuths: np.ndarray, seed: int, count: int = 12) -> Views:
    rng = rng_of(seed, 12)
    spread = np.linspace(azimuths[0] - BEYOND_DEG, azimuths[-1] + BEYOND_DEG, count)
    azimuth, elevation = torch.from_numpy(spread).deg2rad(), torch.from_numpy(rng.uniform(10, 45, count)).deg2rad()
    level = elevation.cos()
    eyes = ROOM.distance * torch.stack([level * azimuth.sin(), elevation.sin(), level * azimuth.cos()], dim=-1)
    lens = hand_held(azimuths[:1], rng_of(seed, 13), ROOM).K[0]
    target = torch.tensor([0, 0.25, 0])
    cameras = Cameras.look_at(eyes + target, target, torch.tensor([0.0, 1, 0]), lens, ROOM.width, ROOM.height)
    return raycast(mesh, cameras, names=[f"test_{i}" for i in range(count)], threads=1)[0]


def photographed(mesh: Mesh, cameras: Cameras, seed: int, name: str) -> Views:
    """With noise, and without masks: a room fills the picture."""
    views, _ = raycast(mesh, cameras, names=[f"{name}_{i}" for i in range(len(cameras))], threads=1)
    noise = torch.from_numpy(rng_of(seed, 14).standard_normal(views.images.shape)).float()
    return Views((views.images + ROOM.noise * noise).clamp(0, 1), views.names, views.cameras)


def started(views: Views) -> Splats:
    """The first Gaussians, as the photos job makes them."""
    depths = clean_depths([views], result_of(estimate_depths([views], None)))
    points = fuse([views], depths)
    return initial_splats(type(points).cat([points, complete([views], points, depths)]))


def quality(views: Views, test: Views, steps: int) -> dict[str, float]:
    """Of a fit to `views`, on held-out views."""
    config = FitConfig.for_photos(
        len(views), steps=steps, sh_degree=1, lr_means=4.8e-4, lr_means_final=4.8e-6, max_gaussians=12_000, threads=1
    )
    splats = result_of(fit([views], started(views), config)).splats
    with torch.no_grad():
        drawn = render(splats, test.cameras, RenderOptions(background=torch.full((3,), 0.5))).rgb.clamp(0, 1)
    pairs = list(zip(drawn, test.images))
    return {"psnr": float(np.mean([psnr(a, b) for a, b in pairs])), "ssim": float(np.mean([ssim(a, b) for a, b in pairs]))}


def with_photo(place: Room, camera: Cameras, seed: int) -> Views:
    one = photographed(place.mesh, camera, seed + 1, "next")
    both = Cameras.cat([place.photos.cameras, camera])
    return Views(torch.cat([place.photos.images, one.images]), (*place.photos.names, *one.names), both)


def farthest(found: Survey) -> int:
    own = Around.of(torch.cat([c.centers for c in found.photos]), found.focus)
    places = Around.of(torch.cat([c.camera.centers for c in found.candidates]), found.focus)
    return int(places.angles_to(own).min(dim=1).values.argmax())


def row(objects, seed: int, steps: int) -> dict:
    begun = time.process_time()
    place = room(objects, seed)
    drawn = time.process_time()
    found = result_of(survey([place.photos], started(place.photos), NextPhotoConfig(threads=1)))
    asked = time.process_time() - drawn
    gains = [c.gain for c in found.candidates]
    best, far = int(np.argmax(gains)), farthest(found)
    chance = rng_of(seed, 15).choice(len(gains), min(RANDOM, len(gains)), replace=False).tolist()
    known: dict[int, dict[str, float]] = {}
    for number in (best, far, *chance):
        if number not in known:
            known[number] = quality(with_photo(place, found.candidates[number].camera, seed), place.test, steps)
    return {
        "seed": seed,
        "photos": len(place.photos),
        "candidates": len(gains),
        "before": quality(place.photos, place.test, steps),
        "suggested": known[best],
        "farthest": known[far],
        "random": [known[k] for k in chance],
        "places": [[round(c.entropy, 4), round(c.overlap, 3)] for c in found.candidates],
        "chosen": {"suggested": best, "farthest": far, "random": chance},
        "cpu_seconds": {"asking": asked, "all": time.process_time() - begun},
    }


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    objects = open_objects(args.objects)
    objects = objects.chosen([k for k, facts in enumerate(objects.facts) if facts.split == args.split])
    rows = json.loads(args.json.read_text())["rows"] if args.json and args.json.is_file() else []
    begun = time.process_time()
    for seed in range(args.seed, args.seed + args.scenes):
        if any(r["seed"] == seed for r in rows):
            continue
        if args.minutes and time.process_time() - begun > 60 * args.minutes:
            break
        rows.append(row(objects, seed, args.steps))
        told(rows[-1])
        if args.json:
            about = {"machine": platform.processor(), "torch": version("torch"), "steps": args.steps, "split": args.split}
            args.json.write_text(json.dumps(about | {"rows": rows}, indent=1))
    summary(rows)


def told(r: dict) -> None:
    chance = np.mean([x["psnr"] for x in r["random"]])
    print(
        f"{r['seed']:5}  {r['photos']} photos  {r['candidates']:3} places  before {r['before']['psnr']:.2f}  "
        f"suggested {r['suggested']['psnr']:.2f}  random {chance:.2f}  farthest {r['farthest']['psnr']:.2f}",
        flush=True,
    )


def summary(rows: list[dict]) -> None:
    """In how many scenes the suggested photo brings more than random ones and the farthest."""
    for measure in ("psnr", "ssim"):
        best = np.array([r["suggested"][measure] for r in rows])
        before, far = (np.array([r[k][measure] for r in rows]) for k in ("before", "farthest"))
        chance = np.array([np.mean([x[measure] for x in r["random"]]) for r in rows])
        single = np.mean([np.mean([b > x[measure] for x in r["random"]]) for b, r in zip(best, rows)])
        same = (best == far).mean()
        print(
            f"{measure}: gain {np.mean(best - before):.3f}, random {np.mean(chance - before):.3f}, "
            f"farthest {np.mean(far - before):.3f}; better than the mean random one in {100 * np.mean(best > chance):.0f} %, "
            f"than a random one in {100 * single:.0f} %, than the farthest in {100 * np.mean(best > far):.0f} % "
            f"(and the same place in {100 * same:.0f} %) of {len(rows)} scenes"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, required=True, help="packed object set")
    parser.add_argument("--split", default="val")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--seed", type=int, default=500, help="of the first scene")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=0.0, help="of CPU time; begin no scene after these")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
