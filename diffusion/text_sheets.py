"""Sample sheets of text to 3-D's training: what the averaged networks make, seen from the front right.

Those of the later stages show validation objects, the truth above what is made of it; training objects where none are kept
for validation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.data.object_views import input_camera
from diffusion.field import FIELD_LIMIT
from diffusion.field_bank import FieldBank
from diffusion.field_codec import FieldCodec
from diffusion.models.attribute_predictor import AttributePredictor
from diffusion.models.dense_attributes import DenseAttributes
from diffusion.models.volume_unet import VolumeUNet
from diffusion.text_config import TextSampleConfig
from diffusion.text_encoder import TextEncoder
from diffusion.text_stages import Draft, FieldStage, ShapeStage, field_splats, interpolated, upsampled
from diffusion.train_attributes import FineExamples, MadeBefore, field_loss
from diffusion.training import Sheet
from splat.gaussians import Splats
from splat.metrics import psnr
from splat.render import RenderOptions, render

COUNT = 8  # objects on a sheet of a later stage
SIDE = 128  # px of one picture
SHEET_PROMPTS = (
    "a red chair", "a green tree", "a wooden table", "a street lamp", "a sword", "a blue car", "a house with a red roof",
    "an orange pumpkin", "a yellow banana", "a white bed", "a knight", "a black sofa", "a purple mushroom", "a grey rock",
    "a spaceship", "a brown barrel",
)  # fmt: skip


@torch.no_grad()
def drawn(every: Sequence[Splats]) -> Tensor:
    """[B, S, S, 3] on white."""
    camera, options = input_camera(SIDE), RenderOptions(background=torch.ones(3))
    return torch.stack([render(splats, camera, options).rgb[0].clamp(0, 1) for splats in every])


def sheet_of(images: Tensor, columns: int = COUNT) -> Tensor:
    """Images [B, S, S, 3] in rows: [H, W, 3]."""
    white = torch.ones(-len(images) % columns, *images.shape[1:])
    rows = torch.cat([images, white]).unflatten(0, (-1, columns))  # [rows, columns, S, S, 3]
    return rows.transpose(1, 2).flatten(0, 1).flatten(1, 2)


def shown_examples(bank: FieldBank, volumes: Path) -> tuple[FineExamples, list[int]]:
    """Those that sheets show, evenly over the split."""
    examples = FineExamples(bank, volumes, "val")
    if not len(examples):
        examples = FineExamples(bank, volumes, "train")
    count = min(COUNT, len(examples))
    return examples, [i * len(examples) // count for i in range(count)]


def upsampler_sheet(bank: FieldBank, volumes: Path, codec: FieldCodec) -> Sheet:
    """Rows: true fields, those made of coarse ones that went through the codec. Figures: their loss, interpolation's."""
    examples, chosen = shown_examples(bank, volumes)
    text = bank.text.features([bank.captions[examples.rows[i]][0] for i in chosen])

    @torch.no_grad()
    def sheet(network: VolumeUNet) -> tuple[Tensor, dict[str, float]]:
        device = next(network.parameters()).device
        fine = torch.stack([examples.fine(i) for i in chosen])
        coarse = codec.decode(codec.encode(torch.stack([examples.coarse(i) for i in chosen])))
        made = upsampled(network, coarse.to(device), bank.limit, text.to(device)).cpu()
        simple = interpolated(coarse, bank.limit, fine.shape[-1])
        rows = [drawn([field_splats(f[None], FIELD_LIMIT) for f in fields]) for fields in (fine, made)]
        figures = {"error": float(field_loss(made, fine).mean()), "interpolated": float(field_loss(simple, fine).mean())}
        return sheet_of(torch.cat(rows), len(chosen)), figures

    return sheet


def attribute_sheet(bank: FieldBank, volumes: Path, made_before: Callable[[FineExamples], MadeBefore]) -> Sheet:
    """Rows: fitted volumes, those predicted from their true fields, those from fields that the stage before made of them.

    Figures: PSNR of the last two rows' pictures against the first's. `made_before` gives that stage for the shown examples.
    """
    examples, chosen = shown_examples(bank, volumes)
    text = bank.text.features([bank.captions[examples.rows[i]][0] for i in chosen])
    before = made_before(examples)

    @torch.no_grad()
    def sheet(network: AttributePredictor | DenseAttributes) -> tuple[Tensor, dict[str, float]]:
        device = next(network.parameters()).device
        words, resolution, offset = text.to(device), network.config.resolution, network.config.max_offset
        fields = {
            "psnr": torch.stack([examples.fine(i) for i in chosen]).to(device),
            "psnr_made": before(chosen, words, torch.Generator().manual_seed(0)).to(device),
        }
        rows, figures = [drawn([examples.volume(i).to_splats() for i in chosen])], {}
        for name, given in fields.items():
            out = network(given, words.tokens, words.mask, words.pooled)
            volume = out.volume(len(chosen), resolution, offset).to("cpu")
            rows.append(drawn([volume.to_splats(b) for b in range(len(chosen))]))
            figures[name] = float(psnr(rows[-1], rows[0]).mean())
        return sheet_of(torch.cat(rows), len(chosen)), figures

    return sheet


def prompt_sheet(
    stage_of: Callable[[nn.Module], ShapeStage | FieldStage], encoder: TextEncoder, prompts: Sequence[str], device: str
) -> Sheet:
    """What the first stage of a network on `device` makes of each prompt, seeds 0, 1, ...; figure: agreement with the text."""
    words = [encoder.encode([prompt]).to(device) for prompt in prompts]

    @torch.no_grad()
    def sheet(network: nn.Module) -> tuple[Tensor, dict[str, float]]:
        own = stage_of(network)
        drafts = [own(Draft(text, seed), TextSampleConfig()) for seed, text in enumerate(words)]
        pictures = sheet_of(drawn([draft.splats().to("cpu") for draft in drafts]))
        return pictures, {"agreement": sum(own.agreement(d) for d in drafts) / len(drafts)}

    return sheet
