"""The SSIM that a compiler can fuse: its values anywhere, itself on a GPU."""

import logging

import pytest
import torch

from splat import gpu_ssim
from splat.gpu_ssim import fastest_ssim_map, shifted_ssim_map
from splat.metrics import ssim_map

GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def fresh():
    fastest_ssim_map.cache_clear()
    yield
    fastest_ssim_map.cache_clear()


def pair(height, width, dtype=torch.float64, device="cpu"):
    g = torch.Generator().manual_seed(height)
    truth = torch.rand(2, height, width, 3, generator=g, dtype=dtype)
    image = truth + 0.1 * torch.randn(truth.shape, generator=g, dtype=dtype)
    return image.to(device).requires_grad_(), truth.to(device)


def assert_same(ssim, image, truth, tolerance):
    weight = torch.rand(image.shape, generator=torch.Generator().manual_seed(0), dtype=image.dtype).to(image.device)
    values, gradients = [], []
    for f in (ssim, ssim_map):
        value = f(image, truth)
        values.append(value.detach())
        gradients.append(torch.autograd.grad((value * weight).sum(), image)[0])
    assert (values[0] - values[1]).abs().max() < tolerance
    assert (gradients[0] - gradients[1]).norm() <= tolerance * gradients[1].norm()


@pytest.mark.parametrize("height, width", [(1, 1), (4, 30), (11, 11), (37, 23)])
def test_the_shifted_map_is_the_map(height, width):
    assert_same(shifted_ssim_map, *pair(height, width), 1e-10)


@pytest.mark.slow  # tracing takes long
def test_it_is_one_graph_without_breaks():
    traced = torch.compile(shifted_ssim_map, fullgraph=True, dynamic=True, backend="aot_eager")
    for height, width in ((20, 31), (33, 12)):
        assert_same(traced, *pair(height, width), 1e-10)


def test_the_faster_one_is_taken(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    for winner in (shifted_ssim_map, ssim_map):
        fastest_ssim_map.cache_clear()
        monkeypatch.setattr(gpu_ssim, "seconds_of", lambda f, device, winner=winner: 1.0 if f is winner else 2.0)
        assert fastest_ssim_map(torch.device("cpu")) is winner


def test_the_timing_works_where_gradients_are_off():
    with torch.no_grad():
        assert 0 < gpu_ssim.seconds_of(ssim_map, torch.device("cpu"), side=16) < 60


def test_without_a_compiler_the_map_stays_with_one_warning(monkeypatch, caplog):
    def broken(f, **_):
        def call(*_):
            raise RuntimeError("no working compiler\nand a long trace")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING):
        assert fastest_ssim_map(torch.device("cpu")) is ssim_map and fastest_ssim_map(torch.device("cpu")) is ssim_map
    assert len(caplog.records) == 1 and "no working compiler)" in caplog.text


@pytest.mark.cuda
@pytest.mark.skipif(not GPU, reason="no GPU")
def test_on_a_gpu():
    for height, width in ((64, 48), (300, 211)):
        assert_same(fastest_ssim_map(torch.device("cuda")), *pair(height, width, torch.float32, "cuda"), 1e-4)
