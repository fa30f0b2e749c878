"""Estimates grow with the work, and amounts of memory parse."""

import dataclasses

import pytest

from app.estimate import clock, decodable_pixels, estimate_photos, parse_bytes, seconds_of_repair
from app.presets import PRESETS


def seconds(photos=16, pixels=700_000, fit=150_000, preset="standard", renderer="native", threads=2, solve=True, few=False):
    return estimate_photos(
        photos, pixels, fit, PRESETS[preset], solve_poses=solve, renderer=renderer, threads=threads, regularised=few
    ).seconds


def test_more_work_takes_longer():
    assert seconds(photos=40) > seconds() > seconds(photos=4)
    assert seconds(preset="quality") > seconds() > seconds(preset="draft")
    assert seconds(renderer="reference") > 5 * seconds()
    assert seconds(threads=1) > seconds() > seconds(threads=16) > seconds(renderer="gsplat", threads=16)
    assert seconds(solve=False) < seconds() < seconds(few=True)
    assert seconds(photos=6, pixels=786_432, fit=480 * 360, few=True) < 300, "a handful of photos on two cores"


def test_repair_takes_its_time():
    """The rooms of docs/repair.md: 450 steps at 320 x 240, up to 60,000 Gaussians, took 56 to 69 CPU-seconds."""
    room = dataclasses.replace(PRESETS["draft"], steps=1125, max_gaussians=60_000)
    rounds = seconds_of_repair(6, 320 * 240, room, held_out=True, renderer="native", threads=1)
    assert 56 < rounds * 3.6 / 4.6 < 80, "but for the steps without repaired views"
    judged = [seconds_of_repair(n, 320 * 240, room, held_out=False, renderer="native", threads=1) for n in (2, 3, 6)]
    assert judged[0] == 0 and judged[1] == judged[2] > rounds
    assert seconds_of_repair(6, 320 * 240, room, held_out=True, renderer="gsplat", threads=1) < rounds / 10


@pytest.mark.parametrize(
    ("text", "amount"), [("4GB", 4e9), ("900 mb", 9e8), ("1.5G", 1.5e9), ("2GiB", 2e9), ("70000", 7e4), ("3tb", 3e12)]
)
def test_amounts_of_memory(text, amount):
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "4 XB", "1e400", "nan", "4GB5"])
def test_what_is_no_amount(text):
    with pytest.raises(ValueError, match="amount of memory"):
        parse_bytes(text)


def test_a_small_budget_decodes_small_photos():
    assert decodable_pixels(10**6) == 0
    assert decodable_pixels(4 * 10**9) > 100e6


def test_clock():
    assert [clock(s) for s in (0.2, 45, 100, 600, 7500)] == ["1 s", "45 s", "2 min", "10 min", "2 h 05 min"]
