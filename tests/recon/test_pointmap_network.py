"""The two-view network: cameras and points fit each other, truth has no loss, one batch can be learnt, damage is refused."""

import json

import pytest
import torch

from recon.pointmap.network import PairGeometry, PairInput, PointmapConfig, PointmapNetwork, pixel_rays
from recon.pointmap.objective import PairTruth, pointmap_loss
from recon.priors.learned import LEARNED_PRIORS, PriorWeights, find_weights
from recon.priors.pointmap import both_orders, confidence_of_certainty, predict_pairs
from splat.errors import InputError, StoppedLate

TINY = PointmapConfig(width=32, heads=2, encoder=1, decoder=1)
H, W = 24, 32


def network():
    torch.manual_seed(0)
    return PointmapNetwork(TINY).eval().requires_grad_(False)


def some_pair(b=2, height=H, width=W, seed=0):
    g = torch.Generator().manual_seed(seed)
    cells = torch.nn.functional.normalize(torch.randn(b, 2, 64, height // 4, width // 4, generator=g), dim=2)
    trust = torch.rand(b, 2, height // 4, width // 4, generator=g)
    return PairInput(torch.rand(b, 2, 3, height, width, generator=g), cells, trust, torch.zeros(b))


def some_truth(b=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    pose = torch.eye(4).repeat(b, 1, 1)
    turn = torch.tensor(0.3)
    pose[:, :3, :3] = torch.tensor([[turn.cos(), 0, turn.sin()], [0, 1, 0], [-turn.sin(), 0, turn.cos()]])
    pose[:, :3, 3] = torch.tensor([-0.5, 0.1, 0.2])
    depth = 1.5 + torch.linspace(0, 1, W) + 0.3 * torch.rand(b, 2, 1, 1, generator=g)
    return PairTruth(depth.expand(b, 2, H, W).clone(), pose, torch.full((b,), 0.9))


def said_by_truth(truth, scale=1.0):
    motions = truth.motions()
    return PairGeometry(
        (truth.depth * scale).log(), torch.full_like(truth.depth, 2.0), motions[..., :3, :3], scale * motions[..., :3, 3],
        truth.focal.log(),
    )  # fmt: skip


@pytest.mark.parametrize("size", [(24, 32), (32, 24), (16, 40)])
def test_shapes_and_rotations(size):
    pair = some_pair(2, *size)
    said = network()(pair)
    assert said.log_depth.shape == said.certainty.shape == (2, 2, *size) and float(said.certainty.min()) >= 1
    eye = said.rotation @ said.rotation.mT
    torch.testing.assert_close(eye, torch.eye(3).expand_as(eye), atol=1e-5, rtol=0)
    assert (torch.linalg.det(said.rotation) > 0).all() and said.points_in_other().shape == (2, 2, *size, 3)


def test_the_other_order_is_the_same_pair():
    pair = some_pair()
    swapped = PairInput(*(x.flip(1) if x.ndim > 1 else x for x in (pair.images, pair.descriptors, pair.trust, pair.focal)))
    a, b = network()(pair), network()(swapped)
    torch.testing.assert_close(a.log_depth, b.log_depth.flip(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.rotation, b.rotation.flip(1), atol=1e-4, rtol=1e-4)


def test_a_known_focal_length_is_taken():
    pair = some_pair()
    told = PairInput(pair.images, pair.descriptors, pair.trust, torch.tensor([0.0, 1.7]))
    assert network()(told).log_focal.exp()[1] == pytest.approx(1.7, rel=1e-5)
    assert network()(told).log_focal.exp()[0] == pytest.approx(float(network()(pair).log_focal.exp()[0]), rel=1e-4)


def test_points_lie_on_the_rays_of_their_pixels():
    truth = some_truth()
    said = said_by_truth(truth)
    own, other = said.local_points(), said.points_in_other()
    K = 0.9 * max(H, W)
    x = own[0, 0, ..., 0] / own[0, 0, ..., 2] * K + W / 2
    torch.testing.assert_close(x[0], torch.arange(W) + 0.5, atol=1e-4, rtol=0)
    moved = own[0, 0] @ truth.second_from_first[0, :3, :3].T + truth.second_from_first[0, :3, 3]
    torch.testing.assert_close(other[0, 0], moved)
    assert pixel_rays(torch.ones(1), 2, 4).shape == (1, 2, 4, 3)


def test_truth_has_no_loss_at_any_scale_and_errors_have():
    truth = some_truth()
    for scale in (1.0, 7.0):
        loss, figures = pointmap_loss(said_by_truth(truth, scale), truth)
        assert max(figures.values()) < 2e-3
    wrong = some_truth(seed=1)
    wrong.second_from_first[:, 0, 3] += 0.3
    worse, figures = pointmap_loss(said_by_truth(wrong), truth)
    assert float(worse) > float(loss) + 0.05 and figures["shift"] > 0.1


def test_sky_teaches_doubt_alone():
    truth = some_truth()
    said = said_by_truth(truth)
    truth.depth[:, :, :8] = 0
    log_depth = said.log_depth.clone().requires_grad_(True)
    certainty = said.certainty.clone().requires_grad_(True)
    loss, _ = pointmap_loss(PairGeometry(log_depth, certainty, said.rotation, said.translation, said.log_focal), truth)
    loss.backward()
    assert float(log_depth.grad[:, :, :6].abs().max()) == 0
    assert float(certainty.grad[:, :, :8].min()) > 0 and float(certainty.grad[:, :, 9:].max()) < 0


def test_one_batch_can_be_learnt():
    pair, truth = some_pair(), some_truth()
    net = network().train().requires_grad_(True)
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss, figures = pointmap_loss(net(pair), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0] and figures["depth"] < 0.12


def test_weights_come_back_and_damage_is_refused(tmp_path):
    net = network()
    net.save(tmp_path / "w", {"objects": 3})
    again = PointmapNetwork.load(tmp_path / "w")
    assert all(p.requires_grad and p.device.type == "cpu" and p.dtype == torch.float32 for p in again.parameters())
    torch.testing.assert_close(again(some_pair()).log_depth, net(some_pair()).log_depth, atol=0.02, rtol=0.02)
    about = json.loads((tmp_path / "w" / "config.json").read_text())
    for change in ({"format": "other"}, {"network": {"width": 64, "heads": 2, "encoder": 1, "decoder": 1}}, {"network": [1]}):
        (tmp_path / "w" / "config.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(InputError, match="no weights of the pointmap network"):
            PointmapNetwork.load(tmp_path / "w")
    for change, sentence in (
        ({"width": 10**9}, "out of range"),
        ({"width": float("inf")}, "out of range"),
        ({"width": float("nan")}, "out of range"),
        ({"width": 4096, "encoder": 24, "decoder": 24}, "out of range"),
        ({"decoder": -1}, "out of range"),
        ({"heads": 3}, "3 heads do not divide a width of 32"),
        ({"width": 1024, "encoder": 24, "decoder": 24}, "size mismatch|Missing key|loading state_dict"),
    ):
        (tmp_path / "w" / "config.json").write_text(json.dumps({**about, "network": {**about["network"], **change}}))
        with pytest.raises(InputError, match=sentence):
            PointmapNetwork.load(tmp_path / "w")
    (tmp_path / "w" / "config.json").write_text(json.dumps(about))
    data = (tmp_path / "w" / "model.safetensors").read_bytes()
    (tmp_path / "w" / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="pointmap-pack"):
        PointmapNetwork.load(tmp_path / "w")
    with pytest.raises(InputError):
        PointmapNetwork.load(tmp_path / "nowhere")


def test_the_prior_says_both_orders_in_the_right_frames(tmp_path):
    """What a network that knew the truth would say, as `StereoPrediction`s."""
    truth = some_truth()
    first, second = both_orders(said_by_truth(truth))
    points = truth.depth[0, 1, ..., None] * pixel_rays(truth.focal, H, W)[0]
    back = torch.linalg.inv(truth.second_from_first[0])
    torch.testing.assert_close(first.points[1], points @ back[:3, :3].T + back[:3, 3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second.points[0], points)
    assert confidence_of_certainty(torch.tensor([1.0, 4.0, 1e9, torch.nan])).tolist() == pytest.approx(
        [1 / 17, 0.5, 1, 0], abs=1e-6
    )


def test_pairs_are_asked_once_and_bad_weights_said(tmp_path):
    net = network()
    net.save(tmp_path / "w")
    weights = find_weights("pointmap", str(tmp_path / "w"))
    images = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    job, notes = predict_pairs(images, [(0, 1), (1, 0), (2, 0)], weights), []
    while True:
        try:
            notes.append(next(job).note)
        except StopIteration as end:
            found = end.value
            break
    assert len(notes) == 2 and len(found) == 3 and found[0].points.shape == (2, 24, 32, 3)
    torch.testing.assert_close(found[0].confidence, found[1].confidence.flip(0))
    with torch.no_grad():
        net.last.bias[:] = 1e4  # finite weights, points that are not
    net.save(tmp_path / "w")
    with pytest.raises(StoppedLate, match="not finite"):
        list(predict_pairs(images, [(0, 1)], weights))


def test_without_weights_the_sentence_says_where_they_come_from():
    with pytest.raises(InputError, match=r"no published weights.*docs/pointmap.md.*--prior-weights"):
        find_weights("pointmap")
    with pytest.raises(InputError, match="nowhere/at/all is no folder"):
        find_weights("pointmap", "nowhere/at/all")
    assert LEARNED_PRIORS["pointmap"].gives == "pairs" and PriorWeights("pointmap", None, "mine", "CC0-1.0").notice


def test_a_focal_length_told_is_the_rays_slope(tmp_path):
    network().save(tmp_path / "w")
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    job = predict_pairs(images, [(0, 1)], find_weights("pointmap", str(tmp_path / "w")), "cpu", 2.0)
    while True:
        try:
            next(job)
        except StopIteration as end:
            points = end.value[0].points[0]
            break
    slope = points[0, 0, 0] / points[0, 0, 2]
    assert float(slope) == pytest.approx((0.5 - 16) / (2.0 * 32), rel=1e-3)
