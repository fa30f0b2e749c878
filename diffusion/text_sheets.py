"""Sample sheets of text to 3-D's training: what the averaged networks make, seen from the front right.

Those of the later stages show validation objects, the truth above what is made of it; training objects where none are kept
for validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion.data.object_views import input_camera
from diffusion.field import FIELD_LIMIT
from diffusion.field_bank import FieldBank
from diffusion.field_codec import FieldCodec
from diffusion.models.attribute_predictor import AttributePredictor
from diffusion.models.volume_unet import VolumeUNet
from diffusion.text_stages import field_splats, interpolated, upsampled
from diffusion.train_attributes import FineExamples, field_loss
from diffusion.training import Sheet
from splat.gaussians import Splats
from splat.metrics import psnr
from splat.render import RenderOptions, render

COUNT = 8  # objects on a sheet of a later stage
SIDE = 128  # px of one picture


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


def attribute_sheet(bank: FieldBank, volumes: Path, codec: FieldCodec, upsampler: VolumeUNet) -> Sheet:
    """Rows: fitted volumes, those predicted from their true fields, those from coarse fields through codec and upsampler.

    Figures: PSNR of the last two rows' pictures against the first's.
    """
    examples, chosen = shown_examples(bank, volumes)
    text = bank.text.features([bank.captions[examples.rows[i]][0] for i in chosen])

    @torch.no_grad()
    def sheet(network: AttributePredictor) -> tuple[Tensor, dict[str, float]]:
        device = next(network.parameters()).device
        words, resolution, offset = text.to(device), network.config.resolution, network.config.max_offset
        coarse = codec.decode(codec.encode(torch.stack([examples.coarse(i) for i in chosen]))).to(device)
        fields = {
            "psnr": torch.stack([examples.fine(i) for i in chosen]).to(device),
            "psnr_upsampled": upsampled(upsampler.to(device), coarse, bank.limit, words),
        }
        rows, figures = [drawn([examples.volume(i).to_splats() for i in chosen])], {}
        for name, given in fields.items():
            volume = network(given, words.pooled).volume(len(chosen), resolution, offset).to("cpu")
            rows.append(drawn([volume.to_splats(b) for b in range(len(chosen))]))
            figures[name] = float(psnr(rows[-1], rows[0]).mean())
        return sheet_of(torch.cat(rows), len(chosen)), figures

    return sheet
