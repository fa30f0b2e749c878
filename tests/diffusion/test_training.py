"""The training loop: cut and resumed, refused where it should be, and the whole way from meshes to packed weights."""

import csv

import pytest
import torch
from torch import nn

from diffusion.objective.average import WeightAverage
from diffusion.training import TrainConfig, _restore, train
from splat.errors import InputError, StoppedLate


def run(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events


def line() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))


def loss(network: nn.Module, generator: torch.Generator):
    x = torch.randn(16, 3, generator=generator)
    error = (network(x)[:, 0] - x.sum(1)).square().mean()
    return error, {"double": 2 * float(error.detach())}


CONFIG = TrainConfig(steps=30, lr=0.05, warmup=5, log_every=10, average=0.9)


def test_a_run_that_was_cut_and_resumed_is_the_run_that_was_not(tmp_path):
    whole, _ = run(train(line(), loss, CONFIG, tmp_path / "whole"))

    def stops(network, generator):
        stops.calls += 1
        if stops.calls > 17:
            raise KeyboardInterrupt
        return loss(network, generator)

    stops.calls = 0
    job = train(line(), stops, TrainConfig(**{**vars(CONFIG), "save_every": 0.0}), tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        run(job)
    cut, events = run(train(line(), loss, CONFIG, tmp_path / "cut"))
    assert events[0].step == 20  # it went on from step 17, not from the start
    for a, b in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta")
def test_a_resumed_optimiser_lies_where_its_weights_do(tmp_path):
    """Counters too: AdamW's fused step on a GPU reads them there. "meta" stands in for the other device."""
    run(train(line(), loss, TrainConfig(**{**vars(CONFIG), "steps": 3}), tmp_path))
    network = line().to("meta")
    leaves = list(network.parameters())
    optimiser = torch.optim.AdamW(leaves)
    assert _restore(tmp_path / "state.safetensors", network, WeightAverage.of(network), optimiser, leaves) == 3
    assert {v.device.type for leaf in leaves for v in optimiser.state[leaf].values()} == {"meta"}
    assert all({"step", "exp_avg", "exp_avg_sq"} <= set(optimiser.state[leaf]) for leaf in leaves)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_run_on_a_gpu_goes_on_where_it_was_cut(tmp_path):
    def on_gpu(network, generator):
        x = torch.randn(16, 3, generator=generator).cuda()
        return (network(x)[:, 0] - x.sum(1)).square().mean(), {}

    whole, _ = run(train(line().cuda(), on_gpu, CONFIG, tmp_path / "whole"))
    sitting = TrainConfig(**{**vars(CONFIG), "minutes": 1e-9})
    for _ in range(CONFIG.steps):
        cut, _ = run(train(line().cuda(), on_gpu, sitting, tmp_path / "cut"))
    for a, b in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_sitting_ends_after_its_minutes_and_the_next_goes_on(tmp_path):
    config = TrainConfig(**{**vars(CONFIG), "minutes": 1e-9})
    for expected in (1, 2):
        _, events = run(train(line(), loss, config, tmp_path))
        assert [e.step for e in events] == [expected]


def test_another_seed_is_refused_another_rate_is_told_and_more_steps_are_what_one_asked_for(tmp_path):
    first = TrainConfig(**{**vars(CONFIG), "steps": 3})
    run(train(line(), loss, first, tmp_path))
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(InputError, match="was trained with seed 0, not 4; go on with its seed"):
        run(train(line(), loss, TrainConfig(**{**vars(CONFIG), "seed": 4}), tmp_path))
    assert (tmp_path / "state.safetensors").read_bytes() == before
    _, events = run(train(line(), loss, TrainConfig(**{**vars(CONFIG), "steps": 5, "log_every": 1}), tmp_path))
    assert [(e.stage, e.step) for e in events] == [("training", 4), ("training", 5)]
    _, events = run(train(line(), loss, TrainConfig(**{**vars(CONFIG), "steps": 6, "lr": 0.01, "average": 0.5}), tmp_path))
    assert events[0].stage == "notice"
    assert events[0].note == "Training goes on from step 5 with lr 0.01, average 0.5; up to there it was lr 0.05, average 0.9."


def test_log_and_sheet(tmp_path):
    seen = []

    def sheet(network):
        seen.append(network.training)
        return torch.rand(8, 8, 3), {"score": 0.5}

    config = TrainConfig(**{**vars(CONFIG), "sheet_every": 20})
    _, events = run(train(line(), loss, config, tmp_path, sheet))
    with (tmp_path / "log.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [int(r["step"]) for r in rows] == [10, 20, 30]
    assert float(rows[2]["loss"]) < float(rows[0]["loss"])
    assert float(rows[1]["double"]) == pytest.approx(2 * float(rows[1]["loss"]), rel=1e-4)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["sheet-000020.png", "sheet-000030.png"]
    assert seen == [False, False]
    assert [e.values["score"] for e in events if e.stage == "sheet"] == [0.5, 0.5]


def test_accumulated_gradients_are_the_mean(tmp_path):
    """One step of two halves moves as one step of the whole: same data, no dropout."""
    x = torch.randn(8, 3)

    def halves(network, generator):
        part = generator.initial_seed() % 64
        rows = x[4 * part : 4 * part + 4]
        return (network(rows)[:, 0] - rows.sum(1)).square().mean(), {}

    def whole(network, generator):
        return (network(x)[:, 0] - x.sum(1)).square().mean(), {}

    torch.manual_seed(0)
    weights = nn.Linear(3, 1).state_dict()
    results = []
    for name, own, accumulate in (("a", halves, 2), ("b", whole, 1)):
        network = nn.Linear(3, 1)
        network.load_state_dict(weights)
        config = TrainConfig(steps=1, lr=0.1, warmup=0, accumulate=accumulate, average=0.0)
        results.append(run(train(network, own, config, tmp_path / name))[0].weight.detach())
    assert torch.allclose(*results, atol=1e-6)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(StoppedLate, match="no longer finite at step 0"):
        run(train(line(), lambda n, g: (loss(n, g)[0] * float("nan"), {}), CONFIG, tmp_path))


def test_a_gradient_that_is_no_number_stops_the_run_before_it_reaches_a_weight(tmp_path):
    network = line()
    before = [p.clone() for p in network.parameters()]

    def steep(network, generator):
        value, figures = loss(network, generator)
        return value + 0 * network[0].weight.sum().abs().mul(0).sqrt(), figures  # sqrt at 0: value 0, slope infinite

    with pytest.raises(StoppedLate, match="gradient was no longer finite at step 0"):
        run(train(network, steep, CONFIG, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert not (tmp_path / "state.safetensors").exists()


@pytest.mark.parametrize("damage", ["other", "cut"])
def test_a_state_of_something_else_is_refused(tmp_path, damage):
    run(train(line(), loss, TrainConfig(**{**vars(CONFIG), "steps": 3}), tmp_path))
    state = tmp_path / "state.safetensors"
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:-50])
    network = line() if damage == "cut" else nn.Linear(3, 1)
    with pytest.raises(InputError, match="is not the state of this network"):
        run(train(network, loss, CONFIG, tmp_path))
