"""Finding the subject of a picture: each way where it is meant to be used, doubts where it may be wrong, errors at nothing."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion import matting_model
from diffusion.cut_out import cut_out, measured
from diffusion.plain_background import plain_background_mask
from diffusion.soft_edge import soft_edge
from splat.errors import BackendUnavailable, InputError


def disc(side: int = 96, radius: float = 28, x: float = 48, y: float = 48, soft: float = 1.0) -> torch.Tensor:
    """[side, side] coverage, with an edge `soft` px wide."""
    rows, columns = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    return ((radius - ((columns - x) ** 2 + (rows - y) ** 2).sqrt()) / soft + 0.5).clamp(0, 1)


def coloured(mask: torch.Tensor, front=(0.8, 0.2, 0.1), behind=1.0) -> torch.Tensor:
    """A subject of one colour with shading over `behind`, a grey value or [H, W, 3]."""
    shade = torch.linspace(0.7, 1.0, mask.shape[0])[:, None, None]
    return mask[..., None] * torch.tensor(front) * shade + (1 - mask[..., None]) * behind


def noise(seed: int, side: int = 96) -> torch.Tensor:
    """A background as unplain as a meadow, in greens."""
    fine = torch.rand(side, side, 3, generator=torch.Generator().manual_seed(seed))
    return 0.2 + 0.5 * fine * torch.tensor([0.4, 1.0, 0.3])


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a > 0.5) & (b > 0.5)).sum() / ((a > 0.5) | (b > 0.5)).sum())


def test_alpha_goes_first():
    mask = disc()
    found = cut_out(coloured(mask, behind=noise(0)), mask)
    assert found.way == "alpha" and torch.equal(found.mask, mask) and found.doubts == ()


def test_alpha_that_hides_only_corners_says_nothing():
    """A screenshot with rounded corners."""
    corners = torch.ones(96, 96)
    corners[:3, :3] = 0
    found = cut_out(coloured(disc()), corners)
    assert found.way == "plain background" and overlap(found.mask, disc()) > 0.97


@pytest.mark.parametrize("behind", ["white", "grey", "gradient", "noisy"])
def test_plain_backgrounds(behind):
    generator = torch.Generator().manual_seed(1)
    slope = torch.linspace(0.6, 0.9, 96)[None, :, None] * torch.tensor([1.0, 0.95, 0.9])
    backgrounds = {
        "white": torch.ones(96, 96, 3),
        "grey": torch.full((96, 96, 3), 0.5),
        "gradient": slope.expand(96, 96, 3),
        "noisy": 0.9 + 0.015 * torch.randn(96, 96, 3, generator=generator),
    }
    mask = disc()
    found = cut_out(coloured(mask, behind=backgrounds[behind]), None)
    assert found.way == "plain background" and found.doubts == ()
    assert overlap(found.mask, mask) > 0.97
    assert float((found.mask - mask).abs().mean()) < 0.01


def test_a_soft_edge_loses_the_background_colour():
    mask = disc(soft=2.0)
    found = cut_out(coloured(mask, front=(0.1, 0.1, 0.8)), None)
    edge = (mask > 0.3) & (mask < 0.7)
    assert float((found.mask - mask)[edge].abs().mean()) < 0.12
    assert float(found.image[edge][:, 0].mean()) < 0.2  # the picture itself has 0.5 and more: half of it is white


def test_a_handle_is_see_through_and_an_eye_is_not():
    mask = disc(radius=40)
    hole, eye = disc(radius=10, x=48, y=36), disc(radius=2.5, x=60, y=66)
    image = coloured(mask * (1 - hole) * (1 - eye))
    found = plain_background_mask(image)
    assert not bool(found[36, 48]) and bool(found[66, 60])


def test_a_white_patch_that_is_not_even_belongs_to_the_subject():
    mask, shirt = disc(radius=40), disc(radius=14)
    folds = 0.97 + 0.02 * torch.rand(96, 96, 1, generator=torch.Generator().manual_seed(0))
    image = coloured(mask * (1 - shirt)) - shirt[..., None] * (1 - folds)
    assert float(plain_background_mask(image)[shirt > 0.5].float().mean()) > 0.8


def test_dirt_beside_the_subject_is_dropped():
    mask = disc()
    image = coloured(torch.maximum(mask, disc(radius=1.0, x=10, y=10)))
    found = cut_out(image, None)
    assert float(found.mask[:20, :20].max()) < 0.5 and found.facts["pieces"] == 1


def test_a_meadow_is_not_plain_and_grabcut_finds_the_subject(monkeypatch, tmp_path):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    mask = disc()
    image = coloured(mask, behind=noise(2))
    assert plain_background_mask(image) is None
    found = cut_out(image, None)
    assert found.way == "grabcut" and overlap(found.mask, mask) > 0.9


def test_a_picture_without_a_subject_is_taken_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    found = cut_out(noise(3), None)
    assert found.way in ("whole picture", "grabcut") and found.doubts


def test_doubts_are_told():
    small = cut_out(torch.zeros(96, 96, 3), None, mask=disc(radius=5))
    assert small.doubts == (f"it covers {100 * small.facts['covers']:.1f} % of the picture",)
    cut_off = cut_out(torch.zeros(96, 96, 3), None, mask=disc(x=96))
    assert len(cut_off.doubts) == 1 and "runs out of the picture" in cut_off.doubts[0]
    parts = sum(disc(radius=9, x=x, y=y) for x in (24, 72) for y in (24, 72))
    assert cut_out(torch.zeros(96, 96, 3), None, mask=parts).doubts == ("it is in 4 pieces",)
    assert any("covers 100 %" in doubt for doubt in cut_out(torch.zeros(96, 96, 3), None, mask=torch.ones(96, 96)).doubts)


def test_measures():
    mask = torch.zeros(10, 20)
    mask[2:7, 0:4] = 1
    assert measured(mask) == {"covers": pytest.approx(0.1), "touches": pytest.approx(5 / 60), "pieces": 1}


@pytest.mark.parametrize(
    ("image", "alpha", "mask", "words"),
    [
        (torch.rand(20, 20, 3), torch.zeros(20, 20), None, "transparent all over"),
        (torch.full((20, 20, 3), 0.4), None, None, "one even colour"),
        (torch.rand(20, 20, 3), None, torch.zeros(20, 20), "leaves 0 pixels"),
    ],
)
def test_where_nothing_can_be_seen(image, alpha, mask, words):
    with pytest.raises(InputError, match=words):
        cut_out(image, alpha, mask)


def test_the_same_on_every_run(monkeypatch, tmp_path):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    image = coloured(disc(), behind=noise(4))
    assert torch.equal(cut_out(image, None).mask, cut_out(image, None).mask)


def test_a_soft_edge_keeps_what_is_too_thin():
    image = torch.ones(30, 30, 3)
    image[:, 14:16] = 0.0  # a rod two pixels wide
    out, alpha = soft_edge(image, image[..., 0] < 0.5)
    assert float(alpha[:, 14:16].min()) > 0.9 and float(out[:, 14:16].max()) < 0.1
    assert float(alpha[:, :12].max()) == 0


class Session:
    """An onnxruntime session whose network finds what is red."""

    def __init__(self, path: str, providers: list[str]) -> None:
        if Path(path).read_bytes() != b"model":
            raise RuntimeError("no graph")

    def get_inputs(self) -> list:
        return [types.SimpleNamespace(name="input.1")]

    def run(self, names, feeds) -> list[np.ndarray]:
        x = feeds["input.1"]
        assert x.dtype == np.float32 and x.shape[:2] == (1, 3) and x.shape[2] == x.shape[3]
        redder = x[:, :1] - x[:, 1:2]
        return [(redder > 0.5 * redder.max()).astype(np.float32)]


@pytest.fixture
def onnxruntime(monkeypatch) -> None:
    module = types.ModuleType("onnxruntime")
    module.InferenceSession = Session
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "onnxruntime", module)


def test_a_matting_model_that_is_on_disk_serves_unplain_pictures(onnxruntime, monkeypatch, tmp_path):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    mask = disc()
    image = coloured(mask, behind=noise(5))
    assert cut_out(image, None).way == "grabcut"
    (tmp_path / "u2netp.onnx").write_bytes(b"model")
    found = cut_out(image, None)
    assert (found.way, found.detail) == ("matting model", "u2netp.onnx") and overlap(found.mask, mask) > 0.9
    (tmp_path / "isnet-general-use.onnx").write_bytes(b"model")
    assert cut_out(image, None).detail == "isnet-general-use.onnx"  # the better one
    assert cut_out(coloured(mask), None).way == "plain background"
    assert cut_out(coloured(mask), None, model=tmp_path / "u2netp.onnx").way == "matting model"  # asked for


def test_a_file_that_is_no_model(onnxruntime, tmp_path):
    (tmp_path / "u2net.onnx").write_bytes(b"something else")
    with pytest.raises(InputError, match="no matting model"):
        cut_out(coloured(disc()), None, model=tmp_path / "u2net.onnx")


def test_a_model_without_onnxruntime(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "u2net.onnx").write_bytes(b"model")
    with pytest.raises(BackendUnavailable, match="pip install onnxruntime"):
        cut_out(coloured(disc()), None, model=tmp_path / "u2net.onnx")


def test_models_get_the_pictures_they_were_trained_on():
    image = torch.full((40, 60, 3), 0.25)
    image[:, 30:] = 0.5  # divided by the brightest: 1
    u2net = matting_model.prepared(image, matting_model.U2NET)
    assert u2net.shape == (1, 3, 320, 320)
    assert u2net[0, :, 0, -1] == pytest.approx((1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], abs=1e-3)
    isnet = matting_model.prepared(image, matting_model.ISNET)
    assert isnet.shape == (1, 3, 1024, 1024) and isnet[0, :, 0, 0] == pytest.approx([0.0, 0.0, 0.0], abs=1e-3)
    back = matting_model.coverage(np.float32([[-1.0, 3.0], [-1.0, 3.0]]), 8, 4)
    assert back.shape == (4, 8) and float(back.min()) == 0 and float(back.max()) == 1
