"""Fields of Gaussians, their codec, and the canonical assignment of Gaussians to nodes."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.data.augment import AugmentConfig
from diffusion.data.colours import palette
from diffusion.data.point_variants import Variant, point_variant
from diffusion.data.words import Words
from diffusion.field import colour_of, distance_of, field_of, field_of_volume, nearest_centres
from diffusion.field_codec import FieldCodec, from_bytes, to_bytes
from diffusion.volume import SplatVolume, canonical_nodes, nearest_nodes, node_positions
from splat.errors import InputError
from splat.gaussians import Splats
from splat.sh import from_rgb


def test_field_of_one_red_centre_is_its_distance_and_its_colour():
    centre, red = torch.tensor([[0.1, -0.2, 0.05]]), torch.tensor([[1.0, 0.0, 0.0]])
    field = field_of(centre, red, 16, limit=0.2)
    nodes = node_positions(torch.arange(16**3), 16)
    true = (nodes - centre).norm(dim=1).clamp(max=0.2).reshape(16, 16, 16)
    assert torch.allclose(distance_of(field, 0.2), true, atol=1e-6)
    near = true < 0.15
    assert torch.allclose(colour_of(field)[:, near], torch.tensor([1.0, 0, 0])[:, None].expand(3, int(near.sum())), atol=1e-5)
    assert bool((field[:, true >= 0.2] == 0).all())


def test_each_node_takes_the_colour_of_the_nearest_centre():
    centres = torch.tensor([[-0.1, 0.0, 0.0], [0.1, 0.0, 0.0]])
    rgb = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    field = field_of(centres, rgb, 16, limit=0.2)
    left = nearest_nodes(torch.tensor([[-0.1, 0.0, 0.0]]), 16)[0]
    colour = colour_of(field).flatten(1)[:, left]
    assert torch.allclose(colour, torch.tensor([1.0, 0.0, 0.0]), atol=1e-5)


def test_field_of_nothing_is_empty_everywhere():
    field = field_of(torch.zeros(0, 3), torch.zeros(0, 3), 8)
    assert bool((field == 0).all())
    assert bool((distance_of(field) == 0.15).all())


def test_field_of_a_volume_agrees_with_its_distance_field():
    volume = _volume(40, 16)
    ours = distance_of(field_of_volume(volume, 16, limit=0.15))
    assert torch.allclose(ours, volume.distance_field(0.15)[0, 0], atol=1e-6)


def test_mirrored_volume_has_the_mirrored_field_and_the_mirrored_covariances():
    volume = _volume(40, 16)
    mirrored = volume.mirrored()
    assert torch.allclose(field_of_volume(mirrored, 16), field_of_volume(volume, 16).flip(-1), atol=1e-5)
    flip = torch.diag(torch.tensor([-1.0, 1, 1]))
    before, after = volume.to_splats(), mirrored.to_splats()
    order = torch.cdist(after.means, before.means @ flip).argmin(1)
    assert torch.allclose(after.covariances(), (flip @ before.covariances() @ flip)[order], atol=1e-6)


def _fields(count: int, resolution: int = 8) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.stack(
        [field_of(torch.rand(5, 3, generator=g) - 0.5, torch.rand(5, 3, generator=g), resolution, 0.3) for _ in range(count)]
    )


def orthonormal(codec: FieldCodec) -> FieldCodec:
    """The codec before its components were rounded to bytes, but for a rotation that changes no projection onto all of them."""
    return replace(codec, basis=torch.linalg.qr(codec.basis.T)[0].T)


def test_codec_with_as_many_components_as_examples_loses_only_what_bytes_round_off():
    fields = _fields(20)
    codec = FieldCodec.learn(fields, 19, 0.3)
    spread = (fields - fields.mean(0)).norm()
    lost = float((codec.decode(codec.encode(fields)) - fields).norm() / spread)
    steps = torch.stack([to_bytes(row)[1] for row in codec.basis])
    rounding = float((steps.square() / 12 * codec.basis.shape[1]).sum().sqrt())  # of the whole basis, were it even noise
    assert lost < 2 * rounding, (lost, rounding)


def test_bytes_are_within_half_a_step_and_come_back_as_they_are():
    row = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    stored, step = to_bytes(row)
    back = from_bytes(stored, step)
    assert stored.dtype == torch.int8 and float((back - row).abs().max()) <= 0.501 * float(step)
    assert torch.equal(from_bytes(*to_bytes(back)), back)


def test_codec_latents_are_centred_of_unit_power_and_fall_in_size():
    fields = _fields(60)
    latents = FieldCodec.learn(fields, 16, 0.3).encode(fields)
    assert float(latents.mean(0).abs().max()) < 1e-4
    assert float(latents.square().mean()) == pytest.approx(1, abs=0.02)
    sizes = latents.square().mean(0)
    assert bool((sizes[:-1] >= 0.98 * sizes[1:]).all())


def test_codec_decoding_then_encoding_gives_the_latent_back():
    codec = FieldCodec.learn(_fields(60), 16, 0.3)
    latents = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    exact = orthonormal(codec)
    assert torch.allclose(exact.encode(exact.decode(latents)), latents, atol=1e-4)
    assert float((codec.encode(codec.decode(latents)) - latents).norm() / latents.norm()) < 0.02  # components in bytes


def test_codec_error_falls_with_components():
    fields = _fields(60)
    errors = []
    for k in (4, 16, 40):
        codec = FieldCodec.learn(fields, k, 0.3)
        errors.append(float((codec.decode(codec.encode(fields)) - fields).square().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_codec_whose_tables_do_not_fit_is_refused():
    with pytest.raises(InputError, match="do not fit"):
        FieldCodec(torch.zeros(4 * 8**3), torch.zeros(3, 4 * 8**3), torch.ones(2), 8, 0.2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200))
def test_canonical_nodes_are_distinct_and_no_further_on_the_whole(seed, count):
    g = torch.Generator().manual_seed(seed)
    nodes = torch.randperm(8**3, generator=g)[:count].sort().values
    means = (node_positions(nodes, 8) + (torch.rand(count, 3, generator=g) - 0.5) * 3 / 8).clamp(-0.5, 0.5)
    moved = canonical_nodes(means, nodes, 8)
    assert len(moved.unique()) == count
    far = lambda n: (means - node_positions(n, 8)).norm(dim=1)  # noqa: E731
    assert float(far(moved).mean()) <= float(far(nodes).mean()) + 1e-6


def test_canonical_nodes_of_gaussians_in_their_own_cells_are_those_cells():
    nodes = torch.tensor([3, 77, 200, 511])
    means = node_positions(nodes, 8) + 0.02
    assert canonical_nodes(means, torch.tensor([0, 1, 2, 3]), 8).tolist() == nodes.tolist()


def test_variant_survives_json_and_changes_points_and_words_together():
    g = torch.Generator().manual_seed(0)
    centres = torch.rand(500, 3, generator=g) - 0.5
    rgb = torch.tensor([[0.78, 0.12, 0.12]]).repeat(500, 1)
    words = Words("chair", "chair", palette(rgb))
    import json
    import random

    config = AugmentConfig(recolour=1, mirror=1, stretch=1)
    variant, after = point_variant(centres, rgb, words, config, random.Random(4))
    assert after.palette.words[0] == variant.recolouring.new != "red"
    assert after.shape in ("tall", "low", "wide", "narrow") and variant.mirrored
    again = Variant.from_dict(json.loads(json.dumps(variant.to_dict())))
    assert torch.equal(again.colours(rgb), variant.colours(rgb))
    size = lambda x: x.amax(0) - x.amin(0)  # noqa: E731
    stretched = again.stretched(centres)
    assert float(size(stretched).max()) == pytest.approx(float(size(centres).max()), rel=1e-5)
    axis = 0 if after.shape in ("wide", "narrow") else 1
    ratio = (size(stretched) / size(centres))[[axis, 2]]
    assert (ratio[0] / ratio[1] > 1.2) == (after.shape in ("wide", "tall"))


def _volume(count: int, resolution: int) -> SplatVolume:
    g = torch.Generator().manual_seed(0)
    nodes = torch.randperm(resolution**3, generator=g)[:count].sort().values
    means = node_positions(nodes, resolution) + (torch.rand(count, 3, generator=g) - 0.5) / resolution
    splats = Splats(
        means, torch.randn(count, 4, generator=g), torch.rand(count, 3, generator=g) * 2 + math.log(0.2 / resolution),
        torch.full((count,), 3.0), from_rgb(torch.rand(count, 3, generator=g))[:, None],
    )  # fmt: skip
    return SplatVolume.from_splats(splats, nodes, resolution)


def test_nearest_centres_beyond_the_limit_are_nobody():
    found = nearest_centres(torch.tensor([[0.0, 0.0, 0.0]]), 8, limit=0.2)
    assert bool((found.index[found.distance > 0.2] == 1).all())
