"""Device, renderer and threads of a job are settled before its work begins."""

import importlib.util

import pytest
import torch

from app import machine
from app.machine import pick_place
from splat.errors import InputError
from splat.render.native.library import usable_cores


@pytest.fixture
def gpu_without(monkeypatch):
    """A machine where torch sees a GPU but gsplat, or what compiles its kernels, is missing."""

    def arrange(missing: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr("splat.render.cuda_gsplat.kernels_built", lambda: missing == "nothing")
        monkeypatch.setattr(machine, "_cuda_compiler", lambda: missing == "nothing")
        found = importlib.util.find_spec
        monkeypatch.setattr(
            machine.importlib.util,
            "find_spec",
            lambda name: (None if missing == "gsplat" else True) if name == "gsplat" else found(name),
        )

    return arrange


@pytest.mark.parametrize(("missing", "told"), [("gsplat", "pip install"), ("nvcc", "nvcc")])
def test_a_gpu_that_cannot_draw_is_left_alone_and_said(gpu_without, missing, told):
    gpu_without(missing)
    place = pick_place("auto", None)
    assert place.device == "cpu" and place.renderer in ("native", "reference")
    assert told in place.fallbacks[0] and place.fallbacks[0].endswith(".")
    assert pick_place("cpu", None).fallbacks == place.fallbacks[1:]
    with pytest.raises(InputError, match=told):
        pick_place("cuda", None)


def test_a_gpu_with_gsplat_is_taken(gpu_without):
    gpu_without("nothing")
    assert (pick_place("auto", None).device, pick_place("cuda", 1).renderer) == ("cuda", "gsplat")


def test_no_more_threads_than_this_process_may_use():
    assert pick_place("cpu", None).threads == pick_place("cpu", 10_000).threads == usable_cores()
    assert pick_place("cpu", 1).threads == 1
