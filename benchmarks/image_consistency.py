"""What the splat bottleneck is worth: the same network trained with Gaussians between, and predicting every view by itself.

    python benchmarks/image_consistency.py --objects DIR --splats NETWORK --views NETWORK --json consistency.json

Both networks are folders of `save_pretrained` that saw as many steps (`splatsmith train image-denoiser`, and the same with
`MultiviewTrainConfig(bottleneck="none")`). By the object protocol at 64 px. Consistency: surface points of the true object
that two neighbouring scored views both see, and how much the two predicted pictures differ there (root mean square of sRGB on
white); for the true pictures themselves this is what resampling leaves.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import image_objects  # beside this file
import kernels
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.data.object_set import open_objects, rows_of
from diffusion.data.object_views import input_camera, object_views, protocol_cameras
from diffusion.image_config import ImageSampleConfig
from diffusion.models.from_disk import load_network
from diffusion.models.multiview import MultiviewDenoiser
from diffusion.sample_views import KnownViews, sample_splats
from diffusion.samplers.scheduler import EIScheduler
from diffusion.splat_maps import ray_features, to_pictures
from diffusion.train_multiview import drawn
from diffusion.view_bank import cameras_at
from diffusion.view_space import PixelSpace
from splat.cameras import Cameras
from splat.metrics import psnr, ssim

SIZE = 64
NEIGHBOURS = [(i, (i + 1) % 8) for i in range(8)] + [(8 + i, 8 + (i + 1) % 6) for i in range(6)]
SAME_SURFACE = 0.02  # world units between two views' depths of one point


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    facts = kernels.machine()
    print("  ".join(f"{k} {v}" for k, v in facts.items()))
    networks = {name: load_network(getattr(args, name), (MultiviewDenoiser,)) for name in ("splats", "views")}
    objects = open_objects(args.objects)
    rows = rows_of(objects, lambda f: f.split == args.split)
    count = min(args.count or len(rows), len(rows))
    rows = [rows[i * len(rows) // count] for i in range(count)]
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed, row in enumerate(rows):
        truth = object_views(objects[row], Cameras.cat([input_camera(SIZE), protocol_cameras(SIZE)]))
        views, depth = truth.views(), truth.depths()[1:]
        made = {"true pictures": views.images[1:]}
        for steps in args.steps:
            config = ImageSampleConfig(steps=steps)
            made[f"splats, {steps} steps"] = through_splats(networks["splats"], views, seed, config)
            made[f"views, {steps} steps"] = by_themselves(networks["views"], views, seed, config)
        for name, pictures in made.items():
            error = inconsistency(pictures, depth, views.cameras[1:])
            same = (float(psnr(pictures, views.images[1:]).mean()), float(ssim(pictures, views.images[1:]).mean()), error)
            found.setdefault(name, []).append(same)
    print(f"{'row':20} {'PSNR':>7} {'SSIM':>7} {'RMS between neighbours':>24}   ({len(rows)} objects)")
    summary = {}
    for name, values in found.items():
        mean = [sum(v) / len(v) for v in zip(*values, strict=True)]
        summary[name] = dict(zip(("psnr", "ssim", "inconsistency"), mean, strict=True))
        print(f"{name:20} {mean[0]:7.2f} {mean[1]:7.3f} {mean[2]:24.4f}")
    if args.json is not None:
        rest = {"machine": facts, "arguments": {k: str(v) for k, v in vars(args).items()}}
        args.json.write_text(json.dumps({**rest, "summary": summary, "objects": found}, indent=1))


def through_splats(network: MultiviewDenoiser, views, seed: int, config: ImageSampleConfig) -> Tensor:
    """[14, S, S, 3] on white."""
    azimuth, elevation = torch.arange(4) * math.pi / 2, torch.full((4,), math.radians(image_objects.INPUT_ELEVATION_DEG))
    splats = sample_splats(network, PixelSpace(), _given(views, cameras_at(azimuth, elevation, SIZE)), seed, config)
    return _on_white(drawn(splats, image_objects.scored_cameras(SIZE)))


def by_themselves(network: MultiviewDenoiser, views, seed: int, config: ImageSampleConfig) -> Tensor:
    """The same, three scored views at a time, as the network was trained: each is predicted once."""
    targets, source = image_objects.scored_cameras(SIZE), _input_camera()
    made = []
    for i in range(0, len(targets), 3):
        group = [min(i + k, len(targets) - 1) for k in range(3)]
        given = _given(views, Cameras.cat([source, targets[group]]))
        pictures = sample_pictures(network, given, seed + i, config)
        made += list(_on_white(pictures[1:]))
    return torch.stack(made[: len(targets)])


@torch.no_grad()
def sample_pictures(network: MultiviewDenoiser, given: KnownViews, seed: int, config: ImageSampleConfig) -> Tensor:
    """[V, 4, S, S] of a network without the bottleneck: the x_0 predictions of the last call, every view by itself."""
    pictures, known, space = given.pictures, given.is_clean, PixelSpace()
    rays = ray_features(pictures, known, given.cameras, network.config.side // 2)[None]
    generator = torch.Generator().manual_seed(seed)
    x = config.temperature * torch.randn(1, *pictures.shape, generator=generator)
    scheduler = EIScheduler(prediction_type="sample", plan=config.plan, grid="log_snr")
    scheduler.set_timesteps(config.steps)
    for t in scheduler.timesteps:
        node = scheduler.current_node()
        a, s = (torch.full((1,), v) for v in (node.alpha, node.sigma))
        made = to_pictures(network(x, pictures[None], known[None], a, s, rays)[0])
        x = scheduler.step(space.encode(made)[None], t, x, generator=generator).prev_sample
    return made


def inconsistency(pictures: Tensor, depth: Tensor, cameras: Cameras) -> float:
    """Root mean square between the pictures [14, S, S, 3] of neighbours at surface points that both see. depth [14, S, S]."""
    squares, count = 0.0, 0
    for i, j in NEIGHBOURS:
        y, x = torch.nonzero(depth[i] > 0).T
        K, pose = cameras.K[i], cameras.cam_from_world[i]
        z = depth[i][y, x]
        in_cam = (
            torch.stack([(x + 0.5 - K[0, 2]) / K[0, 0], (y + 0.5 - K[1, 2]) / K[1, 1], torch.ones(len(x))], -1) * z[:, None]
        )
        world = (in_cam - pose[:3, 3]) @ pose[:3, :3]
        there = world @ cameras.cam_from_world[j, :3, :3].T + cameras.cam_from_world[j, :3, 3]
        at = (there @ cameras.K[j].T)[:, :2] / there[:, 2:]
        grid = (2 * at / SIZE - 1)[None, None]
        hit = F.grid_sample(depth[j][None, None], grid, mode="nearest", align_corners=False)[0, 0, 0]
        both = (hit - there[:, 2]).abs() < SAME_SURFACE
        other = F.grid_sample(pictures[j].permute(2, 0, 1)[None], grid, align_corners=False)[0, :, 0].T
        squares += float((pictures[i][y, x][both] - other[both]).square().sum())
        count += 3 * int(both.sum())
    return math.sqrt(squares / max(count, 1))


def _given(views, cameras: Cameras) -> KnownViews:
    mask = views.masks[0]
    first = torch.cat([views.images[0] - (1 - mask[..., None]), mask[..., None]], -1).clamp(0, 1).permute(2, 0, 1)
    return KnownViews(torch.cat([first[None], torch.zeros(3, 4, SIZE, SIZE)]), torch.arange(4) == 0, cameras)


def _input_camera() -> Cameras:
    return cameras_at(torch.zeros(1), torch.tensor([math.radians(image_objects.INPUT_ELEVATION_DEG)]), SIZE)


def _on_white(pictures: Tensor) -> Tensor:
    return (pictures[:, :3] + 1 - pictures[:, 3:]).clamp(0, 1).permute(0, 2, 3, 1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int)
    parser.add_argument("--splats", type=Path, required=True)
    parser.add_argument("--views", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, ImageSampleConfig().steps])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
