"""How long a job will take and how much memory it will need, said before it starts. Rough: within a factor of two.

The constants are CPU-seconds on one x86 server core, from the stages of finished reports and from timing single steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.commands import Image, Photos, Refine, Text
from app.presets import IMAGE_PRESETS, PRESETS, TEXT_PRESETS, ImagePreset, ObjectPreset, Preset, TextPreset
from splat.errors import InputError

SECONDS_PER_PHOTO = 0.6  # reading and features at 1024 px
SECONDS_PER_PAIR = 0.6  # matching and verification; above 20 photos only 6 partners a photo are tried
SECONDS_SOLVING = 4.0  # mapper, with 0.5 s more a photo
SECONDS_STEREO_PER_MEGAPIXEL = 20.0  # plane sweep, which never looks at more than
STEREO_MEGAPIXELS = 0.12  # a photo
SECONDS_PER_STEP = 0.005  # fit: fixed part of a step, and then per megapixel and per 100,000 Gaussians
SECONDS_PER_STEP_MEGAPIXEL = 0.12
SECONDS_PER_STEP_100K = 0.045
SECONDS_NEXT_PHOTO = 7.0  # the quick fits and the places compared
REGULARISED = 1.2  # times as long is a step of the fit for few photos
SHARE_OF_STEPS = 0.4  # of a preset's steps that all rounds of repair together have
# Times as long as a plain step is one of the rounds, with its repaired view and all that makes it: rooms of docs/repair.md.
REPAIRED = 3.6
SECONDS_PER_FRAME_MEGAPIXEL = 0.25  # turntable
SECONDS_MESH = 5.0
REFERENCE_SLOWDOWN = 40.0  # of the plain PyTorch renderer against the native one
GPU_SPEEDUP = 40.0  # of fit, stereo and renders on a data-centre GPU against one core
PARALLEL = 0.75  # of each further core that turns into speed

SECONDS_TEXT_MODEL = 7.0  # importing and reading the text encoder and the networks, once
SECONDS_PER_CANDIDATE = 0.3  # text encoding, decoding and ranking, and then per network call
SECONDS_PER_CANDIDATE_STEP = 0.02
SECONDS_OBJECT = 1.5  # importing and writing
SECONDS_PER_MESH_VIEW_MEGAPIXEL = 0.8
SECONDS_PER_OBJECT_FRAME_MEGAPIXEL = 0.12  # turntable: an object on white costs less than a scene

SECONDS_CLOSED_MESH = 4.0  # of 144 voxels a side
SECONDS_IMAGE_MODEL = 4.0  # importing and reading the network, once
SECONDS_PER_IMAGE_STEP = 0.12  # a call of the network
SECONDS_LGM = 26.0  # its one call
FINAL_SHARE = 0.3  # of the most Gaussians that the fit of an object may have: what it usually has
SECONDS_CUT_OUT = 0.4  # reading a picture and finding its subject

BYTES_BASE = 700e6  # torch, pycolmap, networks
BYTES_MESHING = 200e6  # open3d and its grid
BYTES_TEXT_MODEL = 300e6  # text encoder, networks
BYTES_IMAGE_MODEL = 500e6  # network and its activations
BYTES_LGM = 900e6  # its activations
BYTES_PER_CANDIDATE = 5e6  # its volume; they are made one after the other
BYTES_PER_PIXEL = 12 * 4  # float32 RGB photo at feature size, its undistorted copy and the fit's
BYTES_PER_FITTED_GAUSSIAN = 59 * 4 * 4 * 2  # splat.optimise.BYTES_PER_GAUSSIAN, which comes with torch
PHOTOS_EXPECTED = 40  # in a video or a folder that nobody has looked into yet
BYTES_PER_DECODED_PIXEL = 12  # 3 as decoded, 3 converted, room to scale


@dataclass(frozen=True)
class Estimate:
    seconds: float
    memory: float  # bytes
    disk: float  # bytes at the output while working

    def sentence(self, what: str) -> str:
        return f"{what}: about {clock(self.seconds)} and {self.memory / 1e9:.1f} GB of memory."


def estimate_photos(
    photos: int,
    pixels: int,
    fit_pixels: int,
    preset: Preset,
    *,
    solve_poses: bool,
    renderer: str,
    threads: int,
    regularised: bool = False,
) -> Estimate:
    """For `photos` photos of `pixels` each at feature size and `fit_pixels` each in the fit; `renderer` by name."""
    from splat.few_photos import FEW_PHOTOS  # imports torch
    from splat.optimise import BYTES_PER_GAUSSIAN

    fast, slow = _renderer_speed(renderer, threads)
    speed = 1 + PARALLEL * (threads - 1)
    megapixels = fit_pixels / 1e6
    poses = estimate_poses(photos, threads) if solve_poses else SECONDS_PER_PHOTO * photos / speed
    step = _step(fit_pixels, preset)
    step *= REGULARISED if regularised else 1
    frame = preset.turntable_side**2 * 0.7 / 1e6 * SECONDS_PER_FRAME_MEGAPIXEL
    seconds = (
        poses
        + SECONDS_STEREO_PER_MEGAPIXEL * min(megapixels, STEREO_MEGAPIXELS) * photos / fast
        + slow * (preset.steps * step + preset.turntable_frames * frame) / fast
        + (slow * SECONDS_NEXT_PHOTO if photos <= FEW_PHOTOS else 0.0)
        + SECONDS_MESH
    )
    memory = BYTES_BASE + BYTES_MESHING + photos * pixels * BYTES_PER_PIXEL + preset.max_gaussians * BYTES_PER_GAUSSIAN
    disk = photos * fit_pixels * 12 + preset.max_gaussians * (59 * 4 * 4) + 30e6
    return Estimate(seconds, memory, disk)


def seconds_of_repair(photos: int, fit_pixels: int, preset: Preset, *, held_out: bool, renderer: str, threads: int) -> float:
    """Of `photos --repair` on `photos` fitted photos: the rounds, and what judges them.

    That is the same steps without repaired views for `held_out` photos, else small fits, as `recon.repair.judge` has them.
    """
    from recon.repair.judge import LEAST_PHOTOS, JudgeConfig  # imports torch
    from recon.repair.rounds import RepairRoundsConfig

    if photos < LEAST_PHOTOS and not held_out:
        return 0.0
    fast, slow = _renderer_speed(renderer, threads)
    seconds = SHARE_OF_STEPS * preset.steps * (REPAIRED + held_out) * _step(fit_pixels, preset)
    if not held_out:
        judge, rounds = JudgeConfig(), RepairRoundsConfig.rounds
        steps = min(photos, judge.photos) * (judge.steps + (1 + REPAIRED) * rounds * judge.round_steps)
        seconds += steps * _step(min(fit_pixels, 0.75 * judge.side**2), preset)
    return slow * seconds / fast


def _renderer_speed(renderer: str, threads: int) -> tuple[float, float]:
    """By what the time of fits is divided, and what it is multiplied with."""
    fast = GPU_SPEEDUP if renderer == "gsplat" else 1 + PARALLEL * (threads - 1)
    return fast, REFERENCE_SLOWDOWN if renderer == "reference" else 1.0


def _step(pixels: float, preset: Preset) -> float:
    """CPU-seconds of a plain step of the fit on photos of `pixels`."""
    return SECONDS_PER_STEP + SECONDS_PER_STEP_MEGAPIXEL * pixels / 1e6 + SECONDS_PER_STEP_100K * preset.max_gaussians / 1e5


def estimate_poses(photos: int, threads: int) -> float:
    """Seconds of reading photos and solving their poses."""
    pairs = photos * (photos - 1) / 2 if photos <= 20 else photos * 6
    seconds = SECONDS_SOLVING + (SECONDS_PER_PHOTO + 0.5) * photos + SECONDS_PER_PAIR * pairs
    return seconds / (1 + PARALLEL * (threads - 1))


def estimate_refine(photos: int, stored: float, steps: int, preset: Preset, *, renderer: str, threads: int) -> Estimate:
    """For `steps` further steps on `photos` photos, of which the state holds `stored` bytes as float32 RGB."""
    fast, slow = _renderer_speed(renderer, threads)
    step = _step(stored / 12 / max(photos, 1), preset)
    frame = preset.turntable_side**2 * 0.7 / 1e6 * SECONDS_PER_FRAME_MEGAPIXEL
    seconds = slow * (steps * step + preset.turntable_frames * frame) / fast + SECONDS_MESH
    memory = BYTES_BASE + BYTES_MESHING + 3 * stored + preset.max_gaussians * BYTES_PER_FITTED_GAUSSIAN
    return Estimate(seconds, memory, stored + preset.max_gaussians * (59 * 4 * 4) + 30e6)


def estimate_text(
    objects: int,
    candidates: int,
    steps: int,
    preset: TextPreset,
    *,
    renderer: str,
    threads: int,
    on_gpu: bool,
    weights: Path | None = None,
) -> Estimate:
    """For `objects` objects, each the best of `candidates`; `renderer` by name, which draws on the CPU in any case.

    The networks of a folder of `weights` are as large as its files say; how long theirs take is not known.
    """
    speed = 1 + PARALLEL * (threads - 1)
    slow = REFERENCE_SLOWDOWN if renderer == "reference" else 1.0
    network = candidates * (SECONDS_PER_CANDIDATE + SECONDS_PER_CANDIDATE_STEP * steps) / (GPU_SPEEDUP if on_gpu else speed)
    seconds = SECONDS_TEXT_MODEL + objects * (
        network + SECONDS_OBJECT + slow * (_object_mesh(preset) + _turntable(preset)) / speed
    )
    model = BYTES_TEXT_MODEL
    if weights is not None:  # on disk in half precision, computed with in single
        model += 2 * sum(file.stat().st_size for file in Path(weights).glob("*/*.safetensors"))
    memory = BYTES_BASE + BYTES_MESHING + model + candidates * BYTES_PER_CANDIDATE
    return Estimate(seconds, memory, objects * 12e6)


def estimate_image(
    objects: int, preset: ImagePreset, *, renderer: str, threads: int, on_gpu: bool, lgm_parameters: float = 0.0
) -> Estimate:
    """For `objects` objects one after the other; `renderer` by name, which draws on the CPU in any case.

    `lgm_parameters`: numbers in LGM's network and in the pipeline beside it, whose own time is not known; 0 for our network.
    """
    speed = 1 + PARALLEL * (threads - 1)
    slow = REFERENCE_SLOWDOWN if renderer == "reference" else 1.0
    network = (SECONDS_LGM if lgm_parameters else preset.steps * SECONDS_PER_IMAGE_STEP) / (GPU_SPEEDUP if on_gpu else speed)
    step = (
        SECONDS_PER_STEP
        + SECONDS_PER_STEP_MEGAPIXEL * preset.refine_side**2 / 1e6
        + SECONDS_PER_STEP_100K * FINAL_SHARE * preset.max_gaussians / 100_000
    )
    drawing = slow * (preset.refine_steps * step + _turntable(preset)) / speed
    mesh = SECONDS_CLOSED_MESH * (preset.mesh_resolution / 144) ** 3
    seconds = SECONDS_IMAGE_MODEL + objects * (network + SECONDS_CUT_OUT + SECONDS_OBJECT + mesh + drawing)
    model = 4 * lgm_parameters + BYTES_LGM if lgm_parameters else BYTES_IMAGE_MODEL
    memory = BYTES_BASE + BYTES_MESHING + model + preset.max_gaussians * 14 * 4 * 4 * 2
    return Estimate(seconds, memory, objects * 15e6)


def rough_memory(command: Any) -> float:
    """Bytes that a job of `app.commands` may need, before its files are read; without torch. At most its memory budget."""
    match command:
        case Photos() | Refine():
            preset = PRESETS[command.preset]
            photos = PHOTOS_EXPECTED if isinstance(command, Refine) else max(len(command.inputs), 1)
            if photos == 1:  # a video, or a folder
                photos = PHOTOS_EXPECTED
            pixels = (command.max_side or preset.feature_side) ** 2 if isinstance(command, Photos) else preset.feature_side**2
            memory = BYTES_BASE + BYTES_MESHING + photos * pixels * BYTES_PER_PIXEL
            memory += preset.max_gaussians * BYTES_PER_FITTED_GAUSSIAN
        case Text():
            preset = TEXT_PRESETS[command.preset]
            memory = BYTES_BASE + BYTES_MESHING + BYTES_TEXT_MODEL
            memory += (command.candidates or preset.candidates) * BYTES_PER_CANDIDATE
        case Image():
            preset = IMAGE_PRESETS[command.preset]
            memory = estimate_image(1, preset, renderer="native", threads=1, on_gpu=False).memory * (command.jobs or 1)
    return min(memory, parse_bytes(command.memory_budget))


def _object_mesh(preset: TextPreset) -> float:
    """CPU-seconds of the mesh of one object, from depth."""
    return preset.mesh_views * preset.mesh_side**2 / 1e6 * SECONDS_PER_MESH_VIEW_MEGAPIXEL


def _turntable(preset: ObjectPreset) -> float:
    """CPU-seconds of the turntable of one object."""
    return preset.turntable_frames * preset.turntable_side**2 / 1e6 * SECONDS_PER_OBJECT_FRAME_MEGAPIXEL


def clock(seconds: float) -> str:
    """45 s, 3 min, 2 h 05 min."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def decodable_pixels(budget: int) -> int:
    """The largest photo to decode within `budget` bytes: its 8-bit and its float copy, and what scaling it takes."""
    return int(max(budget - BYTES_BASE, 0) / BYTES_PER_DECODED_PIXEL)


def memory_budget(text: str) -> int:
    """--memory-budget in bytes. Raises `InputError` for what is no amount and for less than the libraries take."""
    try:
        budget = parse_bytes(text)
    except ValueError as error:
        raise InputError(f"--memory-budget {error}") from error
    if budget <= BYTES_BASE:
        raise InputError(
            f"--memory-budget {text} leaves nothing beside the {BYTES_BASE / 1e9:.1f}GB of the libraries; give more."
        )
    return budget


def parse_bytes(text: str) -> int:
    """4GB, 900 MB, 1.5G -> bytes (powers of 1000). Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"'{text}' is not an amount of memory; write it as 4GB or 900MB.")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2] or " "))
