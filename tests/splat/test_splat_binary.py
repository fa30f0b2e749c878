"""The 32-byte records of .splat against bytes written by hand."""

import struct

import numpy as np
import pytest
import torch
from format_samples import random_splats

from splat.errors import InputError
from splat.gaussians import Splats
from splat.io.splat_binary import load_splat, save_splat

# Position, scales, colour and opacity, rotation wxyz. The second is larger, so viewers want it first.
BIG = struct.pack("<6f8B", 1, 2, 3, 0.5, 0.25, 2, 255, 0, 51, 204, 128, 255, 128, 128)  # turned by 180 degrees about x
SMALL = struct.pack("<6f8B", -1, 0, 0.5, 0.1, 0.1, 0.1, 0, 102, 255, 51, 255, 128, 128, 128)
SPLATS = Splats(
    means=torch.tensor([[-1, 0, 0.5], [1, 2, 3]]),
    quats=torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0]]),
    log_scales=torch.tensor([[0.1, 0.1, 0.1], [0.5, 0.25, 2]]).log(),
    opacity_logits=torch.tensor([0.2, 0.8]).logit(),
    sh=((torch.tensor([[[0, 0.4, 1]], [[1, 0, 0.2]]]) - 0.5) / 0.28209479177387814),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scene.splat"


def loaded(path, data):
    path.write_bytes(data)
    return load_splat(path)


def test_written_bytes_are_those_written_by_hand(path):
    save_splat(SPLATS, path)
    data = path.read_bytes()
    assert len(data) == 64
    for ours, hand in ((data[:32], BIG), (data[32:], SMALL)):
        assert ours[:12] == hand[:12] and ours[24:] == hand[24:]
        np.testing.assert_allclose(struct.unpack("<3f", ours[12:24]), struct.unpack("<3f", hand[12:24]), rtol=1e-6)


def test_hand_written_bytes_are_read(path):
    splats = loaded(path, SMALL + BIG)
    for field in ("means", "log_scales", "sh"):
        torch.testing.assert_close(getattr(splats, field), getattr(SPLATS, field))
    torch.testing.assert_close(splats.opacities, SPLATS.opacities)
    torch.testing.assert_close(torch.nn.functional.normalize(splats.quats, dim=1), torch.eye(4)[:2])


def test_the_end_codes_of_opacity_are_finite_and_stay(path):
    ends = BIG[:27] + b"\0" + BIG[28:] + SMALL[:27] + b"\xff" + SMALL[28:]
    splats = loaded(path, ends)
    assert splats.opacity_logits.isfinite().all()
    save_splat(splats, path)
    assert {path.read_bytes()[27], path.read_bytes()[59]} == {0, 255}


def test_a_flat_gaussian_of_scale_zero_is_read(path):
    splats = loaded(path, BIG[:12] + bytes(4) + BIG[16:])
    assert splats.log_scales[0, 0] == -30


def test_view_dependent_colours_are_dropped_aloud(path, caplog):
    save_splat(random_splats(degree=2), path)
    assert load_splat(path).sh_degree == 0 and "plain colours only" in caplog.text


HOSTILE = {
    "empty": (b"", "0 Gaussians"),
    "cut": (BIG[:31], "31 bytes, which is no multiple of 32"),
    "NaN": (struct.pack("<f", float("nan")) + BIG[4:], r"1 of 1 Gaussians .* means.x = nan in row 0"),
    "negative scale": (BIG[:12] + struct.pack("<f", -1) + BIG[16:], "log_scales.x = nan"),
    "infinite scale": (BIG[:16] + struct.pack("<f", float("inf")) + BIG[20:], "log_scales.y = inf"),
    "far": (struct.pack("<f", 1e30) + BIG[4:], "too large"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_one_sentence_says_what_is_wrong(path, case):
    data, message = HOSTILE[case]
    with pytest.raises(InputError, match=message) as caught:
        loaded(path, data)
    assert "scene.splat" in str(caught.value) and "\n" not in str(caught.value)


def test_a_rotation_of_length_zero_is_the_identity(path):
    assert loaded(path, BIG[:28] + bytes([128] * 4)).quats.tolist() == [[1, 0, 0, 0]]
