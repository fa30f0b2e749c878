"""Which repairer an option names, and what its folder says about licences."""

import json

import pytest

from app.repairers import chosen_repairer
from app.report import Licence
from diffusion.models.repair import RepairUNet
from diffusion.repair import repair_licences, save_repair_weights
from splat.errors import InputError


@pytest.fixture
def weights(tmp_path):
    save_repair_weights(tmp_path / "mine", RepairUNet(1, (8, 8), (1, 1)), ["own objects: CC0-1.0", "foo"], {})
    return tmp_path / "mine"


def rewritten(folder, **change):
    path = folder / "weights.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_a_licence_without_a_name_is_that_of_the_weights(weights):
    assert chosen_repairer(str(weights)).licences == (Licence("own objects", "CC0-1.0"), Licence("mine", "foo"))


@pytest.mark.parametrize("stated", ["CC0-1.0", {"own": "CC0-1.0"}, 3, None, [["CC0-1.0"]], [1]])
def test_licences_that_are_no_list_of_texts_are_a_sentence(weights, stated):
    rewritten(weights, licences=stated)
    for ask in (lambda: repair_licences(weights), lambda: chosen_repairer(str(weights))):
        with pytest.raises(InputError, match="licences are no list of texts"):
            ask()


@pytest.mark.parametrize("name", [5000 * "x", 300 * "y", "x\0y", "nowhere"])
def test_what_is_no_folder_is_a_short_sentence(name):
    with pytest.raises(InputError, match="neither small nor a folder") as told:
        chosen_repairer(name)
    assert len(str(told.value)) < 400
