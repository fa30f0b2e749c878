"""From meshes to packed weights to a volume, in miniature; and weights that are not what they should be."""

import hashlib
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_objects import box, joined, write_packed

from diffusion.data.augment import AugmentConfig
from diffusion.data.object_set import open_objects
from diffusion.field import FIELD_LIMIT
from diffusion.field_bank import BankConfig, build_bank, open_bank
from diffusion.fit_volume import VolumeFitConfig
from diffusion.models.volume_unet import VolumeUNet
from diffusion.text_config import TextSampleConfig
from diffusion.text_encoder import ClipConfig, load_text_encoder
from diffusion.text_sheets import attribute_sheet, drawn, upsampler_sheet
from diffusion.text_stages import field_splats
from diffusion.text_to_volume import TextToVolume
from diffusion.train_attributes import AttributeTrainConfig, FineExamples, UpsamplerTrainConfig, through_upsampler
from diffusion.train_latents import LatentTrainConfig
from diffusion.train_text import STEPS, TextTrainConfig, load_codec, load_stages, train_text
from diffusion.training import TrainConfig
from splat.errors import InputError
from splat.metrics import psnr

LOOP = TrainConfig(steps=4, warmup=1, log_every=2)
CONFIG = TextTrainConfig(
    volumes=VolumeFitConfig(resolution=16, steps=6, views=3, view_side=32),
    bank=BankConfig(resolution=8, limit=0.3, variants=4, augment=AugmentConfig(recolour=0.5, stretch=0.4)),
    shape=LatentTrainConfig(dimensions=6, width=32, blocks=2, hidden=32, conditioning=16, batch=8, loop=LOOP),
    detail=UpsamplerTrainConfig(channels=8, multipliers=(1, 1, 1), batch=2, loop=replace(LOOP, bf16=True)),
    attributes=AttributeTrainConfig(width=16, batch=2, views=1, view_side=24, loop=LOOP),
)
PROMPTS = ("a red box", "a blue ball")


def value(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """All steps, run in order."""
    folder = tmp_path_factory.mktemp("text")
    things = {
        "red box": box((200, 30, 30)), "blue box": box((30, 60, 200), (0.6, 1.0, 0.6)),
        "green plate": box((40, 160, 60), (1.0, 0.2, 0.8)),
        "white cross": joined(  # heavy on one side: a mirror image that is forgotten shows
            box((240, 240, 240), (1.0, 0.2, 0.2)), box((240, 240, 240), (0.25, 1.0, 0.5), (-0.375, 0, 0))
        ),
        "black wall": box((20, 20, 20), (0.3, 0.8, 1.0)),
    }  # fmt: skip
    rows = [{"id": f"own/{n}", "name": n, "group": n.split()[1], "license": "CC0-1.0", "author": "A. Maker"} for n in things]
    rows[-1]["split"] = "val"
    write_packed(folder / "objects", list(things.values()), rows)
    objects = folder / "objects"
    for step in STEPS:
        value(train_text(step, folder / "work", objects, CONFIG))
    return folder / "work"


@pytest.fixture(scope="module")
def generator(work):
    return TextToVolume.load(work / "weights")


def test_bank_holds_every_object_with_its_variants_and_true_captions(work):
    bank = open_bank(work / "bank")
    train = bank.examples("train")
    assert len(train) == 4 * sum(s == "train" for s in bank.splits) > 0
    assert all(bank.variants[i].recolouring is None and not bank.variants[i].mirrored for i in train[::4])
    for i in train:
        change = bank.variants[i].recolouring
        if change is not None:  # one of its sentences names the new colour
            assert any(change.new in bank.text.sentences[c] for c in bank.captions[i]), i


def test_examples_of_the_later_stages_agree_with_the_bank(work):
    """The same object, recoloured and mirrored alike, at both resolutions."""
    examples = FineExamples(open_bank(work / "bank"), work / "volumes", "train")
    crosses = [v for v, o in zip(examples.bank.variants, examples.bank.objects, strict=True) if o == 3]
    assert any(v.mirrored for v in crosses)
    for i in range(len(examples)):
        fine, coarse = examples.fine(i), examples.coarse(i)
        pooled = torch.nn.functional.avg_pool3d(fine[None], 2)[0]
        near = pooled[0] > 0.6
        assert float((pooled[1:, near] / pooled[:1, near] - coarse[1:, near] / coarse[:1, near]).abs().mean()) < 0.25, i
        where = examples.volume(i).active[0]
        assert float(fine[0, where].mean()) > 0.6


def test_sheets_of_the_later_stages_show_validation_objects_the_truth_above_what_is_made(work):
    bank, codec = open_bank(work / "bank"), load_codec(work / "shape" / "codec.safetensors")
    kept = FineExamples(bank, work / "volumes", "val")
    assert [bank.names[o] for o in bank.objects[kept.rows]] == ["black wall"]
    _, detail, attributes = load_stages(work)
    upsampler = VolumeUNet(4, 4, 8, (1, 1, 1), text_dim=384, timed=False, finer=2)  # fresh: what is interpolated stays
    image, figures = upsampler_sheet(bank, work / "volumes", codec)(upsampler)
    assert torch.equal(image[:128], drawn([field_splats(kept.fine(0)[None], FIELD_LIMIT)])[0]) and image.shape == (256, 128, 3)
    assert figures["error"] == pytest.approx(figures["interpolated"], rel=1e-4)
    image, figures = attribute_sheet(
        bank, work / "volumes", lambda shown: through_upsampler(shown, codec, detail.upsampler, 0.0)
    )(attributes.predictor)
    assert torch.equal(image[:128], drawn([kept.volume(0).to_splats()])[0]) and image.shape == (384, 128, 3)
    true = float(psnr(image[128:256], image[:128]))
    assert figures["psnr"] == pytest.approx(true, rel=1e-4) and figures["psnr_made"] < 60
    for step in ("detail", "attributes"):
        assert [p.name for p in (work / step).glob("*.png")] == ["sheet-000004.png"]


def test_one_cube_for_each_prompt_in_three_stages(generator):
    samples, events = value(generator.generate(PROMPTS, (0, 1), TextSampleConfig(steps=3)))
    assert len(samples.volumes) == 2 and samples.volumes.resolution == 16 and samples.agreement.shape == (2,)
    assert [e.stage for e in events] == ["shape", "detail", "attributes"] * 2
    assert all(e.preview.shape == (192, 192, 3) and bool(e.preview.isfinite().all()) for e in events)
    assert bool(samples.volumes.features.isfinite().all())


def test_a_cube_depends_on_its_own_prompt_and_seed_alone(generator):
    config = TextSampleConfig(steps=3)
    both, _ = value(generator.generate(PROMPTS, (0, 1), config))
    second, _ = value(generator.generate(PROMPTS[1:], (1,), config))
    other, _ = value(generator.generate(PROMPTS[1:], (2,), config))
    assert torch.equal(both.volumes.features[1], second.volumes.features[0])
    assert torch.equal(both.agreement[1:], second.agreement)
    assert not torch.equal(other.volumes.features, second.volumes.features)


def test_what_the_gaussians_lack_in_width_follows_from_the_pictures_they_were_learnt_from(generator):
    """Three quarters of the deviation of the renderer's blur of 0.3 px^2, at the middle of an object."""
    focal = 12 / math.tan(math.radians(49.1 / 2))  # of the toy's 24 px
    assert generator.blur == pytest.approx(0.75 * math.sqrt(0.3) * 1.9 / focal)
    shipped = replace(generator, facts={"facts": {}})  # its weights.json is older than the entry, its pictures had 96 px
    assert shipped.blur == pytest.approx(generator.blur / 4)


def test_prompts_without_seeds_are_refused(generator):
    with pytest.raises(InputError, match="2 prompts and 1 seeds"):
        value(generator.generate(PROMPTS, (0,), TextSampleConfig()))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"guidance": -1.0}, {"guidance": float("nan")}])
def test_settings_that_cannot_be_sampled_are_refused(wrong):
    with pytest.raises(InputError, match="cannot be sampled"):
        TextSampleConfig(**wrong)


def test_whose_objects_were_learnt_from_is_written_beside_the_weights(work):
    text = (work / "weights" / "ATTRIBUTION.md").read_text()
    assert "4 objects, CC0-1.0 (https://creativecommons.org/publicdomain/zero/1.0/)" in text and "- A. Maker: " in text


def test_weights_say_nothing_of_where_they_were_made(work):
    """They were loaded from the work folder, whose path diffusers would write into their configs."""
    told = "".join(path.read_text() for path in (work / "weights").rglob("*.json"))
    assert str(work) not in told and '"_name_or_path"' not in told


def test_vocabulary_holds_what_was_trained_on(generator, work):
    bank = open_bank(work / "bank")
    learnt = {n for n, s in zip(bank.names, bank.splits, strict=True) if s == "train"}
    assert learnt <= set(generator.vocabulary.names)


@pytest.mark.parametrize("damage", ["missing", "cut", "altered", "no list", "leads out", "not json", "short list"])
def test_weights_that_are_not_whole_are_refused(work, tmp_path, damage):
    folder = tmp_path / "weights"
    shutil.copytree(work / "weights", folder)
    network, about = folder / "denoiser" / "diffusion_pytorch_model.safetensors", folder / "weights.json"
    facts = json.loads(about.read_text())
    if damage == "missing":
        network.unlink()
    elif damage == "cut":
        network.write_bytes(network.read_bytes()[:-10])
    elif damage == "altered":
        config = folder / "denoiser" / "config.json"
        config.write_text(config.read_text().replace('"width": 32', '"width": 33'))
    elif damage == "no list":
        about.unlink()
    elif damage == "leads out":
        facts["files"]["../../outside"] = "0" * 64
        about.write_text(json.dumps(facts))
    elif damage == "not json":
        about.write_bytes(b"\xff\x00{")
    else:
        del facts["files"]["upsampler/config.json"]
        about.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"holds no whole weights.*install splatsmith again"):
        TextToVolume.load(folder)


def rehash(folder):
    """weights.json as whoever changed the files on purpose would write it."""
    facts = json.loads((folder / "weights.json").read_text())
    facts["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in facts["files"]}
    (folder / "weights.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("damage", ["shape", "cut", "no tables", "flat table", "dimensions", "resolution", "no names", "limit"])
def test_weights_that_do_not_fit_are_refused_though_their_hashes_hold(work, tmp_path, damage):
    folder = tmp_path / "weights"
    shutil.copytree(work / "weights", folder)
    tables, about = folder / "tables.safetensors", folder / "weights.json"
    facts, arrays = json.loads(about.read_text()), load_file(tables)
    if damage == "shape":
        config = folder / "denoiser" / "config.json"
        config.write_text(config.read_text().replace('"width": 32', '"width": 48'))
    elif damage == "cut":
        tables.write_bytes(tables.read_bytes()[:-10])
    elif damage == "no tables":
        save_file({}, tables)
    elif damage == "flat table":
        save_file(arrays | {"basis_steps": torch.tensor(1.0)}, tables)
    elif damage == "dimensions":
        save_file({k: v[:5] if k in ("basis", "basis_steps", "scales") else v for k, v in arrays.items()}, tables)
    elif damage == "resolution":
        config = folder / "attributes" / "config.json"
        config.write_text(config.read_text().replace('"resolution": 16', '"resolution": 24'))
    elif damage == "no names":
        save_file(arrays | {"directions": arrays["directions"][:0]}, tables)
        about.write_text(json.dumps(facts | {"names": []}))
    else:
        about.write_text(json.dumps(facts | {"limit": -1}))
    rehash(folder)
    with pytest.raises(InputError, match="holds no whole weights"):
        TextToVolume.load(folder)


def test_a_bank_that_was_cut_is_no_bank_though_an_older_one_was_whole(work, tmp_path):
    folder = tmp_path / "bank"
    shutil.copytree(work / "bank", folder)
    assert open_bank(folder).keys
    objects = open_objects(work.parent / "objects")
    job = build_bank(objects, work / "volumes", folder, load_text_encoder(), CONFIG.bank)
    assert next(job).stage == "fields"
    job.close()
    with pytest.raises(InputError, match="holds no field bank"):
        open_bank(folder)


@pytest.mark.parametrize("damage", ["objects", "examples", "format", "fields", "a list"])
def test_a_bank_whose_tables_do_not_fit_is_refused(work, tmp_path, damage):
    folder = tmp_path / "bank"
    shutil.copytree(work / "bank", folder)
    about = json.loads((folder / "bank.json").read_text())
    if damage == "objects":
        about["objects"].pop()
    elif damage == "examples":
        del about["examples"][0]["captions"]
    elif damage == "format":
        about["format"] = "another"
    elif damage == "fields":
        np.save(folder / "fields.npy", np.load(folder / "fields.npy")[:, :3])
    else:
        about = [about]
    (folder / "bank.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="holds no field bank"):
        open_bank(folder)


def test_a_bank_that_was_built_again_is_not_used_with_what_was_learnt_from_the_one_before(work, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(work, folder)
    about = json.loads((folder / "bank" / "bank.json").read_text())
    assert about["fields"] == hashlib.sha256(np.load(folder / "bank" / "fields.npy").tobytes()).hexdigest()
    about["fields"] = "of others"
    (folder / "bank" / "bank.json").write_text(json.dumps(about))
    for step in STEPS[2:]:
        with pytest.raises(InputError, match=r"built again.*; remove .*shape and run the step 'shape' again"):
            value(train_text(step, folder, None, CONFIG))
    shutil.rmtree(folder / "shape")
    value(train_text("shape", folder, None, CONFIG))
    for step in STEPS[3:]:
        with pytest.raises(InputError, match=r"remove .*detail and run the step 'detail' again"):
            value(train_text(step, folder, None, CONFIG))


def test_a_network_whose_training_was_cut_is_named(work, tmp_path):
    """Before the end of a sitting there is a state and no network."""
    folder = tmp_path / "work"
    shutil.copytree(work, folder)
    shutil.rmtree(folder / "detail" / "network")
    for step in ("attributes", "pack"):
        with pytest.raises(InputError, match="run the step 'detail' to the end of a sitting"):
            value(train_text(step, folder, None, CONFIG))


def test_steps_out_of_order_say_which_is_missing(tmp_path):
    with pytest.raises(InputError, match="run the step 'bank' first"):
        value(train_text("shape", tmp_path, None, CONFIG))
    with pytest.raises(InputError, match="give their folder"):
        value(train_text("volumes", tmp_path, None, CONFIG))
    with pytest.raises(InputError, match="no step 'colour'"):
        value(train_text("colour", tmp_path, None, CONFIG))


def test_clip_reads_the_sentences_where_the_weights_were_trained_with_it(work, clip_folder, tmp_path):
    """Steps 2 to 6 again with CLIP: the weights want their encoder at hand, and take no other."""
    config = replace(CONFIG, text=ClipConfig(clip_folder, max_tokens=20))
    shutil.copytree(work / "volumes", tmp_path / "volumes")
    for step in STEPS[1:]:
        value(train_text(step, tmp_path, work.parent / "objects", config))
    with pytest.raises(InputError, match=r"read sentences with CLIP.*put the CLIP folder"):
        TextToVolume.load(tmp_path / "weights")
    with pytest.raises(InputError, match="use the encoder that they were trained with"):
        TextToVolume.load(tmp_path / "weights", encoder=load_text_encoder())
    (tmp_path / "weights" / "clip").symlink_to(clip_folder)
    generator = TextToVolume.load(tmp_path / "weights")
    assert generator.encoder.config.folder == tmp_path / "weights" / "clip"
    samples, _ = value(generator.generate(("a box",), (0,), TextSampleConfig(steps=2)))
    assert bool(samples.volumes.features.isfinite().all())
