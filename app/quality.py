"""How well splats reproduce photos: PSNR, SSIM, and LPIPS where it can run without a download."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from app.contact_sheet import Pair
from app.report import Quality
from splat.gaussians import Splats
from splat.metrics import lpips_available, psnr, ssim
from splat.progress import Progress
from splat.refine_camera import refine_camera
from splat.render import RenderOptions, render
from splat.views import Views

ALEXNET = "alexnet-owt-7be5be79.pth"  # where torch.hub keeps the backbone's weights


@torch.no_grad()
def measure(
    splats: Splats,
    views: Sequence[Views],
    background: Tensor,
    exposures: Tensor | None = None,
    threads: int | None = None,
) -> Generator[Progress, None, tuple[Quality | None, list[Pair]]]:
    """Render every posed view on `background` [3] and compare; returns the means and each photo beside its render.

    `exposures` [C, 2, 3] are gain and offset per photo, all views in order, as `fit` learnt them. None for no views.
    """
    pairs: list[Pair] = []
    similarity: list[float] = []
    distance: list[float] = []
    total = sum(len(v) for v in views)
    lpips = _lpips() if total else None
    options = RenderOptions(threads=threads)
    for view in views:
        for i in range(len(view)):
            drawn = render(splats, view.cameras[i].to(splats.means.device), options)
            rgb, alpha = drawn.rgb[0].cpu(), drawn.alpha[0, ..., None].cpu()
            if exposures is not None:
                gain, offset = exposures[len(pairs)].cpu()
                rgb = rgb * gain + offset * alpha
            image, photo = (rgb + (1 - alpha) * background.cpu()).clamp(0, 1), view.images[i].cpu()
            pairs.append(Pair(view.names[i], photo, image, float(psnr(image, photo))))
            similarity.append(float(ssim(image, photo)))
            if lpips is not None:
                distance.append(lpips(image, photo))
            yield Progress("measure", len(pairs), total)
    if not pairs:
        return None, []
    mean_lpips = sum(distance) / total if distance else None
    return Quality(sum(p.psnr for p in pairs) / total, sum(similarity) / total, mean_lpips, total), pairs


def refined(splats: Splats, views: Sequence[Views], background: Tensor) -> Generator[Progress, None, list[Views]]:
    """The views with each camera moved to where the splats match its photo best, so that quality is judged, not pose."""
    out: list[Views] = []
    total = sum(len(v) for v in views)
    done = 0
    device = splats.means.device
    for view in views:
        cameras = []
        for i in range(len(view)):
            cameras.append(
                refine_camera(splats, view.cameras[i].to(device), view.images[i].to(device), background.to(device)).to("cpu")
            )
            done += 1
            yield Progress("holdout", done, total, "placing the held-out photos against the splats")
        out.append(dataclasses.replace(view, cameras=type(cameras[0]).cat(cameras)))
    return out


def _lpips() -> Callable[[Tensor, Tensor], float] | None:
    """The distance of `lpips` (AlexNet), where the package is installed and its weights are on disk: it would download them."""
    if not lpips_available() or not (Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET).is_file():
        return None
    import lpips

    network = lpips.LPIPS(net="alex", verbose=False).eval()

    def distance(a: Tensor, b: Tensor) -> float:
        x, y = (t.permute(2, 0, 1)[None] * 2 - 1 for t in (a, b))
        return float(network(x, y))

    return distance
