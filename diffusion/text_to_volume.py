"""A sentence in, a volume of Gaussians out: the shipped networks put together, and how they are kept on disk.

A folder of weights (`weights_folder`) says which stages it is for, and holds licences and training facts, the vocabulary, the
networks of each stage, and the first one's codec where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.data.object_views import renderers_blur
from diffusion.field import FIELD_CHANNELS
from diffusion.field_codec import FieldCodec, from_bytes, to_bytes
from diffusion.models.attribute_predictor import AttributePredictor
from diffusion.models.dense_attributes import DenseAttributes
from diffusion.models.field_denoiser import FieldDenoiser
from diffusion.models.latent_denoiser import LatentDenoiser
from diffusion.models.volume_unet import VolumeUNet
from diffusion.text_config import VIEW_SIDE, TextSampleConfig
from diffusion.text_encoder import ClipConfig, TextEncoder, load_text_encoder
from diffusion.text_stages import AttributeStage, DetailStage, Draft, FieldStage, ShapeStage, Stage
from diffusion.vocabulary import Vocabulary
from diffusion.volume import SplatVolume
from diffusion.weights_folder import BROKEN, FROM_DISK, claim, damaged, read_about, save_network, shipped, write_about
from splat.errors import InputError
from splat.gaussians import Splats
from splat.io.atomic import atomically
from splat.progress import Progress

FORMAT = "splatsmith text 1"
COARSE_TO_FINE = ("ShapeStage", "DetailStage", "AttributeStage")  # also of weights that do not say
DENSE = ("FieldStage", "AttributeStage")
NETWORKS = {
    COARSE_TO_FINE: {"denoiser": LatentDenoiser, "upsampler": VolumeUNet, "attributes": AttributePredictor},
    DENSE: {"denoiser": FieldDenoiser, "attributes": DenseAttributes},
}
WHAT = "text to 3-D"
PREVIEW_SIDE = 192  # px


@dataclass(frozen=True)
class TextSamples:
    """One cube per prompt."""

    volumes: SplatVolume
    agreement: Tensor  # [B] how much better the text explains the shape than no text: higher is better


@dataclass(frozen=True)
class TextToVolume:
    """The stages from coarse to fine, with the text encoder they were trained with."""

    stages: tuple[Stage, ...]
    encoder: TextEncoder
    vocabulary: Vocabulary
    licences: tuple[str, ...]
    facts: dict  # of weights.json

    @staticmethod
    def load(
        folder: Path | None = None, device: torch.device | str = "cpu", encoder: TextEncoder | None = None
    ) -> TextToVolume:
        """From a folder that `save_text_weights` wrote; None: the weights that ship with the package.

        Raises InputError when a file is missing, damaged, altered or of another shape, with the remedy.
        """
        folder = Path(folder) if folder is not None else shipped_weights()
        facts = read_about(folder, FORMAT, ["tables.safetensors"], WHAT)
        try:
            names = tuple(facts.get("stages", COARSE_TO_FINE))
            if names not in NETWORKS:
                raise ValueError(f"its stages are {', '.join(map(str, names))}, which this version does not know")
            missing = [name for name in NETWORKS[names] if f"{name}/config.json" not in facts["files"]]
            if missing:
                raise ValueError(f"it does not list {', '.join(f'{name}/config.json' for name in missing)}")
            tables = load_file(folder / "tables.safetensors")
            vocabulary = _vocabulary(tables, facts)
            networks = {
                name: kind.from_pretrained(folder / name, **FROM_DISK).float().eval() for name, kind in NETWORKS[names].items()
            }
            stages = _stages(names, networks, tables, facts, device)
            _check_text_widths(vocabulary, networks)
            licences = tuple(str(x) for x in facts["licences"])
        except BROKEN as error:
            raise damaged(folder, WHAT, error) from error
        for network in networks.values():
            network.to(device)
        encoder = encoder or _encoder(folder, facts["facts"], device)
        _check_text(folder, encoder, (networks["denoiser"].config.text_dim, vocabulary.directions.shape[-1]))
        return TextToVolume(stages, encoder, vocabulary, licences, facts)

    @property
    def blur(self) -> float:
        """What the Gaussians lack in width, world units, for `Splats.widened`."""
        return missing_width(self.facts)

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], config: TextSampleConfig, start: Splats | None = None
    ) -> Generator[Progress, None, TextSamples]:
        """One cube per (prompt, seed); it depends on those and `config` alone, not on what else is asked for.

        With `start`, Gaussians on the surface of an object in the unit cube, the shape starts from its distance field with
        noise of `config.strength` in place of from noise alone (SDEdit, Meng et al. 2022).

        Yields `Progress(stage, done, total)` with the names of the stages ("shape", "detail" and "attributes" of the shipped
        weights), each with a preview [H, W, 3].
        """
        if len(prompts) != len(seeds) or not prompts:
            raise InputError(f"{len(prompts)} prompts and {len(seeds)} seeds were given; give one seed to each prompt.")
        volumes, agreement = [], []
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            draft = Draft(self.encoder.encode([prompt]), int(seed))
            if start is not None:
                draft = self.stages[0].started_from(draft, start.means.cpu(), start.rgb.clamp(0, 1).cpu())
            for stage in self.stages:
                draft = stage(draft, config)
                yield Progress(stage.name, i + 1, len(prompts), note=prompt, preview=_preview(draft, config.threads))
            volumes.append(draft.volume.to("cpu"))
            agreement.append(self.stages[0].agreement(draft))
        return TextSamples(SplatVolume.cat(volumes), torch.tensor(agreement))


def missing_width(facts: dict) -> float:
    """What Gaussians made by weights whose weights.json holds `facts` lack in width, world units.

    They were learnt from pictures of `view_side` px in which the renderer blurred them; seen larger, they show gaps. Three
    quarters of that blur are best, measured on validation objects at 128 and 256 px: what is seen is nearer than the middle,
    and every viewer blurs a little by itself.
    """
    return 0.75 * renderers_blur(int(facts["facts"].get("view_side", VIEW_SIDE)))


def _encoder(folder: Path, facts: dict, device: torch.device | str) -> TextEncoder:
    """The one that the networks were trained with: MiniLM, or CLIP from `folder`/clip."""
    if "clip_max_tokens" not in facts:
        return load_text_encoder(device=device)
    if not (folder / "clip").is_dir():
        raise InputError(
            f"The weights in {folder} read sentences with CLIP, and {folder / 'clip'} is not there; put the CLIP folder that "
            "they were trained with, or a link to it, in that place."
        )
    return load_text_encoder(ClipConfig(folder / "clip", int(facts["clip_max_tokens"])), device)


def _check_text(folder: Path, encoder: TextEncoder, read: tuple[int, int]) -> None:
    """Raises InputError for an encoder whose features, of tokens and pooled, are not as wide as what the networks read."""
    features = encoder.encode(["a"])
    own = (features.tokens.shape[2], features.pooled.shape[1])
    if own != read:
        raise InputError(
            f"The weights in {folder} read text features of {read[0]} and {read[1]} numbers, and the text encoder gives "
            f"{own[0]} and {own[1]}; use the encoder that they were trained with."
        )


def shipped_weights() -> Path:
    """Where the package has its own weights. Raises InputError when it has none."""
    return shipped("text", WHAT)


def save_text_weights(
    folder: Path, stages: Sequence[Stage], vocabulary: Vocabulary, licences: Sequence[str], facts: dict
) -> None:
    """Everything in half precision, and weights.json last: a folder with it is whole. `facts` is anything JSON holds."""
    names = tuple(type(stage).__name__ for stage in stages)
    assert names in NETWORKS, names
    claim(folder, FORMAT)
    tables = {"directions": vocabulary.directions.half().contiguous()}
    about = {"stages": list(names), "names": list(vocabulary.names), "licences": list(licences), "facts": facts}
    if names == COARSE_TO_FINE:
        codec = stages[0].codec
        rows, steps = zip(*(to_bytes(row) for row in codec.basis), strict=True)
        tables |= {
            "mean": codec.mean.half(), "basis": torch.stack(rows), "basis_steps": torch.stack(steps),
            "scales": codec.scales.contiguous(),
        }  # fmt: skip
        about |= {"resolution": codec.resolution, "limit": codec.limit}
        networks = {"denoiser": stages[0].denoiser, "upsampler": stages[1].upsampler, "attributes": stages[2].predictor}
    else:
        networks = {"denoiser": stages[0].denoiser, "attributes": stages[1].predictor}
    with atomically(folder / "tables.safetensors") as temporary:
        save_file(tables, str(temporary))
    for name, network in networks.items():
        save_network(network, folder / name)
    write_about(folder, FORMAT, about)


def _stages(
    names: tuple[str, ...], networks: dict[str, nn.Module], tables: dict[str, Tensor], facts: dict, device: torch.device | str
) -> tuple[Stage, ...]:
    """Each file may be what its hash says and still belong to another set: raises ValueError then."""
    if names == COARSE_TO_FINE:
        codec = _codec(tables, facts)
        _check_coarse_to_fine(codec, networks)
        return (
            ShapeStage(networks["denoiser"], codec.to(device)),
            DetailStage(networks["upsampler"]),
            AttributeStage(networks["attributes"]),
        )
    _check_dense(networks)
    return FieldStage(networks["denoiser"]), AttributeStage(networks["attributes"])


def _codec(t: dict[str, Tensor], facts: dict) -> FieldCodec:
    basis = from_bytes(t["basis"], t["basis_steps"][:, None])
    return FieldCodec(t["mean"].float(), basis, t["scales"], int(facts["resolution"]), float(facts["limit"]))


def _vocabulary(t: dict[str, Tensor], facts: dict) -> Vocabulary:
    names, directions = tuple(facts["names"]), nn.functional.normalize(t["directions"].float(), dim=-1)
    if not names or not all(isinstance(name, str) for name in names) or directions.shape[:-1] != (len(names),):
        raise ValueError(f"{len(names)} names and directions {tuple(directions.shape)}")
    return Vocabulary(names, directions)


def _check_coarse_to_fine(codec: FieldCodec, networks: dict[str, nn.Module]) -> None:
    shape, detail, attributes = (networks[name].config for name in NETWORKS[COARSE_TO_FINE])
    if not 0 < codec.limit < math.inf or not all(bool(x.isfinite().all()) for x in (codec.mean, codec.basis, codec.scales)):
        raise ValueError("the codec holds numbers that are none")
    if shape.dimensions != codec.dimensions:
        raise ValueError(f"a denoiser of {shape.dimensions} dimensions and a codec of {codec.dimensions}")
    if (detail.in_channels, detail.out_channels, detail.timed) != (FIELD_CHANNELS, FIELD_CHANNELS, False):
        raise ValueError("the upsampler is not one of fields")
    if attributes.resolution != codec.resolution * detail.finer:
        raise ValueError(f"attributes of {attributes.resolution}^3 nodes and fields of {codec.resolution * detail.finer}^3")


def _check_dense(networks: dict[str, nn.Module]) -> None:
    first, second = (networks[name].config for name in NETWORKS[DENSE])
    for what in ("resolution", "field_channels"):
        if first[what] != second[what]:
            raise ValueError(f"a denoiser with {what} {first[what]} and attributes with {second[what]}")
    if not bool((networks["denoiser"].std > 0).all()) or not bool(networks["denoiser"].mean.isfinite().all()):
        raise ValueError("the denoiser's mean field holds numbers that are none")


def _check_text_widths(vocabulary: Vocabulary, networks: dict[str, nn.Module]) -> None:
    configs = [network.config for network in networks.values()]
    tokens = {c.text_dim for c in configs if "text_dim" in c}
    pooled = {c.pooled_dim for c in configs if "pooled_dim" in c} | {vocabulary.directions.shape[-1]}
    if len(tokens) > 1 or len(pooled) > 1:
        raise ValueError(f"text features of different widths {sorted(tokens)} and {sorted(pooled)}")


@torch.no_grad()
def _preview(draft: Draft, threads: int | None) -> Tensor:
    from diffusion.data.object_views import input_camera
    from splat.render import RenderOptions, render

    options = RenderOptions(background=torch.ones(3), threads=threads)
    return render(draft.splats().to("cpu"), input_camera(PREVIEW_SIDE), options).rgb[0].clamp(0, 1)
