"""LGM's network and its frame: published names and shapes, what the network may depend on, and where its Gaussians land."""

import json
import math
from pathlib import Path

import pytest
import torch

from diffusion.lgm import QUAT, plucker_rays, reconstruct, to_splats, world_from_lgm
from diffusion.lgm_checkpoint import load_lgm
from diffusion.models.lgm import BIG, LGM, SMALL, TINY, LgmShape, shape_of
from splat.cameras import Cameras
from splat.errors import InputError, StoppedLate
from splat.render import RenderOptions, render
from splat.similarity import Similarity
from splat.views import Views

# Written by a script that follows the constructors in the published source (3DTopia/LGM, core/unet.py and core/models.py, with
# the options "big") name by name and knows nothing of our network.
PUBLISHED = Path(__file__).with_name("lgm_big_shapes.json")
RELEASED_BYTES = 830_126_160  # length of the released model_fp16_fixrot.safetensors

TOY = LgmShape((32, 32, 64), (False, False, True), (64, 32), (True, False), layers=1)


ASIDE = Similarity(torch.eye(3), torch.tensor([0.3, 0, 0]))


def shapes(shape: LgmShape) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in LGM(shape).state_dict().items()}


def toy() -> LGM:
    """Weights under which no part of the network is silent."""
    torch.manual_seed(0)
    network = LGM(TOY)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=0.15 if p.ndim > 1 else 0.5)
    return network.eval()


def ring(side: int = 32, distance: float = 1.9, elevation_deg: float = 0.0, azimuth_deg: float = 0.0) -> Cameras:
    return Cameras.orbit(4, distance, elevation_deg, 49.1, side, side, azimuth_deg=azimuth_deg)


def test_names_and_shapes_are_the_published_ones():
    published = {name: tuple(shape) for name, shape in json.loads(PUBLISHED.read_text()).items()}
    assert shapes(BIG) == published
    assert len(published) == 376 and sum(math.prod(shape) for shape in published.values()) == 415_042_848


def test_published_names_and_shapes_make_a_file_of_the_released_length():
    """A safetensors file is a header that spells every name, shape and place, padded to 8 bytes, then the numbers."""
    header, end = {}, 0
    for name, shape in sorted(json.loads(PUBLISHED.read_text()).items()):
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    spelt = len(json.dumps(header, separators=(",", ":")))
    assert 8 + spelt + -spelt % 8 + end == RELEASED_BYTES


@torch.no_grad()
def test_numbers_are_those_of_the_published_forward():
    """The four numbers come from a transcription of the published forward, function by function, that is not ours."""
    weights = {}
    for i, (name, x) in enumerate(sorted(LGM(TOY).state_dict().items())):
        wave = torch.sin(torch.arange(x.numel(), dtype=torch.float64) * (1.7 + 0.01 * i))
        weights[name] = (wave * (0.15 if x.ndim > 1 else 0.5)).view(x.shape)
    network = LGM(TOY).double()
    network.load_state_dict(weights)
    n = torch.arange(4 * 9 * 16 * 16, dtype=torch.float64)
    out = network(torch.cos(0.37 * n * (1 + n / 5000)).view(1, 4, 9, 16, 16))[0]
    found = [float(out[place]) for place in ((0, 0, 0, 0), (1, 3, 2, 5), (2, 7, 7, 1), (3, 13, 4, 4))]
    assert found == pytest.approx([0.556566, -0.942829, -0.473249, -0.515589], abs=2e-6)


@pytest.mark.parametrize("shape, side", [(BIG, 128), (SMALL, 64), (TINY, 64)])
def test_size_is_read_from_the_tensors(shape, side):
    assert shape_of(shapes(shape)) == shape
    with torch.device("meta"):
        out = LGM(shape)(torch.empty(1, 4, 9, 256, 256))
    assert out.shape == (1, 4, 14, side, side) and shape.splat_side(256) == side


@torch.no_grad()
def test_permuted_views_permute_the_output():
    network, x = toy(), torch.randn(1, 4, 9, 16, 16)
    order = [2, 0, 3, 1]
    assert torch.allclose(network(x[:, order]), network(x)[:, order], atol=1e-5)


@torch.no_grad()
def test_views_of_one_object_see_each_other_and_no_other_object():
    network, x = toy(), torch.randn(2, 4, 9, 16, 16)
    other = x.clone()
    other[0, 3] += 1
    a, b = network(x), network(other)
    assert (a[0] - b[0]).abs().amax((1, 2, 3)).min() > 1e-3  # all four views
    assert torch.equal(a[1], b[1])


@torch.no_grad()
def test_without_attention_views_are_alone():
    shape = LgmShape(TOY.down, (False,) * 3, TOY.up, (False,) * 2, mid_attention=False, layers=1)
    network, x = LGM(shape).eval(), torch.randn(1, 4, 9, 16, 16)
    other = x.clone()
    other[0, 3] += 1
    assert torch.allclose(network(x)[0, :3], network(other)[0, :3], atol=1e-6)


def test_every_weight_has_a_gradient():
    network = toy()
    splats = to_splats(network(torch.randn(1, 4, 9, 16, 16))[0] + 1)
    (splats.means.square().sum() + splats.covariances().sum() + splats.opacities.sum() + splats.sh.square().sum()).backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and float(p.grad.abs().max()) > 0, name


def test_rays_by_hand():
    """The published embedding: o x d and d, OpenGL axes, pixel centres at a half, first camera at (0, 0, 1.5)."""
    cameras = ring(side=4, distance=1.5)
    rays = plucker_rays(cameras)
    reach = math.tan(math.radians(49.1 / 2)) * 0.75  # of the outer pixels' centres at depth 1
    length = math.sqrt(1 + 2 * reach**2)
    upper_left = torch.tensor([-reach, reach, -1]) / length
    assert torch.allclose(rays[0, 3:, 0, 0], upper_left, atol=1e-6)
    assert torch.allclose(rays[0, :3, 0, 0], torch.linalg.cross(torch.tensor([0, 0, 1.5]), upper_left), atol=1e-6)
    from_the_right = torch.tensor([-1, reach, reach]) / length  # the camera at +x: its left is +z
    assert torch.allclose(rays[1, 3:, 0, 0], from_the_right, atol=1e-6)
    assert torch.allclose(rays[1, :3, 0, 0], torch.linalg.cross(torch.tensor([1.5, 0, 0]), from_the_right), atol=1e-6)


def test_default_cameras_change_the_scale_alone():
    world = world_from_lgm(ring())
    assert torch.allclose(world.matrix()[:3, :3], torch.eye(3, dtype=torch.float64) * 1.9 / 1.5, atol=1e-6)
    assert torch.allclose(world.translation, torch.zeros(3, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("elevation_deg, azimuth_deg", [(0, 0), (25, 0), (-10, 40)])
@pytest.mark.parametrize("view", range(4))
def test_gaussian_on_a_pixels_ray_is_drawn_at_that_pixel(view, elevation_deg, azimuth_deg):
    """Channels that put one Gaussian on the ray which the network is told for a pixel: our renderer, our cameras."""
    cameras = ring(33, 1.9, elevation_deg, azimuth_deg)
    row, column, along = 9, 21, 1.3  # along: LGM's units from the camera
    world = world_from_lgm(cameras)
    moment, direction = plucker_rays(cameras.transformed(world.inverse()))[view, :, row, column].split(3)
    foot = torch.linalg.cross(direction, moment)  # the point of the ray nearest to the origin
    eye = foot - math.sqrt(1.5**2 - float(foot.norm()) ** 2) * direction
    maps = torch.zeros(4, 14, 33, 33)
    maps[:, 3] = -20
    maps[view, :, row, column] = torch.cat(
        [eye + along * direction, torch.tensor([6.0]), torch.full((3,), -2.5), torch.tensor([1.0, 0, 0, 0, 9, -9, -9])]
    )
    splats = to_splats(maps).transformed(world)
    assert len(splats) == 1
    drawn = render(splats, cameras, RenderOptions(background=torch.ones(3)))
    place = int(drawn.alpha[view].argmax())
    assert divmod(place, 33) == (row, column)
    assert torch.allclose(drawn.rgb[view, row, column], torch.tensor([1.0, 0, 0]), atol=0.02)
    expected = along * 1.9 / 1.5 * float(cameras.forward[view] @ (world.rotation.float() @ direction))
    assert float(drawn.expected_depth[view, row, column]) == pytest.approx(expected, rel=1e-4)


def test_channels_become_what_lgm_means():
    raw = torch.tensor([0.3, -2.0, 0.1, 1.0, -1.0, 0.0, 2.0, 0.5, -0.1, 0.7, 0.2, 0.4, -0.6, 1.2])
    maps = raw[None, :, None, None].repeat(4, 1, 1, 1)
    maps[1, 3] = -6  # below the least opacity
    splats = to_splats(maps)
    assert len(splats) == 3
    assert torch.allclose(splats.means[0], torch.tensor([0.3, -1.0, 0.1]))
    assert torch.allclose(splats.opacities[0], torch.tensor(1 / (1 + math.exp(-1.0))))
    assert torch.allclose(splats.scales[0], 0.1 * torch.log1p(raw[4:7].exp()))
    assert torch.equal(splats.quats[0], raw[QUAT])
    assert torch.allclose(splats.rgb[0], 0.5 * torch.tanh(raw[11:]) + 0.5)


def test_unturned_weights_are_drawn_along_the_axes():
    maps = torch.randn(4, 14, 2, 2).abs()
    assert torch.equal(to_splats(maps, turned=False).quats, torch.tensor([1.0, 0, 0, 0]).expand(16, 4))


@pytest.fixture
def small_pictures(monkeypatch):
    """The network as it is, on pictures that it can read in no time."""
    monkeypatch.setattr("diffusion.lgm.SIDE", 16)


@torch.no_grad()
def test_reconstruction_turns_with_its_cameras(small_pictures):
    """The network sees cameras relative to the first: a world turned with its cameras gives the same object, turned."""
    network, images = toy(), torch.rand(4, 32, 32, 3)
    names = tuple("abcd")
    straight = reconstruct(network, Views(images, names, ring()))
    turned = reconstruct(network, Views(images, names, ring(azimuth_deg=90)))
    quarter = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # +z to +x
    assert len(straight) == len(turned) > 100
    assert torch.allclose(straight.means @ quarter.T, turned.means, atol=1e-4)
    assert float(straight.means.abs().max()) == pytest.approx(1.9 / 1.5, rel=1e-4)  # the clamp, in our units


def test_cameras_may_circle_any_point():
    away = Similarity(torch.eye(3), torch.tensor([3.0, -1, 2]))
    here, there = world_from_lgm(ring(elevation_deg=20)), world_from_lgm(ring(elevation_deg=20).transformed(away))
    assert torch.allclose((away @ here).matrix(), there.matrix(), atol=1e-5)


@torch.no_grad()
def test_input_is_what_the_network_was_trained_on():
    """256 px, colours less ImageNet's mean in its deviations, the rays of the pictures' own cameras."""
    seen = []
    flat = LgmShape((32,) * 6, (False,) * 6, (32,), (False,), mid_attention=False, layers=1)
    network = LGM(flat).eval()
    network.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    images = torch.tensor([0.485, 0.456, 0.406]).expand(4, 256, 256, 3).clone()
    images[0, :, :, 0] += 0.229
    reconstruct(network, Views(images, tuple("abcd"), ring(256)))
    assert seen[0].shape == (1, 4, 9, 256, 256)
    colours = seen[0][0, :, :3].mean((2, 3))
    assert torch.allclose(colours, torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]), atol=1e-5)
    assert torch.allclose(seen[0][0, :, 3:], plucker_rays(ring(256, 1.5)), atol=1e-5)


@pytest.mark.parametrize(
    "views, words",
    [
        (Views(torch.rand(3, 8, 8, 3), tuple("abc"), ring(8)[[0, 1, 2]]), "wants 4 pictures"),
        (Views(torch.rand(4, 8, 8, 3), tuple("abcd")), "with cameras"),
        (Views(torch.rand(4, 8, 8, 3), tuple("abcd"), Cameras.orbit(4, 1.9, 0, 30, 8, 8)), "see 30.0 to 30.0"),
        (
            Views(torch.rand(4, 8, 8, 3), tuple("abcd"), Cameras.cat([ring(8)[[0, 1, 2]], ring(8, 2.5)[3]])),
            "one point from one distance",
        ),
        (
            Views(
                torch.rand(4, 8, 8, 3),
                tuple("abcd"),
                Cameras.cat([ring(8)[[0, 1, 2]], ring(8, azimuth_deg=45)[3].transformed(ASIDE)]),
            ),
            "one point from one distance",
        ),
    ],
)
def test_other_pictures_are_refused(small_pictures, views, words):
    with pytest.raises(InputError, match=words):
        reconstruct(toy(), views)


def test_nothing_opaque_is_said(small_pictures):
    network = toy()
    with torch.no_grad():
        network.conv.weight[3] = 0
        network.conv.bias[3] = -9
    with pytest.raises(StoppedLate, match="found nothing"):
        reconstruct(network, Views(torch.rand(4, 8, 8, 3), tuple("abcd"), ring(8)))


def test_a_saved_network_loads_and_does_the_same(small_pictures, tmp_path):
    from safetensors.torch import save_file

    network = toy()
    save_file({k: v.half() for k, v in network.state_dict().items()}, tmp_path / "any.safetensors")
    loaded = load_lgm(tmp_path)
    views = Views(torch.rand(4, 32, 32, 3), tuple("abcd"), ring())
    ours, theirs = reconstruct(network.half().float(), views), reconstruct(loaded, views)
    assert loaded.shape == TOY and torch.equal(ours.means, theirs.means) and torch.equal(ours.sh, theirs.sh)
