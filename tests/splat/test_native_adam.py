"""The fused Adam against torch's."""

import pytest
import torch

from splat.render import native
from splat.render.native.adam import NativeAdam

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
SHAPES = [(1, 3), (50_000, 3), (17,), (0, 4), (333, 15, 3)]


def parameters(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g).requires_grad_() for shape in SHAPES]


def stepped(make, steps=5, seed=0):
    values = parameters(seed)
    optimiser = make([{"params": [p], "lr": 0.1 / (k + 1)} for k, p in enumerate(values)])
    g = torch.Generator().manual_seed(seed + 1)
    for step in range(steps):
        for k, p in enumerate(values):
            scale = 10.0 ** (k - 3)
            p.grad = None if (k, step) == (1, 2) else scale * torch.randn(p.shape, generator=g) * (torch.rand(p.shape) > 0.2)
        optimiser.step()
    return values, [optimiser.state[p] for p in values]


@pytest.mark.parametrize("eps", [1e-8, 1e-15])
def test_same_values_and_state_as_torch(eps):
    torch.manual_seed(0)
    expected, expected_state = stepped(lambda groups: torch.optim.Adam(groups, eps=eps, fused=True))
    torch.manual_seed(0)
    found, state = stepped(lambda groups: NativeAdam(groups, eps=eps))
    for a, b, s, t in zip(found, expected, state, expected_state):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
        assert s.keys() == t.keys() and float(s["step"]) == float(t["step"])
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(s[key], t[key], rtol=1e-5, atol=1e-6 * float(t[key].norm()))
    assert float(state[1]["step"]) == 4  # the step without a gradient did not count


@pytest.mark.parametrize("terms", [1, 4, 9, 16])
def test_two_rates_in_one_row_are_two_groups(terms):
    g = torch.Generator().manual_seed(0)
    whole = torch.randn(1001, terms, 3, generator=g).requires_grad_()
    head, later = (x.detach().clone().requires_grad_() for x in (whole[:, :1], whole[:, 1:]))
    one = NativeAdam([{"params": [whole], "lr": 0.1, "lr_later": 0.01, "head": 3}])
    two = NativeAdam([{"params": [head], "lr": 0.1}, {"params": [later], "lr": 0.01}])
    for _ in range(3):
        whole.grad = torch.randn(whole.shape, generator=g)
        head.grad, later.grad = whole.grad[:, :1].contiguous(), whole.grad[:, 1:].contiguous()
        one.step()
        two.step()
    assert torch.equal(whole, torch.cat([head, later], dim=1))


def test_same_bits_for_any_number_of_threads():
    results = []
    for threads in (1, 2, 3):
        torch.manual_seed(0)
        results.append(stepped(lambda groups, threads=threads: NativeAdam(groups, threads=threads))[0])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_a_change_before_backward_is_noticed():
    x = torch.ones(3, requires_grad=True)
    loss = x.square().sum()
    x.grad = torch.ones(3)
    NativeAdam([x]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    "wrong", [torch.ones(4).double(), torch.ones(4).half(), torch.ones(4, 3).mT, torch.ones(4, device="meta")]
)
def test_wrong_parameters_are_python_errors(wrong):
    wrong.requires_grad_()
    wrong.grad = torch.ones_like(wrong)
    with pytest.raises(TypeError, match="contiguous float32"):
        NativeAdam([wrong]).step()
