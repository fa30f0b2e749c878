"""Volumes made from sentences, kept in a folder so that a run that was cut goes on; and what is seen of splats and meshes.

Beside the scripts that judge text to 3-D: `text_agreement.py` and `text_sheet.py`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.volume import SplatVolume, load_volume, save_volume
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.mesh import Mesh
from splat.raycast import raycast
from splat.render import RenderOptions, render


@dataclass(frozen=True)
class Asked:
    """One sample: a sentence and its seed."""

    prompt: str
    seed: int


@dataclass
class Spent:
    """What making the samples of this run took; samples found in the folder take nothing."""

    made: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0


def volumes_for(asked: Sequence[Asked], weights: Path | None, settings: dict, kept: Path, spent: Spent, batch: int = 8) -> None:
    """Make what `kept` does not hold yet, one file per sample; `settings` replace fields of the generator's config.

    A folder belongs to one set of weights and settings, which it names: samples that are there are not made again.
    """
    missing = [a for a in dict.fromkeys(asked) if not path_of(a, kept).is_file()]
    if not missing:
        return
    from diffusion.text_config import TextSampleConfig
    from diffusion.text_to_volume import TextToVolume

    kept.mkdir(parents=True, exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        generator = TextToVolume.load(weights)
    except InputError as error:
        raise SystemExit(str(error)) from error
    config = replace(TextSampleConfig(), **settings)
    _belongs(kept, {"weights": generator.facts, "config": {k: v for k, v in asdict(config).items() if k != "threads"}})
    for start in range(0, len(missing), batch):
        part = missing[start : start + batch]
        job = generator.generate([a.prompt for a in part], [a.seed for a in part], config)
        made = result_of(job).volumes
        for i, a in enumerate(part):
            single = replace(made, features=made.features[i : i + 1].cpu())
            save_volume(path_of(a, kept), single, torch.float16, {"prompt": a.prompt, "seed": a.seed})
        spent.made += len(part)
        spent.wall_seconds += time.perf_counter() - wall
        spent.cpu_seconds += time.process_time() - cpu
        wall, cpu = time.perf_counter(), time.process_time()
        done = start + len(part)
        if done == len(missing) or done // 64 > start // 64:
            print(f"  {done} of {len(missing)} made, {spent.cpu_seconds / spent.made:.1f} CPU-s each", flush=True)


def _belongs(kept: Path, made_by: dict) -> None:
    """Writes what the folder's samples are made by, or stops where it says something else."""
    path, text = kept / "made_by.json", json.dumps(made_by, indent=1, sort_keys=True, default=str)
    if path.is_file() and path.read_text() != text:
        raise SystemExit(f"{kept} holds samples of other weights or settings; give another folder to --samples.")
    path.write_text(text)


def splats_of(asked: Asked, kept: Path) -> Splats:
    """The sample as splats, as wide as the product makes them."""
    from diffusion.text_to_volume import missing_width

    made_by = json.loads((kept / "made_by.json").read_text())
    return load_single(path_of(asked, kept)).to_splats().widened(missing_width(made_by["weights"]))


def load_single(path: Path) -> SplatVolume:
    return load_volume(path)[0]


def path_of(asked: Asked, kept: Path) -> Path:
    """Named after the sentence and the seed."""
    words = "-".join("".join(c if c.isalnum() else " " for c in asked.prompt.lower()).split())[:40]
    digest = hashlib.sha256(asked.prompt.encode()).hexdigest()[:8]
    return kept / f"{words}-{digest}-{asked.seed}.safetensors"


def result_of(job):
    """The value that a generator of `Progress` returns."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def pictures(thing: Splats | Mesh, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Images [C, H, W, 3] sRGB on white and covered fractions [C, H, W], unlit; one thread."""
    if isinstance(thing, Mesh):
        views, _ = raycast(thing, cameras, threads=1)
        return views.images, views.masks
    with torch.no_grad():
        drawn = render(thing, cameras, RenderOptions(background=torch.ones(3), threads=1))
    return drawn.rgb.clamp(0, 1), drawn.alpha


def read_prompts(path: Path) -> list[str]:
    """One sentence a line; empty lines and those that begin with # are comments."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
