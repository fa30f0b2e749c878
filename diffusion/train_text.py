"""Every weight of text to 3-D, rebuilt from a folder of objects: six steps in one work folder, which can be cut and resumed.

    volumes/     1 volumes: a fitted volume of every object
    bank/        2 bank: coarse fields of the objects and their variants, captions and their features
    shape/       3 shape: the codec and the denoiser of its latents
    detail/      4 detail: the upsampler of fields
    attributes/  5 attributes: the attribute predictor
    weights/     6 pack: all networks in half precision, as `TextToVolume.load` reads them

Steps 1 and 2 want processor cores and need the objects; steps 3 to 5 train on any device and need the work folder alone.
In place of 3 to 6 there are GVGEN's own networks on the dense grid (`train_dense`): dense-field, dense-attributes, dense-pack.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError

from diffusion import train_dense
from diffusion.attribution import attribution
from diffusion.data.object_set import ObjectSet, licensed
from diffusion.field_bank import BankConfig, FieldBank, build_bank, open_bank
from diffusion.field_codec import FieldCodec
from diffusion.fit_volume import VolumeFitConfig
from diffusion.fit_volumes import fit_volumes
from diffusion.models.attribute_predictor import AttributePredictor
from diffusion.models.latent_denoiser import LatentDenoiser
from diffusion.models.volume_unet import VolumeUNet
from diffusion.text_encoder import ClipConfig, TextConfig, load_text_encoder
from diffusion.text_sheets import SHEET_PROMPTS, attribute_sheet, prompt_sheet, upsampler_sheet
from diffusion.text_stages import AttributeStage, DetailStage, ShapeStage, Stage
from diffusion.text_to_volume import save_text_weights
from diffusion.train_attributes import (
    AttributeTrainConfig,
    FineExamples,
    UpsamplerTrainConfig,
    new_predictor,
    through_upsampler,
    train_attributes,
    train_upsampler,
)
from diffusion.train_dense import DenseAttributeTrainConfig, DenseConfig
from diffusion.train_field import FieldTrainConfig
from diffusion.train_latents import LatentTrainConfig, learn_codec, train_latents
from diffusion.vocabulary import learn_vocabulary
from diffusion.work_folder import begun, check_bank, made, network_of, saved
from splat.errors import InputError
from splat.io.atomic import atomically
from splat.mesh import Mesh
from splat.progress import Progress

log = logging.getLogger(__name__)

STEPS = ("volumes", "bank", "shape", "detail", "attributes", "pack")
NETWORKS = ("shape", "detail", "attributes")  # the steps that train one
DENSE_STEPS = (*train_dense.STEPS, "dense-pack")


@dataclass(frozen=True)
class TextTrainConfig:
    """What all steps share, and the configs of each."""

    minutes: float = 0.0  # of this sitting; 0 has no limit
    workers: int = 1  # processes of steps 1 and 2
    device: str = "cpu"
    text: TextConfig | None = None  # who reads the sentences, the same in every step; None is MiniLM
    presumed_licences: bool = False  # also learn from objects whose licence is missing or only presumed
    volumes: VolumeFitConfig = VolumeFitConfig(steps=150, views=24, view_side=96)  # noqa: RUF009 (frozen)
    bank: BankConfig = field(default_factory=BankConfig)
    shape: LatentTrainConfig = field(default_factory=LatentTrainConfig)
    detail: UpsamplerTrainConfig = field(default_factory=UpsamplerTrainConfig)
    attributes: AttributeTrainConfig = field(default_factory=AttributeTrainConfig)
    dense_field: FieldTrainConfig = field(default_factory=lambda: train_dense.SMALL.field)
    dense_attributes: DenseAttributeTrainConfig = field(default_factory=lambda: train_dense.SMALL.attributes)


def train_text(step: str, work: Path, objects: Path | None, config: TextTrainConfig) -> Generator[Progress, None, Path]:
    """Run one of `STEPS` or `DENSE_STEPS` in the folder `work` and return what it wrote.

    `objects` as for `open_objects`; steps 1 and 2 need it. Raises InputError when an earlier step's result is missing, with
    its name.
    """
    if step not in (*STEPS, *DENSE_STEPS):
        raise InputError(f"There is no step {step!r}; choose one of {', '.join((*STEPS, *DENSE_STEPS))}.")
    if step in ("volumes", "bank"):
        return (yield from _from_objects(step, work, objects, config))
    bank = open_bank(made(work, "bank"))
    learnt = train_dense.STEPS if step in DENSE_STEPS else NETWORKS
    check_bank(bank, work, learnt[: learnt.index(step) + 1] if step in learnt else learnt)
    if step == "dense-pack":
        own = config.dense_attributes
        return _pack(bank, train_dense.dense_stages(work, own.unet), work / "dense-weights", config.text, own.view_side)
    if step in train_dense.STEPS:
        made(work, "volumes")
        dense = DenseConfig(config.dense_field, config.dense_attributes)
        return (yield from train_dense.train_dense(step, bank, work, dense, config.minutes, config.text, config.device))
    if step == "shape":
        return (yield from _shape(bank, work, config))
    codec = load_codec(made(work, "shape") / "codec.safetensors")
    if step == "pack":
        return _pack(bank, load_stages(work), work / "weights", config.text, config.attributes.view_side)
    examples = FineExamples(bank, made(work, "volumes"), "train")
    if step == "detail":
        own = replace(config.detail, loop=replace(config.detail.loop, minutes=config.minutes))
        sheet = upsampler_sheet(bank, work / "volumes", codec)
        network = yield from train_upsampler(examples, codec, own, begun(bank, work, step), sheet, config.device)
        return saved(network, work / "detail")
    own = replace(config.attributes, loop=replace(config.attributes.loop, minutes=config.minutes))
    upsampler, network = network_of(VolumeUNet, work, "detail"), new_predictor(examples, own)
    before = through_upsampler(examples, codec, upsampler, own.noise, config.device)
    sheet = attribute_sheet(
        bank, work / "volumes", lambda shown: through_upsampler(shown, codec, upsampler, 0.0, config.device)
    )
    folder = begun(bank, work, step)
    return saved((yield from train_attributes(examples, network, before, own, folder, sheet, config.device)), folder)


def _from_objects(step: str, work: Path, objects: Path | None, config: TextTrainConfig) -> Generator[Progress, None, Path]:
    if objects is None:
        raise InputError(f"The step {step!r} reads the objects; give their folder.")
    chosen = licensed(objects, config.presumed_licences)
    if step == "volumes":
        yield from fit_volumes(_named(chosen), work / "volumes", config.volumes, config.workers, len(chosen))
        return work / "volumes"
    encoder = load_text_encoder(config.text, config.device)
    yield from build_bank(chosen, made(work, "volumes"), work / "bank", encoder, config.bank, config.workers)
    return work / "bank"


def _named(objects: ObjectSet) -> Iterator[tuple[str, Mesh]]:
    """Keys and meshes; an object whose file does not load is told and left out."""
    for row, facts in enumerate(objects.facts):
        try:
            mesh = objects[row]
        except InputError as error:
            log.warning("%s is left out: %s", facts.key, error)
            continue
        yield facts.key, mesh


def _shape(bank: FieldBank, work: Path, config: TextTrainConfig) -> Generator[Progress, None, Path]:
    folder = begun(bank, work, "shape")
    if (folder / "codec.safetensors").exists():
        codec = load_codec(folder / "codec.safetensors")
    else:
        yield Progress("codec", 0, 1)
        codec = learn_codec(bank, config.shape.dimensions, config.shape.loop.seed)
        save_codec(folder / "codec.safetensors", codec)
    own = replace(config.shape, loop=replace(config.shape.loop, minutes=config.minutes))
    there = codec.to(config.device)
    sheet = prompt_sheet(lambda n: ShapeStage(n, there), load_text_encoder(config.text), SHEET_PROMPTS, config.device)
    return saved((yield from train_latents(bank, codec, own, folder, sheet, config.device)), folder)


def load_stages(work: Path) -> tuple[ShapeStage, DetailStage, AttributeStage]:
    """The networks of a work folder, before they are packed."""
    codec = load_codec(made(work, "shape") / "codec.safetensors")
    return (
        ShapeStage(network_of(LatentDenoiser, work, "shape"), codec),
        DetailStage(network_of(VolumeUNet, work, "detail")),
        AttributeStage(network_of(AttributePredictor, work, "attributes")),
    )


def save_codec(path: Path, codec: FieldCodec) -> None:
    """Whole or not at all, in float32: what later steps train with."""
    from safetensors.torch import save_file

    tables = {"mean": codec.mean, "basis": codec.basis.contiguous(), "scales": codec.scales.contiguous()}
    about = {"resolution": str(codec.resolution), "limit": str(codec.limit)}
    with atomically(path) as temporary:
        save_file(tables, str(temporary), metadata=about)


def load_codec(path: Path) -> FieldCodec:
    """Raises InputError when it is missing or damaged."""
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as f:
            about = f.metadata()
            tables = [f.get_tensor(k) for k in ("mean", "basis", "scales")]
        return FieldCodec(*tables, int(about["resolution"]), float(about["limit"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no codec ({error}); run the step 'shape' first.") from error


def _pack(bank: FieldBank, stages: Sequence[Stage], folder: Path, text: TextConfig | None, view_side: int) -> Path:
    learnt = [i for i, split in enumerate(bank.splits) if split == "train"]
    names = sorted({words[i] for i in learnt for words in (bank.names, bank.nouns)})
    vocabulary = learn_vocabulary(load_text_encoder(text), names)
    facts = {"objects": len(learnt), "examples": len(bank.examples("train")), "view_side": view_side}
    if isinstance(text, ClipConfig):
        facts["clip_max_tokens"] = text.max_tokens
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ATTRIBUTION.md").write_text(attribution(bank), encoding="utf-8")
    save_text_weights(folder, stages, vocabulary, sorted({bank.licences[i] for i in learnt}), facts)
    return folder
