"""Volumes: the round trip to splats, canonical axes, limits, distance field, statistics and files, against closed forms."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffusion.volume import (
    ACTIVE_LOGIT,
    CHANNELS,
    EMPTY,
    OFFSET,
    OPACITY,
    SCALES,
    STRETCH,
    ChannelStatistics,
    SplatVolume,
    axes_of_stretch,
    load_volume,
    nearest_nodes,
    node_positions,
    save_volume,
    stretch_of,
)
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.render import RenderOptions, render
from splat.rotations import matrix_from_quat


def random_splats(nodes: torch.Tensor, resolution: int, seed: int = 0) -> Splats:
    """One Gaussian at each node, within 1.4 spacings of it."""
    g = torch.Generator().manual_seed(seed)
    n = len(nodes)
    return Splats(
        node_positions(nodes, resolution) + (torch.rand(n, 3, generator=g) * 2.8 - 1.4) / resolution,
        torch.randn(n, 4, generator=g),
        torch.rand(n, 3, generator=g) * 3 - 2 - math.log(resolution),
        torch.rand(n, generator=g) * 10 - 4,
        torch.randn(n, 1, 3, generator=g),
    )


def random_volume(resolution: int = 16, count: int = 60, seed: int = 0) -> SplatVolume:
    nodes = torch.randperm(resolution**3, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return SplatVolume.from_splats(random_splats(nodes, resolution, seed), nodes, resolution)


def test_nodes_are_cell_centres_with_x_fastest():
    assert node_positions(torch.tensor([0, 1, 4, 16, 63]), 4, side=2.0).tolist() == [
        [-0.75, -0.75, -0.75],
        [-0.25, -0.75, -0.75],
        [-0.75, -0.25, -0.75],
        [-0.75, -0.75, -0.25],
        [0.75, 0.75, 0.75],
    ]
    every = torch.arange(4**3)
    assert torch.equal(nearest_nodes(node_positions(every, 4, 2.0), 4, 2.0), every)
    assert nearest_nodes(torch.tensor([[-9.0, 9.0, -9.0]]), 4).tolist() == [12]


def test_the_grid_is_indexed_z_y_x():
    splats = random_splats(torch.tensor([1 + 4 * (2 + 4 * 3)]), 4)
    volume = SplatVolume.from_splats(splats, torch.tensor([1 + 4 * (2 + 4 * 3)]), 4)
    assert volume.active.nonzero().tolist() == [[0, 3, 2, 1]]


def test_splats_survive_the_round_trip():
    nodes = torch.tensor([0, 5, 77, 4095])
    splats = random_splats(nodes, 16)
    back = SplatVolume.from_splats(splats, nodes, 16).to_splats()
    torch.testing.assert_close(back.means, splats.means)
    torch.testing.assert_close(back.covariances(), splats.covariances(), rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(back.opacity_logits, splats.opacity_logits)
    torch.testing.assert_close(back.sh, splats.sh)


def test_volumes_survive_the_round_trip():
    volume = random_volume()
    nodes = volume.active[0].flatten().nonzero().squeeze(-1)
    again = SplatVolume.from_splats(volume.to_splats(), nodes, volume.resolution)
    torch.testing.assert_close(again.features, volume.features, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 10_000))
def test_equal_covariances_have_equal_channels_whatever_the_axes_are_called(seed):
    g = torch.Generator().manual_seed(seed)
    axes = matrix_from_quat(torch.randn(1, 4, generator=g, dtype=torch.float64))
    log_scales = torch.randn(1, 3, generator=g, dtype=torch.float64)
    order = torch.randperm(3, generator=g)
    signs = torch.randint(0, 2, (3,), generator=g) * 2.0 - 1
    other = axes[:, :, order] * signs
    if torch.linalg.det(other) < 0:
        other = -other
    from splat.rotations import quat_from_matrix

    one = stretch_of(quat_from_matrix(axes), log_scales)
    two = stretch_of(quat_from_matrix(other), log_scales[:, order])
    torch.testing.assert_close(one, two)
    (quats, scales), (quats2, scales2) = axes_of_stretch(one), axes_of_stretch(two)
    torch.testing.assert_close(scales, log_scales.sort(descending=True).values)
    torch.testing.assert_close(scales, scales2)
    torch.testing.assert_close(quats, quats2, rtol=1e-6, atol=1e-6)
    assert float(quats[0, 0]) >= 0.5 - 1e-9  # within 120 degrees of the identity: no other signs are nearer
    torch.testing.assert_close(stretch_of(quats, scales), one)


@pytest.mark.parametrize("equal", [False, True])
def test_gradients_of_the_axes_match_finite_differences_also_where_axes_are_equal(equal):
    g = torch.Generator().manual_seed(3)
    stretch = torch.randn(4, 6, generator=g, dtype=torch.float64)
    if equal:
        stretch[:2] = torch.tensor([-1.0, -1, -1, 0, 0, 0], dtype=torch.float64)
        stretch[2:] = torch.tensor([-0.3, -0.3, -2, 0, 0, 0], dtype=torch.float64)
    weights = torch.randn(4, 3, 3, generator=g, dtype=torch.float64)

    def value(s):
        quats, log_scales = axes_of_stretch(s)
        axes = matrix_from_quat(quats)
        return (weights * ((axes * (2 * log_scales).exp()[:, None]) @ axes.mT)).sum()

    s = stretch.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(s), s)
    numeric, h = torch.zeros_like(stretch), 1e-5
    for i in range(4):
        for k in range(6):
            step = torch.zeros_like(stretch)
            step[i, k] = h
            numeric[i, k] = (value(stretch + step) - value(stretch - step)) / (2 * h)
    if equal:  # where axes are equal the in-plane part of the gradient is damped to nothing: a descent direction all the same
        cosine = torch.nn.functional.cosine_similarity(gradient, numeric, dim=-1)
        assert bool(gradient.isfinite().all()) and float(cosine.min()) > 0.1
    else:
        torch.testing.assert_close(gradient, numeric, rtol=1e-4, atol=1e-4)


def test_a_loss_on_the_picture_reaches_every_channel():
    volume = random_volume(16, 200)
    features = volume.features.clone().requires_grad_()
    splats = SplatVolume(features).to_splats()
    camera = Cameras.orbit(1, 1.9, 20, 49.1, 48, 48)
    render(splats, camera, RenderOptions(background=torch.ones(3), threads=1)).rgb.square().sum().backward()
    moved = features.grad.abs().sum((0, 2, 3, 4))
    assert bool(features.grad.isfinite().all()) and bool((moved > 0).all()), moved
    assert not bool(features.grad.movedim(1, -1)[~volume.active].any())


@given(st.floats(-1e4, 1e4), st.integers(0, 9))
def test_whatever_a_network_says_stays_within_the_limits(value, seed):
    features = random_volume(8, 30, seed).features
    features = features + value * torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))
    volume = SplatVolume(features, max_offset=1.5)
    splats, nodes = volume.to_splats(), volume.active[0].flatten().nonzero().squeeze(-1)
    assert float((splats.means - node_positions(nodes, 8)).abs().max()) <= 1.5 / 8 + 1e-6
    assert SCALES[0] / 8 * 0.999 <= float(splats.scales.min()) and float(splats.scales.max()) <= SCALES[1] / 8 * 1.001
    assert bool(splats.quats.isfinite().all()) and float(splats.opacity_logits.abs().max()) <= 7


def test_the_distance_field_is_the_distance_to_the_nearest_gaussian():
    volume = random_volume(12, 20)
    means = volume.to_splats().means
    expected = torch.cdist(node_positions(torch.arange(12**3), 12), means).amin(-1).clamp_max(0.15)
    torch.testing.assert_close(volume.distance_field().flatten(), expected, rtol=0, atol=1e-5)
    empty = SplatVolume(EMPTY.reshape(1, CHANNELS, 1, 1, 1).repeat(2, 1, 4, 4, 4))
    assert len(empty.to_splats(1)) == 0 and bool((empty.distance_field() == torch.tensor(0.15)).all())


def test_statistics_are_those_of_the_active_nodes():
    volumes = [random_volume(16, 60, seed) for seed in range(3)]
    rows = torch.cat([v.features.movedim(1, -1)[v.active] for v in volumes])
    statistics = ChannelStatistics.of(volumes)
    torch.testing.assert_close(statistics.mean, rows.mean(0))
    torch.testing.assert_close(statistics.std, rows.std(0, correction=0))
    both = SplatVolume.cat(volumes).features
    torch.testing.assert_close(statistics.restored(statistics.standardised(both)), both, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="no Gaussian"):
        ChannelStatistics.of([])


def test_files_hold_what_was_saved(tmp_path):
    volume = SplatVolume.cat([random_volume(16, 60, 1), random_volume(16, 9, 2)])
    save_volume(tmp_path / "a.safetensors", volume, facts={"name": "chair"})
    back, facts = load_volume(tmp_path / "a.safetensors")
    assert facts == {"name": "chair"} and torch.equal(back.active, volume.active) and back.side == volume.side
    assert torch.equal(back.features.movedim(1, -1)[back.active], volume.features.movedim(1, -1)[volume.active])
    save_volume(tmp_path / "b.safetensors", volume, torch.float16)
    torch.testing.assert_close(load_volume(tmp_path / "b.safetensors")[0].features, back.features, rtol=1e-3, atol=1e-3)


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    volume = random_volume()
    volume.features[0, OFFSET.start, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match="NaN"):
        save_volume(tmp_path / "a.safetensors", volume)
    assert not list(tmp_path.iterdir())


def damaged(path, what):
    """A file that is wrong in one way."""
    nodes, rows = torch.tensor([3, 9]), torch.zeros(2, CHANNELS)
    about = {"format": "splatsmith volume 1", "resolution": 4, "volumes": 1, "side": 1.0, "max_offset": 1.5, "facts": {}}
    if what == "missing":
        return
    if what == "truncated":
        save_volume(path, random_volume())
        path.write_bytes(path.read_bytes()[:-40])
        return
    if what == "order":
        nodes = nodes.flip(0)
    elif what == "outside":
        nodes = torch.tensor([3, 64])
    elif what == "nan":
        rows[1, STRETCH.start] = math.inf
    elif what == "channels":
        rows = rows[:, 1:].contiguous()
    elif what == "huge":
        about["resolution"] = 100_000
    elif what == "bool":
        about["volumes"] = True
    elif what == "side":
        about["side"] = 0
    elif what == "foreign":
        about["format"] = "something else"
    metadata = {} if what == "no facts" else {"volume": json.dumps(about)}
    save_file({"nodes": nodes.int(), "features": rows}, str(path), metadata=metadata)


@pytest.mark.parametrize(
    "what", ["missing", "truncated", "order", "outside", "nan", "channels", "huge", "bool", "side", "foreign", "no facts"]
)
def test_damaged_files_are_refused_with_a_sentence(tmp_path, what):
    damaged(tmp_path / "a.safetensors", what)
    with pytest.raises(InputError, match=r"a\.safetensors"):
        load_volume(tmp_path / "a.safetensors")


def test_an_empty_node_is_not_active():
    assert float(EMPTY[OPACITY]) < ACTIVE_LOGIT
