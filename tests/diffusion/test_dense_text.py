"""GVGEN's own two networks on the dense grid: what they learn, that they can be cut, what is packed of them, and their size."""

import gzip
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_objects import box

from diffusion import train_dense
from diffusion.data.augment import AugmentConfig
from diffusion.field import FIELD_LIMIT, field_of
from diffusion.field_bank import BankConfig, open_bank
from diffusion.fit_volume import VolumeFitConfig
from diffusion.models.attribute_predictor import REACH
from diffusion.models.dense_attributes import DenseAttributes
from diffusion.models.field_denoiser import FieldDenoiser
from diffusion.models.volume_unet import VolumeUNet
from diffusion.text_config import TextSampleConfig
from diffusion.text_encoder import ClipConfig, TextFeatures
from diffusion.text_features import StoredText
from diffusion.text_stages import Draft, FieldStage
from diffusion.text_to_volume import TextToVolume
from diffusion.train_attributes import FineExamples
from diffusion.train_dense import GVGEN, DenseAttributeTrainConfig, dense_stages, through_denoiser
from diffusion.train_field import FieldLoss, FieldTrainConfig, UNetConfig, fit_statistics, train_field
from diffusion.train_text import DENSE_STEPS, TextTrainConfig, train_text
from diffusion.training import TrainConfig, train
from diffusion.training_memory import training_memory, unet_memory
from diffusion.volume import node_positions
from diffusion.weights_folder import write_about
from splat.errors import InputError
from splat.io.meshes import save_mesh

TINY = UNetConfig(8, (1, 2), 1, (False, True), 8)
LOOP = TrainConfig(steps=4, warmup=1, log_every=2, bf16=True)


def value(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events


def cut(job, after: int) -> None:
    """Let `job` come to its `after`-th event of training, and end it there."""
    while after:
        after -= next(job).stage == "training"
    job.close()


# ---- the first stage, on two objects -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two():
    """A red slab and a blue pole, 8 nodes to a side, and one sentence each."""
    nodes = torch.arange(8**3)
    x, y, z = node_positions(nodes, 8).T
    slab, pole = nodes[y.abs() < 0.1], nodes[(x.abs() < 0.1) & (z.abs() < 0.1)]
    colours = (torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.9]))
    fields = [field_of(node_positions(n, 8), c.expand(len(n), 3), 8, 0.3) for n, c in zip((slab, pole), colours, strict=True)]
    g = torch.Generator().manual_seed(3)
    tokens = torch.randn(5, 16, generator=g)
    pooled = torch.nn.functional.normalize(torch.randn(2, 16, generator=g), dim=1)
    return torch.stack(fields), StoredText(tokens.half(), torch.tensor([0, 2, 5]), pooled, ("a slab", "a pole"))


def first_stage(two, unet: UNetConfig = TINY, channels: int = 4):
    fields, text = two
    torch.manual_seed(0)
    network = unet.made(FieldDenoiser, resolution=8, field_channels=channels, text_dim=16)
    fit_statistics(network, fields)
    config = FieldTrainConfig(batch=8, levels_of=4 * 8**3, log_snr_std=1.5)
    return network, FieldLoss(lambda rows: fields[rows], text, torch.tensor([[0], [1]]), torch.ones(2), config)


@pytest.fixture(scope="module")
def learnt(two, tmp_path_factory):
    network, loss = first_stage(two)
    loop = TrainConfig(steps=100, lr=6e-3, warmup=10, average=0.95)
    return value(train(network, loss, loop, tmp_path_factory.mktemp("first")))[0]


def test_the_published_shape_at_reduced_width_overfits_one_batch(two):
    """Eight channels wide, the distance alone: the loss falls to a fifth."""
    network, loss = first_stage(two, replace(GVGEN.field.unet, channels=8, head_dim=8), channels=1)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        error = loss(network, torch.Generator().manual_seed(7))[0]
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        losses.append(float(error.detach()))
    assert losses[-1] < 0.2 * losses[0], losses[::10]


@torch.no_grad()
def test_the_loss_on_noise_that_was_not_trained_on_falls(two, learnt):
    fresh, loss = first_stage(two)
    before, after = (
        sum(float(loss(network, torch.Generator().manual_seed(2**40 + i))[0]) for i in range(6)) for network in (fresh, learnt)
    )
    assert after < 0.5 * before, (before, after)  # a tenth of the samples cannot know which of the two it was


def test_a_sample_guided_by_its_text_is_the_object_that_was_learnt(two, learnt):
    fields, text = two
    stage = FieldStage(learnt)
    for own in (0, 1):
        draft = stage(Draft(text.features([own]), seed=own), TextSampleConfig(steps=8, guidance=2.0))
        errors = [float((draft.field[0] - field).square().mean()) for field in fields]
        assert errors[own] < 0.3 * errors[1 - own], errors
        other = Draft(text.features([1 - own]), 0, latent=draft.latent)
        assert stage.agreement(draft) > max(0, stage.agreement(other))


def test_a_denoiser_that_knows_nothing_shrinks_its_input_and_keeps_to_its_channels(two):
    fields, text = two
    words = text.features([0, 1])
    for channels in (1, 4):
        network, _ = first_stage(two, channels=channels)
        x0 = network.encode(fields)
        assert x0.shape == (2, channels, 8, 8, 8) and float(x0.square().mean()) == pytest.approx(1, rel=1e-4)
        alpha, sigma = torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])
        out = network(x0, alpha, sigma, words.tokens, words.mask)
        assert torch.allclose(out, alpha[:, None, None, None, None] * x0)
        again = network.decode(x0)
        assert torch.allclose(again[:, :channels], fields[:, :channels], atol=1e-5)
        assert channels == 4 or not bool(again[:, 1:].any())


def test_without_its_text_the_denoiser_does_not_see_it(two, learnt):
    network, words = learnt, two[1].features([0, 1])
    x, level, no = torch.randn(2, 4, 8, 8, 8), torch.full((2,), 0.7), torch.ones(2, dtype=torch.bool)
    given = network(x, level, level, words.tokens, words.mask, None, no)
    assert torch.equal(given, network(x, level, level, words.tokens.flip(0) * words.mask[..., None], words.mask, None, no))
    assert not torch.allclose(given, network(x, level, level, words.tokens, words.mask), atol=1e-3)


# ---- both stages, from files to weights ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(clip_folder):
    return TextTrainConfig(
        text=ClipConfig(clip_folder, max_tokens=20),
        volumes=VolumeFitConfig(resolution=16, steps=4, views=2, view_side=24),
        bank=BankConfig(resolution=4, limit=0.3, variants=3, augment=AugmentConfig(recolour=0.5)),
        dense_field=FieldTrainConfig(TINY, batch=2, loop=LOOP),
        dense_attributes=DenseAttributeTrainConfig(unet=TINY, batch=2, views=1, view_side=24, loop=LOOP),
    )


@pytest.fixture(scope="module")
def work(config, tmp_path_factory):
    """All steps in order, of objects that lie on disk as Objaverse's own tool puts them."""
    folder = tmp_path_factory.mktemp("dense")
    things = {"a" * 32: box(), "b" * 32: box((30, 60, 200), (0.6, 1.0, 0.6)), "c" * 32: box((40, 160, 60), (1, 0.3, 0.8))}
    for uid, mesh in things.items():
        (folder / "objects" / "glbs" / "000-000").mkdir(parents=True, exist_ok=True)
        save_mesh(mesh, folder / "objects" / "glbs" / "000-000" / f"{uid}.glb")
    (folder / "objects" / "glbs" / "000-000" / f"{'d' * 32}.glb").write_bytes(b"glTF, and cut")
    categories = {"box": ["a" * 32, "d" * 32], "teddy_bear": ["b" * 32], "bat_(animal)": ["c" * 32]}
    (folder / "objects" / "lvis-annotations.json.gz").write_bytes(gzip.compress(json.dumps(categories).encode()))
    licences = {uid: {"license": "by", "user": {"username": "Ann"}} for uid in (*things, "d" * 32)}
    (folder / "objects" / "metadata").mkdir()
    (folder / "objects" / "metadata" / "000-000.json").write_text(json.dumps(licences))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_dense, "PROMPTS", ("a box", "a bat"))
        for step in ("volumes", "bank", *DENSE_STEPS):
            _, events = value(train_text(step, folder / "work", folder / "objects", config))
            if step in train_dense.STEPS:
                assert any("million parameters" in e.note for e in events if e.stage == "notice")
                assert events[-1].stage == "sheet" and events[-1].preview is not None
    return folder / "work"


def loaded(work, clip_folder, folder=None):
    folder = folder or work / "dense-weights"
    if not (folder / "clip").exists():
        (folder / "clip").symlink_to(clip_folder)
    return TextToVolume.load(folder)


def test_a_sentence_becomes_a_volume_in_two_stages(work, clip_folder):
    generator = loaded(work, clip_folder)
    samples, events = value(generator.generate(("a box", "a bat"), (0, 1), TextSampleConfig(steps=2)))
    assert [e.stage for e in events] == ["field", "attributes"] * 2
    assert samples.volumes.features.shape == (2, 13, 16, 16, 16) and bool(samples.volumes.features.isfinite().all())
    assert bool(samples.agreement.isfinite().all())
    again, _ = value(generator.generate(("a bat",), (1,), TextSampleConfig(steps=2)))
    assert torch.equal(again.volumes.features[0], samples.volumes.features[1])


def test_the_words_are_lviss_and_a_file_that_does_not_read_is_left_out(work):
    bank = open_bank(work / "bank")
    assert sorted(bank.names) == ["bat", "box", "teddy bear"] and set(bank.licences) == {"CC-BY-4.0"}
    assert "CC-BY-4.0 (https://creativecommons.org/licenses/by/4.0/)" in (work / "dense-weights" / "ATTRIBUTION.md").read_text()


def test_what_is_packed_is_what_was_trained_in_half_precision(work, clip_folder):
    about = json.loads((work / "dense-weights" / "weights.json").read_text())
    assert about["stages"] == ["FieldStage", "AttributeStage"] and about["facts"]["clip_max_tokens"] == 20
    trained, packed = dense_stages(work), loaded(work, clip_folder).stages
    pairs = ((trained[0].denoiser, packed[0].denoiser), (trained[1].predictor, packed[1].predictor))
    for own, other in pairs:
        size, packed_size = ({k: v for k, v in n.config.items() if k[0] != "_"} for n in (own, other))
        assert size == packed_size and "channels" in size
        for name, tensor in own.state_dict().items():
            assert torch.equal(tensor.half().float(), other.state_dict()[name]), name


@pytest.mark.parametrize("damage", ["stages", "of another chain", "resolution", "shape"])
def test_weights_that_do_not_fit_are_refused(work, clip_folder, tmp_path, damage):
    folder = tmp_path / "weights"
    shutil.copytree(work / "dense-weights", folder, ignore=shutil.ignore_patterns("clip"))
    about = json.loads((folder / "weights.json").read_text())
    if damage == "stages":
        about["stages"] = ["FieldStage", "MagicStage"]
    elif damage == "of another chain":
        del about["stages"]
    else:
        config = folder / "attributes" / "config.json"
        old, new = ('"resolution": 16', '"resolution": 32') if damage == "resolution" else ('"channels": 8', '"channels": 16')
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))
    write_about(folder, about.pop("format"), {k: v for k, v in about.items() if k != "files"})
    with pytest.raises(InputError, match="holds no whole weights"):
        loaded(work, clip_folder, folder)


def test_networks_of_another_size_are_not_packed_as_of_this_one(work, config):
    with pytest.raises(InputError, match="8 channels, not 32; give the --size"):
        value(train_text("dense-pack", work, None, replace(config, dense_attributes=DenseAttributeTrainConfig())))


def test_training_that_was_cut_goes_on_as_if_it_had_not_been(work, config, tmp_path):
    """bfloat16, two batches to a step; the network and its averages, to the bit."""
    examples = FineExamples(open_bank(work / "bank"), work / "volumes", "train")
    loop = replace(LOOP, accumulate=2, log_every=1, save_every=0)
    own = replace(config.dense_field, loop=loop)
    whole, _ = value(train_field(examples, own, tmp_path / "whole"))
    cut(train_field(examples, own, tmp_path / "cut"), after=3)
    assert load_file(tmp_path / "cut" / "state.safetensors")
    resumed, events = value(train_field(examples, own, tmp_path / "cut"))
    assert [e.step for e in events if e.stage == "training"] == [3, 4]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@torch.no_grad()
def test_the_second_stage_sees_fields_as_the_first_will_make_them(work):
    examples = FineExamples(open_bank(work / "bank"), work / "volumes", "train")
    denoiser = dense_stages(work)[0].denoiser
    made = through_denoiser(examples, denoiser, LOOP)([0, 1], examples.text([0, 1], torch.Generator()), torch.Generator())
    assert made.shape == (2, 4, 16, 16, 16) and 0 <= float(made[:, 0].min()) and float(made[:, 0].max()) <= 1
    true = torch.stack([examples.fine(0), examples.fine(1)])
    assert 0 < float((made - true).abs().mean()) < 2 * float(true.abs().mean())


def test_attributes_of_a_field_without_colours_do_not_depend_on_them():
    torch.manual_seed(0)
    network = TINY.made(DenseAttributes, resolution=8, field_channels=1, text_dim=16)
    fields = torch.rand(2, 4, 8, 8, 8)
    words = TextFeatures(torch.randn(2, 3, 16), torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 16))
    out = network(fields, words.tokens, words.mask)
    other = network(torch.cat([fields[:, :1], torch.rand(2, 3, 8, 8, 8)], dim=1), words.tokens, words.mask)
    assert torch.equal(out.rows, other.rows) and len(out.nodes) == int(((1 - fields[:, 0]) * FIELD_LIMIT < REACH / 8).sum())


# ---- the published size --------------------------------------------------------------------------------------------------


def test_the_published_size_builds_and_its_memory_is_known():
    sizes = {"resolution": 32, "field_channels": GVGEN.field.field_channels, "text_dim": 768}
    first = unet_memory(FieldDenoiser, GVGEN.field.unet, GVGEN.field.batch, **sizes)
    assert first.parameters == 927_616_353 and 50e9 < first.total < 70e9
    assert "927.6 million parameters" in first.sentence(GVGEN.field.batch)
    with torch.device("meta"):
        second = GVGEN.attributes.unet.made(DenseAttributes, **sizes)
    assert sum(p.numel() for p in second.parameters()) == 927_688_941


def test_memory_on_the_meta_device_is_that_of_the_network_itself():
    kept = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            network = VolumeUNet(1, 1, 8, (1, 2), 1, (False, False), 8, 16)
            given = torch.ones(2, 1, 8, 8, 8), torch.ones(2, 3, 16), torch.ones(2, 3, dtype=torch.bool), torch.ones(2)
        torch.nn.init.ones_(network.middle.transformer.out.weight)
        network.middle.transformer = None  # attention keeps what its kernel pleases
        kept.append(training_memory(network, lambda network=network, given=given: network(*given)).kept)
    assert kept[0] == kept[1] > 8 * 2 * 8**3 * 4
