"""The ladder of few photos: what every part of the method brings, on held-out views.

    python benchmarks/fewviews.py chair --protocol blender --side 400 --seeds 0 1 2 --json rows.json
    python benchmarks/fewviews.py nerf_llff_data/fern --protocol llff --views 3
    python benchmarks/fewviews.py Tanks/Family/images --protocol tanks --views 6            poses hidden
    python benchmarks/fewviews.py --objects DIR --views 3 6 9 12                              rendered scenes, poses hidden

SCENE is a folder of photos as the protocol's data set has it (`recon/splits.py` lists who trains and who tests): with
transforms_train.json and transforms_test.json, or with images and a COLMAP model in sparse/0; masks of the foreground for DTU
with --test-masks. Rows are the starts (random, sfm, dense) with a plain 3DGS fit, ours, ours with one thing more, and all of
it. With --json, rows that the file already has are not run again, so a cut run goes on.

Where poses are hidden, they are solved from the training photos; test cameras come from the truth by the similarity of the
training cameras and are then moved until the frozen splats match best, as is usual for unposed photos; pose AUC is the mean
over pairs of training photos.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a spinning thread pool ruins timings on a busy machine

import torch
from torch import Tensor

from recon.complete import complete
from recon.fit_priors import fit_priors
from recon.fuse import clean_depths, fuse
from recon.initialise import InitialConfig, choose_points, initial_splats, nearest_spacing, random_splats, viewing_bound
from recon.photos import Photo, PhotoConfig, composited, read_photos
from recon.pose_error import LIMITS_DEG, pose_auc, poses_of, relative_errors
from recon.poses import PoseConfig, solve_poses, undistort
from recon.poses.from_file import load_poses, photos_of_transforms
from recon.priors import DepthMap
from recon.priors.plane_sweep import PlaneSweepConfig, estimate_depths
from recon.splits import PROTOCOLS, Protocol
from recon.triangulate import triangulate
from splat.cameras import Cameras
from splat.densify import ClassicDensify
from splat.errors import SplatsmithError
from splat.few_photos import PARTS, UNSURE, Part, for_few_photos
from splat.gaussians import Splats
from splat.metrics import psnr, ssim
from splat.optimise import FitConfig, fit
from splat.points import PointCloud
from splat.progress import result_of
from splat.refine_camera import refine_camera
from splat.regularise import RegulariserConfig
from splat.render import RenderOptions, render
from splat.similarity import Similarity, fit_similarity
from splat.views import Views

# 3DGS as published, but for the number of steps, which is everybody's here.
PLAIN = {
    "densify": ClassicDensify(reset_at=(0.3,)),
    "opacity_regulariser": 0.0,
    "scale_regulariser": 0.0,
    "random_background": "never",
    "max_scale": 1e3,
    "min_visibility": 0.0,
    "exposure": False,
}


@dataclass(frozen=True)
class Row:
    """One way to fit."""

    start: str  # random, sfm or dense
    changes: dict = field(default_factory=dict)  # of `FitConfig.for_photos`
    terms: dict = field(default_factory=dict)  # of `RegulariserConfig`
    filled: bool = True  # known surfaces continue into the holes of the start (photos without masks)
    without: tuple[Part, ...] = PARTS  # what is left out of `splat.few_photos`


def all_but(*parts: Part) -> tuple[Part, ...]:
    return tuple(p for p in PARTS if p not in parts)


# "ours" are the defaults for any number of photos; "full" is what `splatsmith photos` does with few.
ROWS = {
    "3dgs random": Row("random", PLAIN, filled=False),
    "3dgs sfm": Row("sfm", PLAIN, filled=False),
    "3dgs dense": Row("dense", PLAIN, filled=False),
    "random": Row("random", filled=False),
    "sfm": Row("sfm", filled=False),
    "dense": Row("dense"),
    "+ pearson": Row("dense", terms={"depth": 0.1}),
    "+ local pearson": Row("dense", terms={"local_depth": 0.1}),
    "+ virtual views": Row("dense", terms={"virtual_views": 0.3}),
    "+ drop": Row("dense", terms={"drop": 0.2}),
    "+ smoothing": Row("dense", terms={"smoothing": True}),
    "+ mean of last steps": Row("dense", {"average_from": 0.8}),
    "+ depth": Row("dense", terms={"absolute_depth": 0.1}),
    "+ normals": Row("dense", terms={"normals": 0.01}),
    "+ poses": Row("dense", without=all_but("poses")),
    "+ rates": Row("dense", without=all_but("rates")),
    "full": Row("dense", without=()),
    **{f"full without {part}": Row("dense", without=(part,)) for part in PARTS},
    "full with normals": Row("dense", terms={"normals": 0.01}, without=()),
    "full with depth and normals": Row("dense", terms={"absolute_depth": 0.1, "normals": 0.01}, without=()),
    "full from sfm": Row("sfm", without=(), filled=False),
}


@dataclass(frozen=True)
class Scene:
    """What the rows share."""

    name: str
    train: list[Views]
    test: list[Views]  # posed in the world of `train`
    test_weights: list[Tensor] | None  # [C, H, W] what metrics count; None counts all
    sparse: PointCloud | None  # of the pose solver
    maps: list[DepthMap]
    dense: PointCloud
    posed: bool  # test cameras are exact
    facts: dict
    truth: dict[str, Tensor] = field(default_factory=dict)  # photo -> true cam_from_world, of unposed training photos
    true_test: list[Views] = field(default_factory=list)  # the test views of these, in the world of `truth`


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(args.threads)
    done = json.loads(args.json.read_text())["rows"] if args.json and args.json.is_file() else []
    begun = time.monotonic()
    print(f"{'scene':28} {'row':27} {'seed':>4} {'PSNR':>6} {'SSIM':>6} {'train':>6} {'splats':>7} {'CPU-s':>6}")
    for views in args.views or [None]:
        for name, make in scenes(args, views):
            missing = [(r, s) for r in args.rows for s in args.seeds if not any(_is(d, name, r, s, args) for d in done)]
            if any(d["scene"] == name and d["row"] == "poses" for d in done) if args.poses_only else not missing:
                continue
            try:
                scene = make()
            except SplatsmithError as error:
                print(f"{name:28} refused: {error}", flush=True)
                done.append({"scene": name, "refused": str(error), "row": "", "seed": -1, "steps": 0})
                _write(args, done)
                continue
            told = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in scene.facts.items())
            print(f"{name}: {told}", flush=True)
            if args.poses_only:
                done.append({"scene": name, "row": "poses", "seed": 0, "steps": 0, **scene.facts})
                _write(args, done)
                continue
            for row, seed in missing:
                if time.monotonic() - begun > 60 * args.minutes:
                    return
                done.append({"scene": name, "row": row, "seed": seed} | measured(scene, ROWS[row], seed, args) | scene.facts)
                r = done[-1]
                print(
                    f"{name:28} {row:27} {seed:4} {r['psnr']:6.2f} {r['ssim']:6.4f} {r['train_psnr']:6.2f} {r['splats']:7} "
                    f"{r['cpu_seconds']:6.1f}",
                    flush=True,
                )
                _write(args, done)
    summary(done, args)


def _is(done: dict, scene: str, row: str, seed: int, args: argparse.Namespace) -> bool:
    return (done["scene"], done["row"], done["seed"], done["steps"]) == (scene, row, seed, args.steps)


def _write(args: argparse.Namespace, rows: list[dict]) -> None:
    if args.json:
        facts = {
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "splatsmith": version("splatsmith"),
            "settings": {k: v for k, v in vars(args).items() if k != "json"},
        }
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=1, default=str))


def summary(rows: list[dict], args: argparse.Namespace) -> None:
    """Means over scenes and seeds, of rows that every scene of the run has."""
    for row in args.rows:
        mine = [r for r in rows if r["row"] == row and r["steps"] == args.steps]
        if mine:
            value, similarity, seconds = (sum(r[k] for r in mine) / len(mine) for k in ("psnr", "ssim", "cpu_seconds"))
            print(f"mean of {len(mine):3} {row:27} PSNR {value:.3f}  SSIM {similarity:.4f}  {seconds:.1f} CPU-s")


def scenes(args: argparse.Namespace, views: int | None):
    """(name, function that makes the `Scene`) of all that was asked for."""
    if args.objects:
        import rendered  # beside this file

        for name, make in rendered.scenes(args.objects, views or 6):
            yield f"{name} {views or 6}", lambda make=make: hidden(make(), args)
    for folder in args.scenes:
        protocol = PROTOCOLS[args.protocol]
        count = views or (protocol.views[0] if args.protocol != "photos" else 0)
        name = f"{folder.name} {count or 'all'}"
        yield name, lambda folder=folder, count=count: published(folder, count, args)


def published(folder: Path, count: int, args: argparse.Namespace) -> Scene:
    """A scene of a published data set, split as its papers do."""
    protocol = PROTOCOLS[args.protocol]
    train_photos, test_photos, given = _photos_of(folder, protocol, count)
    if not protocol.posed or given is None:
        return _unposed(folder.name, train_photos, test_photos, given, args)
    side = side_of(train_photos, protocol, args)
    train, test = (views_of(p, load_poses(g, p), side) for p, g in zip((train_photos, test_photos), given))
    weights = None if args.test_masks is None else [_weights(v, args.test_masks) for v in test]
    facts = {"protocol": args.protocol, "side": side, "views": len(train_photos), "tests": [p.name for p in test_photos]}
    return _with_depth(folder.name, train, test, weights, True, facts)


def side_of(photos: list[Photo], protocol: Protocol, args: argparse.Namespace) -> int:
    """px, long side that the photos are evaluated at: what was asked for, else the originals' divided as the protocol does."""
    return args.side or round(max(max(p.original_size) for p in photos) / protocol.shrink)


def _photos_of(folder: Path, protocol: Protocol, count: int) -> tuple[list[Photo], list[Photo], tuple[Path, Path] | None]:
    """Training photos, test photos, and where their poses are."""
    transforms = [folder / f"transforms_{part}.json" for part in ("train", "test")]
    if all(f.is_file() for f in transforms):
        files = {f"{part}/{p.name}": p for part, t in zip(("train", "test"), transforms) for p in photos_of_transforms(t)}
        given = tuple(transforms)
    else:
        images = folder / "images" if (folder / "images").is_dir() else folder
        files = {p.name: p for p in sorted(images.iterdir()) if p.suffix.lower() in (".png", ".jpg", ".jpeg")}
        model = next((m for m in (folder / "sparse" / "0", folder / "sparse", folder / "transforms.json") if m.exists()), None)
        given = None if model is None else (model, model)
    split = protocol.split(list(files), count)
    train, test = (read([files[name] for name in names]) for names in (split.train, split.test))
    return train, test, given


def read(files: list[Path]) -> list[Photo]:
    return [composited(p) for p in read_photos(files, PhotoConfig(max_photos=0, min_photos=1)).photos]


def views_of(photos: list[Photo], poses, side: int) -> list[Views]:
    return [v.limited(side) for v in undistort(photos, poses)]


def _weights(view: Views, folder: Path) -> Tensor:
    from splat.io.images import read_image

    masks = []
    for name in view.names:
        file = next(iter(folder.glob(f"{Path(name).stem}.*")))
        image = read_image(file, max_pixels=10**8)[0].mean(-1)[None, None]
        masks.append(torch.nn.functional.interpolate(image, (view.size[1], view.size[0]), mode="area")[0, 0])
    return torch.stack(masks).round()


def hidden(scene, args: argparse.Namespace) -> Scene:
    """A rendered scene whose poses are solved from its photos."""
    found = result_of(solve_poses(scene.photos(), PoseConfig()))
    truth = [scene.train.cameras[i] for i in range(len(scene.train))]
    return _placed(scene.name, scene.photos(), found, truth, scene.test, args)


def _unposed(name: str, photos: list[Photo], tests: list[Photo], given, args: argparse.Namespace) -> Scene:
    if given is None:
        raise SystemExit(f"{name} has no true poses for its test photos; give a transforms.json or a COLMAP model beside it.")
    both = photos + tests
    truth = load_poses(given[0], both)
    found = result_of(solve_poses(photos, PoseConfig()))
    true_tests = dataclasses.replace(
        truth,
        cameras=truth.cameras[len(photos) :],
        k1=truth.k1[len(photos) :],
        reasons=truth.reasons[len(photos) :],
        observations=(),
    )
    args = argparse.Namespace(**(vars(args) | {"side": side_of(photos, PROTOCOLS[args.protocol], args)}))
    (test,) = views_of(tests, true_tests, args.side)
    return _placed(name, photos, found, list(truth.cameras[: len(photos)]), test, args)


def _placed(name: str, photos: list[Photo], found, truth: list[Cameras | None], test: Views, args: argparse.Namespace) -> Scene:
    """Solved poses, with the test cameras moved into their world."""
    errors = relative_errors(poses_of(found.cameras), poses_of(truth))
    facts = {"views": len(photos), "placed": len(found.placed)}
    facts |= {f"auc{limit}": pose_auc(errors, limit) for limit in LIMITS_DEG} | {"mean_deg": float(errors.mean())}
    if "reprojection_rad" in found.facts:
        facts["reprojection_rad"] = found.facts["reprojection_rad"]
    if args.poses_only:
        return Scene(name, [], [], None, None, [], found.points, False, facts)
    true_poses = {p.name: t for p, t in zip(photos, poses_of(truth)) if t is not None}
    train = views_of(photos, found, args.side)
    world = _world_from_truth(train, true_poses)
    tests = [dataclasses.replace(test, cameras=test.cameras.transformed(world)).limited(args.side)]
    scene = _with_depth(name, train, tests, None, False, facts, found.points)
    return dataclasses.replace(scene, truth=true_poses, true_test=[test.limited(args.side)])


def _world_from_truth(train: list[Views], truth: dict[str, Tensor]) -> Similarity:
    """The similarity that takes the true world to that of the training cameras."""
    pairs = [(truth[n], v.cameras.centers[i]) for v in train for i, n in enumerate(v.names) if n in truth]
    if len(pairs) < 3:
        raise SplatsmithError(f"{len(pairs)} photos placed; the test cameras need 3")
    true, found = zip(*pairs)
    true = torch.linalg.inv(torch.stack(true).double())[:, :3, 3].to(found[0])
    return fit_similarity(true, torch.stack(found))


def _with_depth(name, train, test, weights, posed, facts, sparse: PointCloud | None = None) -> Scene:
    before = time.process_time()
    maps = result_of(estimate_depths(train, sparse, PlaneSweepConfig()))
    maps = clean_depths(train, maps)
    dense = fuse(train, maps)
    facts = facts | {"dense": len(dense), "prior_cpu_seconds": time.process_time() - before}
    return Scene(name, train, test, weights, sparse, maps, dense, posed, facts)


def first_splats(scene: Scene, row: Row, seed: int, args: argparse.Namespace) -> Splats:
    if row.start == "random":
        return random_splats(args.random_count, *viewing_bound([v.cameras for v in scene.train]), InitialConfig(seed=seed))
    if row.start == "sfm":
        return initial_splats(triangulate(scene.train) if scene.sparse is None else scene.sparse)
    points = scene.dense if scene.sparse is None else choose_points(scene.dense, scene.sparse, "union")
    if row.filled:
        points = dataclasses.replace(points, radius=nearest_spacing(points.xyz)) if points.radius is None else points
        points = PointCloud.cat([points, complete(scene.train, points, scene.maps)])
    return initial_splats(points)


def measured(scene: Scene, row: Row, seed: int, args: argparse.Namespace) -> dict:
    initial = first_splats(scene, row, seed, args)
    masked = all(v.masks is not None for v in scene.train)
    config = config_of(row, scene, steps=args.steps, max_gaussians=args.max_gaussians, seed=seed, threads=args.threads)
    config = dataclasses.replace(config, exposure=config.exposure and not (masked or scene.posed))
    before = time.process_time()
    priors = fit_priors(scene.train, scene.maps) if config.regularise.needs_priors else None
    result = result_of(fit(scene.train, initial, config, None, priors))
    seconds = time.process_time() - before
    moved = {}
    if config.refine_poses and scene.truth:
        train = [dataclasses.replace(v, cameras=c) for v, c in zip(scene.train, result.cameras)]
        world = _world_from_truth(train, scene.truth)
        test = [dataclasses.replace(v, cameras=v.cameras.transformed(world)) for v in scene.true_test]
        scene = dataclasses.replace(scene, train=train, test=test)
    if scene.truth:
        moved = pose_facts(scene)
    quality = scores(result.splats, scene, args)
    return {
        "steps": args.steps,
        "splats_first": len(initial),
        "splats": len(result.splats),
        "train_psnr": result.train_psnr,
        **quality,
        **moved,
        "cpu_seconds": seconds,
    }


def config_of(row: Row, scene: Scene, **settings) -> FitConfig:
    terms = {"regularise": RegulariserConfig(**row.terms)} if row.terms else {}
    count = sum(len(v) for v in scene.train)
    settings = {"exposure": True} | settings | row.changes | terms
    error = scene.facts.get("reprojection_rad", UNSURE)
    masked = all(v.masks is not None for v in scene.train)
    return for_few_photos(count, poses_given=scene.posed, masked=masked, pose_error_rad=error, without=row.without, **settings)


def pose_facts(scene: Scene) -> dict[str, float]:
    """Of the training cameras as they are after the fit; photos without a camera are lost."""
    found = {n: v.cameras.cam_from_world[i] for v in scene.train for i, n in enumerate(v.names)}
    errors = relative_errors([found.get(name) for name in scene.truth], list(scene.truth.values()))
    return {f"fit_auc{limit}": pose_auc(errors, limit) for limit in LIMITS_DEG} | {"fit_mean_deg": float(errors.mean())}


def scores(splats, scene: Scene, args: argparse.Namespace) -> dict[str, float]:
    """Means over the test photos on white."""
    white = torch.ones(3)
    options = RenderOptions(background=white, threads=args.threads)
    values = []
    for v, view in enumerate(scene.test):
        for i in range(len(view)):
            camera = view.cameras[i]
            if not scene.posed:
                camera = refine_camera(splats, camera, view.images[i], white)
            with torch.no_grad():
                image = render(splats, camera, options).rgb[0].clamp(0, 1)
            weights = None if scene.test_weights is None else scene.test_weights[v][i]
            truth = view.images[i]
            value = float(psnr(image, truth, weights))
            if weights is not None:  # as RegNeRF: the rest is white in both
                image, truth = (x * weights[..., None] + 1 - weights[..., None] for x in (image, truth))
            values.append((value, float(ssim(image, truth))))
    return dict(zip(("psnr", "ssim"), (sum(column) / len(column) for column in zip(*values))))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", type=Path, help="folders of published data sets")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="photos")
    parser.add_argument("--objects", type=Path, help="packed objects or a folder of meshes: rendered scenes of them")
    parser.add_argument("--views", nargs="+", type=int, help="numbers of training views; the protocol's first without it")
    parser.add_argument("--test-masks", type=Path, help="folder of foreground masks named as the test photos")
    parser.add_argument("--side", type=int, help="px, long side of fit and test; the protocol's without it, 400 for objects")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--max-gaussians", type=int, default=60_000)
    parser.add_argument("--random-count", type=int, default=20_000)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--poses-only", action="store_true", help="solve poses and print their errors, fit nothing")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no row later than this; --json goes on from there")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="file for the rows; what it has is not run again")
    args = parser.parse_args()
    args.side = args.side or (400 if args.objects else None)
    if not args.scenes and not args.objects:
        parser.error("give scenes or --objects")
    return args


if __name__ == "__main__":
    main()
