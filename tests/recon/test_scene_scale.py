"""A network's depth is fitted to what is measured: exactly where it is right, robustly, and not at all where it is wrong."""

import pytest
import torch

from recon.priors.depth_guess import DepthGuess
from recon.priors.scene_scale import SceneScale, fit_to_scene


def scene(seed=0):
    """[40, 60] true depth of a slanted floor with a box on it."""
    v, u = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    depth = 4 - 0.05 * v + 0.004 * u
    depth[10:25, 20:40] = 1.7
    return depth


def guess_of(depth, kind, scale=0.4, offset=-0.07):
    truth = 1 / depth if kind == "inverse" else depth
    return DepthGuess("a", (truth - (0 if kind == "scaled" else offset)) / scale, kind)


def known_part(depth, seed=0, share=0.3):
    g = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(depth.shape, generator=g) < share, depth, 0.0)


@pytest.mark.parametrize("kind", ["inverse", "affine", "scaled"])
def test_an_exact_guess_gives_its_scale_and_offset_back(kind):
    depth = scene()
    known = known_part(depth)
    fit = fit_to_scene(guess_of(depth, kind), known, (known > 0).float())
    assert isinstance(fit, SceneScale)
    assert fit.scale == pytest.approx(0.4, rel=1e-4) and fit.offset == pytest.approx(0 if kind == "scaled" else -0.07, abs=1e-4)
    torch.testing.assert_close(fit.depth(guess_of(depth, kind).values), depth, rtol=1e-4, atol=0)
    assert fit.agreeing == pytest.approx(1) and fit.error < 1e-4


@pytest.mark.parametrize("kind", ["inverse", "affine", "scaled"])
def test_a_third_of_wrong_measurements_does_not_move_the_fit(kind):
    depth = scene()
    known = known_part(depth)
    g = torch.Generator().manual_seed(5)
    wrong = torch.rand(depth.shape, generator=g) < 0.33
    known = torch.where(wrong, known * (1.3 + torch.rand(depth.shape, generator=g)), known)
    noisy = guess_of(depth, kind)
    noisy = DepthGuess("a", noisy.values * (1 + 0.01 * torch.randn(depth.shape, generator=g)), kind)
    fit = fit_to_scene(noisy, known, (known > 0).float())
    error = (fit.depth(guess_of(depth, kind).values) / depth - 1).abs()
    assert float(error.max()) < 0.03, float(error.max())  # plain least squares is off by more than 10 %
    assert 0.6 < fit.agreeing < 0.75


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda g, k: (DepthGuess("a", torch.rand(40, 60), g.kind), k), "agrees with|grow"),
        (lambda g, k: (DepthGuess("a", -g.values, g.kind), k), "grow|agrees with"),
        (lambda g, k: (DepthGuess("a", torch.full((40, 60), torch.nan), g.kind), k), "only 0"),
        (lambda g, k: (g, torch.where(torch.arange(60) < 1, k, 0.0)), r"only \d+ of its pixels"),
        (lambda g, k: (g, torch.where(k > 0, 2.0, 0.0)), "at one depth"),
        (lambda g, k: (DepthGuess("a", torch.ones(40, 60), g.kind), k), "grow|agrees with"),
    ],
    ids=["noise", "upside down", "NaN", "nothing known", "flat", "constant"],
)
@pytest.mark.parametrize("kind", ["inverse", "affine"])
def test_a_guess_that_cannot_be_fitted_is_refused_with_the_reason(kind, change, word):
    import re

    depth = scene()
    guess, known = change(guess_of(depth, kind), known_part(depth))
    told = fit_to_scene(guess, known, (known > 0).float())
    assert isinstance(told, str) and re.search(word, told), told


def test_a_fit_is_not_believed_far_beyond_what_is_known():
    depth = scene()
    known = known_part(depth)
    fit = fit_to_scene(guess_of(depth, "inverse"), known, (known > 0).float())
    far, sky, near = guess_of(torch.tensor([[20.0, 1e9, 0.3]]), "inverse").values[0]
    assert fit.depth(torch.stack([far, sky, near, torch.tensor(torch.nan)])[None]).tolist() == [[0, 0, 0, 0]]
    below = torch.tensor([[-5.0]])  # inverse depth below zero is nowhere
    assert float(fit.depth(below)) == 0
