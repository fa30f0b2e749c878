"""Objects again from the generators: what they start from, what stays, and what is joined."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffusion.field_codec import FieldCodec
from diffusion.graft import GraftConfig, grafted, settled
from diffusion.image_config import ImageSampleConfig
from diffusion.models.latent_denoiser import LatentDenoiser
from diffusion.refine_object import RefineConfig
from diffusion.regenerate_views import known_views, regenerated_views, spread
from diffusion.regenerate_volume import surface_of
from diffusion.samplers.sampling import start_of
from diffusion.splat_maps import MAP_CHANNELS
from diffusion.text_config import TextSampleConfig
from diffusion.text_encoder import TextFeatures
from diffusion.text_stages import Draft, ShapeStage
from diffusion.view_bank import cameras_at
from diffusion.view_space import PixelSpace
from splat.cameras import Cameras
from splat.errors import InputError, StoppedLate
from splat.gaussians import Splats
from splat.render import RenderOptions, render
from splat.similarity import Similarity
from splat.views import Views

SIDE = 16


def ball(radius: float = 0.4, count: int = 400, colour: float = 1.0) -> Splats:
    g = torch.Generator().manual_seed(0)
    means = radius * torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(count, 1)
    return Splats(means, quats, torch.full((count, 3), -3.0), torch.full((count,), 4.0), torch.full((count, 1, 3), colour))


def cameras(*azimuths: float, side: int = SIDE) -> Cameras:
    return cameras_at(*(torch.tensor([math.radians(a) for a in x]) for x in (azimuths, [20.0] * len(azimuths))), side)


class Spy(nn.Module):
    """A network that notes what it is given and answers with nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(()))
        self.config = SimpleNamespace(side=SIDE)
        self.calls = []

    def forward(self, noisy, clean, is_clean, alpha, sigma, rays):
        self.calls.append((noisy, clean, is_clean, float(alpha), float(sigma)))
        return torch.zeros(*noisy.shape[:2], MAP_CHANNELS, SIDE, SIDE)


def result_of(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


class TestViews:
    photos = torch.rand(3, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

    def given(self):
        return known_views(ball(), self.photos, cameras(0, 40, 80))

    def test_photos_are_the_network_s_condition_bit_for_bit_at_every_call(self):
        spy, given = Spy(), self.given()
        result_of(regenerated_views(SimpleNamespace(network=spy, space=PixelSpace()), given, 0, ImageSampleConfig(steps=3)))
        assert len(spy.calls) == 3
        for _, clean, is_clean, _, _ in spy.calls:
            assert is_clean[0].tolist() == [True] * 3 + [False] * 3
            assert torch.equal(clean[0, :3], self.photos) and not clean[0, 3:].any()

    def test_the_other_views_fill_the_gaps_with_what_the_object_looks_like(self):
        given = self.given()
        azimuths = [math.degrees(math.atan2(float(x), float(z))) % 360 for x, _, z in given.cameras.centers]
        assert azimuths == pytest.approx([0, 40, 80, 220, 150, 290], abs=1e-3)
        drawn = render(ball(), given.cameras[[4]], RenderOptions(background=torch.zeros(3)))
        torch.testing.assert_close(given.guess[4, 3], drawn.alpha[0])

    @pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
    def test_noise_is_as_strong_as_was_asked_for(self, strength):
        assert math.exp(-start_of(strength)) / math.hypot(1, math.exp(-start_of(strength))) == pytest.approx(strength)
        starts = {}
        for seed in (0, 1):
            spy, given = Spy(), self.given()
            config = ImageSampleConfig(steps=2, strength=strength)
            result_of(regenerated_views(SimpleNamespace(network=spy, space=PixelSpace()), given, seed, config))
            noisy, _, _, alpha, sigma = spy.calls[0]
            assert sigma == pytest.approx(strength) and alpha == pytest.approx(math.sqrt(1 - strength**2))
            starts[seed] = noisy[0] - alpha * (2 * given.guess - 1)
            assert float(starts[seed].std()) == pytest.approx(strength * config.temperature, rel=0.05)
        assert not torch.allclose(starts[0], starts[1])

    def test_a_strength_of_one_forgets_the_object(self):
        starts = []
        for splats in (ball(), ball(0.2)):
            spy, given = Spy(), known_views(splats, self.photos, cameras(0, 40, 80))
            result_of(regenerated_views(SimpleNamespace(network=spy, space=PixelSpace()), given, 0, ImageSampleConfig(steps=1)))
            starts.append(spy.calls[0][0])
        assert torch.equal(*starts)

    def test_of_many_photos_those_that_stand_apart_are_known(self):
        assert spread(cameras(0, 5, 10, 180, 90, 270, 275), 4) == [0, 3, 4, 5]
        assert spread(cameras(0, 40), 5) == [0, 1]

    @pytest.mark.parametrize("strength", [0.0, 1.5, math.nan])
    def test_strengths_that_are_none(self, strength):
        with pytest.raises(InputError, match="strength"):
            ImageSampleConfig(strength=strength)
        with pytest.raises(InputError, match="strength"):
            TextSampleConfig(strength=strength)


class TestVolume:
    def stage(self) -> ShapeStage:
        g = torch.Generator().manual_seed(0)
        codec = FieldCodec.learn(torch.rand(12, 4, 8, 8, 8, generator=g), 4, 0.3)
        torch.manual_seed(0)
        sizes = {"width": 16, "blocks": 1, "hidden": 16, "conditioning": 8, "heads": 1, "head_dim": 8}
        return ShapeStage(LatentDenoiser(4, text_dim=6, pooled_dim=6, **sizes).eval(), codec)

    def draft(self) -> Draft:
        g = torch.Generator().manual_seed(1)
        features = {"tokens": torch.randn(1, 2, 6, generator=g), "mask": torch.ones(1, 2, dtype=torch.bool)}
        return Draft(TextFeatures(**features, pooled=torch.randn(1, 6, generator=g)), 0)

    def test_the_shape_starts_from_the_object_s_field(self):
        stage, splats = self.stage(), ball(count=60)
        started = stage.started_from(self.draft(), splats.means, splats.rgb.clamp(0, 1))
        near, far = (
            float((stage(started, TextSampleConfig(steps=4, strength=s)).latent - started.latent).norm()) for s in (0.02, 0.9)
        )
        assert near < 0.1 * far, "little noise leaves the shape, much does not"
        forgotten, fresh = (stage(d, TextSampleConfig(steps=4)).latent for d in (started, self.draft()))
        assert torch.equal(forgotten, fresh)

    def test_the_surface_is_what_is_seen_from_around(self):
        inside, outside = ball(0.1, 100), ball(0.4, 1500)
        kept = surface_of(Splats.cat([inside, outside]))
        assert float(kept.means.norm(dim=-1).min()) > 0.3 and len(kept) > 1000
        with pytest.raises(StoppedLate, match="has no surface"):
            surface_of(ball(count=10)[:0])


class TestGraft:
    def views(self, splats: Splats, frame: Similarity, *azimuths: float) -> list[Views]:
        where = cameras(*azimuths, side=48)
        drawn = render(splats, where, RenderOptions(background=torch.ones(3)))
        names = tuple(map(str, azimuths))
        return [Views(drawn.rgb.clamp(0, 1), names, where.transformed(frame.inverse()), drawn.alpha)]

    def test_what_photos_show_is_theirs_and_the_rest_the_generator_s(self):
        frame = Similarity(torch.eye(3), torch.tensor([0.5, 0, 0]), 2.0)
        own, made = (replace(ball(count=3000, colour=c), log_scales=torch.full((3000, 3), -4.0)) for c in (1.0, -1.0))
        views = self.views(own, frame, 0.0)
        back = frame.inverse()
        joined = grafted(own.transformed(back).with_sh_degree(1), made.transformed(back), views, frame, GraftConfig())
        theirs = joined.transformed(frame)
        light = theirs.sh[:, 0, 0] > 0
        assert joined.sh_degree == 1
        toward = theirs.means @ torch.nn.functional.normalize(cameras(0.0).centers[0], dim=0)
        assert float(toward[light].min()) > -0.15 and float(toward[~light].max()) < 0.2
        assert 0.4 < float(light.float().mean()) < 0.8

    def test_a_short_fit_keeps_cameras_and_sides_and_comes_nearer_to_the_photos(self):
        frame = Similarity(torch.eye(3), torch.tensor([0.5, 0, 0]), 2.0)
        views = self.views(ball(count=800), frame, 0.0, 30.0)
        start = ball(count=800, colour=0.3).transformed(frame.inverse())
        config = GraftConfig(fit=RefineConfig(steps=40, anchors=4, anchor_side=24, threads=1))
        done = result_of(settled(start, start, views, frame, config))
        assert torch.equal(done.cameras[0].cam_from_world, views[0].cameras.cam_from_world) and len(done.exposures) == 2

        def off(splats: Splats, cameras: Cameras, truth: torch.Tensor) -> float:
            drawn = render(splats, cameras, RenderOptions(background=torch.ones(3)))
            return float((drawn.rgb - truth).abs().mean())

        assert off(done.splats, views[0].cameras, views[0].images) < 0.6 * off(start, views[0].cameras, views[0].images)
        behind = cameras(190.0, side=48).transformed(frame.inverse())
        before = render(start, behind, RenderOptions(background=torch.ones(3))).rgb
        assert off(done.splats, behind, before) < 0.03
