"""PSNR, SSIM and the photometric loss against formulas and an independent implementation."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from splat.losses import photometric
from splat.metrics import psnr, ssim, ssim_map

F64 = torch.float64


def pair(seed=0, shape=(2, 24, 31, 3), noise=0.1):
    g = torch.Generator().manual_seed(seed)
    truth = torch.rand(shape, generator=g, dtype=F64)
    return (truth + noise * torch.randn(shape, generator=g, dtype=F64)).clamp(0, 1), truth


def scipys_ssim(a, b):
    """Wang et al. 2004 with scipy's Gaussian of radius 5, zeros outside, per channel; [H, W, 3] -> [H, W, 3]."""

    def blur(x):
        return gaussian_filter(x, sigma=(1.5, 1.5, 0), truncate=5 / 1.5, mode="constant")

    a, b = a.numpy(), b.numpy()
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    c1, c2 = 1e-4, 9e-4
    return (2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))


class TestPSNR:
    def test_known_values(self):
        truth = torch.full((4, 5, 3), 0.5)
        assert float(psnr(truth + 0.1, truth)) == pytest.approx(20, abs=1e-4)
        assert float(psnr(truth + 0.01, truth)) == pytest.approx(40, abs=1e-3)
        assert float(psnr(truth, truth)) == pytest.approx(100)

    def test_each_image_of_a_batch_by_itself(self):
        image, truth = pair()
        image[1] = truth[1]
        values = psnr(image, truth)
        assert values.shape == (2,) and values[1] == pytest.approx(100)
        assert values[0] == pytest.approx(float(-10 * (image[0] - truth[0]).square().mean().log10()))

    def test_mask_weighs_pixels(self):
        truth = torch.zeros(4, 4, 3)
        image = truth.clone()
        image[:2] = 0.1
        image[2:] = 1.0
        mask = torch.zeros(4, 4)
        mask[:2] = 1
        assert float(psnr(image, truth, mask)) == pytest.approx(20, abs=1e-4)
        mask[2:] = 0.5  # 8 pixels of 0.01 and 8 half pixels of 1
        assert float(psnr(image, truth, mask)) == pytest.approx(-10 * np.log10((8 * 0.01 + 4 * 1) / 12), abs=1e-4)


class TestSSIM:
    def test_is_the_one_computed_with_scipy(self):
        image, truth = pair()
        for i in range(2):
            np.testing.assert_allclose(ssim_map(image, truth)[i], scipys_ssim(image[i], truth[i]), atol=1e-10)
            assert float(ssim(image, truth)[i]) == pytest.approx(scipys_ssim(image[i], truth[i]).mean())

    def test_flat_images_have_the_luminance_term_alone(self):
        a, b = torch.full((1, 30, 30, 3), 0.2, dtype=F64), torch.full((1, 30, 30, 3), 0.6, dtype=F64)
        expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
        inside = ssim_map(a, b)[:, 5:-5, 5:-5]
        torch.testing.assert_close(inside, torch.full_like(inside, expected))

    def test_one_for_equal_images_symmetric_and_falls_with_noise(self):
        image, truth = pair()
        torch.testing.assert_close(ssim(truth, truth), torch.ones(2, dtype=F64))
        torch.testing.assert_close(ssim(image, truth), ssim(truth, image))
        noisier, _ = pair(noise=0.3)
        assert (ssim(noisier, truth) < ssim(image, truth) - 0.1).all()

    def test_leading_dimensions(self):
        image, truth = pair(shape=(2, 3, 12, 13, 3))
        assert ssim(image, truth).shape == (2, 3) and ssim(image[0, 0], truth[0, 0]).shape == ()
        torch.testing.assert_close(ssim(image, truth)[1, 2], ssim(image[1, 2], truth[1, 2]))

    def test_smaller_than_the_window(self):
        image, truth = pair(shape=(1, 3, 4, 3))
        np.testing.assert_allclose(ssim_map(image, truth)[0], scipys_ssim(image[0], truth[0]), atol=1e-10)


class TestPhotometric:
    @pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
    def test_weighs_l1_and_dissimilarity(self, weight):
        image, truth = pair()
        expected = (1 - weight) * (image - truth).abs().mean() + weight * (1 - ssim(image, truth).mean())
        assert float(photometric(image, truth, weight)) == pytest.approx(float(expected), rel=1e-9)

    @pytest.mark.parametrize("weight", [0.0, 0.2])
    def test_float32_has_the_same_value_and_gradient(self, weight):
        """The fused kernel, where it is built."""
        image, truth = pair(shape=(1, 40, 37, 3))
        gradients = []
        for dtype in (F64, torch.float32):
            x = image.detach().clone().to(dtype).requires_grad_()
            value = photometric(x, truth.to(dtype), weight)
            value.backward()
            gradients.append((float(value.detach()), x.grad.to(F64)))
        assert gradients[1][0] == pytest.approx(gradients[0][0], abs=1e-5)
        scale = gradients[0][1].abs().max()
        assert (gradients[1][1] - gradients[0][1]).abs().max() < 1e-3 * scale
