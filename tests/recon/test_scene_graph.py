"""Pairs for pair priors: linear in the photos, all photos tied together, and the alike ones among them."""

import pytest
import torch

from recon.scene_graph import SceneGraphConfig, chosen_pairs, scene_graph, shared_features


def test_few_photos_are_all_paired():
    assert scene_graph([torch.zeros(8, 8, 3)] * 4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("count", [12, 24, 48])
def test_pairs_grow_with_the_photos(count):
    at = torch.arange(count)
    shared = (100 - 10 * (at[:, None] - at).abs()).clamp_min(0).fill_diagonal_(0)  # a walk past a wall
    pairs = chosen_pairs(shared, 4)
    assert len(pairs) <= 4 * count and all((i, i + 1) in pairs for i in range(count - 1))
    assert max(j - i for i, j in pairs) <= 4


def test_a_shuffled_walk_is_tied_together_by_what_is_alike():
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shared = (60 - 20 * (order[:, None] - order).abs()).clamp_min(0).fill_diagonal_(0)
    pairs = chosen_pairs(shared, 2)
    true = {tuple(sorted((int((order == k).nonzero()), int((order == k + 1).nonzero())))) for k in range(19)}
    assert true <= set(pairs)


def test_pictures_of_one_place_share_features():
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.nn.functional.interpolate(torch.rand(1, 3, 40, 60, generator=generator), (160, 240))[0].permute(1, 2, 0)
        for _ in range(2)
    )
    shared = shared_features([first, second, first.roll(16, 1)])
    assert shared[0, 2] > 2 * shared[0, 1] and torch.equal(shared, shared.T)
    assert (0, 2) in scene_graph([first, second, first.roll(16, 1)], SceneGraphConfig(all_up_to=1, neighbours=1))
