"""The networks of text to 3-D: shapes, what they may not depend on, saving, and that they can learn."""

import pytest
import torch

from diffusion.field import field_of_volume
from diffusion.models.attribute_predictor import AttributePredictor, _around
from diffusion.models.latent_denoiser import LatentDenoiser
from diffusion.models.volume_unet import GVGEN, VolumeUNet, _Conv3d, _unfolded
from diffusion.volume import ACTIVE_LOGIT, EMPTY, OPACITY, SplatVolume, node_positions
from splat.gaussians import Splats


def text(count: int, tokens: int = 5, dim: int = 16):
    g = torch.Generator().manual_seed(5)
    mask = torch.ones(count, tokens, dtype=torch.bool)
    mask[:, 3:] = False
    pooled = torch.nn.functional.normalize(torch.randn(count, dim, generator=g), dim=1)
    return torch.randn(count, tokens, dim, generator=g) * mask[..., None], mask, pooled


def shaken(network):
    """Weights that start at 0 hide what they would multiply."""
    with torch.no_grad():
        for p in network.parameters():
            if float(p.abs().max()) == 0:
                p.normal_(std=0.3)
    return network.eval()


def denoiser(**kw) -> LatentDenoiser:
    torch.manual_seed(0)
    return LatentDenoiser(8, 32, 2, 32, 16, 16, 16, 2, 8, **kw)


def test_denoiser_that_knows_nothing_is_the_linear_estimate():
    network = denoiser().eval()
    network.variances.copy_(torch.linspace(0.2, 3, 8))
    x, a, s = torch.randn(4, 8), torch.full((4,), 0.6), torch.full((4,), 0.8)
    wiener = 0.6 * network.variances / (0.36 * network.variances + 0.64) * x
    assert torch.allclose(network(x, a, s, *text(4)), wiener, atol=1e-6)


def test_denoiser_without_text_does_not_see_it():
    network = shaken(denoiser())
    x, level = torch.randn(2, 8), torch.full((2,), 0.7)
    tokens, mask, pooled = text(2)
    yes, no = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    one = network(x, level, level, tokens, mask, pooled, no)
    other = network(x, level, level, tokens.flip(0) + 1, mask, -pooled, no)
    assert torch.equal(one, other)
    assert not torch.allclose(network(x, level, level, tokens, mask, pooled, yes), one)


def test_denoiser_ignores_padding():
    network = shaken(denoiser())
    x, level = torch.randn(2, 8), torch.full((2,), 0.7)
    tokens, mask, pooled = text(2)
    out = network(x, level, level, tokens, mask, pooled)
    tokens[:, 3:] = 7.0
    assert torch.allclose(network(x, level, level, tokens, mask, pooled), out, atol=1e-6)
    assert torch.allclose(network(x, level, level, tokens[:, :3], mask[:, :3], pooled), out, atol=1e-6)


def test_denoiser_saves_and_loads_the_same(tmp_path):
    network = denoiser()
    network.variances.copy_(torch.linspace(0.2, 3, 8))
    network.save_pretrained(tmp_path)
    again = LatentDenoiser.from_pretrained(tmp_path)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_unfolding_puts_channels_where_the_children_are():
    x = torch.arange(8.0).reshape(1, 8, 1, 1, 1)
    assert torch.equal(_unfolded(x, 2)[0, 0], torch.arange(8.0).reshape(2, 2, 2))


@pytest.mark.parametrize(("finer", "timed"), [(1, True), (2, False)])
def test_unet_shapes_and_padding(finer, timed):
    torch.manual_seed(0)
    network = shaken(VolumeUNet(3, 2, 8, (1, 2), 1, (False, True), 8, 16, timed, finer))
    tokens, mask, _ = text(2)
    x, time = torch.randn(2, 3, 4, 4, 4), torch.tensor([3.0, 900.0]) if timed else None
    out = network(x, tokens, mask, time)
    assert out.shape == (2, 2, *[4 * finer] * 3)
    tokens[:, 3:] = 9.0
    assert torch.allclose(network(x, tokens, mask, time), out, atol=1e-5)
    assert timed == (not torch.allclose(network(x, tokens, mask, torch.zeros(2)), out))


def test_gvgen_at_reduced_width_overfits_one_batch():
    """The published configuration, eight channels wide, as the distance-field denoiser: x_0 prediction of two fields."""
    torch.manual_seed(0)
    small = {**GVGEN, "channels": 8, "head_dim": 8, "text_dim": 16}
    network = VolumeUNet(1, 1, **small)
    tokens, mask, _ = text(2)
    x0 = torch.zeros(2, 1, 8, 8, 8)
    x0[0, :, 2:5, 2:6, 1:7], x0[1, :, :, 3:5, 3:5] = 1, 1
    noisy, time = 0.5 * x0 + 0.87 * torch.randn_like(x0), torch.tensor([600.0, 600.0])
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        error = (network(noisy, tokens, mask, time) - x0).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.05 * errors[0], errors[::10]


@pytest.mark.slow
def test_gvgen_at_full_size_builds():
    with torch.device("meta"):
        first = VolumeUNet(1, 1, **GVGEN)
        second = VolumeUNet(1, 13, **GVGEN, timed=False)
    assert first.config.channels == second.config.channels == 224
    assert 3e8 < sum(p.numel() for p in first.parameters()) < 3e9


@pytest.mark.parametrize("side", [2, 4, 8])
def test_bfloat16_gradients_of_the_unets_kernels_hold_at_every_depth(side):
    """oneDNN's are made of memory that nobody has written where a grid is two nodes deep; what is freed here may be it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, side, side, side, generator=g)
    convolution = _Conv3d(16, 8, 3, padding=1)
    weight = {}
    for half in (False, True):
        convolution.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = convolution(x.bfloat16() if half else x).float()
        filled = [torch.full((2**k,), float("nan")) for k in range(8, 18)]
        del filled
        (out * torch.cos(torch.arange(out.numel()).reshape(out.shape))).sum().backward()
        weight[half] = convolution.weight.grad
    assert float((weight[True] - weight[False]).abs().max()) < 0.03 * float(weight[False].abs().max())


def test_neighbourhoods_are_read_in_grid_order_with_zeros_outside():
    grid = torch.arange(27.0).reshape(1, 1, 3, 3, 3) + 1
    centre = tuple(torch.tensor([i]) for i in (0, 1, 1, 1))
    assert torch.equal(_around(grid, centre, 1)[0], torch.arange(27.0) + 1)
    corner = tuple(torch.tensor([i]) for i in (0, 0, 0, 0))
    around = _around(grid, corner, 1)[0].reshape(3, 3, 3)
    assert torch.equal(around[1:, 1:, 1:], grid[0, 0, :2, :2, :2]) and float(around[0].abs().sum()) == 0


def _scene() -> SplatVolume:
    g = torch.Generator().manual_seed(1)
    nodes = torch.randperm(8**3, generator=g)[:30].sort().values
    means = node_positions(nodes, 8)
    logs = torch.full((30, 3), -3.0)
    splats = Splats(
        means, torch.tensor([[1.0, 0, 0, 0]]).repeat(30, 1), logs, torch.full((30,), 4.0), torch.rand(30, 1, 3, generator=g)
    )
    return SplatVolume.from_splats(splats, nodes, 8)


def test_attributes_are_where_the_field_is_near_and_start_at_its_colours():
    torch.manual_seed(0)
    network = AttributePredictor(8, width=16, passed_on=4, pooled_dim=16)
    torch.nn.init.zeros_(network.conclude[3].weight)
    scene = _scene()
    fields = torch.cat([field_of_volume(scene, 8)[None], torch.zeros(1, 4, 8, 8, 8)])
    out = network(fields, *text(2))
    assert int(out.batch.max()) == 0  # nothing where there is no surface
    assert set(scene.active[0].flatten().nonzero().squeeze(1).tolist()) <= set(out.nodes.tolist())
    made = out.volume(2, 8, 1.5)
    there = scene.active[0]
    assert torch.allclose(made.features[0, 3:6, there], scene.features[0, 3:6, there], atol=1e-3)
    assert torch.equal(made.features[1].flatten(1).T, EMPTY.expand(512, 13))
    assert bool((made.features[0, OPACITY, there] > ACTIVE_LOGIT).all())


def test_gradients_reach_every_weight_of_the_attribute_predictor():
    torch.manual_seed(0)
    network = AttributePredictor(8, width=16, passed_on=4, pooled_dim=16)
    out = network(field_of_volume(_scene(), 8)[None], *text(1))
    out.volume(1, 8, 1.5).to_splats().covariances().sum().add(out.rows.square().sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    assert all(float(p.grad.abs().sum()) > 0 for name, p in network.named_parameters() if "text" in name or "listen" in name)
