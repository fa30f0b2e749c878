"""Every weight of image to 3-D from a folder of objects, at toy size."""

import dataclasses

import pytest

from diffusion.image_to_3d import ImageTo3D
from diffusion.train_autoencoder import AutoencoderTrainConfig
from diffusion.train_image import ImageTrainConfig, train_image
from diffusion.train_multiview import MultiviewTrainConfig
from diffusion.training import TrainConfig
from diffusion.view_bank import ViewBankConfig
from splat.errors import InputError
from tests.diffusion.tiny_objects import box, write_packed

LOOP = TrainConfig(steps=2, warmup=0)
TOY = ImageTrainConfig(
    views=ViewBankConfig(size=16, ring=4, extra=1, stretched=0),
    autoencoder=AutoencoderTrainConfig(channels=4, patch=4, widths=(8, 8), blocks=(0, 0), batch=2, loop=LOOP),
    denoiser=MultiviewTrainConfig(width=32, blocks=1, batch=2, extra=1, loop=LOOP),
)


def run(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    facts = [("CC0-1.0", "train"), ("CC-BY-4.0", "val"), ("", "train")]
    rows = [
        {"key": f"set/{i}", "noun": "box", "license": licence, "author": "somebody", "split": split}
        for i, (licence, split) in enumerate(facts)
    ]
    write_packed(folder / "objects", [box(), box((30, 30, 200)), box((9, 9, 9))], rows)
    run(train_image("views", folder, folder / "objects", TOY))
    return folder


@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_all_steps_make_weights_that_load(work, space):
    config = dataclasses.replace(TOY, space=space)
    run(train_image("autoencoder", work, None, config))
    for left in (work / "denoiser").glob("*") if (work / "denoiser").exists() else ():
        if left.is_file():
            left.unlink()  # the state of the other space's network
    run(train_image("denoiser", work, None, config))
    assert list((work / "denoiser").glob("sheet-*.png"))
    weights = run(train_image("pack", work, None, config))
    generator = ImageTo3D.load(weights)
    assert generator.space.name == space
    assert generator.licences == ("image to 3-D, objects learnt from: CC0-1.0",)  # not the validation object's, not none
    assert "somebody" in (weights / "ATTRIBUTION.md").read_text()


def test_objects_of_unknown_licence_are_left_out(work):
    from diffusion.view_bank import open_view_bank

    assert open_view_bank(work / "views").licences == ("CC0-1.0", "CC-BY-4.0")


@pytest.mark.parametrize(("step", "told"), [("autoencoder", "view bank"), ("views", "give their folder"), ("other", "no step")])
def test_steps_out_of_order_are_one_sentence(tmp_path, step, told):
    with pytest.raises(InputError, match=told):
        run(train_image(step, tmp_path, None, TOY))


def test_latents_need_their_autoencoder(work, tmp_path):
    (tmp_path / "views").symlink_to(work / "views")
    with pytest.raises(InputError, match="run the step 'autoencoder' first"):
        run(train_image("denoiser", tmp_path, None, dataclasses.replace(TOY, space="latent")))
