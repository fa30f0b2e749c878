"""The state of a fit on disk: exact, whole or absent, and damage is named."""

import errno

import pytest
import torch

from splat.checkpoint import load_state, save_state
from splat.errors import InputError


def test_round_trip_is_exact(tmp_path):
    g = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(3, 4, generator=g),
        "strided": torch.randn(4, 6, generator=g).T[::2],
        "long": torch.arange(5),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    path = tmp_path / "fit.safetensors"
    save_state(path, tensors, {"step": 12, "name": "Käse", "running": None})
    loaded, facts = load_state(path)
    assert facts == {"step": 12, "name": "Käse", "running": None} and loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name].nan_to_num(), value.nan_to_num()), name


def test_disk_full_keeps_the_old_state(tmp_path, monkeypatch):
    path = tmp_path / "fit.safetensors"
    save_state(path, {"a": torch.ones(3)}, {"step": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(path, {"a": torch.zeros(3)}, {"step": 2})
    assert load_state(path)[1] == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["fit.safetensors"]


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "flipped header", "no facts", "missing", "folder"])
def test_damage_is_an_input_error(tmp_path, damage):
    from safetensors.torch import save

    path = tmp_path / "fit.safetensors"
    save_state(path, {"a": torch.ones(300)}, {"step": 1})
    data = path.read_bytes()
    path.unlink()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(data[:-100])
        case "text":
            path.write_text("a letter, not a state")
        case "flipped header":
            path.write_bytes(b"\xff" * 8 + data[8:])
        case "no facts":
            path.write_bytes(save({"a": torch.ones(3)}))
        case "folder":
            path.mkdir()
    with pytest.raises(InputError, match=r"fit\.safetensors is not a readable state"):
        load_state(path)
