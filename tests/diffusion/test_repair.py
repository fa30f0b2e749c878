"""The repair network: its weights, its shapes, its seeds, its bridge, and the way from pairs to a repairer."""

import dataclasses
import json

import pytest
import torch

from diffusion.models.repair import RepairUNet
from diffusion.objective.bridges import bridge_state, bridge_step
from diffusion.repair import RepairConfig, conditions, load_repair_network, mended, save_repair_weights, small_repairer
from diffusion.repair_bank import open_pairs, save_pairs, scene_path, split_of
from diffusion.train_repair import LoadedPairs, RepairTrainConfig, augmented, settings, train_repair
from splat.errors import InputError
from splat.repair_request import RepairRequest


def run(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def tiny(seed: int = 0, trained: bool = True) -> RepairUNet:
    torch.manual_seed(seed)
    network = RepairUNet(widths=(8, 16), blocks=(1, 1), embedding=8)
    if trained:  # nothing at its zeros any more
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.05)
    return network.eval()


def request(views: int = 2, height: int = 20, width: int = 27, references: int = 2, seed: int = 0) -> RepairRequest:
    g = torch.Generator().manual_seed(7)
    shapes = [(views, height, width, 3), (views, height, width), (views, height, width)]
    shapes += [(views, references, height, width, 3), (views, references, height, width)]
    return RepairRequest(*(torch.rand(shape, generator=g) for shape in shapes), seed=seed)


@pytest.mark.parametrize("size", [(20, 27), (8, 8), (33, 16), (3, 5)])
def test_pictures_of_any_size_come_back_in_that_size(size):
    asked = request(3, *size)
    made = mended(tiny(), asked, RepairConfig(steps=2, batch=2))
    assert made.shape == asked.images.shape and 0 <= made.min() and made.max() <= 1


def test_a_fresh_network_blends_what_it_was_given():
    """Without training: the render twice (as the bridge's state too), and the photos as far as they hold."""
    asked = request(1)
    asked = dataclasses.replace(asked, known=torch.zeros_like(asked.known))
    made = mended(tiny(trained=False), asked, RepairConfig())
    assert torch.allclose(made, asked.images, atol=1e-3)
    asked = dataclasses.replace(asked, known=torch.ones_like(asked.known))
    mean = (2 * asked.images + asked.warped.sum(1)) / 4
    assert torch.allclose(mended(tiny(trained=False), asked, RepairConfig()), mean, atol=1e-3)


def test_noise_is_drawn_once_and_shared_by_the_views():
    twins = request(1)
    twins = RepairRequest(*(getattr(twins, n).repeat_interleave(3, 0) for n in ("images", "alpha", "trust", "warped", "known")))
    made = mended(tiny(), twins, RepairConfig(steps=3, batch=2))
    assert torch.allclose(made[0], made[1]) and torch.allclose(made[0], made[2], atol=1e-6)
    network = tiny()
    first, again, other = (mended(network, request(seed=s), RepairConfig(steps=3)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    one = [mended(network, request(seed=s), RepairConfig(steps=1)) for s in (1, 2)]
    assert torch.equal(*one), "one call needs no noise"


def test_photos_too_few_or_too_many_are_filled_or_left_out():
    network = tiny()
    assert conditions(request(references=1), torch.arange(2), 2).shape == (2, 13, 20, 27)
    assert conditions(request(references=1), torch.arange(2), 2)[:, 9:].max() == 0
    three = request(references=3)
    two = dataclasses.replace(three, warped=three.warped[:, :2], known=three.known[:, :2])
    assert torch.equal(mended(network, three, RepairConfig()), mended(network, two, RepairConfig()))


def test_weights_are_saved_in_half_precision_and_come_back(tmp_path):
    network = tiny()
    save_repair_weights(tmp_path, network, ["repair of renders: CC0-1.0"], {"pairs": 1})
    back = load_repair_network(tmp_path)
    assert dict(back.config)["widths"] in ([8, 16], (8, 16))
    for name, value in network.state_dict().items():
        assert torch.allclose(back.state_dict()[name], value, atol=1e-3), name
    asked = request()
    assert torch.allclose(small_repairer(tmp_path)(asked), mended(network, asked, RepairConfig()), atol=5e-3)


@pytest.mark.parametrize("harm", ["cut", "other", "gone"])
def test_damaged_weights_are_refused_in_a_sentence(tmp_path, harm):
    save_repair_weights(tmp_path, tiny(), [], {})
    weights = tmp_path / "network" / "diffusion_pytorch_model.safetensors"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "other":
        about = json.loads((tmp_path / "weights.json").read_text())
        (tmp_path / "weights.json").write_text(json.dumps(about | {"format": "splatsmith-image-1"}))
    else:
        (tmp_path / "weights.json").unlink()
    with pytest.raises(InputError, match="repair of renders"):
        small_repairer(tmp_path)


def test_the_bridge_has_both_ends_and_is_markov():
    g = torch.Generator().manual_seed(0)
    n, scale = 40_000, 0.3
    x0, x1 = torch.zeros(n, 1), torch.ones(n, 1)
    for t, end in ((0.0, x0), (1.0, x1)):
        assert torch.equal(bridge_state(x0, x1, torch.full((n,), t), torch.randn(n, 1, generator=g), scale), end)
    direct = bridge_state(x0, x1, torch.full((n,), 0.7), torch.randn(n, 1, generator=g), scale)
    x = bridge_step(x0, x1, 0.0, 0.4, torch.randn(n, 1, generator=g), scale)
    x = bridge_step(x, x1, 0.4, 0.7, torch.randn(n, 1, generator=g), scale)
    assert float(x.mean()) == pytest.approx(0.7, abs=0.005)
    assert float(x.std()) == pytest.approx(float(direct.std()), rel=0.02)
    assert float(x.std()) == pytest.approx(scale * (0.7 * 0.3) ** 0.5, rel=0.02)
    assert torch.equal(bridge_step(x, x1, 0.7, 1.0, torch.randn(n, 1, generator=g), scale), x + (x1 - x))


FACTS = {"objects": [{"key": "own/box", "name": "box", "author": "A", "licence": "CC0-1.0", "source": "own"}], "pairs": 4}


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "work" / "pairs"
    folder.mkdir(parents=True)
    for number in (0, 1, 9):
        asked = request(4, 24, 32)
        truth = (0.7 * asked.images + 0.3).clamp(0, 1)
        save_pairs(scene_path(folder, number), asked, truth, FACTS | {"seed": number})
    return folder


CONFIG = RepairTrainConfig(widths=(8, 16), blocks=(1, 1), batch=2, crop=16)


def test_pairs_are_read_back_and_split(pairs):
    files = open_pairs(pairs)
    assert [f.split for f in files] == ["train", "train", "val"] and split_of(19) == "val"
    loaded = LoadedPairs.of(files, 2)
    crops = loaded.crops(5, 16, torch.Generator().manual_seed(0))
    assert crops.shape == (5, 16, 16, 16)  # render, alpha, trust, two photos with where they hold, truth
    given, truth = augmented(crops, CONFIG, torch.Generator().manual_seed(0))
    assert given.shape == (5, 13, 16, 16) and torch.allclose(truth, 0.7 * given[:, :3] + 0.3, atol=0.01), "turned together"
    with pytest.raises(InputError, match="wants 3"):
        LoadedPairs.of(files, 3)


def test_training_learns_is_resumed_and_packed(pairs, tmp_path):
    work = pairs.parent
    loop = dataclasses.replace(CONFIG.loop, steps=40, lr=5e-3, warmup=2, log_every=20, average=0.9, bf16=False)
    config = dataclasses.replace(CONFIG, loop=loop)
    with pytest.raises(InputError, match="step 'network'"):
        run(train_repair("pack", work, config))
    events = []
    job = train_repair("network", work, settings(config, 0, 0, {"steps": 40, "lr": None, "batch": 3}))
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            assert end.value == work / "network" / "network"
            break
    figures = events[-1].values
    assert events[-1].stage == "sheet" and figures["psnr"] > figures["psnr_before"] + 1, figures
    packed = run(train_repair("pack", work, config))
    about = json.loads((packed / "weights.json").read_text())
    assert about["scenes"] == 2 and about["pairs"] == 8 and about["validation"]["1"]["psnr"] > 0
    assert "CC0-1.0" in about["licences"][0] and "box" in (packed / "ATTRIBUTION.md").read_text()
    assert small_repairer(packed)(request()).shape == (2, 20, 27, 3)


def test_work_without_pairs_is_refused(tmp_path):
    with pytest.raises(InputError, match="step 'pairs'"):
        run(train_repair("network", tmp_path, CONFIG))
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "scene-0000.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no pairs"):
        run(train_repair("network", tmp_path, CONFIG))
