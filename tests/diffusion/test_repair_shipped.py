"""The repair network that ships: it takes what photos know, and leaves alone what is right."""

import pytest
import torch
from torch.nn import functional as F

from diffusion.repair import repair_licences, small_repairer
from splat.metrics import psnr
from splat.repair_request import RepairRequest

SIDE = 96


@pytest.fixture(scope="module")
def repairer():
    return small_repairer()


def texture(seed: int) -> torch.Tensor:
    """[1, SIDE, SIDE, 3] with detail at several scales."""
    g = torch.Generator().manual_seed(seed)
    parts = [F.interpolate(torch.rand(1, 3, n, n, generator=g), (SIDE, SIDE), mode="bicubic") for n in (4, 12, 40)]
    return (0.5 + 0.7 * (sum(parts) / 3 - 0.5)).clamp(0, 1).permute(0, 2, 3, 1)


def blurred(image: torch.Tensor, size: int = 7) -> torch.Tensor:
    x = F.pad(image.permute(0, 3, 1, 2), [size // 2] * 4, mode="replicate")
    return F.avg_pool2d(x, size, 1).permute(0, 2, 3, 1)


def request(render: torch.Tensor, photo: torch.Tensor, known: torch.Tensor, alpha: torch.Tensor | None = None) -> RepairRequest:
    alpha = torch.ones(1, SIDE, SIDE) if alpha is None else alpha
    photos = (photo * known[..., None]).repeat(2, 1, 1, 1)[None]
    return RepairRequest(render, alpha, known, photos, known.repeat(2, 1, 1)[None])


def test_detail_of_a_blurred_render_comes_from_the_photos(repairer):
    truth = texture(0)
    mended = repairer(request(blurred(truth), truth, torch.ones(1, SIDE, SIDE)))
    assert float(psnr(mended, truth)) > float(psnr(blurred(truth), truth)) + 3


def test_a_render_that_is_right_stays_nearly_as_it_is(repairer):
    truth = torch.ones(1, SIDE, SIDE, 3)
    truth[:, 20:70, 30:80] = texture(1)[:, 20:70, 30:80]
    alpha = (truth.mean(-1) < 1).float()
    mended = repairer(request(truth, truth, torch.ones(1, SIDE, SIDE), alpha))
    assert float(psnr(mended, truth)) > 32


def test_a_hole_is_filled_with_something_like_what_is_round_it(repairer):
    truth = texture(2)
    known = torch.ones(1, SIDE, SIDE)
    known[:, 40:52, 40:52] = 0
    render, alpha = truth.clone(), known.clone()
    render[known == 0] = 1.0  # the white behind the scene
    mended = repairer(request(render, truth, known, alpha))
    hole = (1 - known)[0]
    assert float(psnr(mended[0], truth[0], hole)) > float(psnr(render[0], truth[0], hole)) + 3


def test_licences_are_told():
    assert all("CC0-1.0" in text for text in repair_licences())
