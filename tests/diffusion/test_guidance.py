"""Guidance that depends on the step, and diffusers' guider with it."""

import math

import pytest
import torch

from diffusion.guidance import GuidanceSchedule, guided, rescaled, scheduled_guider
from diffusion.mixtures import Mixture, integrate
from diffusion.schedules import vp
from splat.errors import InputError


def test_shapes_over_log_snr():
    constant, linear, cosine = (GuidanceSchedule(5.0, shape, ramp=(-4.0, 4.0)) for shape in ("constant", "linear", "cosine"))
    assert [constant.at(lam) for lam in (-9, 0, 9)] == [5.0] * 3
    assert [linear.at(lam) for lam in (-9, -4, 0, 4, 9)] == [1.0, 1.0, 3.0, 5.0, 5.0]
    assert [cosine.at(lam) for lam in (-9, 0, 9)] == pytest.approx([1.0, 3.0, 5.0]) and cosine.at(-2) < linear.at(-2)
    interval = GuidanceSchedule(5.0, start=-1.0, end=1.0)
    assert [interval.at(lam) for lam in (-1.1, -1, 0, 1, 1.1)] == [1.0, 5.0, 5.0, 5.0, 1.0]
    assert interval.at(-math.inf) == 1.0


def test_guided_is_the_mixtures_own_guidance_and_saves_calls():
    mixture = Mixture.power_law(d=8, components=3, seed=0)
    labels = torch.tensor([0, 1, 2, 1])
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calls = []

    def free(x, alpha, sigma):
        calls.append(alpha)
        return mixture.denoise(x, alpha, sigma)

    whole = guided(mixture.guided(labels, 1.0), free, GuidanceSchedule(7.5))
    torch.testing.assert_close(whole(x, 0.6, 0.8), mixture.guided(labels, 7.5)(x, 0.6, 0.8))
    assert len(calls) == 1
    late = guided(mixture.guided(labels, 1.0), free, GuidanceSchedule(7.5, start=1.0))
    torch.testing.assert_close(late(x, 0.6, 0.8), mixture.guided(labels, 1.0)(x, 0.6, 0.8))
    assert len(calls) == 1  # outside the interval the unconditional network is not asked


def test_interval_guidance_ends_nearer_to_the_condition_than_none():
    mixture = Mixture.power_law(d=8, components=3, seed=0)
    labels = torch.zeros(64, dtype=torch.long)
    x = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    interval = guided(mixture.guided(labels, 1.0), mixture.denoise, GuidanceSchedule(4.0, start=-3.0, end=2.0))
    with_it, without = (integrate(d, vp(), x, -5.0, 3.5, 60) for d in (interval, mixture.guided(labels, 1.0)))
    p = [mixture.responsibilities(y, 1.0, 0.2)[0][:, 0].mean() for y in (with_it, without)]
    assert p[0] > p[1]


def test_rescale_returns_the_spread():
    g = torch.Generator().manual_seed(0)
    plain, strong = torch.randn(3, 4, 8, 8, generator=g), 5 * torch.randn(3, 4, 8, 8, generator=g)
    spread = rescaled(strong, plain, 1.0).flatten(1).std(1)
    torch.testing.assert_close(spread, plain.flatten(1).std(1))
    assert rescaled(strong, plain, 0.0) is strong
    quarter = rescaled(strong, plain, 0.25).flatten(1).std(1)
    torch.testing.assert_close(quarter, 0.75 * strong.flatten(1).std(1) + 0.25 * plain.flatten(1).std(1))


def test_rescale_reaches_denoisers_and_guiders():
    g = torch.Generator().manual_seed(0)
    conditional, free = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 4, 8, 8, generator=g)
    schedule = GuidanceSchedule(6.0, rescale=0.7)
    expected = rescaled(free + 6.0 * (conditional - free), conditional, 0.7)
    denoise = guided(lambda x, alpha, sigma: conditional, lambda x, alpha, sigma: free, schedule)
    torch.testing.assert_close(denoise(conditional, 0.6, 0.8), expected)
    guider = scheduled_guider(schedule, vp().log_snr)
    guider.set_state(0, 3, torch.tensor(500.0))
    torch.testing.assert_close(guider.forward(conditional, free).pred, expected)


@pytest.mark.parametrize("wrong", [{"shape": "square"}, {"rescale": 2.0}, {"start": 1.0, "end": 0.0}, {"ramp": (1.0, 1.0)}])
def test_impossible_schedules(wrong):
    with pytest.raises(InputError):
        GuidanceSchedule(**wrong)


def test_diffusers_guider_follows_the_schedule():
    schedule = vp()
    guider = scheduled_guider(GuidanceSchedule(5.0, "linear", ramp=(-4.0, 4.0)), schedule.log_snr)
    conditional, free = torch.ones(1, 2), torch.zeros(1, 2)
    for step, time in enumerate((999.0, 500.0, 5.0)):
        guider.set_state(step, 3, torch.tensor(time))
        expected = GuidanceSchedule(5.0, "linear", ramp=(-4.0, 4.0)).at(float(schedule.log_snr(time)))
        torch.testing.assert_close(guider.forward(conditional, free).pred, torch.full((1, 2), expected))
