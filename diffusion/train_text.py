"""Every weight of text to 3-D, rebuilt from a folder of objects: six steps in one work folder, which can be cut and resumed.

    volumes/     1 volumes: a fitted volume of every object
    bank/        2 bank: coarse fields of the objects and their variants, captions and their features
    shape/       3 shape: the codec and the denoiser of its latents
    detail/      4 detail: the upsampler of fields
    attributes/  5 attributes: the attribute predictor
    weights/     6 pack: all networks in half precision, as `TextToVolume.load` reads them

Steps 1 and 2 want processor cores and need the objects; steps 3 to 5 train on any device and need the work folder alone.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import Tensor, nn

from diffusion.attribution import attribution
from diffusion.data.object_set import licensed
from diffusion.field_bank import BankConfig, FieldBank, build_bank, open_bank
from diffusion.field_codec import FieldCodec
from diffusion.fit_volume import VolumeFitConfig
from diffusion.fit_volumes import fit_volumes
from diffusion.models.attribute_predictor import AttributePredictor
from diffusion.models.latent_denoiser import LatentDenoiser
from diffusion.models.volume_unet import VolumeUNet
from diffusion.text_config import TextSampleConfig
from diffusion.text_encoder import ClipConfig, TextConfig, load_text_encoder
from diffusion.text_sheets import attribute_sheet, drawn, sheet_of, upsampler_sheet
from diffusion.text_stages import AttributeStage, DetailStage, Draft, ShapeStage
from diffusion.text_to_volume import save_text_weights
from diffusion.train_attributes import (
    AttributeTrainConfig,
    FineExamples,
    UpsamplerTrainConfig,
    train_attributes,
    train_upsampler,
)
from diffusion.train_latents import LatentTrainConfig, learn_codec, train_latents
from diffusion.vocabulary import learn_vocabulary
from diffusion.weights_folder import FROM_DISK
from splat.errors import InputError
from splat.io.atomic import atomically
from splat.progress import Progress

STEPS = ("volumes", "bank", "shape", "detail", "attributes", "pack")
NETWORKS = ("shape", "detail", "attributes")  # the steps that train one
LEARNT_FROM = "learnt_from.json"  # in their folders: which bank
SHEET_PROMPTS = (
    "a red chair", "a green tree", "a wooden table", "a street lamp", "a sword", "a blue car", "a house with a red roof",
    "an orange pumpkin", "a yellow banana", "a white bed", "a knight", "a black sofa", "a purple mushroom", "a grey rock",
    "a spaceship", "a brown barrel",
)  # fmt: skip


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


def train_text(step: str, work: Path, objects: Path | None, config: TextTrainConfig) -> Generator[Progress, None, Path]:
    """Run one of `STEPS` in the folder `work` and return what it wrote. `objects` as for `open_objects`; steps 1 and 2 need it.

    Raises InputError when an earlier step's result is missing, with its name.
    """
    if step not in STEPS:
        raise InputError(f"There is no step {step!r}; choose one of {', '.join(STEPS)}.")
    if step in ("volumes", "bank"):
        if objects is None:
            raise InputError(f"The step {step!r} reads the objects; give their folder.")
        chosen = licensed(objects, config.presumed_licences)
        if step == "volumes":
            named = ((facts.key, chosen[row]) for row, facts in enumerate(chosen.facts))
            yield from fit_volumes(named, work / "volumes", config.volumes, config.workers, len(chosen))
            return work / "volumes"
        yield from build_bank(
            chosen, _made(work, "volumes"), work / "bank", load_text_encoder(config.text), config.bank, config.workers
        )
        return work / "bank"
    bank = open_bank(_made(work, "bank"))
    _check_bank(bank, work, step)
    if step == "shape":
        return (yield from _shape(bank, work, config))
    codec = load_codec(_made(work, "shape") / "codec.safetensors")
    if step == "pack":
        return _pack(bank, codec, work, config.text)
    examples = FineExamples(bank, _made(work, "volumes"), "train")
    if step == "detail":
        own = replace(config.detail, loop=replace(config.detail.loop, minutes=config.minutes))
        sheet = upsampler_sheet(bank, work / "volumes", codec)
        network = yield from train_upsampler(examples, codec, own, _begun(bank, work, step), sheet, config.device)
        return _saved(network, work / "detail")
    upsampler = _network(VolumeUNet, work, "detail")
    own = replace(config.attributes, loop=replace(config.attributes.loop, minutes=config.minutes))
    sheet = attribute_sheet(bank, work / "volumes", codec, upsampler)
    network = yield from train_attributes(examples, codec, upsampler, own, _begun(bank, work, step), sheet, config.device)
    return _saved(network, work / "attributes")


def _shape(bank: FieldBank, work: Path, config: TextTrainConfig) -> Generator[Progress, None, Path]:
    path = _begun(bank, work, "shape") / "codec.safetensors"
    if path.exists():
        codec = load_codec(path)
    else:
        yield Progress("codec", 0, 1)
        codec = learn_codec(bank, config.shape.dimensions, config.shape.loop.seed)
        save_codec(path, codec)
    encoder = load_text_encoder(config.text)
    own = replace(config.shape, loop=replace(config.shape.loop, minutes=config.minutes))

    def sheet(network: LatentDenoiser) -> tuple[Tensor, dict[str, float]]:
        stage = ShapeStage(network.to("cpu"), codec)
        drafts = [Draft(encoder.encode([p]), seed) for seed, p in enumerate(SHEET_PROMPTS)]
        made = [stage(draft, TextSampleConfig()) for draft in drafts]
        network.to(config.device)
        pictures = sheet_of(drawn([draft.splats() for draft in made]))
        return pictures, {"agreement": sum(stage.agreement(d) for d in made) / len(made)}

    network = yield from train_latents(bank, codec, own, work / "shape", sheet, config.device)
    return _saved(network, work / "shape")


def load_stages(work: Path) -> tuple[ShapeStage, DetailStage, AttributeStage]:
    """The networks of a work folder, before they are packed."""
    codec = load_codec(_made(work, "shape") / "codec.safetensors")
    return (
        ShapeStage(_network(LatentDenoiser, work, "shape"), codec),
        DetailStage(_network(VolumeUNet, work, "detail")),
        AttributeStage(_network(AttributePredictor, work, "attributes")),
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


def _check_bank(bank: FieldBank, work: Path, step: str) -> None:
    """Raises InputError where `step`, or one before it, learnt from another bank."""
    for name in NETWORKS if step == "pack" else NETWORKS[: NETWORKS.index(step) + 1]:
        path = work / name / LEARNT_FROM
        if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["bank"] != bank.fingerprint:
            raise InputError(
                f"{work / 'bank'} was built again, with other contents, after {work / name} had learnt from it; "
                f"remove {work / name} and run the step {name!r} again."
            )


def _begun(bank: FieldBank, work: Path, step: str) -> Path:
    """The folder of a step that learns from this bank from now on."""
    (work / step).mkdir(parents=True, exist_ok=True)
    with atomically(work / step / LEARNT_FROM) as temporary:
        temporary.write_text(json.dumps({"bank": bank.fingerprint}), encoding="utf-8")
    return work / step


def _pack(bank: FieldBank, codec: FieldCodec, work: Path, text: TextConfig | None) -> Path:
    shape, detail, attributes = load_stages(work)
    learnt = [i for i, split in enumerate(bank.splits) if split == "train"]
    names = sorted({words[i] for i in learnt for words in (bank.names, bank.nouns)})
    vocabulary = learn_vocabulary(load_text_encoder(text), names)
    networks = {"denoiser": shape.denoiser, "upsampler": detail.upsampler, "attributes": attributes.predictor}
    facts = {"objects": len(learnt), "examples": len(bank.examples("train"))}
    if isinstance(text, ClipConfig):
        facts["clip_max_tokens"] = text.max_tokens
    (work / "weights").mkdir(parents=True, exist_ok=True)
    (work / "weights" / "ATTRIBUTION.md").write_text(attribution(bank), encoding="utf-8")
    save_text_weights(work / "weights", codec, vocabulary, networks, sorted({bank.licences[i] for i in learnt}), facts)
    return work / "weights"


def _saved(network: nn.Module, folder: Path) -> Path:
    network.to("cpu").save_pretrained(folder / "network", safe_serialization=True)
    return folder / "network"


def _made(work: Path, step: str) -> Path:
    if not (work / step).is_dir():
        raise InputError(f"{work} has no {step}/; run the step {step!r} first.")
    return work / step


def _network(kind: type[ModelMixin], work: Path, step: str) -> ModelMixin:
    """What the last sitting of `step` wrote at its end; one that was cut before wrote its state alone."""
    folder = _made(work, step) / "network"
    try:
        return kind.from_pretrained(folder, **FROM_DISK).eval()
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        told = f"{folder} holds no network that loads ({reason})"
        raise InputError(f"{told}; run the step {step!r} to the end of a sitting.") from error
