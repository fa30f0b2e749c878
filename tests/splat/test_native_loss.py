"""The fused L1 + SSIM against the plain one."""

import pytest
import torch

from splat.metrics import ssim_map
from splat.render import native
from splat.render.native.loss import fused_l1_ssim

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")


def plain(image, target, ssim_weight, weight=None):
    weight = torch.ones(image.shape[:-1], dtype=image.dtype) if weight is None else weight
    total = 3 * weight.sum()
    l1 = ((image - target).abs() * weight[..., None]).sum() / total
    similarity = (ssim_map(image, target) * weight[..., None]).sum() / total
    return (1 - ssim_weight) * l1 + ssim_weight * (1 - similarity)


@pytest.mark.parametrize("height, width", [(1, 1), (3, 17), (11, 11), (37, 50), (65, 33)])
@pytest.mark.parametrize("ssim_weight", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weighed", [False, True])
def test_same_value_and_gradient_as_the_plain_loss(height, width, ssim_weight, weighed):
    g = torch.Generator().manual_seed(height * 100 + width)
    target = torch.rand(2, height, width, 3, generator=g)
    image = (target + 0.2 * torch.randn(target.shape, generator=g)).requires_grad_()
    weight = (torch.rand(2, height, width, generator=g) > 0.3).float() if weighed and height > 1 else None
    truth = image.detach().double().requires_grad_()
    expected = plain(truth, target.double(), ssim_weight, None if weight is None else weight.double())
    expected.backward()
    loss = fused_l1_ssim(image, target, ssim_weight, weight)
    (3 * loss).backward()
    assert abs(loss.item() - expected.item()) < 1e-5
    assert (image.grad / 3 - truth.grad).norm() <= 1e-4 * truth.grad.norm()


def test_flat_images_and_equal_images():
    flat = torch.full((1, 20, 20, 3), 0.5, requires_grad=True)
    loss = fused_l1_ssim(flat, torch.full((1, 20, 20, 3), 0.5), 0.2)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert flat.grad.abs().max() < 1e-6


def test_same_bits_for_any_number_of_threads():
    g = torch.Generator().manual_seed(0)
    target = torch.rand(3, 70, 41, 3, generator=g)
    results = []
    for threads in (1, 2, 3):
        image = (target * 0.9).requires_grad_()
        loss = fused_l1_ssim(image, target, 0.2, threads=threads)
        loss.backward()
        results.append((loss.detach(), image.grad))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(gradient, results[0][1])


def test_weight_of_zero_everywhere_is_a_loss_of_zero():
    image = torch.rand(5, 6, 3, requires_grad=True)
    loss = fused_l1_ssim(image, torch.rand(5, 6, 3), 0.2, torch.zeros(5, 6))
    loss.backward()
    assert loss.item() == 0 and not image.grad.any()


@pytest.mark.parametrize(
    "image, target",
    [
        (torch.rand(4, 4, 3).double(), torch.rand(4, 4, 3).double()),
        (torch.rand(4, 4, 3), torch.rand(4, 5, 3)),
        (torch.rand(4, 4, 4), torch.rand(4, 4, 4)),
        (torch.rand(0, 4, 3), torch.rand(0, 4, 3)),
        (torch.rand(4, 4, 3), torch.rand(4, 4, 3, requires_grad=True)),
    ],
)
def test_wrong_tensors_are_python_errors(image, target):
    with pytest.raises((TypeError, ValueError)):
        fused_l1_ssim(image, target, 0.2)
