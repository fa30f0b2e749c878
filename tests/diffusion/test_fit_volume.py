"""Fitting volumes: the surface start, the candidate pool's invariants, a sphere against a bound, and resuming."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.candidate_pool import Grid, match, pool_edit, reactivation
from diffusion.fit_volume import VolumeFitConfig, fit_volume, fitting_cameras
from diffusion.fit_volumes import fit_mesh, fit_volumes, volume_path
from diffusion.surface_volume import surface_volume
from diffusion.volume import SplatVolume, load_volume, node_positions
from splat.cameras import Cameras
from splat.errors import InputError
from splat.gaussians import Splats
from splat.mesh import Mesh
from splat.metrics import psnr
from splat.raycast import raycast
from splat.render import RenderOptions, render

SMALL = VolumeFitConfig(resolution=16, steps=60, views=12, view_side=48, edits=3, threads=1, report_every=20)


def sphere(radius: float = 0.5, rings: int = 24) -> Mesh:
    """Red above, blue below, green to the front."""
    theta = torch.linspace(0, math.pi, rings + 1)[:, None]
    phi = torch.linspace(0, 2 * math.pi, 2 * rings + 1)[None]
    points = torch.stack([theta.sin() * phi.sin(), theta.cos().expand(-1, 2 * rings + 1), theta.sin() * phi.cos()], dim=-1)
    colours = torch.stack([points[..., 1], points[..., 2], -points[..., 1]], dim=-1).clamp(0.1, 0.9)
    a = (torch.arange(rings)[:, None] * (2 * rings + 1) + torch.arange(2 * rings)).flatten()
    b = a + 2 * rings + 1
    faces = torch.cat([torch.stack([a, b, a + 1], -1), torch.stack([a + 1, b, b + 1], -1)])
    return Mesh(points.reshape(-1, 3) * radius, faces, colours.reshape(-1, 3))


def result_of(job):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def quality(volume: SplatVolume, mesh: Mesh) -> float:
    truth, _ = raycast(mesh, Cameras.orbit(6, 1.9, 25, 49.1, 48, 48), threads=1)
    options = RenderOptions(background=torch.ones(3), threads=1)
    image = render(volume.to_splats(), truth.cameras, options).rgb.clamp(0, 1)
    return float(psnr(image, truth.images).mean())


def test_the_surface_start_has_one_flat_gaussian_in_every_cell_that_the_surface_crosses():
    volume = surface_volume(sphere(0.45), resolution=16)
    nodes = volume.active[0].flatten().nonzero().squeeze(-1)
    splats = volume.to_splats()
    assert float((splats.means.norm(dim=-1) - 0.45).abs().max()) < 0.01
    assert float((splats.means - node_positions(nodes, 16)).abs().max()) <= 0.5 / 16 + 1e-6  # each in its own cell
    scales = splats.scales  # sorted: the normal is the shortest axis
    assert float((scales[:, 2] / scales[:, 0]).median()) < 0.2
    top = splats.means[:, 1].argmax()
    assert splats.rgb[top, 0] > 0.8 and splats.rgb[top, 2] < 0.2
    distance = node_positions(torch.arange(16**3), 16).norm(dim=-1) - 0.45
    assert not bool(volume.active[0].flatten()[distance.abs() > 0.5 * 3**0.5 / 16 + 0.01].any())


def test_meshes_that_cannot_be_sampled_are_refused():
    flat = Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))
    for mesh in (flat, Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))):
        with pytest.raises(InputError, match="no area"):
            surface_volume(mesh)
    with pytest.raises(InputError, match="outside"):
        surface_volume(sphere(3.0))


def test_settings_out_of_range_are_refused():
    for changes in ({"resolution": 8}, {"resolution": 65}, {"steps": -1}, {"views": 0}, {"view_side": 4}):
        with pytest.raises(InputError):
            VolumeFitConfig(**changes)


def pool_case(seed: int, resolution: int, share: float) -> tuple[Splats, torch.Tensor, torch.Tensor]:
    """Gaussians on a share of the nodes, some faded, some tiny, with scores, some zero."""
    g = torch.Generator().manual_seed(seed)
    count = max(int(share * resolution**3), 1)
    nodes = torch.randperm(resolution**3, generator=g)[:count]
    splats = Splats(
        node_positions(nodes, resolution) + (torch.rand(count, 3, generator=g) * 3 - 1.5) / resolution,
        torch.randn(count, 4, generator=g),
        torch.rand(count, 3, generator=g) * 4 - 3 - math.log(resolution),
        torch.rand(count, generator=g) * 14 - 7,
        torch.randn(count, 1, 3, generator=g),
    )
    return splats, nodes, torch.rand(count, generator=g).sub(0.2).clamp_min(0)


@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(0.01, 1.0), st.floats(0, 1))
def test_the_pool_keeps_one_gaussian_to_a_node_and_each_within_reach(seed, resolution, share, growth):
    splats, nodes, score = pool_case(seed, resolution, share)
    grid = Grid(resolution, 1.0, 1.5)
    edited = pool_edit(splats, nodes, score, int(growth * len(nodes)), grid, clone_below=0.2)
    if edited is None:
        return
    edit, after = edited
    n, stay = len(after), splats.opacities > 0.005
    assert len(after.unique()) == n == len(edit.source) == len(edit.fresh)
    assert bool(stay[edit.source].all()), "a faded Gaussian lives on"
    kept = int(stay.sum())
    assert torch.equal(edit.source[:kept], stay.nonzero().squeeze(-1)) and torch.equal(after[:kept], nodes[stay])
    assert n - kept <= int(growth * len(nodes))
    rows, means = edit.values["means"]
    new = rows >= kept
    assert torch.equal(rows[new], torch.arange(kept, n))  # every new row is placed
    distance = (means[new] - node_positions(after[rows[new]], resolution)).abs()
    assert len(distance) == 0 or float(distance.max()) <= 1.5 / resolution + 1e-5
    taken_before = torch.zeros(resolution**3, dtype=torch.bool)
    taken_before[nodes[stay]] = True
    assert not bool(taken_before[after[kept:]].any()), "a node that was not in the pool"
    assert bool((score[edit.source[kept:]] > 0).all())


@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0, 1))
def test_matching_is_stable_nobody_could_have_a_nearer_node_that_wants_them(seed, resolution, share):
    g = torch.Generator().manual_seed(seed)
    grid = Grid(resolution, 1.0, 1.5)
    points, pool = torch.rand(12, 3, generator=g) - 0.5, torch.rand(resolution**3, generator=g) < share
    chosen = match(points, pool, grid)
    got = chosen[chosen >= 0]
    assert len(got.unique()) == len(got) and bool(pool[got].all())
    every = node_positions(torch.arange(resolution**3), resolution)
    offset = points[:, None] - every  # [M, R^3, 3]
    distance = offset.norm(dim=-1)
    allowed = pool & (offset.abs() <= 1.5 / resolution + 1e-6).all(-1)
    mine = torch.full((12,), math.inf)
    mine[chosen >= 0] = distance[chosen >= 0, got]
    held = torch.full((resolution**3,), math.inf)
    held[got] = mine[chosen >= 0]
    envy = allowed & (distance < mine[:, None] - 1e-6) & (distance < held - 1e-6)
    assert not bool(envy.any())


def test_nothing_happens_without_a_free_node_or_a_score():
    splats, nodes, score = pool_case(0, 3, 1.0)
    alive = dataclasses.replace(splats, opacity_logits=splats.opacity_logits.abs())
    grid = Grid(3, 1.0, 1.5)
    assert pool_edit(alive, nodes, score, 9, grid, 0.2) is None
    assert pool_edit(alive[:5], nodes[:5], torch.zeros(5), 9, grid, 0.2) is None
    faded = dataclasses.replace(splats, opacity_logits=torch.full((27,), -7.0))
    assert pool_edit(faded, nodes, score, 9, grid, 0.2) is None


def test_reactivation_fills_the_six_neighbours_once():
    nodes = torch.tensor([0, 1])  # a corner and the node beside it, of 3^3
    splats = pool_case(1, 3, 0.08)[0]
    edit, after = reactivation(splats, nodes, Grid(3, 1.0, 1.5), 0.02)
    assert sorted(after.tolist()) == [0, 1, 2, 3, 4, 9, 10] and bool(edit.fresh[2:].all())
    assert reactivation(pool_case(1, 3, 1.0)[0], torch.arange(27), Grid(3, 1.0, 1.5), 0.02) is None


@pytest.fixture(scope="module")
def fitted() -> SplatVolume:
    return result_of(fit_mesh(sphere(), dataclasses.replace(SMALL, steps=150, views=30)))


def test_a_coloured_sphere_is_fitted(fitted):
    start = quality(surface_volume(sphere(), 16), sphere())
    assert quality(fitted, sphere()) > max(33.5, start + 10), start


def test_a_fit_uses_nodes_that_the_surface_did_not_and_keeps_its_bounds(fitted):
    start = surface_volume(sphere(), 16)
    assert int((fitted.active & ~start.active).sum()) > 0
    nodes = fitted.active[0].flatten().nonzero().squeeze(-1)
    offsets = (fitted.to_splats().means - node_positions(nodes, 16)).abs()
    assert float(offsets.max()) <= 1.5 / 16 + 1e-6


def test_without_pool_and_offsets_the_gaussians_sit_on_the_first_nodes():
    config = dataclasses.replace(SMALL, pool=False, max_offset=0.0, steps=20)
    volume = result_of(fit_mesh(sphere(), config))
    start = surface_volume(sphere(), 16)
    assert not bool((volume.active & ~start.active).any())
    nodes = volume.active[0].flatten().nonzero().squeeze(-1)
    torch.testing.assert_close(volume.to_splats().means, node_positions(nodes, 16))


def test_progress_counts_to_the_end():
    config = dataclasses.replace(SMALL, steps=20, report_every=8)
    events = list(fit_mesh(sphere(), config))
    assert [e.step for e in events] == [8, 16, 20] and {e.total for e in events} == {20}
    assert events[-1].preview.shape == (48, 48, 3) and set(events[-1].values) == {"psnr", "gaussians"}


def test_an_empty_volume_cannot_be_fitted():
    empty = SplatVolume(torch.full((1, 13, 16, 16, 16), -7.0))
    views, _ = raycast(sphere(), fitting_cameras(2, 32), threads=1)
    with pytest.raises(InputError, match="no Gaussian"):
        next(fit_volume(empty, views, SMALL))


def test_a_cut_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    config = dataclasses.replace(SMALL, steps=12)
    objects = [
        ("a/one-01", sphere(0.5)),
        ("a/two-01", sphere(0.3)),
        ("bad", Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))),
    ]

    whole = result_of(fit_volumes(objects, tmp_path / "whole", config))
    assert whole.fitted == ("a/one-01", "a/two-01") and "no area" in whole.failed["bad"]
    job = fit_volumes(objects, tmp_path / "cut", config)
    assert next(job).note == "a/one-01"
    job.close()
    (tmp_path / "cut" / "a" / "two-01.safetensors").write_bytes(b"half a file")
    rest = result_of(fit_volumes(objects, tmp_path / "cut", dataclasses.replace(config, report_every=5), total=3))
    assert rest.kept == ("a/one-01",) and rest.fitted == ("a/two-01",)
    for name in ("a/one-01", "a/two-01"):
        one, two = volume_path(tmp_path / "whole", name), volume_path(tmp_path / "cut", name)
        assert one.read_bytes() == two.read_bytes() and load_volume(one)[1]["name"] == name
    other = result_of(fit_volumes(objects[:1], tmp_path / "cut", dataclasses.replace(config, seed=1)))
    assert other.fitted == ("a/one-01",), "a volume of another config is not kept"


@pytest.mark.slow
def test_parallel_work_gives_the_same_bytes(tmp_path):
    config = dataclasses.replace(SMALL, steps=12)
    objects = [(f"o{i}", sphere(0.3 + 0.05 * i)) for i in range(3)]
    result_of(fit_volumes(objects, tmp_path / "one", config))
    result = result_of(fit_volumes(iter(objects), tmp_path / "two", config, workers=2, total=3))
    assert sorted(result.fitted) == ["o0", "o1", "o2"]
    for name, _ in objects:
        assert volume_path(tmp_path / "one", name).read_bytes() == volume_path(tmp_path / "two", name).read_bytes()


@pytest.mark.parametrize("name", ["", "/etc/chair", "../chair", "a/../../chair", "a\\b", "a\0b"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="named"):
        volume_path(tmp_path, name)
