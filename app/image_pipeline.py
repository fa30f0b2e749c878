"""The image job: pictures of one object -> its subject cut out -> diffusion.image_to_3d -> a fit to the pictures -> one result
folder.

`image_to_scene` is a plain generator of `Progress` for one object, which the command line, the batch, the page and an API
call. Plan, items and pictures are plain data that travel to other processes.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from app.batch_inputs import find_files, folder_names
from app.commands import Image
from app.estimate import Estimate, decodable_pixels, estimate_image, memory_budget
from app.image_input import Picture, mask_of, read_picture
from app.jobs import Outcome, check_disk, costs_so_far, late_errors, noted, weights_of
from app.machine import Place, colour, pick_place
from app.notices import Notices
from app.object_files import Drawing, closed_mesh, closed_mesh_plan, stated_licences, write_pictures, write_scene
from app.presets import IMAGE_PRESETS, ImagePreset
from app.report import InputFile, Quality, Report, read_report, write_report
from app.result_folder import WorkFolder, begin, check_out, disk_errors_as_sentences, is_complete, write_atomic
from app.saved_stages import load_stage, save_stage
from app.stopwatch import StageCost, Stopwatch
from diffusion.image_config import ImageSampleConfig
from splat.errors import InputError, StoppedLate
from splat.progress import Progress
from splat.similarity import Similarity

if TYPE_CHECKING:
    from diffusion.refine_object import RefineConfig
    from diffusion.subject import Subject
    from splat.gaussians import Splats
    from splat.views import Views

REMEDY = "end other programs or use --preset draft"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".tif", ".tiff", ".bmp", ".gif")  # read from folders
MOST = {"steps": 1000, "refine": 20_000}
MOST_VIEWS = 8  # pictures of one object; diffusion.image_to_3d.MAX_VIEWS, not imported because of what comes with it
MOST_SAMPLED = {"guidance": 20.0, "temperature": 2.0}
MAX_ELEVATION_DEG = 89.0
FOVS_DEG = (2.0, 150.0)  # across the width of a picture
SEEDS = 2**31
VISIBLE = 0.05  # opacity


class ImageGenerator(Protocol):
    """What the job needs of `diffusion.image_to_3d.ImageTo3D`."""

    side: int  # px of a subject
    licences: tuple[str, ...]

    def generate(
        self, subjects: Sequence[Subject], seed: int, config: ImageSampleConfig
    ) -> Generator[Progress, None, GeneratedObject]: ...


class GeneratedObject(Protocol):
    """+Y up, the first subject's camera at azimuth 0 and its elevation."""

    splats: Splats
    views: Views


Load = Callable[[Path | None, str], ImageGenerator]  # folder of the weights, None for the shipped ones; device


@dataclass(frozen=True)
class ImageItem:
    """One object to make."""

    pictures: tuple[Path, ...]  # the main one first
    masks: tuple[Path | None, ...]  # one each
    azimuths_deg: tuple[float, ...]  # one each, the first 0
    elevations_deg: tuple[float | None, ...]  # one each; None is assumed
    out: Path


@dataclass(frozen=True)
class ImagePlan:
    """Everything known about an image job before its pictures are read."""

    options: Image
    place: Place
    preset: ImagePreset  # with the options that replace its values
    background: tuple[float, float, float]
    sample: ImageSampleConfig
    items: tuple[ImageItem, ...]  # each folder once
    complete: frozenset[Path]  # results that stay as they are
    notices: tuple[str, ...]
    estimate: Estimate  # of all that is to do, one after the other

    @property
    def todo(self) -> list[ImageItem]:
        return [item for item in self.items if item.out not in self.complete]

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.background, self.place.threads)

    def estimated(self) -> Progress:
        """The first event of a run."""
        objects = "1 object" if len(self.todo) == 1 else f"{len(self.todo)} objects"
        where = f"on {self.place.device} with the {self.place.renderer} renderer"
        sentence = self.estimate.sentence(f"{objects}, preset {self.options.preset}, {where}")
        return Progress("estimate", 1, 1, sentence, values={"seconds": self.estimate.seconds, "memory": self.estimate.memory})


def picture_to_scene(options: Image, load: Load | None = None) -> Generator[Progress, None, Outcome]:
    """The picture, or with --views the pictures, of one object to its result folder; for several objects see `app.image_batch`.

    Yields first the estimate, then the stage model and those of `image_to_scene`. `load` gives the generator, by default
    `load_generator`. Raises `InputError` before anything is written, `StoppedLate` after that.
    """
    plan = plan_images(options)
    if len(plan.items) > 1:
        raise InputError(f"{len(plan.items)} pictures are {len(plan.items)} objects; give --views if they show one.")
    (item,) = plan.items
    for sentence in plan.notices:
        yield Progress("notice", 1, 1, sentence)
    if not plan.todo:
        return Outcome(item.out, read_report(item.out), skipped=True)
    pictures = read_pictures(plan, item)  # judged before the network is loaded
    yield plan.estimated()
    watch = Stopwatch("model")
    try:
        yield Progress("model", 0, 1)
        generator = (load or load_generator)(options.weights, plan.place.device)
        check_text(options, generator)
        watch.split()
    finally:
        watch.stop()
    yield Progress("model", 1, 1)
    return (yield from image_to_scene(plan, item, generator, pictures, list(watch.costs.values())))


def plan_images(options: Image) -> ImagePlan:
    """Find the pictures and judge the options; no picture is opened. Raises `InputError`; writes nothing."""
    preset = IMAGE_PRESETS[options.preset]
    asked = {"steps": (options.steps, 1), "refine": (options.refine, 0)}
    for name, (value, least) in asked.items():
        if value is not None and not least <= value <= MOST[name]:
            raise InputError(f"--{name} {value} is out of range; give {least} to {MOST[name]}.")
    preset = dataclasses.replace(
        preset,
        steps=preset.steps if options.steps is None else options.steps,
        refine_steps=preset.refine_steps if options.refine is None else options.refine,
    )
    if not 0 <= options.seed < SEEDS:
        raise InputError(f"--seed {options.seed} is out of range; give 0 to {SEEDS - 1}.")
    for name, most in MOST_SAMPLED.items():
        value = getattr(options, name)
        if value is not None and not 0 <= value <= most:
            raise InputError(f"--{name} {value} is out of range; give 0 to {most:g}.")
    for elevation in (options.elevation, *options.elevations):
        if elevation is not None and not abs(elevation) <= MAX_ELEVATION_DEG:
            name = "--elevation" if elevation is options.elevation else "--elevations"
            raise InputError(f"{name} {elevation} is out of range; give -{MAX_ELEVATION_DEG:.0f} to 89 degrees.")
    if options.fov is not None:
        low, high = FOVS_DEG
        if not low <= options.fov <= high:
            raise InputError(f"--fov {options.fov} is out of range; give {low:.0f} to {high:.0f} degrees across the width.")
        if options.views:
            raise InputError(
                "--fov is for one picture of an object; the pictures of --views are taken to be from one distance."
            )
    if options.matting is not None and not Path(options.matting).is_file():
        raise InputError(f"--matting {options.matting} is no file; give a U2-Net or IS-Net model in ONNX form.")
    budget, background = memory_budget(options.memory_budget), colour(options.background)
    items, notices = _items(options)
    lgm = _lgm_parameters(options.weights, items)
    complete = _complete(options, items)
    place = pick_place(options.device, options.threads, draw_on_cpu=True)
    objects = len(items) - len(complete)
    on_gpu = place.device == "cuda"
    estimate = estimate_image(
        objects, preset, renderer=place.renderer, threads=place.threads, on_gpu=on_gpu, lgm_parameters=lgm
    )
    if objects and estimate.memory > budget:
        raise InputError(
            f"The image job needs about {estimate.memory / 1e9:.1f} GB of memory, more than --memory-budget "
            f"{options.memory_budget}; give more."
        )
    if objects:
        check_disk(Path(options.out), estimate.disk)
    if complete:
        results = "1 result" if len(complete) == 1 else f"{len(complete)} results"
        notices.append(f"{results} of {len(items)} complete already and left as they are.")
    given = {name: getattr(options, name) for name in MOST_SAMPLED if getattr(options, name) is not None}
    sample = ImageSampleConfig(steps=preset.steps, threads=place.threads, text=options.text.strip(), **given)
    return ImagePlan(options, place, preset, background, sample, items, complete, tuple(notices), estimate)


def check_text(options: Image, generator: ImageGenerator) -> None:
    """Raises `InputError` for text where the generator takes none."""
    if options.text.strip() and not getattr(generator, "takes_text", False):
        raise InputError("These weights take no text, so --text would change nothing; leave it out, or give --weights that do.")


def _lgm_parameters(folder: Path | None, items: Sequence[ImageItem]) -> float:
    """How many numbers LGM and its pipeline hold; 0 where the weights are not LGM's.

    Raises `InputError` where it would need a multiview pipeline and there is none.
    """
    from diffusion.lgm_checkpoint import find_lgm, holds_lgm
    from diffusion.lgm_to_3d import multiview_folder

    if folder is None or not holds_lgm(folder):
        return 0.0
    beside = multiview_folder(folder)
    if not beside.is_dir() and any(len(item.pictures) == 1 for item in items):
        raise InputError(
            f"LGM makes an object of four pictures, and {beside}, the multiview pipeline that makes four of one, is not there; "
            "put one there (docs/public-checkpoints.md), or give four pictures with --views."
        )
    files = [find_lgm(folder), *beside.rglob("*.safetensors")]
    return sum(file.stat().st_size for file in files) / 2  # in half precision on disk


def load_generator(folder: Path | None, device: str) -> ImageGenerator:
    """The shipped network, or the one in `folder`: another of ours, or LGM's (docs/public-checkpoints.md)."""
    from diffusion.image_to_3d import ImageTo3D
    from diffusion.lgm_checkpoint import PICKLES, find_lgm, holds_lgm
    from diffusion.lgm_to_3d import LgmTo3D

    if folder is not None and holds_lgm(folder):
        return LgmTo3D.load(folder, device)
    if folder is not None and folder.is_dir() and any(file.suffix in PICKLES for file in folder.iterdir()):
        find_lgm(folder)  # raises, with what to do about pickles
    return ImageTo3D.load(folder, device)


def read_pictures(plan: ImagePlan, item: ImageItem) -> tuple[Picture, ...]:
    """The pictures of one object with their subjects cut out. Raises `InputError`; writes nothing."""
    from splat.io.images import MAX_PIXELS

    options, side = plan.options, plan.preset.refine_side
    pixels = min(MAX_PIXELS, decodable_pixels(memory_budget(options.memory_budget)))
    rows = zip(item.pictures, item.masks, item.azimuths_deg, item.elevations_deg, strict=True)
    alone = len(item.pictures) == 1
    return tuple(
        read_picture(
            path, mask, azimuth, elevation, options.matting, side=side, max_pixels=pixels, fov_deg=options.fov, alone=alone
        )
        for path, mask, azimuth, elevation in rows
    )


def image_to_scene(
    plan: ImagePlan,
    item: ImageItem,
    generator: ImageGenerator,
    pictures: tuple[Picture, ...] | None = None,
    loading: Sequence[StageCost] = (),
) -> Generator[Progress, None, Outcome]:
    """One object to a result folder at `item.out`; closing the generator leaves a resumable state.

    Yields the stages picture, those of the generator, fit, mesh, turntable and files. `pictures` are those of
    `read_pictures` where they have been read already, `loading` what it cost to load the generator, if this object shall
    pay. Raises `InputError` before anything is written, `StoppedLate` after that, with the state kept in OUT.partial.
    """
    torch.set_num_threads(plan.place.threads)
    watch, notices = Stopwatch("picture"), Notices()
    try:
        with notices:
            yield Progress("picture", 0, 1)
            pictures = pictures or read_pictures(plan, item)
            notices.add(*(sentence for picture in pictures for sentence in picture.warnings))
            notices.add(*plan.place.fallbacks)
            work = begin(item.out, _job(plan, item, pictures), resume=plan.options.resume)
            watch.go_on_from(costs_so_far(work) or list(loading))
            job = _object_work(plan, item, generator, pictures, work, watch, notices)
            try:
                with disk_errors_as_sentences(item.out), late_errors(REMEDY):
                    return (yield from noted(job, watch, notices))
            finally:
                work.close()
    finally:
        watch.stop()


def _object_work(
    plan: ImagePlan,
    item: ImageItem,
    generator: ImageGenerator,
    pictures: tuple[Picture, ...],
    work: WorkFolder,
    watch: Stopwatch,
    notices: Notices,
) -> Generator[Progress, None, Outcome]:
    yield Progress("picture", 1, 1, pictures[0].way, preview=pictures[0].subject.on())
    preset, drawing, refine_config = plan.preset, plan.drawing, _refine_config(plan)
    save_stage(work.state / "subjects.safetensors", [picture.subject for picture in pictures])  # for `app.refine_image`
    generated = yield from _saved("generated", _generated(plan, generator, pictures), work, watch)
    refined = None
    splats = generated
    if refine_config.steps:
        subjects = [picture.subject for picture in pictures]
        state = work.state / "fit_checkpoint.safetensors"
        refined = yield from _saved("refined", _refined(generated, subjects, refine_config, state), work, watch)
        splats = refined.splats
    mesh, no_mesh = yield from closed_mesh(splats, preset)
    notices.add(*no_mesh)
    quality, rows = _front(plan, splats, pictures)
    yield from write_pictures(work.result, splats, mesh, preset, drawing, rows)
    yield Progress("files", 0, 1)
    write_scene(work.result, splats, mesh, preset.turntable_side, [(p.name, p.camera) for p in pictures])
    _write_input(work.result / "input.png", pictures[0].subject)
    job = _job(plan, item, pictures)
    configs = {"image": job, "sample": plan.sample, "refine": refine_config, "mesh": closed_mesh_plan(preset), "preset": preset}
    plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in configs.items()}
    write_atomic(work.result / "config.json", json.dumps(plain, indent=1).encode())
    watch.split()
    warnings = [*(sentence for picture in pictures for sentence in picture.warnings), *no_mesh]
    report = write_report(
        Report(
            command="image",
            inputs=[InputFile(picture.name, picture.sha256, True, None) for picture in pictures],
            scale="arbitrary",
            result_from_input=Similarity(torch.eye(3), torch.zeros(3), 1.0),
            seed=plan.options.seed,
            device=plan.place.device,
            backend=plan.place.renderer,
            gaussians=len(splats),
            mesh_faces=0 if mesh is None else len(mesh.faces),
            stages=list(watch.costs.values()),
            train=quality,
            holdout=None,
            warnings=warnings,
            fallbacks=[sentence for sentence in notices.sentences if sentence not in warnings],
            licences=stated_licences(generator.licences, "image to 3-D, objects learnt from"),
            image={
                "pictures": [picture.facts for picture in pictures],
                "steps": plan.sample.steps,
                "guidance": plan.sample.guidance,
                "temperature": plan.sample.temperature,
                "plan": plan.sample.plan,
                "refined": None
                if refined is None
                else {
                    "steps": refine_config.steps,
                    "psnr_before": refined.psnr_before,
                    "psnr_after": refined.psnr_after,
                },
            },
        ),
        work.result / "report.json",
    )
    work.publish(keep_state=not plan.options.compact)
    yield Progress("files", 1, 1, f"{item.out} is complete")
    return Outcome(item.out, report)


def _saved(
    name: str, stage: Generator[Progress, None, Any], work: WorkFolder, watch: Stopwatch
) -> Generator[Progress, None, Any]:
    """What `stage` returns, always from its file, so that a resumed run computes with the same bits as an undisturbed one."""
    from diffusion.refine_object import Refined
    from splat.gaussians import Splats

    path = work.state / f"{name}.safetensors"
    if path.exists():
        stage.close()
        yield Progress(name, 1, 1, "taken from the unfinished run")
    else:
        result = yield from stage
        save_stage(path, result)
        watch.split()
        write_atomic(work.state / "costs.json", json.dumps([dataclasses.asdict(c) for c in watch.costs.values()]).encode())
    return load_stage(path, (Splats, Refined))


def _generated(plan: ImagePlan, generator: ImageGenerator, pictures: tuple[Picture, ...]) -> Generator[Progress, None, Splats]:
    subjects = [picture.framed(generator.side) for picture in pictures]
    made = yield from generator.generate(subjects, plan.options.seed, plan.sample)
    from diffusion.camera_distance import scaled_for_its_camera

    splats = scaled_for_its_camera(made.splats.detach().to("cpu"), pictures[0].subject, plan.place.threads)
    if not bool((splats.opacities > VISIBLE).any()):
        raise StoppedLate(f"Nothing that can be seen came out for {pictures[0].name}; give another --seed or another picture.")
    return splats


def _refined(splats: Splats, subjects: list[Subject], config: RefineConfig, state: Path) -> Generator[Progress, None, Any]:
    from diffusion.refine_object import refine_object

    return (yield from refine_object(splats, subjects, config, state))


def _refine_config(plan: ImagePlan) -> RefineConfig:
    from diffusion.refine_object import RefineConfig

    return RefineConfig(
        steps=plan.preset.refine_steps,
        max_gaussians=plan.preset.max_gaussians,
        threads=plan.place.threads,
        backend=plan.place.renderer,
        seed=plan.options.seed,
    )


def _front(plan: ImagePlan, splats: Splats, pictures: tuple[Picture, ...]) -> tuple[Quality, list]:
    """How well the pictures are met in their frames, and the first row of preview.png: pictures, and renders in their place."""
    from splat.metrics import psnr, ssim

    values = []
    for picture in pictures:
        (drawn,) = Drawing((1.0, 1.0, 1.0), plan.place.threads).of(splats, picture.subject.cameras())
        values.append((float(psnr(drawn, picture.subject.on())), float(ssim(drawn, picture.subject.on()))))
    quality = Quality(*(sum(v) / len(values) for v in zip(*values, strict=True)), None, len(values))
    shown = [picture.shown for picture in pictures[:3]]
    fronts = [next(plan.drawing.of(splats, p.camera.resized(s.shape[1], s.shape[0]))) for p, s in zip(pictures, shown)]
    row = [cell for pair in zip(shown, fronts, strict=True) for cell in pair]
    return quality, [("pictures, each beside its view of the splats" if len(pictures) > 1 else "picture, splats", row)]


def _write_input(path: Path, subject: Subject) -> None:
    from splat.io.images import save_image

    save_image(path, torch.cat([subject.image, subject.alpha[..., None]], dim=-1))


def _items(options: Image) -> tuple[tuple[ImageItem, ...], list[str]]:
    """The objects to make, and sentences about files that are passed over."""
    if not options.views:
        if options.azimuths:
            raise InputError("--azimuths says where pictures of one object were taken from; give --views with it.")
        if options.elevations:
            raise InputError("--elevations is for several pictures of one object; give --elevation, or --views with it.")
        found = find_files(options.inputs, SUFFIXES)
        names = folder_names(found.files)
        items = tuple(
            ImageItem((file,), (mask_of(file, options.mask),), (0.0,), (options.elevation,), Path(options.out) / names[file])
            for file in found.files
        )
        if len(items) > 1 and options.mask is not None and Path(options.mask).is_file():
            raise InputError(
                f"--mask {options.mask} is one mask for {len(items)} pictures; give a folder of masks named like them."
            )
        ignored = len(found.ignored)
        return items, [f"{ignored} files that are no pictures were left out ({found.ignored[0]})."] if ignored else []
    plain = all(Path(path).is_file() for path in options.inputs)  # in the order given: it says where they were taken
    files = (
        tuple(dict.fromkeys(map(Path, options.inputs)))
        if plain and options.inputs
        else find_files(options.inputs, SUFFIXES).files
    )
    if len(files) > MOST_VIEWS:
        raise InputError(f"{len(files)} pictures of one object were given; choose at most {MOST_VIEWS} of them.")
    azimuths = options.azimuths or tuple(360.0 * i / len(files) for i in range(len(files)))
    if len(azimuths) != len(files):
        raise InputError(f"--azimuths has {len(azimuths)} angles for {len(files)} pictures; give one for each, the first 0.")
    if azimuths[0] != 0 or not all(math.isfinite(a) for a in azimuths):
        raise InputError(f"--azimuths {' '.join(f'{a:g}' for a in azimuths)} must be numbers that begin with 0, the front.")
    elevations = options.elevations or (options.elevation,) * len(files)
    if len(elevations) != len(files):
        raise InputError(f"--elevations has {len(elevations)} angles for {len(files)} pictures; give one for each.")
    if options.mask is not None and Path(options.mask).is_file() and len(files) > 1:
        raise InputError(
            f"--mask {options.mask} is one mask for {len(files)} pictures; give a folder of masks named like them."
        )
    masks = tuple(mask_of(file, options.mask) for file in files)
    name = folder_names(files[:1])[files[0]]
    return (ImageItem(files, masks, azimuths, elevations, Path(options.out) / name),), []


def _complete(options: Image, items: tuple[ImageItem, ...]) -> frozenset[Path]:
    out = Path(options.out)
    if is_complete(out):
        raise InputError(f"{out} is a result itself; give a folder for the results of this run as --out.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder as --out.")
    return frozenset(item.out for item in items if check_out(item.out, resume=options.resume, overwrite=options.overwrite))


def _job(plan: ImagePlan, item: ImageItem, pictures: tuple[Picture, ...]) -> dict[str, Any]:
    """What two runs must share to be one run that continues."""
    options = plan.options
    return {
        "command": "image",
        "version": importlib.metadata.version("splatsmith"),
        "inputs": [[picture.name, picture.sha256, picture.mask_sha256] for picture in pictures],
        "azimuths": list(item.azimuths_deg),
        "elevations": [picture.subject.elevation_deg for picture in pictures],
        "distance": pictures[0].subject.distance,
        "matting": None if options.matting is None else str(options.matting.absolute()),
        "seed": options.seed,
        "preset": options.preset,
        "refine": plan.preset.refine_steps,
        **{name: value for name, value in dataclasses.asdict(plan.sample).items() if name != "threads"},
        "background": options.background,
        "weights": weights_of(options.weights),
        "device": plan.place.device,
        "renderer": plan.place.renderer,
    }
