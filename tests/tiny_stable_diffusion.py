"""Checkpoints of the real classes, small and random, as their authors' `save_pretrained` writes them."""

import json
from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_tiny_stable_diffusion(folder: Path, seed: int = 0) -> Path:
    """A checkpoint of Stable Diffusion's layout with a ControlNet in it. Its ControlNet is heard: nothing in it is zero."""
    from diffusers import ControlNetModel, PNDMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4}
    down = ("CrossAttnDownBlock2D", "DownBlock2D")
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=down,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        **blocks,
    )
    controlnet = ControlNetModel(
        down_block_types=down, cross_attention_dim=32, conditioning_embedding_out_channels=(4, 4, 8, 8), **blocks
    )
    for weight in controlnet.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    noise = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    unet.save_pretrained(folder / "unet")
    controlnet.save_pretrained(folder / "controlnet")
    noise.save_pretrained(folder / "scheduler")
    _save_vae(folder / "vae")
    _save_clip(folder)
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags:\n- tiny\n---\n# Tiny\n")
    return folder


def _save_vae(folder: Path) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    with torch.no_grad():
        latents = vae.encode(2 * torch.rand(1, 3, 64, 64) - 1).latent_dist.mode()
    vae.register_to_config(scaling_factor=1 / float(latents.std()))  # of deviation 1, as the noise
    vae.save_pretrained(folder)


def _save_clip(folder: Path) -> None:
    """A text model of random weights in text_encoder/, and a tokenizer of single letters in tokenizer/."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokens = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    files = folder / "vocab.json", folder / "merges.txt"
    files[0].write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    files[1].write_text("#version: 0.2\n")
    CLIPTokenizer(*map(str, files)).save_pretrained(folder / "tokenizer")
    for file in files:
        file.unlink()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    CLIPTextModel(CLIPTextConfig(vocab_size=54, max_position_embeddings=20, **sizes, **ends)).save_pretrained(
        folder / "text_encoder"
    )


def save_tiny_video_network(folder: Path, seed: int = 0) -> Path:
    """A checkpoint of a text-to-video network, as ModelScope's is laid out."""
    from diffusers import DDIMScheduler, UNet3DConditionModel

    torch.manual_seed(seed)
    UNet3DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
    ).save_pretrained(folder / "unet")  # fmt: skip
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    _save_vae(folder / "vae")
    _save_clip(folder)
    (folder / "LICENSE").write_text("CC BY-NC 4.0\n")
    return folder
