"""Pictures of an object to Gaussians: the network with its weights on disk."""

import json
import math

import pytest
import torch
from diffusers import AutoencoderTiny

from diffusion.image_config import ImageSampleConfig
from diffusion.image_to_3d import ImageTo3D, save_image_weights, widest_gap
from diffusion.models.multiview import MultiviewDenoiser
from diffusion.subject import Subject
from splat.errors import InputError

SIDE = 16
SIZES = {"width": 32, "blocks": 1, "heads": 2, "half": 8, "quarter": 16}


def denoiser(space: str = "pixel", channels: int = 4) -> MultiviewDenoiser:
    torch.manual_seed(0)
    return MultiviewDenoiser(SIDE, space, channels, **SIZES)


def autoencoder() -> AutoencoderTiny:
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    blocks = {"num_encoder_blocks": (0, 0, 0, 1), "num_decoder_blocks": (1, 0, 0, 0)}
    return AutoencoderTiny(in_channels=4, out_channels=4, latent_channels=5, **widths, **blocks)


@pytest.fixture
def weights(tmp_path):
    save_image_weights(tmp_path / "weights", denoiser(), None, ["objects: CC0-1.0"], {"objects": 3})
    return tmp_path / "weights"


def subject(azimuth: float = 0.0, elevation: float = 20.0, side: int = SIDE) -> Subject:
    alpha = torch.zeros(side, side)
    alpha[side // 4 : -side // 4, side // 4 : -side // 4] = 1
    return Subject(torch.tensor([0.8, 0.2, 0.1]).expand(side, side, 3), alpha, azimuth, elevation)


def run(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events


def test_text_is_read_where_the_weights_take_it_and_refused_where_not(weights, tmp_path):
    with pytest.raises(InputError, match="take no text"):
        run(ImageTo3D.load(weights).generate([subject()], 0, ImageSampleConfig(steps=1, text="a chair")))
    torch.manual_seed(0)
    network = MultiviewDenoiser(SIDE, "pixel", 4, **SIZES, text_channels=384)
    save_image_weights(tmp_path / "told", network, None, ["objects: CC0-1.0"], {})
    generator = ImageTo3D.load(tmp_path / "told")
    none, chair, again = (
        run(generator.generate([subject()], 0, ImageSampleConfig(steps=1, text=text)))[0].splats.means
        for text in ("", "a chair", "a chair")
    )
    assert generator.takes_text and torch.equal(chair, again) and not torch.equal(chair, none)


class TestGenerate:
    def test_an_object_in_the_frame_of_its_picture(self, weights):
        generator = ImageTo3D.load(weights)
        made, events = run(generator.generate([subject()], 0, ImageSampleConfig(steps=3)))
        assert [(e.stage, e.step, e.total) for e in events] == [("views", 1, 3), ("views", 2, 3), ("views", 3, 3)]
        assert all(e.preview.shape == (192, 192, 3) for e in events)
        assert len(made.splats) == 4 * SIDE * SIDE
        assert made.views.images.shape == (4, SIDE, SIDE, 3) and made.views.masks.shape == (4, SIDE, SIDE)
        center = made.views.cameras.centers[0]
        elevation = math.radians(20)
        torch.testing.assert_close(center, 1.9 * torch.tensor([0, math.sin(elevation), math.cos(elevation)]), rtol=0, atol=1e-5)

    def test_the_same_seed_gives_the_same_bits_and_another_another(self, weights):
        generator, config = ImageTo3D.load(weights), ImageSampleConfig(steps=2)
        a, b, c = (run(generator.generate([subject()], seed, config))[0].splats for seed in (1, 1, 2))
        assert torch.equal(a.means, b.means) and torch.equal(a.sh, b.sh)
        assert not torch.equal(a.means, c.means)

    def test_further_pictures_are_known_at_their_azimuths(self, weights):
        generator = ImageTo3D.load(weights)
        given = generator.known([subject(), subject(120.0, 5.0)])
        assert given.is_clean.tolist() == [True, True, False, False]
        azimuths = torch.rad2deg(torch.atan2(given.cameras.centers[:, 0], given.cameras.centers[:, 2])) % 360
        torch.testing.assert_close(azimuths, torch.tensor([0.0, 120.0, 240.0, 60.0]), rtol=0, atol=1e-3)
        made, _ = run(generator.generate([subject(), subject(120.0, 5.0)], 0, ImageSampleConfig(steps=1)))
        assert len(made.views.images) == 4

    def test_more_than_four_pictures_are_all_known(self, weights):
        given = ImageTo3D.load(weights).known([subject(a) for a in (0, 50, 100, 150, 200, 250)])
        assert bool(given.is_clean.all()) and len(given.cameras) == 6

    def test_coverage_multiplies_colours(self, weights):
        given = ImageTo3D.load(weights).known([subject()])
        assert float(given.pictures[0, :3, 0, 0].max()) == 0
        torch.testing.assert_close(given.pictures[0, :, 8, 8], torch.tensor([0.8, 0.2, 0.1, 1.0]))

    @pytest.mark.parametrize(
        ("subjects", "told"),
        [
            ([], "0 pictures"),
            ([subject()] * 9, "9 pictures"),
            ([subject(10.0)], "azimuth 10"),
            ([subject(side=32)], "takes 16"),
        ],
    )
    def test_impossible_pictures_are_refused(self, weights, subjects, told):
        with pytest.raises(InputError, match=told):
            run(ImageTo3D.load(weights).generate(subjects, 0, ImageSampleConfig(steps=1)))


@pytest.mark.parametrize(
    ("azimuths", "next_one"), [([0], 180), ([0, 180], 90), ([0, 180, 90], 270), ([0, 350], 175), ([10, 190, 100], 280)]
)
def test_views_are_made_up_where_the_widest_gap_is(azimuths, next_one):
    assert widest_gap(azimuths) == pytest.approx(next_one)


class TestWeights:
    def test_facts_and_licences_come_back(self, weights):
        loaded = ImageTo3D.load(weights)
        assert loaded.licences == ("objects: CC0-1.0",) and loaded.facts == {"objects": 3} and loaded.side == SIDE

    def test_a_denoiser_of_latents_brings_its_autoencoder(self, tmp_path):
        save_image_weights(tmp_path, denoiser("latent", 5), autoencoder(), [], {})
        made, _ = run(ImageTo3D.load(tmp_path).generate([subject()], 0, ImageSampleConfig(steps=2)))
        assert len(made.splats) == 4 * SIDE * SIDE

    def test_latents_of_other_channels_are_refused(self, tmp_path):
        save_image_weights(tmp_path, denoiser("latent", 6), autoencoder(), [], {})
        with pytest.raises(InputError, match="6 channels and a space of 5"):
            ImageTo3D.load(tmp_path)

    def test_without_its_autoencoder_it_does_not_load(self, tmp_path):
        save_image_weights(tmp_path, denoiser("latent", 5), None, [], {})
        with pytest.raises(InputError, match=r"autoencoder.* --weights|config\.json"):
            ImageTo3D.load(tmp_path)

    def test_a_network_of_other_layers_is_refused(self, weights):
        """Whole files, with the hashes that weights.json has, but not the weights of this network."""
        network = denoiser()
        network.norm.more = torch.nn.Parameter(torch.ones(1))
        save_image_weights(weights, network, None, [], {})
        with pytest.raises(InputError, match=r"1 unexpected, such as norm\.more"):
            ImageTo3D.load(weights)

    @pytest.mark.parametrize(
        "broken", ["missing", "cut", "altered", "other kind", "outside", "no json", "unlisted", "no facts"]
    )
    def test_broken_folders_are_one_sentence(self, weights, broken):
        file, about = weights / "denoiser" / "diffusion_pytorch_model.safetensors", weights / "weights.json"
        facts = json.loads(about.read_text())
        if broken == "missing":
            file.unlink()
        elif broken == "cut":
            file.write_bytes(file.read_bytes()[:100])
        elif broken == "altered":
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        elif broken == "no json":
            about.write_text("{")
        else:
            facts |= {"format": "other"} if broken == "other kind" else {}
            facts["files"] |= {"../../x": "0" * 64} if broken == "outside" else {}
            facts["files"] = {} if broken == "unlisted" else facts["files"]
            facts = {k: v for k, v in facts.items() if k != broken.removeprefix("no ")}
            about.write_text(json.dumps(facts))
        with pytest.raises(InputError, match="holds no whole weights of image to 3-D") as error:
            ImageTo3D.load(weights)
        assert "\n" not in str(error.value)
