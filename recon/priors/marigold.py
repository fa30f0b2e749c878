"""Marigold (Ke et al., CVPR 2024) of diffusers: depth and surface normals of single photos by a diffusion network.

Its normals have x to the right, y up and z towards the viewer, which are OpenGL's camera axes; ours are OpenCV's, so y and z
change sign. Its depth is 0 at the nearest point and 1 at the farthest: affine in true depth, or in inverse depth where
`model_index.json` says `disparity`.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor

from recon.priors.depth_guess import DepthGuess, check_output, each_photo
from recon.priors.from_disk import BROKEN, load_strictly, not_whole, read_config, silence
from recon.priors.learned import PriorWeights
from recon.priors.offline import no_downloads
from splat.cameras import Cameras
from splat.errors import InputError
from splat.progress import Progress
from splat.views import Views

OPENCV_FROM_OPENGL = torch.tensor([1.0, -1.0, -1.0])


def guess_depths(
    views: list[Views], weights: PriorWeights, device: torch.device | str = "cpu", seed: int = 0
) -> Generator[Progress, None, list[DepthGuess]]:
    """One guess per view, on the view's pixels. Raises `InputError` for a folder that does not load."""
    from diffusers import MarigoldDepthPipeline

    pipeline = _load(MarigoldDepthPipeline, weights.folder, device)
    if pipeline.config.prediction_type == "disparity":
        kind = "inverse"
    else:
        kind = "affine" if pipeline.shift_invariant else "scaled"
    return (yield from each_photo(views, lambda image: _run(pipeline, image, device, seed)[0], kind, weights))


def guess_normals(
    views: list[Views], weights: PriorWeights, device: torch.device | str = "cpu", seed: int = 0
) -> Generator[Progress, None, list[Tensor]]:
    """[C, H, W, 3] for each entry of placed `views`: unit normals in the cameras' frames, towards them; 0 where not believed.

    Raises `InputError` for a folder that does not load, `StoppedLate` for numbers that are not finite.
    """
    from diffusers import MarigoldNormalsPipeline

    pipeline = _load(MarigoldNormalsPipeline, weights.folder, device)
    total, done, found = sum(len(v) for v in views), 0, []
    for view in views:
        normals = []
        for i, name in enumerate(view.names):
            with torch.inference_mode():
                out = _run(pipeline, view.images[i].cpu(), device, seed).float().cpu()  # [3, H, W]
            check_output(out, name, weights)
            normals.append(opencv_normals(out.clone(), view.cameras[i]))
            done += 1
            yield Progress("prior", done, total, f"{weights.family.title}: {name}")
        found.append(torch.stack(normals))
    return found


def opencv_normals(prediction: Tensor, camera: Cameras) -> Tensor:
    """[3, H, W] of the pipeline -> [H, W, 3] unit, in the frame of `camera` (OpenCV axes), towards it; 0 where it is not."""
    normals = prediction.permute(1, 2, 0) * OPENCV_FROM_OPENGL.to(prediction)
    length = normals.norm(dim=-1, keepdim=True)
    K = camera.K[0].to(normals)
    rays = torch.cat([camera.pixel_centers.to(normals), torch.ones_like(length)], dim=-1) @ torch.linalg.inv(K).T  # [H, W, 3]
    seen = (length > 0.5) & ((normals * rays).sum(-1, keepdim=True) < 0)  # nobody sees a surface from behind
    return torch.where(seen, normals / length.clamp_min(1e-6), 0.0)


def _run(pipeline, image: Tensor, device: torch.device | str, seed: int) -> Tensor:
    """[H, W, 3] sRGB -> [channels, H, W], with the steps and the resolution that the weights were made for."""
    generator = torch.Generator(device).manual_seed(seed)
    # A photo smaller than the network's size is enlarged for it; the output has the photo's size.
    out = pipeline(image.permute(2, 0, 1)[None], generator=generator, output_type="pt", match_input_resolution=True)
    return out.prediction[0]


def _load(kind: type, folder: Path, device: torch.device | str):
    """A pipeline of diffusers whose networks are loaded one by one, strictly."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors import SafetensorError
    from transformers import CLIPTextModel

    index = read_config(folder, "model_index.json")
    if index.get("_class_name") != kind.__name__:
        raise InputError(f"{folder} holds a {index.get('_class_name')}, not {kind.__name__}; give the folder of that pipeline.")
    parts = {
        "unet": load_strictly(UNet2DConditionModel, folder / "unet"),
        "vae": load_strictly(AutoencoderKL, folder / "vae"),
        "text_encoder": load_strictly(CLIPTextModel, folder / "text_encoder"),
    }
    try:
        with no_downloads(), silence():
            pipeline = kind.from_pretrained(
                folder, **parts, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
    except (*BROKEN, SafetensorError) as error:
        raise not_whole(folder, kind.__name__, error) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
