"""Released LGM weights from disk: which file is taken, and what is said of those that are not LGM's."""

import logging

import pytest
import torch
from safetensors.torch import save_file

from diffusion.lgm_checkpoint import convert_pickle, find_lgm, holds_lgm, load_lgm
from diffusion.models.lgm import LGM, LgmShape
from splat.errors import InputError

TOY = LgmShape((32, 32), (False, True), (32,), (True,), layers=1)


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {k: v.half() for k, v in LGM(TOY).state_dict().items()}


def saved(folder, name="model_fp16_fixrot.safetensors", **changes):
    """A file of the toy network with tensors replaced, or taken out where they are None."""
    tensors = {k: v for k, v in (weights() | changes).items() if v is not None}
    save_file(tensors, folder / name)
    return folder / name


def test_file_and_folder_load_as_half_precision_says(tmp_path):
    path = saved(tmp_path)
    for given in (path, tmp_path):
        network = load_lgm(given)
        assert network.shape == TOY and network.turned and not network.training
        assert all(torch.equal(v, weights()[k].float()) for k, v in network.state_dict().items())
        assert not any(p.requires_grad for p in network.parameters())
    assert holds_lgm(tmp_path) and holds_lgm(path)


def test_weights_from_before_the_correction_are_known_by_name(tmp_path, caplog):
    path = saved(tmp_path, "model_fp16.safetensors")
    with caplog.at_level(logging.INFO, "diffusion.lgm_checkpoint"):
        assert not load_lgm(path).turned
    assert "along the axes" in caplog.text
    assert load_lgm(path, turned=True).turned


def test_the_corrected_file_is_taken_of_several(tmp_path):
    saved(tmp_path, "model.safetensors"), saved(tmp_path, "model_fp16.safetensors")
    with pytest.raises(InputError, match=r"holds 2 safetensors files \(model.safetensors, model_fp16.safetensors\)"):
        find_lgm(tmp_path)
    corrected = saved(tmp_path)
    assert find_lgm(tmp_path) == corrected


def test_missing_and_unexpected_names_are_counted_and_named(tmp_path):
    proj = "unet.mid_block.attns.0.attn.proj"
    path = saved(tmp_path, **{f"{proj}.weight": None, f"{proj}.bias": None, "lpips_loss.lin0.weight": torch.zeros(1)})
    with pytest.raises(InputError) as error:
        load_lgm(path)
    assert f"2 missing ({proj}.weight, {proj}.bias)" in str(error.value)
    assert "1 unexpected (lpips_loss.lin0.weight)" in str(error.value)


def test_other_shapes_are_named(tmp_path):
    path = saved(tmp_path, **{"conv.weight": torch.zeros(14, 12, 1, 1)})
    with pytest.raises(InputError, match=r"1 of another shape \(conv.weight \(14, 12, 1, 1\) instead of \(14, 14, 1, 1\)\)"):
        load_lgm(path)


def test_numbers_that_are_none_are_refused(tmp_path):
    path = saved(tmp_path, **{"conv.bias": torch.full((14,), torch.nan)})
    with pytest.raises(InputError, match=r"numbers that are none in 1 tensors \(conv.bias\)"):
        load_lgm(path)


def test_safetensors_of_something_else(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"is no LGM checkpoint: it lacks unet.down_blocks.0"):
        load_lgm(tmp_path)
    assert not holds_lgm(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_damaged_files(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="no whole safetensors file"):
        load_lgm(tmp_path)
    assert not holds_lgm(tmp_path)


def test_a_cut_file(tmp_path):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="no whole safetensors file"):
        load_lgm(path)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="holds no safetensors file"):
        load_lgm(tmp_path)
    with pytest.raises(InputError, match="is no safetensors file"):
        load_lgm(tmp_path / "absent.safetensors")
    assert not holds_lgm(tmp_path / "absent")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save(weights(), path)
    for given in (path, tmp_path):
        with pytest.raises(InputError, match="convert_pickle"):
            load_lgm(given)


@pytest.mark.parametrize("wrapped", [lambda w: w, lambda w: {"model": w, "epoch": 3}, lambda w: {"state_dict": w}])
def test_a_pickle_converts(tmp_path, wrapped):
    own = weights() | {"lpips_loss.lin0.weight": torch.zeros(1)}
    torch.save(wrapped({f"module.{k}": v.float() for k, v in own.items()}), tmp_path / "model.ckpt")
    convert_pickle(tmp_path / "model.ckpt", tmp_path / "model.safetensors")
    loaded = load_lgm(tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(loaded[k], v.float()) for k, v in weights().items())


class Bomb:
    def __reduce__(self):
        return (print, ("code of the file ran",))


@pytest.mark.parametrize("content", [Bomb(), [1, 2], {"weight": torch.zeros(2)}, {"a": "text"}])
def test_other_pickles_do_not_convert(tmp_path, capsys, content):
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(InputError):
        convert_pickle(tmp_path / "model.ckpt", tmp_path / "model.safetensors")
    assert "ran" not in capsys.readouterr().out
    assert not (tmp_path / "model.safetensors").exists()
