"""`splatsmith train pointmap-...`: rooms, network and weights in one work folder; a cut run goes on."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "diffusion"))
from tiny_objects import box, write_packed

from app import __main__ as entry
from app.train_pointmap import PointmapTrainConfig, train_pointmap
from diffusion.training import TrainConfig
from recon.pointmap.network import PointmapConfig, PointmapNetwork
from recon.pointmap.pair_bank import PairBankConfig
from recon.pointmap.rooms import RoomConfig
from splat.errors import InputError

CONFIG = PointmapTrainConfig(
    views=PairBankConfig(rooms=2, val_rooms=1, room=RoomConfig(views=3, width=64, portrait=0)),
    network=PointmapConfig(width=16, heads=2, encoder=1, decoder=1),
    loop=TrainConfig(steps=4, lr=1e-3, warmup=1, log_every=1),
    batch=1,
)


@pytest.fixture
def objects(tmp_path):
    rows = [
        {"id": "own/red box", "name": "red box", "group": "box", "license": "CC0-1.0", "author": "me"},
        {"id": "own/lent box", "name": "lent box", "group": "box", "license": "CC0-1.0 (presumed)"},
    ]
    write_packed(tmp_path / "objects", [box(), box((30, 60, 200))], rows)
    return tmp_path / "objects"


def run(step, work, objects=None, config=CONFIG):
    job, events = train_pointmap(step, work, objects, config), []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events


def test_from_objects_to_weights_with_a_cut_on_the_way(objects, tmp_path):
    work = tmp_path / "work"
    rooms, _ = run("views", work, objects)
    about = json.loads((rooms / "bank.json").read_text())
    assert about["objects"] == 1 and about["licences"] == ["CC0-1.0"], "presumed licences are left out"
    run("network", work, config=replace(CONFIG, loop=replace(CONFIG.loop, steps=2)))
    last, events = run("network", work)
    assert [e.step for e in events if e.stage == "training"] == [3, 4], "it goes on where it was cut"
    sheet = next(e for e in events if e.stage == "sheet")
    assert sheet.preview.shape[1] % 32 == 0 and {"depth", "turn_deg", "way_deg"} <= set(sheet.values)
    weights, _ = run("pack", work)
    network = PointmapNetwork.load(weights)
    trained = PointmapNetwork.load(last)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), trained.state_dict().values()))
    assert json.loads((weights / "config.json").read_text())["authors"] == ["me (CC0-1.0)"]


def test_steps_in_the_wrong_order_are_a_sentence(objects, tmp_path):
    with pytest.raises(InputError, match="give their folder"):
        run("views", tmp_path)
    with pytest.raises(InputError, match="step 'views' first"):
        run("network", tmp_path)
    with pytest.raises(InputError, match="step 'network'"):
        run("pack", tmp_path)
    (tmp_path / "network" / "last").mkdir(parents=True)
    with pytest.raises(InputError, match="step 'views' first"):
        run("pack", tmp_path)
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "bank.json").write_text("{")
    with pytest.raises(InputError, match=r"bank\.json is damaged"):
        run("pack", tmp_path)


def test_other_objects_are_for_another_work_folder(objects, tmp_path):
    none = replace(CONFIG, views=replace(CONFIG.views, rooms=0, val_rooms=0))
    run("views", tmp_path / "work", objects, none)
    with pytest.raises(InputError, match=r"another objects .*use another work folder"):
        run("views", tmp_path / "work", objects, replace(none, presumed_licences=True))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pointmap-views"], "give their folder"),
        (["pointmap-network"], "run the step 'views' first"),
        (["pointmap-pack", "--steps", "3"], "trains no network"),
        (["pointmap-network", "--space", "latent"], "leave --clip, --space"),
    ],
)
def test_the_command_line_says_what_is_missing(words, sentence, tmp_path, capsys):
    assert entry.main(["train", words[0], str(tmp_path / "work"), *words[1:]]) == 2
    assert sentence in capsys.readouterr().err
