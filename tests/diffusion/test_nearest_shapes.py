"""Nearest known shapes against brute force and closed forms."""

import pytest
import torch
from tiny_objects import box

from diffusion.data.surface import surface_samples
from diffusion.nearest_shapes import POINTS, chamfer, known_shapes, nearest_shapes, thinned


def shapes(count: int = 40):
    g = torch.Generator().manual_seed(1)
    sizes = torch.rand(count, 3, generator=g) * 0.8 + 0.15
    return [surface_samples(box(size=tuple((s / s.max()).tolist())), 600, seed=i).points for i, s in enumerate(sizes)]


def test_chamfer_is_the_distance_between_two_points_and_halves_what_one_side_misses():
    a, b = torch.tensor([[0.0, 0, 0]]), torch.tensor([[0.3, 0.4, 0]])
    assert chamfer(a, b) == pytest.approx(0.5)
    assert chamfer(a, torch.cat([a, b])) == pytest.approx(0.125)  # (0 + mean(0, .5)) / 2


def test_the_nearest_shapes_are_those_of_a_search_through_all():
    known = shapes()
    queries = [p[torch.randperm(len(p))[:400]] * 1.02 for p in known[::4]]
    found = nearest_shapes(queries, known_shapes(known), count=3)
    for i, query in enumerate(queries):
        exact = torch.tensor([chamfer(query, k) for k in known]).topk(3, largest=False)
        assert found.rows[i].tolist() == exact.indices.tolist()
        torch.testing.assert_close(found.distances[i], exact.values)


def test_what_is_left_out_is_not_found():
    known = shapes(8)
    left_out = torch.eye(8, dtype=torch.bool)
    found = nearest_shapes(known, known_shapes(known), count=7, left_out=left_out)
    assert not (found.rows == torch.arange(8)[:, None]).any()
    assert (nearest_shapes(known, known_shapes(known), count=1).distances == 0).all()
    with pytest.raises(AssertionError, match="fewer known shapes"):
        nearest_shapes(known, known_shapes(known), count=8, left_out=left_out)


def test_thinning_keeps_small_sets_and_is_even_and_repeatable():
    points = torch.rand(5 * POINTS, 3)
    kept = thinned(points)
    assert len(kept) == POINTS and torch.equal(kept, thinned(points))
    assert len(kept.unique(dim=0)) == POINTS
    torch.testing.assert_close(kept.mean(0), points.mean(0), atol=0.05, rtol=0)
    assert thinned(points[:10]) is not None and torch.equal(thinned(points[:10]), points[:10])
