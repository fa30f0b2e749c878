"""Weights for classes with the hub's mixin, as VGGT, MapAnything, Depth Anything 3 and DUSt3R have: strictly, no pickles."""

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, save_file

from recon.priors.from_disk import load_mixin, package_class
from recon.priors.learned import PriorWeights
from splat.errors import BackendUnavailable, InputError


class Network(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, width: int = 3):
        super().__init__()
        self.layer = torch.nn.Linear(width, 2)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    Network(width=5).save_pretrained(tmp_path)
    return tmp_path


def test_the_config_builds_it_and_the_weights_fill_it_in_silence(folder, capsys):
    network = load_mixin(Network, folder)
    assert network.layer.weight.shape == (2, 5) and not network.training
    torch.testing.assert_close(network.layer.weight.data, load_file(folder / "model.safetensors")["layer.weight"])
    assert capsys.readouterr().out == ""


def lose_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({"layer.bias": tensors["layer.bias"]}, folder / "model.safetensors")


def truncate(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])


def only_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "model.pt")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lose_a_tensor, "no whole Network.*layer.weight"),
        (truncate, "no whole Network"),
        (only_a_pickle, "model.pt and no .safetensors; pickles"),
        (lambda f: (f / "model.safetensors").rename(f / "other.safetensors"), "no model.safetensors"),
        (lambda f: (f / "config.json").write_text('{"width": "wide"}'), "no whole Network"),
        (lambda f: (f / "config.json").unlink(), "no readable config.json"),
    ],
    ids=["tensor", "truncated", "pickle", "name", "config", "no config"],
)
def test_damage_is_refused(folder, damage, word):
    damage(folder)
    with pytest.raises(InputError, match=word):
        load_mixin(Network, folder)


def test_a_package_that_does_not_import_is_a_sentence(tmp_path, monkeypatch):
    weights = PriorWeights("vggt", tmp_path, "a/b", "x")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_a_package.py").write_text("import no_such_torchvision\n")
    with pytest.raises(BackendUnavailable, match=r"VGGT needs .* does not work here .No module named 'no_such_torchvision'."):
        package_class(weights, "half_a_package", "VGGT")
    assert package_class(weights, "collections", "OrderedDict").__name__ == "OrderedDict"
