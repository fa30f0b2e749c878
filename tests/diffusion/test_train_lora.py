"""A scene's LoRA: small random networks learn what a damaged render should have looked like."""

import dataclasses

import pytest
import torch
from tiny_stable_diffusion import save_tiny_stable_diffusion

from diffusion.lora import Lora, attached, load_lora, new_lora, save_lora
from diffusion.sd_repair import SdRepairConfig, load_sd_repairer
from diffusion.train_lora import LoraConfig, _loss, begin_lora, train_lora
from splat.errors import InputError
from splat.repair_request import RepairRequest

SMALL = LoraConfig(steps=4, rank=4, side=16, lr=1e-2, warmup=1)


@pytest.fixture(scope="module")
def repairer(tmp_path_factory):
    folder = save_tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))
    return load_sd_repairer(folder, SdRepairConfig(least_side=8, keep_px=0))


def pairs(count=2, h=16, w=24):
    generator = torch.Generator().manual_seed(0)
    photos = [torch.rand(h, w, 3, generator=generator) for _ in range(count)]
    return [0.5 * p + 0.2 for p in photos], photos


def trained(repairer, config, state=None, most=None, **given):
    renders, photos = pairs(**given)
    job = train_lora(repairer, renders, photos, config, state)
    events = []
    while most is None or not events or events[-1].step < most:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events
    job.close()
    return None, events


def request(images):
    v, h, w = images.shape[:3]
    rows = torch.zeros(v, 0, h, w)
    return RepairRequest(images, torch.ones(v, h, w), torch.zeros(v, h, w), torch.zeros(v, 0, h, w, 3), rows)


def test_a_new_lora_changes_nothing_and_a_trained_one_does(repairer):
    images = pairs(1)[1][0][None]
    plain = repairer(request(images))
    state = begin_lora(repairer, SMALL)
    assert torch.equal(repairer.with_lora(state.lora)(request(images)), plain)
    lora, events = trained(repairer, SMALL)
    assert [e.step for e in events] == list(range(SMALL.steps + 1)) and events[-1].values["loss"] > 0
    tuned = repairer.with_lora(lora)
    assert not torch.allclose(tuned(request(images)), plain, atol=1e-4)
    assert torch.equal(repairer(request(images)), plain)  # the networks themselves are as they were
    assert all(not p.requires_grad and p.grad is None for p in repairer.pipeline.unet.parameters())
    assert not repairer.pipeline.unet.training


def test_a_training_that_was_cut_goes_on_as_if_it_had_not_been(repairer):
    whole, _ = trained(repairer, SMALL)
    state = begin_lora(repairer, SMALL)
    trained(repairer, SMALL, state, most=2)
    assert state.step == 2
    cut, events = trained(repairer, SMALL, state)
    assert [e.step for e in events] == [2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters()))
    other, _ = trained(repairer, dataclasses.replace(SMALL, seed=1))
    assert not all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters()))


def test_it_learns_what_it_is_shown(repairer):
    """One pair, one crop: the trained network tells the noise in the photo better than the plain one."""
    renders, photos = pairs(1, 16, 16)
    config = dataclasses.replace(SMALL, steps=30, lr=3e-2)
    state = begin_lora(repairer, config)

    @torch.no_grad()
    def loss():
        words = repairer.encoded_text()
        rows = [_loss(repairer, renders[0], photos[0], words, torch.Generator().manual_seed(1000 + k)) for k in range(20)]
        return float(torch.stack(rows).mean())

    before = loss()
    for _ in train_lora(repairer, renders, photos, config, state):
        pass
    assert len(state.losses) == 30
    with attached(state.lora, repairer.networks):
        assert loss() < 0.98 * before  # it has a few hundred numbers to do it with


def test_it_is_saved_and_read_with_the_names_of_peft(repairer, tmp_path):
    from safetensors.torch import load_file

    lora, _ = trained(repairer, SMALL)
    save_lora(lora, tmp_path / "lora.safetensors")
    names = load_file(tmp_path / "lora.safetensors").keys()
    stem = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"} <= names and any(n.startswith("controlnet.") for n in names)
    again = load_lora(tmp_path / "lora.safetensors")
    assert again.rank == 4 and again.down.keys() == lora.down.keys()
    assert all(torch.equal(again.down[k], lora.down[k]) and torch.equal(again.up[k], lora.up[k]) for k in lora.down)


def test_b_a_x_is_added_to_what_a_layer_says():
    layer = torch.nn.Linear(3, 2)
    lora = Lora({"net.layer": torch.randn(4, 3)}, {"net.layer": torch.randn(2, 4)})
    networks = {"net": torch.nn.ModuleDict({"layer": layer})}
    x = torch.randn(5, 3)
    plain = layer(x)
    with attached(lora, networks):
        assert torch.allclose(layer(x), plain + x @ lora.down["net.layer"].T @ lora.up["net.layer"].T, atol=1e-6)
    assert torch.equal(layer(x), plain)
    fresh = new_lora(networks, 2, torch.Generator().manual_seed(0), "layer")
    assert fresh.rank == 2 and not fresh.up["net.layer"].any() and float(fresh.down["net.layer"].abs().max()) <= 3**-0.5


def test_a_lora_of_other_networks_is_refused(repairer):
    for name in ("unet.no.such.layer", next(iter(begin_lora(repairer, SMALL).lora.down))):
        lora = Lora({name: torch.zeros(2, 5)}, {name: torch.zeros(7, 2)})
        with pytest.raises(InputError, match="lacks or has in another size"):
            repairer.with_lora(lora)(request(pairs(1)[1][0][None]))


@pytest.mark.parametrize("what", ["missing", "text", "odd", "lonely"])
def test_files_that_are_no_lora_are_refused(tmp_path, what):
    from safetensors.torch import save_file

    path = tmp_path / "lora.safetensors"
    if what == "text":
        path.write_text("hello")
    elif what == "odd":
        save_file({"a.lora_A.weight": torch.zeros(2, 3), "a.lora_B.weight": torch.zeros(3, 4)}, path)
    elif what == "lonely":
        save_file({"a.lora_A.weight": torch.zeros(2, 3)}, path)
    with pytest.raises(InputError, match="lora"):
        load_lora(path)


def test_no_pairs_and_unlike_pairs_are_refused(repairer):
    for renders, photos in (([], []), ([torch.zeros(8, 8, 3)], []), ([torch.zeros(8, 8, 3)], [torch.zeros(8, 9, 3)])):
        with pytest.raises(InputError, match="make no pairs"):
            next(train_lora(repairer, renders, photos, SMALL))
    with pytest.raises(InputError, match="rank"):
        LoraConfig(rank=0)
