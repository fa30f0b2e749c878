"""The multiview splat denoiser: network, training and sampling through the splats."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from diffusion.data.object_set import open_objects
from diffusion.image_config import ImageSampleConfig
from diffusion.models.multiview import MultiviewDenoiser
from diffusion.sample_views import KnownViews, sample_splats, sampling
from diffusion.splat_maps import HULL_CHANNELS, MAP_CHANNELS
from diffusion.train_image import sample_sheet
from diffusion.train_multiview import (
    MultiviewLoss,
    MultiviewTrainConfig,
    draw_batch,
    drawn,
    hues_turned,
    new_multiview,
    picture_error,
    train_multiview,
)
from diffusion.training import TrainConfig
from diffusion.view_bank import ViewBankConfig, build_view_bank, cameras_at
from diffusion.view_space import PixelSpace
from splat.errors import InputError
from tests.diffusion.tiny_bank import disc_bank
from tests.diffusion.tiny_objects import box, joined, write_packed

SIDE = 16
TINY = MultiviewTrainConfig(width=32, blocks=1, batch=2, extra=1, loop=TrainConfig(steps=3, warmup=0, log_every=1))
SIZES = {"width": 32, "blocks": 2, "heads": 2, "half": 8, "quarter": 16}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    car = joined(box((200, 30, 30)), box((30, 200, 30), (0.2, 0.2, 0.2), (0.3, 0.3, 0.2)))
    rows = [{"key": f"set/{i}", "noun": n, "license": "CC0-1.0", "split": s} for i, (n, s) in enumerate(
        (("car", "train"), ("box", "train"), ("box", "val"))
    )]  # fmt: skip
    write_packed(folder, [car, box((30, 30, 200), (0.4, 1.0, 0.4)), box((90, 90, 90))], rows)
    job = build_view_bank(open_objects(folder), tmp_path_factory.mktemp("bank"), ViewBankConfig(size=SIDE, ring=8, extra=2))
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MultiviewDenoiser(SIDE, **SIZES).eval().requires_grad_(False)


def inputs(views: int = 3, batch: int = 2, side: int = SIDE):
    g = torch.Generator().manual_seed(1)
    rand = lambda *shape: torch.rand(*shape, generator=g)  # noqa: E731
    known = torch.zeros(batch, views, dtype=torch.bool)
    known[:, 0] = True
    return {
        "noisy": torch.randn(batch, views, 4, side, side, generator=g), "clean": rand(batch, views, 4, side, side),
        "is_clean": known,
        "alpha": torch.full((batch,), 0.6), "sigma": torch.full((batch,), 0.8),
        "rays": rand(batch, views, 6 + HULL_CHANNELS, side // 2, side // 2),
    }  # fmt: skip


class TestNetwork:
    def test_a_map_for_every_view(self, network):
        assert network(**inputs()).shape == (2, 3, MAP_CHANNELS, SIDE, SIDE)

    def test_views_and_objects_in_another_order_give_the_same_maps(self, network):
        given, order = inputs(), torch.tensor([2, 0, 1])
        turned = {k: v[:, order] if v.ndim > 1 else v for k, v in given.items()}
        torch.testing.assert_close(network(**turned), network(**given)[:, order], rtol=1e-4, atol=1e-5)
        alone = network(**{k: v[1:] for k, v in given.items()})
        torch.testing.assert_close(alone, network(**given)[1:], rtol=1e-4, atol=1e-5)

    def test_every_view_is_seen_by_the_others(self, network):
        given = inputs()
        before = network(**given)
        given["noisy"][:, 2] += 1
        change = (network(**given) - before).abs().amax((0, 2, 3, 4))
        assert bool((change > 1e-5).all())

    def test_known_views_are_read_clean_and_others_noisy(self, network):
        given = inputs()
        before = network(**given)
        hidden = dict(given, noisy=given["noisy"].clone(), clean=given["clean"].clone())
        hidden["noisy"][:, 0] = 7
        hidden["clean"][:, 1:] = 7
        torch.testing.assert_close(network(**hidden), before)
        hidden["clean"][:, 0] = 0.5
        assert float((network(**hidden) - before).abs().max()) > 1e-4

    def test_the_noise_level_is_seen(self, network):
        given = inputs()
        other = dict(given, alpha=torch.full((2,), 0.8), sigma=torch.full((2,), 0.6))
        other["noisy"] = given["noisy"] * ((0.64 * 0.3 + 0.36) / (0.36 * 0.3 + 0.64)) ** 0.5  # what reaches the layers is equal
        assert float((network(**other) - network(**given)).abs().max()) > 1e-5

    def test_a_sentence_is_heard_where_the_network_takes_one(self, network):
        torch.manual_seed(0)
        told = MultiviewDenoiser(SIDE, **SIZES, text_channels=6).eval().requires_grad_(False)
        one, other = torch.nn.functional.normalize(torch.eye(2, 6) + 0.1, dim=-1)
        none, zero, a, b = (
            told(**inputs(), text=None if t is None else t.expand(2, 6)) for t in (None, torch.zeros(6), one, other)
        )
        assert torch.equal(none, zero) and not torch.allclose(a, b, atol=1e-6) and not torch.allclose(a, none, atol=1e-6)
        with pytest.raises(ValueError, match="takes no text"):
            network(**inputs(), text=one.expand(2, 6))

    def test_latents_of_an_eighth(self):
        latent = MultiviewDenoiser(SIDE, "latent", 5, **SIZES)
        given = inputs()
        given["noisy"] = torch.randn(2, 3, 5, SIDE // 8, SIDE // 8)
        assert latent(**given).shape == (2, 3, MAP_CHANNELS, SIDE, SIDE)

    def test_kept_and_loaded(self, network, tmp_path):
        network.save_pretrained(tmp_path)
        again = MultiviewDenoiser.from_pretrained(tmp_path, low_cpu_mem_usage=False)
        torch.testing.assert_close(again(**inputs()), network(**inputs()), rtol=0, atol=0)

    @pytest.mark.parametrize("wrong", [{"space": "voxel"}, {"side": 20}, {"width": 33}])
    def test_impossible_networks_are_refused(self, wrong):
        with pytest.raises(ValueError, match="make no network"):
            MultiviewDenoiser(**({"side": SIDE} | SIZES | wrong))


class TestBatches:
    def test_pictures_cameras_and_depths_belong_together(self, bank):
        """What a camera of the batch sees of the Gaussians at the batch's own depths is the batch's picture."""
        batch = draw_batch(
            bank, torch.tensor([0, 1, 2]), dataclasses.replace(TINY, turn_hues=0), torch.Generator().manual_seed(3)
        )
        assert batch.pictures.shape == (3, 5, 4, SIDE, SIDE)
        for b in range(3):
            cameras, found = batch.cameras[b], 0
            depth, covered = batch.depth[b, 0], batch.pictures[b, 0, 3] == 1
            y, x = torch.nonzero(covered & (depth > 0)).T
            K, pose = cameras.K[0], cameras.cam_from_world[0]
            in_cam = torch.stack([(x + 0.5 - K[0, 2]) / K[0, 0], (y + 0.5 - K[1, 2]) / K[1, 1], torch.ones(len(x))], -1)
            points = (in_cam * depth[y, x][:, None] - pose[:3, 3]) @ pose[:3, :3]
            for v in range(1, 5):
                at = (points @ cameras.cam_from_world[v, :3, :3].T + cameras.cam_from_world[v, :3, 3]) @ cameras.K[v].T
                column, line = (at[:, :2] / at[:, 2:]).floor().long().clamp(0, SIDE - 1).T
                found += float((batch.pictures[b, v, 3][line, column] > 0).float().mean()) / 4
            assert found > 0.9  # inside the silhouettes of all others

    def test_the_input_is_in_front_and_known(self, bank):
        config = dataclasses.replace(TINY, no_clean=0.0)
        batch = draw_batch(bank, torch.arange(4), config, torch.Generator().manual_seed(0))
        assert bool(batch.is_clean[:, 0].all())
        for cameras in batch.cameras:
            assert abs(float(cameras.centers[0, 0])) < 1e-5 and float(cameras.centers[0, 2]) > 0
        batch = draw_batch(bank, torch.arange(4), dataclasses.replace(TINY, no_clean=1.0), torch.Generator().manual_seed(0))
        assert not bool(batch.is_clean.any())

    def test_mirrored_pictures_have_mirrored_cameras(self):
        """Discs whose columns tell the azimuth: the next view is to the right of the input, mirrored to the left."""
        config, sides = dataclasses.replace(TINY, extra=0, anywhere=0, turn_hues=0), set()
        columns = torch.arange(SIDE) + 0.5 - SIDE / 2
        after = lambda column: (column + 2.5) % 4 - 1.5  # noqa: E731  of -1.5, -0.5, 0.5, 1.5 the next
        for seed in range(12):
            batch = draw_batch(disc_bank(4), torch.tensor([0]), config, torch.Generator().manual_seed(seed))
            coverage = batch.pictures[0, :2, 3].sum(1)  # [2, SIDE]
            first, second = ((coverage * columns).sum(1) / coverage.sum(1)).tolist()
            side = 1 if float(batch.cameras[0].centers[1, 0]) > 0 else -1
            assert side * second == pytest.approx(after(side * first), abs=1e-4)
            sides.add(side)
        assert sides == {1, -1}

    def test_one_seed_one_batch(self, bank):
        first, again, other = (draw_batch(bank, torch.arange(3), TINY, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
        assert torch.equal(first.pictures, again.pictures)
        assert not torch.equal(first.pictures, other.pictures)

    def test_hues_turn_round_grey_and_stay_below_their_coverage(self):
        g = torch.Generator().manual_seed(0)
        coverage = torch.rand(50, 1, generator=g)
        colours = torch.rand(50, 3, generator=g) * coverage
        torch.testing.assert_close(hues_turned(colours, coverage, 0.0), colours)
        torch.testing.assert_close(hues_turned(colours, coverage, 2 * math.pi / 3), colours[:, [2, 0, 1]], rtol=0, atol=1e-6)
        grey = coverage.expand(-1, 3) * 0.5
        torch.testing.assert_close(hues_turned(grey, coverage, 1.0), grey)
        turned = hues_turned(colours, coverage, 0.7)
        assert bool((turned >= 0).all()) and bool((turned <= coverage).all())


class TestLoss:
    def test_equal_pictures_have_none_and_coverage_counts(self):
        g = torch.Generator().manual_seed(0)
        true = torch.rand(2, 4, 8, 8, generator=g)
        assert float(picture_error(true, true, 0.5).abs().max()) == 0
        made = true.clone()
        made[:, 3] += 0.1  # white shines less through: 0.75 x 0.01, and the coverage itself 0.5 x 0.01
        torch.testing.assert_close(picture_error(made, true, 0.5), torch.full((2,), 0.0125))

    def test_training_on_one_object_makes_it_look_like_it(self, bank):
        """Thirty steps on one example: the error of its renders falls to less than half."""
        config = dataclasses.replace(TINY, no_clean=0, anywhere=0, more_clean=0, turn_hues=0, pure=1.0)
        loss = MultiviewLoss(bank, PixelSpace(), torch.ones(1), torch.tensor([0]), config)
        network = new_multiview(bank, PixelSpace(), config)
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        errors = []
        for step in range(30):
            value, figures = loss(network, torch.Generator().manual_seed(step))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            errors.append(figures["pure"])
        assert sum(errors[-5:]) < 0.5 * sum(errors[:5])

    def test_errors_relative_to_themselves_keep_their_figures_and_weigh_easy_objects_more(self, bank):
        """What is logged is the error itself; the loss falls less than the errors do where they are relative."""
        rows = torch.tensor([0, 1])
        told = []
        for relative in (0.0, 1.0):
            config = dataclasses.replace(TINY, depth_weight=0, pure=1.0, relative=relative)
            loss = MultiviewLoss(bank, PixelSpace(), torch.ones(2), rows, config)
            value, figures = loss(new_multiview(bank, PixelSpace(), config), torch.Generator().manual_seed(0))
            told.append((float(value.detach()), figures["pure"]))
        (plain, error), (relative, same) = told
        assert error == same and plain == pytest.approx(error, rel=1e-5)
        assert relative < 0.1 / 0.9 < plain  # e * 0.1 / (e + 0.01) is below 0.1 for every e

    def test_a_share_is_denoised_from_the_networks_own_first_answer(self, bank):
        """Two calls: the first from quiet pure noise; the second sees its render with the same noise."""
        config = dataclasses.replace(
            TINY, batch=3, own=1.0, pure=0.0, more_clean=0, no_clean=0, log_snr_mean=1.0, log_snr_std=0.0
        )
        network, calls, encoded = new_multiview(bank, PixelSpace(), config), [], []
        network.register_forward_pre_hook(lambda _, args: calls.append([a.clone() for a in args]))

        class Overheard(PixelSpace):
            def encode(self, pictures):
                encoded.append(super().encode(pictures))
                return encoded[-1]

        rows = torch.from_numpy(bank.examples("train"))
        MultiviewLoss(bank, Overheard(), torch.ones(len(rows)), rows, config)(network, torch.Generator().manual_seed(3))
        (first, *_, sigma, _), (second, _, _, a, s, _) = calls
        truth, answer = (e.unflatten(0, first.shape[:2]) for e in encoded)
        assert float(sigma.min()) > 0.999 and float(first.std()) == pytest.approx(0.35, rel=0.05)
        a, s = a[:, None, None, None, None], s[:, None, None, None, None]
        torch.testing.assert_close(second, a * answer + s * first)
        assert not torch.allclose(answer, truth, atol=0.05)

    @pytest.mark.parametrize("no_text", [0.0, 1.0])
    def test_every_object_comes_with_its_own_sentence_or_none(self, bank, no_text):
        config = dataclasses.replace(TINY, batch=6, text=True, no_text=no_text, turn_hues=0)
        text = torch.nn.functional.normalize(torch.rand(len(bank.keys), 4, generator=torch.Generator().manual_seed(0)), dim=-1)
        network, heard = new_multiview(bank, PixelSpace(), config, text_channels=4), []
        network.register_forward_pre_hook(lambda _, args, more: heard.append((args[1], more["text"])), with_kwargs=True)
        rows = torch.from_numpy(bank.examples("train"))
        value, _ = MultiviewLoss(bank, PixelSpace(), torch.ones(len(rows)), rows, config, text)(
            network, torch.Generator().manual_seed(3)
        )
        value.backward()
        ((pictures, told),) = heard
        blue = pictures[:, :, 2].sum((1, 2, 3)) > pictures[:, :, 0].sum((1, 2, 3))  # the box is; the car is red
        assert 0 < int(blue.sum()) < 6
        expected = text[blue.long()] * (no_text == 0)
        torch.testing.assert_close(told, expected)
        assert bool((network.sentence.weight.grad.abs().sum() > 0) == (no_text == 0))

    def test_a_cut_run_makes_the_same_network(self, bank, tmp_path):
        config = dataclasses.replace(TINY, loop=dataclasses.replace(TINY.loop, save_every=0.0))
        whole = run(train_multiview(bank, config, tmp_path / "whole"))
        job = train_multiview(bank, config, tmp_path / "cut")
        next(job), next(job)
        job.close()
        cut = run(train_multiview(bank, config, tmp_path / "cut"))
        for name, p in whole.state_dict().items():
            torch.testing.assert_close(cut.state_dict()[name], p, rtol=0, atol=0)


def run(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


class TestSampling:
    def given(self, bank, known: int = 1):
        azimuth = torch.arange(4) * math.pi / 2
        pictures = torch.from_numpy(np.array(bank.views[0, :8:2, ..., :4])).permute(0, 3, 1, 2).float() / 255
        is_clean = torch.arange(4) < known
        return KnownViews(pictures * is_clean[:, None, None, None], is_clean, cameras_at(azimuth, torch.full((4,), 0.35), SIDE))

    def test_every_call_gives_gaussians_and_the_last_are_the_sample(self, network, bank):
        config = ImageSampleConfig(steps=3)
        calls = list(sampling(network, PixelSpace(), self.given(bank), 0, config))
        assert len(calls) == 3
        torch.testing.assert_close(calls[-1].means, sample_splats(network, PixelSpace(), self.given(bank), 0, config).means)

    def test_seeds(self, network, bank):
        one, same, other = (
            sample_splats(network, PixelSpace(), self.given(bank), seed, ImageSampleConfig(steps=2)).means for seed in (1, 1, 2)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_known_views_leave_nothing_to_chance(self, network, bank):
        """With every view known the noise is never read."""
        given = self.given(bank, known=4)
        a, b = (sample_splats(network, PixelSpace(), given, seed, ImageSampleConfig(steps=2)).means for seed in (1, 2))
        assert torch.equal(a, b)

    def test_guidance_of_one_is_none_and_more_changes_the_sample(self, network, bank):
        plain, more = (
            sample_splats(network, PixelSpace(), self.given(bank), 1, ImageSampleConfig(steps=3, guidance=g)).means
            for g in (1, 3)
        )
        assert not torch.equal(plain, more)

    def test_the_prediction_of_every_step_is_consistent_in_3d(self, network, bank):
        """What the sampler takes as x_0 of the views are the renders of the Gaussians of that call, and nothing else."""

        class Overheard(PixelSpace):
            def __init__(self) -> None:
                self.heard = []

            def encode(self, pictures):
                self.heard.append(pictures)
                return super().encode(pictures)

        given, space = self.given(bank), Overheard()
        calls = list(sampling(network, space, given, 0, ImageSampleConfig(steps=3)))
        _, *encoded = space.heard  # the first asks for the shape
        assert len(encoded) == len(calls) == 3
        for splats, pictures in zip(calls, encoded, strict=True):
            torch.testing.assert_close(pictures, drawn(splats, given.cameras))

    @pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 2000}, {"guidance": -1}, {"guidance": math.nan}])
    def test_impossible_plans_are_refused(self, wrong):
        with pytest.raises(InputError, match="cannot be sampled"):
            ImageSampleConfig(**wrong)


def test_sheets_show_validation_objects(network, bank):
    picture, figures = sample_sheet(bank, PixelSpace())(network)
    assert picture.shape == (SIDE, 12 * SIDE, 3)  # one object: input, 4 of one step, 4 of eight, 3 true
    assert set(figures) == {"error_1", "error_8"} and all(v > 0 for v in figures.values())
